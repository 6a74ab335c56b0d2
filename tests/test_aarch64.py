"""The same bits on aarch64: the kernels, cross-compiled, under an emulator, against the reference.

Needs CMake, a cross compiler and qemu-user; Debian has the last two as g++-aarch64-linux-gnu and qemu-user.
"""

import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from conftest import DTYPES, STAGES, VARIANTS, random_array, with_arguments
from fusedstep import Optimizer, _native
from fusedstep.optimizers.hyperparameters import Hyperparameter
from reference import Reference, same_bits, slot_names

ROOT = Path(__file__).parent.parent
COMPILER, EMULATOR, CMAKE = (
    shutil.which(tool) for tool in ("aarch64-linux-gnu-g++", "qemu-aarch64", "cmake")
)
UPDATES = 3

pytestmark = pytest.mark.skipif(
    not (COMPILER and EMULATOR and CMAKE), reason="needs cmake, g++-aarch64-linux-gnu and qemu-user"
)


@pytest.fixture(scope="module")
def step_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The driver, built with the flags of the package."""
    build = tmp_path_factory.mktemp("aarch64")
    assert CMAKE is not None
    definitions = {
        "CMAKE_SYSTEM_NAME": "Linux",
        "CMAKE_SYSTEM_PROCESSOR": "aarch64",
        "CMAKE_CXX_COMPILER": COMPILER,
        "CMAKE_BUILD_TYPE": "Release",
        "FUSEDSTEP_STEP_FILE": "ON",
    }
    options = [f"-D{name}={value}" for name, value in definitions.items()]
    for command in ([CMAKE, "-S", str(ROOT), "-B", str(build), *options], [CMAKE, "--build", str(build)]):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    return build / "step_file"


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
def test_bits_on_aarch64(variant: Optimizer, step_file: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    optimizer = with_arguments(variant, **STAGES[-1])
    sizes = [1, 3, 17, 513, 4097]
    cases = [(size, p, g) for p in DTYPES for g in DTYPES for size in sizes]
    variables = [random_array(rng, size, p, special=size > 100) for size, p, _ in cases]
    grads = [random_array(rng, size, g, special=size > 100) for size, _, g in cases]
    (tmp_path / "steps").write_bytes(describe(optimizer, variables, grads))
    subprocess.run(
        [str(EMULATOR), str(step_file), str(tmp_path / "steps"), str(tmp_path / "result")], check=True
    )
    result = (tmp_path / "result").read_bytes()

    reference = Reference(optimizer, variables)
    if "accumulator" in slot_names(optimizer):  # the driver's slots start with zeros
        for slots in reference.slots:
            slots["accumulator"][...] = 0
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
