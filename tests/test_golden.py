"""Formulas: the trajectories that Keras and PyTorch computed (golden/README.md)."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from fusedstep import LossScaleOptimizer, Nadam, Optimizer, schedules
from fusedstep.optimizers import ALL

GOLDEN = np.load(Path(__file__).parent / "golden" / "golden.npz")
META = json.loads(str(GOLDEN["meta"]))
CLASSES: dict[str, type[Optimizer]] = {cls.__name__: cls for cls in ALL} | {"NAdam": Nadam}

# Names and defaults of PyTorch's where they differ from Keras'.
TORCH_NAMES = {"lr": "learning_rate", "eps": "epsilon", "alpha": "rho", "lr_decay": "learning_rate_decay"}
SLOT_NAMES = {
    "momentum_buffer": "momentum",
    "exp_avg": "momentum",
    "exp_avg_sq": "velocity",
    "max_exp_avg_sq": "velocity_hat",
    "square_avg": "velocity",
    "Adadelta.square_avg": "accumulated_grad",
    "grad_avg": "average_gradient",
    "sum": "accumulator",
    "acc_delta": "accumulated_delta_var",
    "exp_inf": "norm",
}
TORCH_DEFAULTS: dict[str, dict[str, Any]] = {
    "SGD": {"form": "torch"},
    "Adam": {"learning_rate": 1e-3, "epsilon": 1e-8},
    "AdamW": {"learning_rate": 1e-3, "epsilon": 1e-8, "weight_decay": 0.01},
    "RMSprop": {"learning_rate": 0.01, "rho": 0.99, "epsilon": 1e-8, "form": "torch"},
    "Adagrad": {"learning_rate": 0.01, "epsilon": 1e-10, "initial_accumulator_value": 0.0, "form": "torch"},
    "Adadelta": {"learning_rate": 1.0, "rho": 0.9, "epsilon": 1e-6},
    "Adamax": {"learning_rate": 2e-3, "epsilon": 1e-8, "form": "torch"},
    "NAdam": {"learning_rate": 2e-3, "epsilon": 1e-8, "momentum_decay": 4e-3},
    "RAdam": {"learning_rate": 1e-3, "epsilon": 1e-8},
}


def keras_arguments(case: dict[str, Any]) -> dict[str, Any]:
    arguments = dict(case["kw"])
    if case["cls"] in ("Adam", "AdamW"):
        arguments["epsilon_hat"] = True
    if "schedule" in case:
        arguments["learning_rate"] = make_schedule(*case["schedule"])
    return arguments


def torch_arguments(case: dict[str, Any]) -> dict[str, Any]:
    arguments = dict(TORCH_DEFAULTS[case["cls"]])
    decoupled = case["cls"] == "AdamW" or case["kw"].get("decoupled_weight_decay", False)
    for name, value in case["kw"].items():
        if name == "betas":
            arguments["beta_1"], arguments["beta_2"] = value
        elif name == "weight_decay" and not decoupled:
            arguments["l2"] = value
        elif name == "decoupled_weight_decay":
            continue
        else:
            arguments[TORCH_NAMES.get(name, name)] = value
    return arguments


def make_schedule(name: str, arguments: dict[str, Any]) -> schedules.LearningRateSchedule:
    schedule: schedules.LearningRateSchedule = getattr(schedules, name)(**arguments)
    return schedule


ARGUMENTS = {"keras": keras_arguments, "torch": torch_arguments}


def covered(library: str) -> list[tuple[str, int]]:
    """The cases of the optimizers and options that there are."""
    found = []
    for index, case in enumerate(META["libs"][library]["main"]):
        cls = CLASSES.get(case["cls"])
        if cls is None:
            continue
        if ARGUMENTS[library](case).keys() <= cls._hyperparameters.keys():
            found.append((library, index))
    return found


CASES = covered("keras") + covered("torch")


def test_number_of_cases() -> None:
    """A change that drops cases silently is seen here."""
    assert (len(covered("keras")), len(covered("torch"))) == (88, 31)


def run(
    case: dict[str, Any], optimizer: Optimizer, dtype: Any
) -> tuple[npt.NDArray[Any], dict[str, npt.NDArray[Any]]]:
    """The concatenated variables after each step, and the slots after the last."""
    arrays = META["suites"]["main"]
    start = GOLDEN["suite/main/params"].astype(dtype)
    variables = {a["name"]: start[a["start"] : a["stop"]].reshape(a["shape"]).copy() for a in arrays}
    optimizer.build(variables)
    optimizer.exclude_from_weight_decay(var_names=case.get("exclude", []))
    trajectory = []
    for step, flat in enumerate(GOLDEN["suite/main/grads"].astype(dtype) * dtype(case.get("grad_scale", 1))):
        if str(step) in case.get("set_lr", {}):
            optimizer.learning_rate = case["set_lr"][str(step)]
        grads = {a["name"]: flat[a["start"] : a["stop"]].reshape(a["shape"]) for a in arrays}
        grads |= dict.fromkeys(case.get("none", {}).get(str(step), []))
        names = case.get("order", {}).get(str(step), list(variables))
        optimizer.apply([grads[name] for name in names], [variables[name] for name in names])
        trajectory.append(np.concatenate([variable.ravel() for variable in variables.values()]))
    slots: dict[str, npt.NDArray[Any]] = {}
    for name in optimizer.slots(variables["w"]):
        slots[name] = np.concatenate([optimizer.slots(v)[name].ravel() for v in variables.values()])
    if "iterations" in case.get("end", {}):
        assert optimizer.iterations == case["end"]["iterations"]
    if isinstance(optimizer, LossScaleOptimizer):
        assert optimizer.dynamic_scale == case["end"]["dynamic_scale"]
    return np.array(trajectory), slots


def largest_so_far(trajectory: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The largest magnitude that each element has had, after each step."""
    with_start = np.vstack([GOLDEN["suite/main/params"], trajectory]).astype(np.float64)
    return np.maximum(np.maximum.accumulate(np.abs(with_start))[1:], 1e-30)


