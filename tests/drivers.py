"""How tests build and run what is in tests/native."""

import subprocess
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent


def run(command: Sequence[str]) -> str:
    """What it prints; where it fails, so does the test, with all that it said."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build(target: str, folder: Path, only: str = "FUSEDSTEP_DRIVERS", **definitions: str) -> Path:
    """Build what the CMake option ``only`` is for, with the flags of the package."""
    definitions |= {"CMAKE_BUILD_TYPE": "Release", only: "ON", "FUSEDSTEP_WERROR": "ON"}
    options = [f"-D{name}={value}" for name, value in definitions.items()]
    run(["cmake", "-S", str(ROOT), "-B", str(folder), *options])
    run(["cmake", "--build", str(folder), "--parallel", "2", "--target", target])
    return folder / target
