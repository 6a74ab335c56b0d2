"""Fused optimizer steps: one native call updates every array in place, in one pass over memory.

>>> import numpy as np
>>> import fusedstep
>>> w = np.array([2.0, 5.0], dtype=np.float32)
>>> opt = fusedstep.SGD(learning_rate=0.1)
>>> opt.apply_gradients([(2 * w, w)])
1
>>> w
array([1.6, 4. ], dtype=float32)
"""

from fusedstep import schedules
from fusedstep.clipping import clip_by_global_norm, clip_by_norm, clip_by_value, global_norm
from fusedstep.optimizers import (
    SGD,
    Adadelta,
    Adagrad,
    Adam,
    Adamax,
    AdamW,
    CustomOptimizer,
    Ftrl,
    Lamb,
    Lion,
    LossScaleOptimizer,
    Nadam,
    Optimizer,
    RAdam,
    RMSprop,
    get,
    hyperparameter,
)
from fusedstep.runtime import (
    build_info,
    get_num_threads,
    select_target_from_environment,
    set_num_threads,
)
from fusedstep.schedules import (
    CosineDecay,
    CosineDecayRestarts,
    ExponentialDecay,
    InverseTimeDecay,
    LearningRateSchedule,
    PiecewiseConstantDecay,
    PolynomialDecay,
)
from fusedstep.serialization import deserialize, register, serialize
from fusedstep.version import __version__

__all__ = [
    "SGD",
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "CosineDecay",
    "CosineDecayRestarts",
    "CustomOptimizer",
    "ExponentialDecay",
    "Ftrl",
    "InverseTimeDecay",
    "Lamb",
    "LearningRateSchedule",
    "Lion",
    "LossScaleOptimizer",
    "Nadam",
    "Optimizer",
    "PiecewiseConstantDecay",
    "PolynomialDecay",
    "RAdam",
    "RMSprop",
    "__version__",
    "build_info",
    "clip_by_global_norm",
    "clip_by_norm",
    "clip_by_value",
    "deserialize",
    "get",
    "get_num_threads",
    "global_norm",
    "hyperparameter",
    "register",
    "schedules",
    "serialize",
    "set_num_threads",
]

select_target_from_environment()
