"""Checkpoints: an optimizer's state as plain data, and as a safetensors file that is whole or not there."""

import contextlib
import json
import operator
import os
import stat
import threading
import warnings
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fusedstep.optimizers.state import PlanState, at_rest, listed
from fusedstep.serialization import plain
from fusedstep.version import __version__

if TYPE_CHECKING:
    from fusedstep.optimizers.optimizer import Optimizer

Path = str | os.PathLike[str]

FORMAT = 1  # of files; a version reads all formats up to its own


def state_of(optimizer: "Optimizer") -> dict[str, Any]:
    """Return a copy of an optimizer's state as plain data."""
    who = type(optimizer).__name__
    config = optimizer.get_config()
    if callable(config.get("learning_rate")):
        del config["learning_rate"]  # it is the program's, and not in the state
    states = at_rest(optimizer._plans, who, lambda: list(map(PlanState.of, optimizer._plans)))
    states += optimizer._carried
    return {
        "class_name": who,
        "rule": optimizer._rule(),
        "config": {name: plain(value, f"{who}'s {name}") for name, value in config.items()},
        "version": __version__,
        "builds": [state.plain() for state in states],
    }


def restore(optimizer: "Optimizer", state: Any, who: str) -> None:
    """Make a state the optimizer's: check everything, then write."""
    if not isinstance(state, Mapping):
        raise TypeError(f"{who}: state must be a dict as of state_dict, got a {type(state).__name__}")
    try:
        kind, config = (state["class_name"], state["rule"]), dict(state["config"])
        builds = [PlanState.from_plain(build) for build in state["builds"]]
        name = "gradient_accumulation_steps"
        own_steps = optimizer._values[name]
        steps: Any = optimizer._hyperparameters[name].check(config.get(name, own_steps), who)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{who}: state must be what state_dict returned, but reading it ends with"
            f" {type(error).__name__}: {error}; its keys are {sorted(map(str, state))}"
        ) from error
    differences = list(_differences(optimizer, kind, builds))
    differences += cycles_cut(steps, own_steps, [build.calls for build in builds])
    if differences:
        raise ValueError(
            f"{who}: the state is that of another optimizer or model: {listed(differences)};"
            " nothing was loaded; make the same optimizer and build the same variables"
        )
    number = _number_to_take(optimizer, config, who)
    _warn_of_hyperparameters(optimizer, config, number is not None, who)

    def write_all() -> None:
        for plan, build in zip(optimizer._plans, builds, strict=False):
            build.write(plan)

    at_rest(optimizer._plans, who, write_all)
    waiting = builds[len(optimizer._plans) :]
    for place, (former, build) in enumerate(zip(optimizer._carried, waiting, strict=False)):
        if former.describes_the_same_as(build):  # what was set of single variables is not in a state
            waiting[place] = replace(build, changes=former.changes, adjustments_made=former.adjustments_made)
    optimizer._carried = waiting
    if number is not None:
        optimizer.learning_rate = number


def _differences(optimizer: "Optimizer", kind: tuple[str, str], builds: list[PlanState]) -> Iterator[str]:
    (class_name, rule), here = kind, type(optimizer).__name__
    if class_name != here:
        yield f"the class is {class_name} in the state, {here} here"
    elif rule != optimizer._rule():
        yield f"the rule is {rule} in the state, {optimizer._rule()} here"
    if len(builds) < len(optimizer._plans):
        yield f"{len(builds)} builds are in the state, {len(optimizer._plans)} here"
    for number, (build, plan) in enumerate(zip(builds, optimizer._plans, strict=False)):
        prefix = f"build {number}: " if len(optimizer._plans) > 1 else ""
        for difference in build.differences(plan):
            yield prefix + difference


def cycles_cut(before: int | None, now: int | None, calls: list[int]) -> list[str]:
    """Say where as many calls are no whole updates, both before and now, of other numbers of calls.

    Sums of some calls would make an update as if they were those of all.
    """
    one, other = before or 1, now or 1
    return [
        f"gradient_accumulation_steps would go from {one} to {other} after {number} calls, but can change"
        " where both numbers have whole updates"
        for number in calls
        if one != other and (number % one or number % other)
    ]


def _number_to_take(optimizer: "Optimizer", config: dict[str, Any], who: str) -> float | None:
    """Return the state's learning rate where it and the optimizer's own are numbers."""
    saved = config.get("learning_rate")
    if not isinstance(saved, (int, float)) or not isinstance(optimizer._values["learning_rate"], float):
        return None
    number = type(optimizer).learning_rate.check(saved, who)
    assert isinstance(number, float)
    return number


