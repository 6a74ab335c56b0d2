"""DeepSpeed's CPUAdam, which compiles itself at its first use."""

import contextlib
import os

from bench.contestants.contestant import Contestant, Given, UnavailableError, first_line, import_peer
from bench.contestants.pytorch import arrays_of, parameters, scaling_of


def make(given: Given) -> Contestant:
    """Step on PyTorch's tensors."""
    given.refuse(optimizers=("adam", "adamw"), steps=("plain",), dtypes=("float32", "bfloat16", "float16"))
    import_peer("torch").set_num_threads(given.threads)
    adam = import_peer("deepspeed.ops.adam").DeepSpeedCPUAdam
    params, h = parameters(given), given.definition.arguments
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            opt = adam(
                params,
                lr=given.learning_rate,
                betas=(h["beta_1"], h["beta_2"]),
                eps=h["epsilon"],
                weight_decay=h.get("weight_decay", 0),
                adamw_mode=given.workload.optimizer == "adamw",
            )
    except Exception as error:  # whatever goes wrong in its build
        raise UnavailableError(first_line(error)) from error
    return Contestant(opt.step, lambda: arrays_of(params), scaling_of(given, params))
