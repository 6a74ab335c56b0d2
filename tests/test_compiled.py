"""What the compiler made of the kernels: vectors, no fma, and one namespace for each target.

Compiles csrc/cpu/target.cpp with the commands of the package's build. GCC on x86-64.
"""

import platform
import re
import shlex
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from bench.guard.loops import ROOT, VECTOR_BYTES, build_commands
from conftest import WITH_POW
from fusedstep import _native

LOOPS = [
    ROOT / "csrc" / name
    for name in ("core/gather.hpp", "core/stages.hpp", "cpu/norm.hpp", "cpu/tile.hpp", "cpu/sweep.hpp")
]
# Copies and zeros become calls; looking for what is not finite is rare.
NOT_ARITHMETIC = re.compile(r"\] = (0|Storage\(\)|p\[i\]|h\[i\]|average\[i\]|values\[i\]);|finite &=")
RULES = len(_native.rules())
VECTORISED_RULES = RULES - len(WITH_POW) - 1  # pow is a call for each element; Lamb has loops of its own
TOOLS = ("cmake", "ninja", "g++", "nm", "objdump")

pytestmark = pytest.mark.skipif(
    platform.machine() != "x86_64" or not all(shutil.which(tool) for tool in TOOLS),
    reason=f"needs x86-64 and {', '.join(TOOLS)}",
)


def run(*command: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command, check=True, capture_output=True, text=True)


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The build's command for each target, writing to a file of its own."""
    build = tmp_path_factory.mktemp("compiled")
    found = {
        target: re.sub(r" -o \S+", f" -o {build / target}.o", command)
        for target, command in build_commands(build).items()
    }
    assert set(found) == set(VECTOR_BYTES)
    return found


@pytest.mark.parametrize("flag", ["-ffast-math", "-Ofast", "-funsafe-math-optimizations"])
def test_fast_math_of_the_environment_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flag: str
) -> None:
    """It would change bits, and switch the whole process to flush-to-zero as the package is loaded."""
    monkeypatch.setenv("CXXFLAGS", f"-DFROM_THE_ENVIRONMENT {flag}")
    for command in build_commands(tmp_path).values():
        assert "-DFROM_THE_ENVIRONMENT" in command
        macros = run(*re.sub(r" -o \S+", "", command).split(), "-E", "-dM").stdout
        assert "__FAST_MATH__" not in macros
    *_, link = run("ninja", "-C", str(tmp_path), "-t", "commands", "step_file").stdout.splitlines()
    command = link.partition("&& ")[2].removesuffix(" && :")
    assert "-DFROM_THE_ENVIRONMENT" in command
    called = run(*shlex.split(command), "-###").stderr
    assert "collect2" in called
    assert "crtfastmath.o" not in called


@dataclass(frozen=True)
class Compiled:
    """A target, the object file made of it, and what the compiler said of its loops."""

    target: str
    made: str
    messages: str


@pytest.fixture(scope="module", params=VECTOR_BYTES)
def compiled(request: pytest.FixtureRequest, commands: dict[str, str]) -> Compiled:
    """Each target in turn, compiled once for all tests."""
    command = shlex.split(commands[request.param])
    messages = run(*command, "-fopt-info-vec-optimized").stderr
    return Compiled(request.param, command[command.index("-o") + 1], messages)


def test_every_loop_is_vectorised(compiled: Compiled) -> None:
    """Each loop over elements, in each of its instances, in the target's widest vectors."""
    widest = rf"(\w+\.hpp):(\d+):.*loop vectorized using {VECTOR_BYTES[compiled.target]} byte"
    vectorised = re.findall(widest, compiled.messages)
    loops = {
        (file.name, str(number)): line.strip()
        for file in LOOPS
        for number, line in enumerate(file.read_text().splitlines(), 1)
        if re.search(r"for \(std::int64_t i|for \(int j = 0; j < lanes", line)
        and not NOT_ARITHMETIC.search(line)
    }
    assert len(loops) == 12
    # In two compute types: rules, for heads and bodies; the seven combinations of stages before the decay;
    # widening, from four dtypes; narrowing, to two.
    kinds = {"begin; i < end": 2 * VECTORISED_RULES, "of<scales": 2 * 7, "widen": 8}
    for place, line in loops.items():
        expected = next((count for text, count in kinds.items() if text in line), 2)
        assert vectorised.count(place) >= expected, f"{compiled.target}, {place}: {line}"


def test_nothing_is_shared_between_targets(compiled: Compiled) -> None:
    """A symbol outside of the target's namespace could be replaced by another target's at link time."""
    target = compiled.target
    symbols = run("nm", "-C", "--defined-only", compiled.made)
    names = [line.split(maxsplit=2)[2] for line in symbols.stdout.splitlines()]
    shared = [name for name in names if not name.startswith((".L", f"fusedstep::{target}::"))]
    assert len(names) > 2 * RULES
    assert [name for name in shared if f" fusedstep::{target}::" not in name] == []

    code = run("objdump", "-d", compiled.made).stdout
    assert re.search(r"\bv?sqrtps\b", code)
    assert not re.search(r"\bvf(n?m)(add|sub)", code), "contracted to fma"


def test_memory_is_asked_for_ahead(compiled: Compiled) -> None:
    """GCC dropped calls of functions that do nothing else."""
    assert run("objdump", "-d", compiled.made).stdout.count("prefetch") > 2 * RULES