def _warn_of_hyperparameters(
    optimizer: "Optimizer", config: dict[str, Any], takes_the_rate: bool, who: str
) -> None:
    own = optimizer.get_config()
    stay = [
        f"{name} is {config[name]!r} in the state and stays {own[name]!r}"
        for name in own.keys() & config.keys() - {"name"} - ({"learning_rate"} if takes_the_rate else set())
        if own[name] != config[name]
    ]
    if stay:
        warnings.warn(f"{who}: {listed(sorted(stay))}", stacklevel=4)


# Files.


def write(path: Path, state: dict[str, Any], who: str) -> None:
    """Write a state, so that whatever happens the path is the file before or this one, whole."""
    safetensors = _safetensors(who)
    tensors = {
        f"{number}/{key}": slot
        for number, build in enumerate(state["builds"])
        for key, slot in build["slots"].items()
    }
    builds = [{key: value for key, value in b.items() if key != "slots"} for b in state["builds"]]
    text = json.dumps({**state, "format": FORMAT, "builds": builds})
    metadata = {"fusedstep": text, "crc32": _checksum(text, tensors)}

    whole = os.path.realpath(path)  # a link stays a link
    if os.path.exists(whole) and not os.path.isfile(whole) and not os.path.isdir(whole):
        raise OSError(
            f"{who}: {os.fspath(path)} is a device, a pipe or a socket, whose place the file would take;"
            " give the path of a file"
        )
    # Named after the thread, so that several that save to one path do not write to one file; what a killed
    # process left is overwritten by the next of its number.
    temporary = f"{whole}.{os.getpid()}-{threading.get_ident()}.tmp"
    try:
        with open(temporary, "wb") as file:
            with contextlib.suppress(FileNotFoundError):
                permissions = os.stat(whole).st_mode  # what was closed to others stays closed
                if permissions != os.fstat(file.fileno()).st_mode:  # a file system may have one for all
                    os.fchmod(file.fileno(), stat.S_IMODE(permissions))
            file.write(safetensors.numpy.save(tensors, metadata=metadata))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, whole)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        if isinstance(error, OSError) and error.filename == temporary:
            error.filename = os.fspath(path)  # which is known to the caller
        raise
    folder = os.open(os.path.dirname(whole), os.O_RDONLY)
    try:
        os.fsync(folder)  # the name, too, is on the disk
    finally:
        os.close(folder)


def read(path: Path, who: str) -> dict[str, Any]:
    """Return the state that a file holds; raise where it is damaged or another's."""
    safetensors = _safetensors(who)
    with open(path, "rb"):  # the errors of the operating system are Python's own
        pass
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            if "fusedstep" not in metadata:
                raise ValueError(
                    f"{who}: {os.fspath(path)} must be a file of fusedstep's save, but it is another"
                    f" safetensors file, whose metadata has the keys {sorted(metadata)}; load it with the"
                    " library that wrote it"
                )
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"{who}: {os.fspath(path)} must be a whole safetensors file, but it is truncated, damaged or"
            f" another kind of file ({error}); use another copy of it"
        ) from error

    text = metadata["fusedstep"]
    found = _checksum(text, tensors)
    if metadata.get("crc32") != found:
        raise ValueError(
            f"{who}: {os.fspath(path)} is damaged: its checksum must be {metadata.get('crc32')},"
            f" it is {found}; use another copy of it"
        )
    state: dict[str, Any] = json.loads(text)
    if state["format"] > FORMAT:
        raise ValueError(
            f"{who}: {os.fspath(path)} has format {state['format']}, of fusedstep {state['version']},"
            f" but this is fusedstep {__version__}, which reads formats up to {FORMAT}; use a newer version"
        )
    for number, build in enumerate(state["builds"]):
        prefix = f"{number}/"
        build["slots"] = {
            key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)
        }
    return state


def _checksum(text: str, tensors: Mapping[str, Any]) -> str:
    crc = zlib.crc32(text.encode())
    for key, tensor in sorted(tensors.items(), key=operator.itemgetter(0)):
        crc = zlib.crc32(f"{key} {tensor.dtype} {tensor.shape}".encode(), crc)
        crc = zlib.crc32(tensor.reshape(-1).view("u1"), crc)
    return f"{crc:08x}"


def _safetensors(who: str) -> Any:
    try:
        import safetensors.numpy
    except ImportError:
        raise RuntimeError(
            f"{who}: the package safetensors must be there, but it cannot be imported;"
            " pip install 'fusedstep[checkpoint]'"
        ) from None
    return safetensors
