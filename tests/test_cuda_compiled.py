"""What nvcc made of the kernels: wide loads that wait together, nothing in local memory, no fma in a rule.

Reads the device code of the installed package, where it has some.
"""

import os
import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest

import device_code
from conftest import WITH_POW
from device_code import dump
from drivers import ROOT
from fusedstep import _native

pytestmark = pytest.mark.skipif(device_code.MISSING is not None, reason=str(device_code.MISSING))

# Loads and stores of 16 bytes that a kernel must have, and more of them for each slot of its rule.
ACCESSES = {
    # In each of four dtypes: the variable and the gradient. A tile's slots take one access, or two beside
    # eight elements of 16 bits.
    "bare": {"loads": (4 * 2, 6), "stores": (4, 6)},
    # For both compute types: variable, sum over calls and average; a gradient of the compute type, and three
    # more for float32 and float64 gradients of float32. The sum is set and cleared, the variable stored alone
    # and from its average.
    "staged": {"loads": (2 * 3 + 4, 2), "stores": (2 * 4, 2)},
    # The same without the average and with two tiles a row in float64.
    "first": {"loads": (3 * 2 + 5, 3), "stores": (3 * 2, 3)},
    "second": {"loads": (2 * 2, 2), "stores": (2 * 2, 0)},
}
# Those for all rules, and the loads and stores of 16 bytes that they must have.
ALONE = {
    # Gradients of the compute type, sums over calls, and float32 and float64 gradients of float32; twice.
    "norms_kernelILNS_6KernelE3E": (2 * (2 + 2 + 3), 0),
    "norms_kernelILNS_6KernelE4E": (2 * (2 + 2 + 3), 0),
    # The variable, the gradient as above; the gradient cleared, and both in the compute type.
    "custom_kernelILNS_6KernelE5E": (2 + 2 + 4, 2 + 2 * 2),
    "custom_kernelILNS_6KernelE6E": (2, 2),
    "order_kernel": (0, 0),
    "write_kernel": (0, 0),
}
# An instruction's predicate, name and operands.
INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/ +(@!?\w+ )? *([A-Z][\w.]*)([^;]*);", re.MULTILINE)
Instruction = tuple[str, str, str]
# What waits for values from memory, and so ends a stretch of loads; and what does where it is of values that
# were loaded in it: moves, and what widens 16 bits.
ENDS_STRETCH = re.compile(r"[FD](?:ADD|MUL|FMA|SEL)\b|STG|CALL|RET|EXIT")
MOVES = re.compile(r"(?:IMAD\.)?(?:MOV|U32|SHL)\b|PRMT|SHF|LOP3")
WIDE = re.compile(r"(LDG|STG)\.E\..*\b128\b")
NOT_EXACT = re.compile(r"\b(?:fma|mad)\.[\w.]*f(?:32|64)|\.(?:approx|full|ftz)\b")
POW = {optimizer._rule().replace("_", "") for optimizer in WITH_POW}
POW_OF_CUDA = "__internal_"


def rule_of(function: str) -> str:
    """A kernel's or function's rule as in C++, in lower case; empty where it has none."""
    found = re.search(r"cuda\d+[a-z_]+INS0_\d+([A-Z]\w*?)E", function)
    return found[1].lower() if found else ""


def expected_kernels() -> dict[str, tuple[str, int]]:
    """How the kernels' names end, and of what kind they are, of a rule of how many slots."""
    kernels = {}
    for rule, (slots, _) in _native.rules().items():
        name = rule.replace("_", "")
        numbers = {1: "first", 2: "second"} if rule == "lamb" else {0: "bare", 1: "staged"}
        for number, kind in numbers.items():
            kernels[f"{name} {number}"] = (kind, len(slots))
    return kernels


