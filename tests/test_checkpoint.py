"""Checkpoints: a state as plain data and as a file, whole or not there; runs go on to the same bits."""

import errno
import json
import os
import random
import signal
import stat
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
import safetensors.numpy

import fusedstep
from conftest import TARGETS, VARIANTS
from fusedstep import SGD, Adam, AdamW, Optimizer, RMSprop, _native
from fusedstep.schedules import CosineDecay, ExponentialDecay

Array = npt.NDArray[Any]
SHAPES: list[tuple[int, ...]] = [(5,), (2, 3), (), (0,), (700,)]
DTYPES = [np.float32, np.float64, np.float32, np.float16, ml_dtypes.bfloat16]
every_variant = pytest.mark.parametrize("optimizer", VARIANTS, ids=repr)


def model(seed: int = 0) -> list[Array]:
    rng = np.random.default_rng(seed)
    return [np.asarray(rng.standard_normal(s)).astype(d) for s, d in zip(SHAPES, DTYPES, strict=True)]


def named(seed: int = 0) -> dict[str, Any]:
    a, b, c, d, e = model(seed)
    return {"dense": {"kernel": a, "bias": b}, "scale": c, "list": [d, e]}


def bits(optimizer: Optimizer, variables: list[Array]) -> list[bytes]:
    return [array.tobytes() for array in (*variables, *optimizer.variables)]


def through_dict(source: Optimizer, goal: Optimizer, folder: Path) -> None:
    goal.load_state_dict(source.state_dict())


def through_file(source: Optimizer, goal: Optimizer, folder: Path) -> None:
    source.save(folder / "state")
    goal.load(folder / "state")


every_way = pytest.mark.parametrize("carry", [through_dict, through_file])
Carry = Callable[[Optimizer, Optimizer, Path], None]


# Resumed runs.


@every_way
@pytest.mark.parametrize("built", [True, False], ids=["built", "not built"])
@every_variant
def test_a_resumed_run_goes_on_to_the_same_bits(
    optimizer: Optimizer, built: bool, carry: Carry, tmp_path: Path
) -> None:
    opt, variables = optimizer.clone(), model()
    for step in range(3):
        opt.apply(model(step + 1), variables)
    resumed, copies = optimizer.clone(), [v.copy() for v in variables]
    if built:
        resumed.build(copies)
    carry(opt, resumed, tmp_path)
    assert resumed.iterations == 3
    for step in range(2):
        assert opt.apply(model(step + 9), variables) == resumed.apply(model(step + 9), copies) == step + 4
    assert bits(resumed, copies) == bits(opt, variables)


def test_a_run_that_is_resumed_in_the_middle_of_an_update() -> None:
    opt, w, v = SGD(1.0, gradient_accumulation_steps=3), np.zeros(1), np.zeros(1)
    for _ in range(2):
        opt.apply([np.ones(1)], [w])
    twin = opt.clone()
    twin.build([v])
    twin.load_state_dict(opt.state_dict())
    twin.gradient_accumulation_steps = 3  # which it was
    twin.apply([np.full(1, 4.0)])
    assert (w[0], v[0], twin.iterations) == (0, -2, 1)


def test_a_resumed_run_on_another_target_with_other_threads(tmp_path: Path) -> None:
    """Large enough for threads; every run stops in the middle, and another way goes on from there."""
    rng = np.random.default_rng(0)
    grads = [rng.standard_normal(100_001).astype(np.float32) for _ in range(4)]
    before, ends = _native.current_target(), set()
    try:
        for first in TARGETS:
            for second in TARGETS:
                for threads in ((1, 7), (7, 1)):
                    w = np.ones(100_001, np.float32)
                    for half, (target, count) in enumerate(zip((first, second), threads, strict=True)):
                        _native.select_target(target)
                        fusedstep.set_num_threads(count)
                        opt = AdamW(CosineDecay(0.1, 5), amsgrad=True)
                        if half:
                            opt.load(tmp_path / "state")
                        for grad in grads[2 * half : 2 * half + 2]:
                            opt.apply([grad], [w])
                        opt.save(tmp_path / "state")
                    ends.add((w.tobytes(), *(slot.tobytes() for slot in opt.variables)))
    finally:
        _native.select_target(before)
        fusedstep.set_num_threads(None)
    assert len(ends) == 1