@pytest.mark.parametrize(
    ("library", "index"), CASES, ids=[f"{lib}-{META['libs'][lib]['main'][i]['id']}" for lib, i in CASES]
)
def test_trajectory(library: str, index: int) -> None:
    case = META["libs"][library]["main"][index]

    def make() -> Optimizer:
        optimizer = CLASSES[case["cls"]](**ARGUMENTS[library](case))
        return LossScaleOptimizer(optimizer, **case["wrap"]) if "wrap" in case else optimizer

    in_float32, slots = run(case, make(), np.float32)
    in_float64, _ = run(case, make(), np.float64)
    theirs = GOLDEN[f"{library}/main/p32"][index].astype(np.float64)
    scale = largest_so_far(theirs)
    assert np.max(np.abs(in_float32 - theirs) / scale) < 5e-5
    assert np.max(np.abs(in_float64[-1] - GOLDEN[f"{library}/main/p64_last"][index]) / scale[-1]) < 1e-6
    for row, name in enumerate(case["slots"]):
        their_slot = GOLDEN[f"{library}/main/slots"][index, row].astype(np.float64)
        our_name = SLOT_NAMES.get(f"{case['cls']}.{name}", SLOT_NAMES.get(name, name))
        difference = np.abs(slots[our_name] - their_slot)
        assert np.max(difference) <= 5e-5 * np.max(np.abs(their_slot))


SPARSE = json.loads(str(GOLDEN["sparse/cases"]))


@pytest.mark.parametrize("rows", ["unique", "duplicate"])
@pytest.mark.parametrize(("name", "arguments"), SPARSE, ids=[name for name, _ in SPARSE])
def test_trajectory_of_sparse_gradients(name: str, arguments: dict[str, Any], rows: str) -> None:
    """As TensorFlow's tf_keras computed them, which sums duplicate rows."""
    cls = CLASSES[name.partition(".")[0]]
    optimizer = cls(**arguments | ({"epsilon_hat": True} if name == "Adam" else {}))
    index = [case[0] for case in SPARSE].index(name)
    w = GOLDEN["sparse/params0"].copy()
    trajectory = []
    for step in range(5):
        gradient = tuple(GOLDEN[f"sparse/{rows}/{part}{step}"] for part in ("indices", "values"))
        optimizer.apply([gradient], [w])
        trajectory.append(w.copy())
    theirs = GOLDEN[f"sparse/{rows}/tfkeras"][index].astype(np.float64)
    with_start = np.abs(np.concatenate([GOLDEN["sparse/params0"][None], theirs]))
    scale = np.maximum.accumulate(with_start)[1:]
    assert np.max(np.abs(np.array(trajectory) - theirs) / scale) < 5e-5


SCHEDULES = {
    name: make_schedule(name.partition(".")[0], arguments) for name, arguments in META["schedules"].items()
}


def test_every_schedule_has_golden_rates() -> None:
    tried = {type(schedule).__name__ for schedule in SCHEDULES.values()}
    assert tried == set(schedules.__all__) - {"LearningRateSchedule"}


@pytest.mark.parametrize("name", SCHEDULES)
def test_rates_of_schedules(name: str) -> None:
    row = list(SCHEDULES).index(name)
    rates = [SCHEDULES[name](step) for step in range(GOLDEN["sched64"].shape[1])]
    in_float32 = "Cosine" in name  # Keras' cosines are so even where all else is float64
    np.testing.assert_allclose(rates, GOLDEN["sched64"][row], rtol=2e-7 if in_float32 else 1e-14)
    np.testing.assert_allclose(rates, GOLDEN["sched32"][row], rtol=1e-5)
