"""The kernels with threads for CUDA's threads: ThreadSanitizer sees what nothing orders.

Elsewhere one thread after another is simulated (csrc/cuda/simulation.cpp), which no race would disturb.
"""

import shutil
import subprocess
from pathlib import Path

import pytest

from drivers import build, run


def sanitizer_is_missing(folder: Path) -> str:
    """Why programs cannot be built with ThreadSanitizer or do not run; empty where they do."""
    program = folder / "nothing"
    program.with_suffix(".cpp").write_text("int main() {}")
    for command in (["c++", "-fsanitize=thread", f"{program}.cpp", "-o", str(program)], [str(program)]):
        if not shutil.which(command[0]):
            return f"needs {command[0]}"
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            return f"ThreadSanitizer does not work here: {done.stderr}"
    return "" if shutil.which("cmake") else "needs cmake"


def test_threads_leave_the_same_bits_and_race_for_nothing(tmp_path: Path) -> None:
    if missing := sanitizer_is_missing(tmp_path):
        pytest.skip(missing)
    driver = build("cuda_threads", tmp_path / "build", CMAKE_CXX_COMPILER="c++")
    cases = run([str(driver)]).splitlines()
    assert len(cases) > 50
    assert len(set(cases)) == len(cases)