@pytest.fixture(scope="module")
def disassembly() -> list[tuple[str, str, list[Instruction]]]:
    """Architecture, function and its instructions, for all that is in the package."""
    code = []
    for of_architecture in re.split(r"\n\s*code for ", dump("-sass"))[1:]:
        architecture = of_architecture.split(maxsplit=1)[0]
        names_and_bodies = re.split(r"\n\s*Function : (\S+)\n", of_architecture)
        for name, body in zip(names_and_bodies[1::2], names_and_bodies[2::2], strict=True):
            code.append((architecture, name, INSTRUCTION.findall(body)))
    assert code
    return code


@pytest.fixture(scope="module")
def machine_code(
    disassembly: list[tuple[str, str, list[Instruction]]],
) -> list[tuple[str, str, Counter[str]]]:
    """How many of which instructions."""
    return [
        (architecture, name, Counter(what for _, what, _ in instructions))
        for architecture, name, instructions in disassembly
    ]


def stretches(instructions: list[Instruction]) -> list[tuple[int, int]]:
    """Of loads that wait together: how many are of 16 bytes, and from the first to the last of these of 8.

    Where there are none of 16 bytes, all of 8 count. What has a predicate is of elements, not of tiles.
    """
    found: list[tuple[int, int]] = []
    wide = between = after = 0
    under_way: set[int] = set()
    for predicate, what, operands in [*instructions, ("", "EXIT", "")]:
        registers = [int(number) for number in re.findall(r"\bR(\d+)", operands)]
        if ENDS_STRETCH.match(what) or (MOVES.match(what) and under_way.intersection(registers[1:])):
            found.append((wide, between if wide else after))
            wide = between = after = 0
            under_way.clear()
        elif WIDE.match(what):
            between, after = between + (after if wide else 0), 0
            wide += 1
            under_way.update(range(registers[0], registers[0] + 4))
        elif what.startswith("LDG.E.64") and not predicate:
            after += 1
            under_way.update(range(registers[0], registers[0] + 2))
        else:  # written anew, or read by what has waited: a float64 is narrowed on a way of its own
            under_way.difference_update(registers, [number + 1 for number in registers])
    return found


def test_every_rule_has_its_kernels(machine_code: list[tuple[str, str, Counter[str]]]) -> None:
    for architecture in {architecture for architecture, _, _ in machine_code}:
        kernels = [name for of, name, _ in machine_code if of == architecture and "kernel" in name]
        found = {f"{rule_of(name)} {name[name.index('KernelE') + 7]}" for name in kernels if rule_of(name)}
        assert found == set(expected_kernels())
        for alone in ALONE:
            assert sum(alone in name for name in kernels) == 1


def test_kernels_access_sixteen_bytes_at_a_time(machine_code: list[tuple[str, str, Counter[str]]]) -> None:
    expected = expected_kernels()

    def check(name: str, instructions: Counter[str], least: tuple[int, int]) -> None:
        for opcode, count in zip(("LDG", "STG"), least, strict=True):
            wide = sum(n for what, n in instructions.items() if WIDE.match(what) and what.startswith(opcode))
            assert wide >= count, f"{name}: {opcode}"

    for architecture, name, instructions in machine_code:
        for alone, least in ALONE.items():
            if alone in name:
                check(f"{architecture}: {name}", instructions, least)
        if not rule_of(name) or "KernelE" not in name:
            continue
        kernel = f"{rule_of(name)} {name[name.index('KernelE') + 7]}"
        kind, slots = expected[kernel]
        (loads, of_slot), (stores, to_slot) = ACCESSES[kind]["loads"], ACCESSES[kind]["stores"]
        least = (loads + of_slot * slots, stores + to_slot * slots)
        check(f"{architecture}: {kernel} ({kind})", instructions, least)


