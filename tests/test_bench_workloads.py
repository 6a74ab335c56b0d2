"""bench: workloads as data, the values that steps start from, and that all compute the same."""

import gc
import importlib.util
import os
import signal
import subprocess
import sys
import threading
import time
from multiprocessing import Pipe
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rich", reason="needs the bench extra")

from bench import errors
from bench.commands import chosen_contestants, chosen_groups
from bench.contestants import (
    CPU,
    CUDA,
    FUSEDSTEP,
    KERAS_BACKENDS,
    NUMPY,
    PAIRS,
    PYTORCH,
    SAME_BYTES,
    YARDSTICKS,
    UnavailableError,
    make,
    same_bytes,
)
from bench.contestants.contestant import Contestant, first_line, start
from bench.contestants.deepspeed import time_limit
from bench.contestants.worker import Worker, serve, stop_workers
from bench.goals import GOALS
from bench.models import MODELS
from bench.optimizers import OPTIMIZERS
from bench.workloads import (
    CONDITIONS,
    DTYPES,
    SETS,
    STEPS,
    UnknownWorkloadError,
    Workload,
    workload,
)
from reference import slot_names

ALL_NAMES = [name for _, groups in SETS.values() for group in groups for name in group]


@pytest.mark.parametrize(
    ("model", "arrays", "elements"),
    [("resnet50", 161, 25_557_032), ("gpt2", 148, 124_439_808), ("llama1b", 201, 1_100_048_384)],
)
def test_models_have_as_many_parameters_as_published(model: str, arrays: int, elements: int) -> None:
    assert len(MODELS[model]) == arrays
    assert workload(model).elements == elements


@pytest.mark.parametrize("name", sorted(set(ALL_NAMES)))
def test_a_name_says_all(name: str) -> None:
    assert workload(name).name == name
    assert workload(name).shapes


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("step", STEPS)
def test_any_combination_has_a_name(optimizer: str, dtype: str, step: str) -> None:
    for condition in CONDITIONS:
        made = Workload("mlp", optimizer, dtype, step, condition)
        assert workload(made.name) == made


@pytest.mark.parametrize(
    "name", ["nothing", "3", "0x5", "3x5-adam-adam", "3x5-cold-float64", "3x5-quick", "3x5-mixed"]
)
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(UnknownWorkloadError, match=name.split("-")[-1]):
        workload(name)


def test_goals_are_of_workloads_that_are_measured() -> None:
    measured = [name for chosen in ("goals", "adapters") for group in SETS[chosen][1] for name in group]
    for goal in GOALS:
        assert any(goal.text.startswith((f"{name} ", f"{name}:")) for name in measured), goal.text


@pytest.mark.parametrize(
    ("name", "per_element"),
    [
        ("3x8", 28),  # g in; p, m and v in and out
        ("3x8-sgd", 12),
        ("3x8-bfloat16", 22),
        ("3x8-float64", 56),
        ("3x8-clip", 32),
        ("3x8-adamw-clip-ema", 40),
    ],
)
def test_bytes_that_a_step_must_move(name: str, per_element: int) -> None:
    assert workload(name).step_bytes == per_element * 24


def test_a_sparse_step_moves_the_rows_that_it_touches() -> None:
    assert workload("1x64-sparse").step_bytes == 28 * 4


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_slots_are_as_many_as_the_library_keeps(name: str) -> None:
    assert len(slot_names(OPTIMIZERS[name].build(0.1))) == OPTIMIZERS[name].slots


@pytest.mark.parametrize("dtype", DTYPES)
def test_values_are_ordinary(dtype: str) -> None:
    """Subnormal numbers and zeros would make every kernel slower, or faster, than it is."""
    variables, gradients = start(Workload("mlp", dtype=dtype))
    for array in (*variables, *gradients):
        values = np.abs(array.astype(np.float64))
        assert values.min() > 1e-7
        assert values.max() < 10


def test_an_offset_is_an_element_past_a_cache_line() -> None:
    variables, gradients = start(workload("3x8-offset"))
    for array in (*variables, *gradients):
        assert array.ctypes.data % 64 == array.itemsize


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("step", STEPS)
def test_ours_have_no_error(name: str, dtype: str, step: str) -> None:
    """What is timed is what the tests define: every bit of it."""
    for contestant in (FUSEDSTEP, PAIRS):
        assert errors.error(contestant, Workload("1x64", name, dtype, step), threads=2) == 0


