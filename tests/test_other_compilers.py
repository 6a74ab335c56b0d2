"""The same bits from other compilers: a driver of the kernels, against the reference.

From Clang; and for aarch64, under an emulator (g++-aarch64-linux-gnu and qemu-user, as Debian calls them).
"""

import platform
import shutil
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import drivers
from conftest import DTYPES, STAGES, TARGETS, VARIANTS, random_array, with_arguments
from fusedstep import Optimizer, _native
from fusedstep.optimizers.hyperparameters import Hyperparameter
from reference import Reference, same_bits

UPDATES = 3


@dataclass
class Build:
    """What the driver is compiled with, and run with."""

    compiler: str
    processor: str
    runner: tuple[str, ...] = ()

    def missing(self) -> list[str]:
        return [tool for tool in ("cmake", self.compiler, *self.runner) if not shutil.which(tool)]


AARCH64 = Build("aarch64-linux-gnu-g++", "aarch64", ("qemu-aarch64",))
CLANG = Build("clang++", platform.machine())
PLACES = [(AARCH64, "baseline"), *((CLANG, target) for target in TARGETS)]


@pytest.fixture(
    scope="module", params=PLACES, ids=lambda place: f"{place[0].compiler}, {place[0].processor}, {place[1]}"
)
def step_file(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[str], str]:
    """The command of the driver, built with the flags of the package, and a target."""
    build, target = request.param
    if build.missing():
        pytest.skip(f"needs {' and '.join(build.missing())}")
    made = tmp_path_factory.getbasetemp() / f"driver of {build.compiler}"
    driver = drivers.build(
        "step_file",
        made,
        CMAKE_SYSTEM_NAME="Linux",
        CMAKE_SYSTEM_PROCESSOR=build.processor,
        CMAKE_CXX_COMPILER=build.compiler,
    )
    return [*build.runner, str(driver)], target


def describe(optimizer: Optimizer, variables: list[npt.NDArray[Any]], grads: list[npt.NDArray[Any]]) -> bytes:
    """The file that tests/native/step_file.cpp reads."""
    config = optimizer.get_config()
    rule = optimizer._rule()
    numbers = []
    for name in _native.rules()[rule][1]:
        parameter = type(optimizer)._hyperparameters[name]
        assert isinstance(parameter, Hyperparameter)
        numbers.append(parameter.number(config[name]))
    decay = (config["weight_decay"] or 0.0) * config["learning_rate"]
    content = [struct.pack("<i", len(rule)), rule.encode(), struct.pack(f"<{len(numbers)}d", *numbers)]
    content.append(struct.pack("<d", config["learning_rate"]))
    for coefficient, on in (
        (-1.0, config["maximize"]),
        (config["l2"] or 0.0, config["l2"]),
        (decay, decay != 0),
    ):
        content.append(struct.pack("<id", bool(on), coefficient))
    content.append(struct.pack("<ii", UPDATES, len(variables)))
    numbers_of_dtypes = {np.dtype(dtype): number for number, dtype in enumerate(DTYPES)}
    for variable, gradient in zip(variables, grads, strict=True):
        dtypes = numbers_of_dtypes[variable.dtype], numbers_of_dtypes[gradient.dtype]
        content.append(struct.pack("<iiq", *dtypes, variable.size) + variable.tobytes() + gradient.tobytes())
    return b"".join(content)


@pytest.mark.parametrize("variant", VARIANTS, ids=repr)
def test_bits(variant: Optimizer, step_file: tuple[list[str], str], tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    optimizer = with_arguments(variant, **STAGES[-1])
    sizes = [1, 3, 17, 513, 4097]
    cases = [(size, p, g) for p in DTYPES for g in DTYPES for size in sizes]
    variables = [random_array(rng, size, p, special=size > 100) for size, p, _ in cases]
    grads = [random_array(rng, size, g, special=size > 100) for size, _, g in cases]
    (tmp_path / "steps").write_bytes(describe(optimizer, variables, grads))
    command, target = step_file
    subprocess.run([*command, str(tmp_path / "steps"), str(tmp_path / "result"), target], check=True)
    result = (tmp_path / "result").read_bytes()

    reference = Reference(optimizer, variables)
    for slots in reference.slots:  # the driver's start with zeros
        for name in optimizer._initial():
            slots[name][...] = 0
    for _ in range(UPDATES):
        reference.apply(grads)
    offset = 0
    names = _native.rules()[optimizer._rule()][0]
    for variable, slots in zip(reference.variables, reference.slots, strict=True):
        for expected in (variable, *(slots[name] for name in names)):
            ours = np.frombuffer(result, expected.dtype, expected.size, offset)
            assert same_bits(ours, expected), f"{optimizer}: {expected.dtype}, {expected.size}"
            offset += expected.nbytes
    assert offset == len(result)