@every_way
def test_a_schedule_goes_on_where_it_was(carry: Carry, tmp_path: Path) -> None:
    opt, w = SGD(ExponentialDecay(1.0, 1, 0.5)), np.zeros(1)
    for _ in range(3):
        opt.apply([np.ones(1)], [w])
    resumed = SGD(ExponentialDecay(1.0, 1, 0.5))
    carry(opt, resumed, tmp_path)
    assert resumed.learning_rate == opt.learning_rate == 0.125
    resumed.apply([np.ones(1)], [w])
    assert w[0] == -1.875


@every_way
def test_several_builds_are_told_apart(carry: Carry, tmp_path: Path) -> None:
    """The same names in two models; one of them is not built yet."""
    opt, a, b = SGD(1.0, momentum=0.5), np.zeros(2), np.zeros(3)
    opt.build({"w": a})
    opt.build({"w": b})
    opt.apply([np.ones(2)], [a])
    for _ in range(2):
        opt.apply([np.ones(3)], [b])
    resumed, c, d = opt.clone(), a.copy(), b.copy()
    resumed.build({"w": c})
    carry(opt, resumed, tmp_path)
    again = opt.clone()
    carry(resumed, again, tmp_path)  # one of its builds waits still
    for one in (resumed, again):
        if one is again:
            c, d = a.copy(), b.copy()
            one.build({"w": c})
        one.build({"w": d})
        assert one.apply([np.ones(2)], [c]) == 2
        assert one.apply([np.ones(3)], [d]) == 3
        assert one.slots(c)["momentum"][0] == -1.5
        assert one.slots(d)["momentum"][0] == -1.75


def test_names_in_another_order() -> None:
    opt, a, b = SGD(1.0, momentum=0.5), np.zeros(2), np.zeros(2)
    opt.apply({"a": np.ones(2), "b": np.full(2, 5.0)}, {"a": a, "b": b})
    for built in (True, False):
        resumed, variables = opt.clone(), {"b": b.copy(), "a": a.copy()}
        if built:
            resumed.build(variables)
        resumed.load_state_dict(opt.state_dict())
        if not built:
            resumed.build(variables)
        assert resumed.slots(variables["a"])["momentum"][0] == -1
        assert resumed.slots(variables["b"])["momentum"][0] == -5


def test_a_loaded_optimizer_can_be_copied_saved_and_loaded_again(tmp_path: Path) -> None:
    opt, variables = Adam(0.01), model()
    opt.apply(model(1), variables)
    first, second = Adam(0.01), Adam(0.01)
    through_file(opt, first, tmp_path)
    through_file(first, second, tmp_path)
    assert second.iterations == 1
    second.load_state_dict(opt.state_dict())
    copies = [v.copy() for v in variables]
    second.build(copies)
    assert bits(second, copies) == bits(opt, variables)


# The form.


def test_the_state_is_plain_data() -> None:
    opt, variables = AdamW(CosineDecay(0.1, 10), amsgrad=True), named()
    opt.apply(named(1), variables)
    state = opt.state_dict()
    assert state.keys() == {"class_name", "rule", "config", "version", "builds"}
    assert (state["class_name"], state["rule"]) == ("AdamW", "adam_amsgrad")
    assert state["config"] == fusedstep.serialize(opt)["config"]
    assert state["version"] == fusedstep.__version__
    (build,) = state["builds"]
    assert build.keys() == {"calls", "updates", "skips", "carried", "names", "variables", "slots"}
    assert (build["calls"], build["updates"], build["skips"], build["carried"]) == (1, 1, 0, 1.0)
    assert build["names"] == ["dense/kernel", "dense/bias", "scale", "list/0", "list/1"]
    assert build["variables"][1] == {"shape": [2, 3], "dtype": "float64"}
    assert build["variables"][4] == {"shape": [700], "dtype": "bfloat16"}
    slots = build.pop("slots")
    assert list(slots)[:3] == ["dense/kernel/momentum", "dense/kernel/velocity", "dense/kernel/velocity_hat"]
    assert len(slots) == 15
    assert {slot.dtype for slot in slots.values()} == {np.dtype("float32"), np.dtype("float64")}
    assert json.loads(json.dumps(state)) == state
    assert repr(fusedstep.get(state)) == repr(opt)