def test_loads_of_a_tile_wait_together(disassembly: list[tuple[str, str, list[Instruction]]]) -> None:
    """Nothing waits, and in the bare kernels nothing looks at a table, between the first and the last."""
    expected = expected_kernels()
    for architecture, name, instructions in disassembly:
        found = stretches(instructions)
        if "norms_kernel" in name:
            assert (4, 0) in found, f"{architecture}: {name}, four rows of float32"
            assert any(wide == 0 and of_8 >= 8 for wide, of_8 in found), (
                f"{architecture}: {name}, eight of 16 bits"
            )
        if not rule_of(name) or "KernelE" not in name:
            continue
        kind, slots = expected[f"{rule_of(name)} {name[name.index('KernelE') + 7]}"]
        if kind == "bare":
            assert (2 + slots, 0) in found, f"{architecture}: {name}, float32"
            assert found.count((2 + 2 * slots, 0)) >= 2, f"{architecture}: {name}, 16 bits"
        if kind == "staged":
            # A gradient of float32, or two loads of float64; variable, sum over calls and average. In their
            # place, of 16 bits, a gradient and a variable.
            whole = [of_8 for wide, of_8 in found if wide >= 3 + 3 + slots]
            assert whole, f"{architecture}: {name}, float32"
            assert max(whole) >= 2, f"{architecture}: {name}, 16 bits"


def test_nothing_is_in_local_memory(machine_code: list[tuple[str, str, Counter[str]]]) -> None:
    for architecture, name, instructions in machine_code:
        local = [what for what in instructions if re.match("LDL|STL", what)]
        assert local == [], f"{architecture}: {name}"


def functions_of_ptx() -> dict[str, str]:
    """Names and bodies; a definition comes after its declaration."""
    parts = re.split(r"^(?=(?:\.visible |\.weak )?\.(?:entry|func)\b)", dump("-ptx"), flags=re.MULTILINE)[1:]
    functions = {}
    for part in parts:
        name = re.match(r"[^(]*(?:entry|func)\s+(?:\([^)]*\)\s*)?(\w+)", part)
        assert name
        functions[name[1]] = part
    return functions


def test_arithmetic_is_exact() -> None:
    """No rule is contracted or approximated, but CUDA's pow, which rules with another power call."""
    functions = functions_of_ptx()
    assert sum("kernel" in name for name in functions) == len(expected_kernels()) + len(ALONE)
    exact = {
        name: body
        for name, body in functions.items()
        if rule_of(name) not in POW and not name.startswith(POW_OF_CUDA)
    }
    assert len(functions) > len(exact) > len(functions) * 3 / 4
    for name, body in exact.items():
        assert NOT_EXACT.findall(body) == [], name
        assert POW_OF_CUDA not in body, name
    assert any(re.search(r"\bdiv\.rn\.f32", body) and "sqrt.rn.f32" in body for body in exact.values())


def test_no_library_of_cuda_is_needed() -> None:
    """The package is imported where there is no driver."""
    if not shutil.which("readelf"):
        pytest.skip("needs readelf")
    command = ["readelf", "-dW", str(_native.__file__)]
    dynamic = subprocess.run(command, check=True, capture_output=True, text=True)
    libraries = re.findall(r"\(NEEDED\).*\[(.*)\]", dynamic.stdout)
    assert "libc.so.6" in libraries
    assert [library for library in libraries if "cuda" in library] == []


def test_cmake_has_no_complaint(tmp_path: Path) -> None:
    """Nor where it is asked what it builds, as scikit-build-core does."""
    pybind11 = pytest.importorskip("pybind11")
    if shutil.which("cmake") is None or (shutil.which("nvcc") is None and "CUDACXX" not in os.environ):
        pytest.skip("needs cmake and nvcc")
    query = tmp_path / ".cmake" / "api" / "v1" / "query" / "codemodel-v2"
    query.parent.mkdir(parents=True)
    query.touch()
    options = ["-DFUSEDSTEP_CUDA=ON", "-DFUSEDSTEP_CUDA_ARCHITECTURES=90"]
    options.append(f"-Dpybind11_DIR={pybind11.get_cmake_dir()}")
    command = ["cmake", "-S", str(ROOT), "-B", str(tmp_path), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "CMake Error" not in done.stderr