def test_an_error_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A contestant that computes something else, here with another rate of decay."""
    assert 0 < errors.error(NUMPY, workload("1x64"), threads=1) < 1e-6
    expected = errors.definition
    monkeypatch.setattr(errors, "definition", lambda small, form: expected(small, form | {"beta_2": 0.9}))
    assert errors.error(NUMPY, workload("1x64"), threads=1) > 1e-4


@pytest.mark.parametrize("number", range(len(errors.FEW)))
def test_nan_in_any_array_is_seen(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def makes_nan(*arguments: Any, **more: Any) -> Contestant:
        made = make(*arguments, **more)
        made.variables()[number][...] = np.nan
        return made

    monkeypatch.setattr(errors, "make", makes_nan)
    assert np.isnan(errors.error(NUMPY, workload("1x64"), threads=1))


@pytest.mark.parametrize("name", [name for name in CPU if name not in YARDSTICKS])
@pytest.mark.parametrize("step", ["plain", "clip-ema", "sparse"])
def test_peers_compute_the_same(name: str, step: str) -> None:
    """Those that are installed and have such a step, to some bits of float32."""
    if CPU[name].environment:
        pytest.skip("in a process of its own, after many seconds of imports")
    try:
        assert errors.error(name, Workload("1x64", step=step), threads=1) < 1e-5
    except UnavailableError as refusal:
        pytest.skip(str(refusal))


@pytest.mark.parametrize(
    "name", ["3x1000", "3x1000-sgd", "3x1001-float64", "mlp-mixed", "3x999-adamw-clip-ema", "1x640-sparse"]
)
def test_the_same_bytes_are_touched(name: str) -> None:
    """The yardstick changes every variable, and writes no byte past their ends."""
    measured = workload(name)
    made = make(SAME_BYTES, measured, threads=2)
    before = start(measured)[0]
    made.time(1)
    for variable, former in zip(made.variables(), before, strict=True):
        changed = variable.view(np.uint8) != former.view(np.uint8)
        if measured.step != "sparse":
            assert changed.reshape(variable.size, -1).any(axis=1).all()
        else:
            assert 0 < changed.reshape(variable.size, -1).any(axis=1).sum() <= variable.size // 16


@pytest.mark.parametrize(
    ("compiler", "refusal"),
    [
        ("c++ -O1", ""),
        ("", ""),
        ("none-such -O1", "there is no C.. compiler 'none-such'"),
        ("c++ -none", "c.. -none failed"),
    ],
)
def test_the_compiler_of_the_yardstick(compiler: str, refusal: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """CXX as builds take it, with words before or after the compiler's name."""
    monkeypatch.setenv("CXX", compiler)
    build = same_bytes._library.__wrapped__
    if refusal:
        with pytest.raises(UnavailableError, match=refusal):
            build()
    else:
        build()


def test_what_is_chosen() -> None:
    assert chosen_groups(["call", "mlp"]) == (["1x1"], ["1000x1"], ["mlp"])
    assert chosen_groups(["mlp-clip"], ["sgd", "adam"], ["float64"]) == (
        ["mlp-sgd-float64-clip", "mlp-float64-clip"],
    )
    assert chosen_groups(["1000x256", "mlp", "1000x256"]) == (["1000x256"], ["mlp"])  # none twice
    with pytest.raises(UnknownWorkloadError):
        chosen_groups(["mlp"], ["none-such"])
    assert PYTORCH not in chosen_contestants(["none"], "cpu")
    assert chosen_contestants([PYTORCH], "cpu") == [FUSEDSTEP, PAIRS, PYTORCH, SAME_BYTES]
    assert set(chosen_contestants(["usual"], "cpu")) < set(chosen_contestants(["all"], "cpu"))
    with pytest.raises(UnknownWorkloadError, match="there is no peer"):
        chosen_contestants(["none-such"], "cpu")


def test_who_is_missing_says_so() -> None:
    if importlib.util.find_spec("cupy") is not None:
        pytest.skip("CuPy is here")
    assert all("cupy" in entry.missing() for entry in CUDA.values())
    with pytest.raises(UnavailableError, match="cupy not installed"):
        make(FUSEDSTEP, workload("1x64"), threads=1, device="cuda")


def test_every_backend_of_keras_that_is_said_to_be_here_can_be_imported() -> None:
    if importlib.util.find_spec("keras") is None:
        pytest.skip("Keras is not here")
    for backend in KERAS_BACKENDS:
        if not CPU[f"Keras, {backend}"].missing():
            command = [sys.executable, "-c", "import keras"]
            subprocess.run(command, env=os.environ | {"KERAS_BACKEND": backend}, check=True)


def test_a_process_of_its_own() -> None:
    """As Keras' backends have one."""
    worker = Worker((("SOME_BACKEND", "1"),))
    try:
        made = worker.make(NUMPY, workload("3x5"), 1, "cpu", 0.1)
        before = made.variables()
        assert made.time(2).seconds > 0
        assert all((p != q).all() for p, q in zip(before, made.variables(), strict=True))
        with pytest.raises(UnavailableError, match="has no bfloat16"):
            worker.make(NUMPY, workload("3x5-bfloat16"), 1, "cpu", 0.1)
    finally:
        worker.stop()
    with pytest.raises(UnavailableError, match="has ended"):
        made.time(1)
    stop_workers()


def test_a_process_of_its_own_collects_no_garbage_while_it_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    collects: list[bool] = []
    made = Contestant(lambda: collects.append(gc.isenabled()), list, float)
    monkeypatch.setattr("bench.contestants.make", lambda *_, **__: made)
    ours, theirs = Pipe()
    thread = threading.Thread(target=serve, args=(theirs,))
    thread.start()
    try:
        for question in (("make", (NUMPY, workload("1x64"), 1, "cpu", 0.1)), ("time", (1, 2))):
            ours.send(question)
            ours.recv()
    finally:
        ours.close()
        thread.join()
        gc.enable()
    assert collects == [False, False]


def test_who_waits_for_ever_is_given_up() -> None:
    """As DeepSpeed does for the lock of a build that was killed."""
    former = signal.getsignal(signal.SIGALRM)
    with pytest.raises(UnavailableError, match="too long"), time_limit(0.05, "too long"):
        time.sleep(60)
    assert signal.getsignal(signal.SIGALRM) is former
    with time_limit(0.05, "too long"):
        pass
    time.sleep(0.1)


def test_reasons_name_no_files_of_this_machine() -> None:
    missing = ImportError("cannot import name 'a' from 'b' (/somewhere/b.py)")
    assert first_line(missing) == "ImportError: cannot import name 'a' from 'b'"
    assert first_line(ValueError("a (/b)\nc")) == "ValueError: a (/b)"