def test_variables_without_names_are_numbered() -> None:
    opt = SGD(0.1, momentum=0.9)
    opt.build([np.ones(2), np.ones(3)])
    (build,) = opt.state_dict()["builds"]
    assert build["names"] == []
    assert list(build["slots"]) == ["0/momentum", "1/momentum"]


def test_states_are_copies() -> None:
    opt, w = SGD(1.0, momentum=0.5), np.zeros(2)
    opt.apply([np.ones(2)], [w])
    state = opt.state_dict()
    opt.apply([np.ones(2)], [w])
    slot = state["builds"][0]["slots"]["0/momentum"]
    assert slot[0] == -1
    waiting, built, v = opt.clone(), opt.clone(), w.copy()
    built.build([v])
    for one in (waiting, built):
        one.load_state_dict(state)
    slot[...] = 7
    waiting.build([w.copy()])
    assert waiting.variables[0][0] == built.variables[0][0] == -1


def test_the_file_is_an_ordinary_safetensors_file(tmp_path: Path) -> None:
    opt, variables = Adam(0.01), named()
    opt.apply(named(1), variables)
    opt.save(tmp_path / "state.safetensors")
    tensors = safetensors.numpy.load_file(tmp_path / "state.safetensors")
    assert tensors.keys() == {f"0/{key}" for key in opt.state_dict()["builds"][0]["slots"]}
    with safetensors.safe_open(tmp_path / "state.safetensors", "np") as file:
        state = json.loads(file.metadata()["fusedstep"])
    assert state["class_name"] == "Adam"
    assert state["builds"][0]["calls"] == 1


# Learning rate and other hyperparameters.


def half() -> float:
    return 0.5


@every_way
def test_a_number_is_taken_because_training_may_have_changed_it(carry: Carry, tmp_path: Path) -> None:
    opt = Adam(0.1)
    opt.learning_rate = 0.03
    for built in (True, False):
        resumed = Adam(0.1)
        carry(opt, resumed, tmp_path)
        assert resumed.learning_rate == 0.03, built


@pytest.mark.parametrize(
    ("saved", "own", "warns"),
    [
        (0.1, CosineDecay(0.2, 10), True),
        (CosineDecay(0.1, 10), 0.2, True),
        (CosineDecay(0.1, 10), CosineDecay(0.2, 10), True),
        (CosineDecay(0.2, 10), CosineDecay(0.2, 10), False),
        (0.1, half, True),
        (half, 0.2, False),
        (0.1, np.array(0.2), True),
        (np.array(0.2), np.array(0.2), False),
    ],
    ids=lambda value: value.__name__ if value is half else repr(value),
)
def test_what_is_no_number_stays(saved: Any, own: Any, warns: bool) -> None:
    goal = Adam(own)
    before = goal.get_config()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        goal.load_state_dict(Adam(saved).state_dict())
    assert goal.get_config() == before
    assert [f"{w.message}".startswith("Adam.load_state_dict: learning_rate is ") for w in caught] == (
        [True] if warns else []
    )
    if isinstance(own, np.ndarray):
        own[...] = 0.5
        assert goal.learning_rate == 0.5, "it is read anew still"


def test_other_hyperparameters_stay_and_a_warning_names_them(tmp_path: Path) -> None:
    opt, w = Adam.from_config({"learning_rate": 0.1, "beta_1": 0.5, "name": "saved"}), np.ones(3)
    opt.apply([np.ones(3)], [w])
    opt.save(tmp_path / "state")
    goal = Adam(0.2, l2=0.25)
    sentence = (
        r"^Adam\.load: beta_1 is 0\.5 in the state and stays 0\.9; l2 is None in the state and stays 0\.25$"
    )
    with pytest.warns(UserWarning, match=sentence) as caught:
        goal.load(tmp_path / "state")
    assert caught[0].filename == __file__
    assert (goal.beta_1, goal.l2, goal.learning_rate, goal.name) == (0.9, 0.25, 0.1, "adam")
    other = Adam(0.2, l2=0.25)
    with pytest.raises(UserWarning, match="and stays"):  # pytest's configuration makes them errors
        other.load(tmp_path / "state")
    assert (other.learning_rate, other.iterations) == (0.2, 0), "where warnings are errors nothing is loaded"


# Whole or nothing.


def test_a_state_of_another_rule_with_the_same_slots() -> None:
    opt, w = SGD(0.1, momentum=0.9), np.ones(3)
    opt.apply([np.ones(3)], [w])
    goal = SGD(0.1, momentum=0.9, nesterov=True)
    with pytest.raises(ValueError, match="the rule is sgd_momentum in the state, sgd_nesterov here"):
        goal.load_state_dict(opt.state_dict())
    assert goal.iterations == 0


def sentence_of(goal: Optimizer, state: dict[str, Any]) -> str:
    """The refusal of a state, which has changed nothing."""
    before = (goal.state_dict(), [slot.tobytes() for slot in goal.variables])
    with pytest.raises(ValueError, match="load_state_dict") as caught:
        goal.load_state_dict(state)
    after = (goal.state_dict(), [slot.tobytes() for slot in goal.variables])
    assert repr(after) == repr(before)
    return str(caught.value)


def built(optimizer: Optimizer, *models: Any) -> Optimizer:
    for variables in models:
        optimizer.build(variables)
    return optimizer


def test_all_differences_are_listed() -> None:
    state = built(
        RMSprop(0.5, momentum=0.5), {"a": np.ones(3), "b": np.ones(2), "c": np.ones(1)}
    ).state_dict()
    goal = built(Adam(0.25), {"b": np.ones((2, 2)), "c": np.ones(1, np.float32), "d": np.ones(1)})
    assert sentence_of(goal, state) == (
        "Adam.load_state_dict: the state is that of another optimizer or model: the class is RMSprop in the"
        " state, Adam here; 'a' is in the state and not here; 'd' is here and not in the state; 'b' has shape"
        " (2,) in the state, (2, 2) here; 'c' has dtype float64 in the state, float32 here; nothing was"
        " loaded; make the same optimizer and build the same variables"
    )
    many = built(SGD(0.1), [np.ones(1)] * 0 + [np.ones(n) for n in range(1, 16)])
    few = built(SGD(0.1), [np.ones(n) for n in range(2, 17)])
    text = sentence_of(few, many.state_dict())
    assert text.count("has shape") == 10
    assert "; and 5 more; nothing was loaded" in text


def test_differences_of_slots_counts_and_builds() -> None:
    w = np.ones(3)
    assert (
        "'0' has the slots ['momentum', 'velocity'] in the state, ['momentum', 'velocity', 'velocity_hat']"
        in (sentence_of(built(Adam(amsgrad=True), [w]), built(Adam(), [w.copy()]).state_dict()))
    )
    two = built(Adam(), [w], [np.ones(4)])
    one = built(Adam(), [np.ones(3)])
    assert "1 builds are in the state, 2 here" in sentence_of(two, one.state_dict())
    other = built(Adam(), [np.ones(3)], [np.ones(5)])
    assert "build 1: '0' has shape (5,) in the state, (4,) here" in sentence_of(two, other.state_dict())
    assert "2 variables are in the state, 1 here" in sentence_of(
        one, built(Adam(), [np.ones(3), np.ones(1)]).state_dict()
    )


def test_damaged_dicts() -> None:
    goal = built(Adam(0.25), [np.ones(3)])
    goal.apply([np.ones(3)])

    def damaged(change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
        state = goal.state_dict()
        change(state)
        return state

    def change_slot(value: Any) -> Callable[[dict[str, Any]], object]:
        return lambda state: state["builds"][0]["slots"].update({"0/velocity": value})

    assert "reading it ends with KeyError: 'builds'" in sentence_of(goal, damaged(lambda s: s.pop("builds")))
    for count in (-1, 2**63, 1.5, None, True):
        assert "a count must " in sentence_of(
            goal,
            damaged(lambda s, count=count: s["builds"][0].update(calls=count)),  # type: ignore[misc]
        )
    assert "'0/velocity' is float64 (4,) in the state, float64 (3,) here" in sentence_of(
        goal, damaged(change_slot(np.ones(4)))
    )
    assert "'0/velocity' is float32 (3,) in the state, float64 (3,) here" in sentence_of(
        goal, damaged(change_slot(np.ones(3, np.float32)))
    )
    assert "'0' has the slots ['momentum'] in the state" in sentence_of(
        goal, damaged(lambda s: s["builds"][0]["slots"].pop("0/velocity"))
    )
    assert "reading it ends with" in sentence_of(
        goal, damaged(lambda s: s["builds"][0]["slots"].update({"7/velocity": np.ones(3)}))
    )
    assert "reading it ends with" in sentence_of(goal, damaged(lambda s: s["builds"][0]["names"].append("w")))
    assert "reading it ends with AttributeError" in sentence_of(
        goal, damaged(lambda s: s["builds"][0]["slots"].update({7: np.ones(3)}))
    )
    assert "learning_rate must be finite, got nan" in sentence_of(
        goal, damaged(lambda s: s["config"].update(learning_rate=float("nan")))
    )
    with pytest.raises(
        TypeError, match=r"Adam\.load_state_dict: state must be a dict as of state_dict, got a list"
    ):
        goal.load_state_dict([])  # type: ignore[arg-type]


def test_a_state_that_waits_is_checked_when_its_variables_come() -> None:
    opt = built(Adam(), {"w": np.ones(3)})
    goal = Adam()
    goal.load_state_dict(opt.state_dict())
    with pytest.raises(
        ValueError, match=r"Adam\.build: .* of other variables: 'w' is in the state and not here"
    ):
        goal.build({"v": np.ones(3)})
    goal.build({"w": np.ones(3)})


# Files.


def saved(folder: Path) -> tuple[Optimizer, Path]:
    opt = Adam(0.01)
    opt.apply([np.linspace(0, 1, 5)], [np.ones(5)])
    opt.save(folder / "state")
    return opt, folder / "state"


def test_every_truncated_and_every_damaged_file_is_refused(tmp_path: Path) -> None:
    """Cut at each length, and with each of its bytes changed."""
    _, path = saved(tmp_path)
    whole = path.read_bytes()
    goal = Adam(0.01)
    sentence = r"^Adam\.load: .*state (must be a (whole safetensors|file of)|is damaged)"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=sentence):
            goal.load(path)
    for position in range(len(whole)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0x11]) + whole[position + 1 :])
        with pytest.raises(ValueError, match=sentence):
            goal.load(path)
    assert goal.iterations == 0
    path.write_bytes(whole)
    goal.load(path)
    assert goal.iterations == 1


def test_files_of_others(tmp_path: Path) -> None:
    goal = Adam(0.01)
    safetensors.numpy.save_file({"w": np.ones(3)}, tmp_path / "foreign", metadata={"format": "pt"})
    with pytest.raises(
        ValueError, match=r"Adam\.load: .*foreign must be a file of fusedstep's save.*\['format'\]"
    ):
        goal.load(tmp_path / "foreign")
    (tmp_path / "text").write_text("no tensors at all, but a text")
    with pytest.raises(ValueError, match=r"Adam\.load: .*text must be a whole safetensors file"):
        goal.load(tmp_path / "text")
    with pytest.raises(FileNotFoundError):
        goal.load(tmp_path / "nowhere")
    with pytest.raises(IsADirectoryError):
        goal.load(tmp_path)


def test_files_of_later_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fusedstep.optimizers.checkpoint.FORMAT", 2)
    _, path = saved(tmp_path)
    monkeypatch.undo()
    with pytest.raises(
        ValueError, match=r"has format 2, of fusedstep .*, which reads formats up to 1; use a newer"
    ):
        Adam(0.01).load(path)


def test_without_the_package_a_sentence_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opt, path = saved(tmp_path)
    monkeypatch.setitem(sys.modules, "safetensors", None)
    for call in (opt.save, opt.load):
        with pytest.raises(
            RuntimeError, match=r"safetensors must be there.*pip install 'fusedstep\[checkpoint\]'"
        ):
            call(path)


@pytest.mark.parametrize("where", ["safetensors.numpy.save", "os.fsync", "os.replace"])
def test_a_failed_save_leaves_what_was_there(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opt, path = saved(tmp_path)
    before = path.read_bytes()

    def fail(*_: Any, **__: Any) -> None:
        raise OSError("the disk is full")

    opt.apply([np.ones(5)])
    monkeypatch.setattr(where, fail)
    with pytest.raises(OSError, match="the disk is full"):
        opt.save(path)
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["state"]


def test_errors_of_the_system_and_links(tmp_path: Path) -> None:
    opt, path = saved(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no folder/state'$"):
        opt.save(tmp_path / "no folder" / "state")
    with pytest.raises(IsADirectoryError):
        opt.save(tmp_path)
    (tmp_path / "link").symlink_to(path)
    opt.apply([np.ones(5)])
    opt.save(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    goal = Adam(0.01)
    goal.load(str(path))
    assert goal.iterations == 2


def test_the_file_is_on_the_disk_before_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole file, before it has its name; then the name."""
    opt, path = built(Adam(), [np.ones(3)]), tmp_path / "state"
    synced: list[tuple[int, int, bool]] = []

    def fsync(file: int) -> None:
        found = os.fstat(file)
        synced.append((found.st_ino, 0 if stat.S_ISDIR(found.st_mode) else found.st_size, path.exists()))

    monkeypatch.setattr(os, "fsync", fsync)
    opt.save(path)
    file = path.stat()
    assert synced == [(file.st_ino, file.st_size, False), (tmp_path.stat().st_ino, 0, True)]


def test_the_file_has_the_permissions_of_any_new_file(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        _, path = saved(tmp_path)
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o640


def test_the_file_keeps_the_permissions_of_the_one_whose_place_it_takes(tmp_path: Path) -> None:
    opt, path = Adam(), tmp_path / "private"
    opt.save(path)
    path.chmod(0o600)
    opt.save(path)
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_file_system_without_permissions_has_checkpoints_that_replace_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As shares of Windows: all files have the same, and chmod is an error there."""

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    opt, path = Adam(), tmp_path / "state"
    opt.save(path)
    monkeypatch.setattr(os, "chmod", refuse)
    monkeypatch.setattr(os, "fchmod", refuse)
    opt.learning_rate = 0.5
    opt.save(path)
    other = Adam()
    other.load(path)
    assert other.learning_rate == 0.5


def test_a_pipe_or_a_device_is_not_replaced(tmp_path: Path) -> None:
    """By a superuser, even /dev/null would be."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(OSError, match=r"Adam\.save: .*pipe is a device, a pipe or a socket, whose place"):
        Adam().save(pipe)
    assert pipe.is_fifo()
    assert os.listdir(tmp_path) == ["pipe"]


def test_threads_that_save_to_one_path(tmp_path: Path) -> None:
    """The last one wins, and nobody reads a mixture."""
    path, stop = tmp_path / "state", time.monotonic() + 0.5
    errors: list[BaseException] = []

    def save(value: int) -> None:
        opt = built(SGD(0.1, momentum=0.5), [np.zeros(3000)])
        opt.variables[0][...] = value
        try:
            while time.monotonic() < stop:
                opt.save(path)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=save, args=(value,)) for value in range(3)]
    for thread in threads:
        thread.start()
    loads = 0
    while time.monotonic() < stop:
        if path.exists():
            goal = built(SGD(0.1, momentum=0.5), [np.zeros(3000)])
            goal.load(path)
            assert len(set(goal.variables[0].tolist())) == 1
            loads += 1
    for thread in threads:
        thread.join()
    assert errors == []
    assert loads > 0
    assert os.listdir(tmp_path) == ["state"]


KILLS = 200


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_process_killed_while_it_saves_leaves_a_whole_file(tmp_path: Path) -> None:
    """After each kill the file is the state of some step, no older than the one before."""
    path, size = tmp_path / "state", 20_000

    def fresh() -> tuple[Optimizer, Array]:
        opt, w = SGD(1.0, momentum=1.0), np.zeros(size, np.float32)
        opt.build({"w": w})
        if path.exists():
            opt.load(path)
        return opt, w

    def steps_and_saves() -> None:
        opt, _ = fresh()
        ones = np.ones(size, np.float32)
        while True:
            opt.apply([ones])
            opt.save(path)

    opt, _ = fresh()
    opt.save(path)
    chance, last, advanced = random.Random(0), 0, 0
    for _ in range(KILLS):
        child = os.fork()
        if child == 0:
            try:
                steps_and_saves()
            finally:
                os._exit(1)
        time.sleep(chance.uniform(0.0, 0.03))
        os.kill(child, signal.SIGKILL)
        assert os.WIFSIGNALED(os.waitpid(child, 0)[1]), "the child ended before it was killed"
        opt, w = fresh()
        calls = opt.state_dict()["builds"][0]["calls"]
        assert (opt.slots(w)["momentum"] == -calls).all()
        assert calls >= last
        advanced += calls > last
        last = calls
    assert advanced > KILLS / 10
    left = [name for name in os.listdir(tmp_path) if name != "state"]
    assert all(name.startswith("state.") and name.endswith(".tmp") for name in left)
