"""A rehearsal of tests/gpu where there is no GPU: over a stand-in for CUDA's runtime, and one for CuPy.

The kernels are compiled for the host, with all of the binding (tests/native/rehearsal.cmake), and CuPy is
tests/standin/cupy. What is looked at so is the host's side, and the tests themselves: on which stream and
device work goes, who waits for it, which memory is whose, what goes into a graph.
"""

import fcntl
import os
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

import drivers
from drivers import ROOT

GPU = ROOT / "tests" / "gpu"
# All tests of these take PyTorch's CUDA, or arrays of 2^31 elements; or minutes, of what runs in short here.
BEYOND = {"test_keras.py", "test_large.py", "test_torch.py", "test_examples.py"}
FILES = sorted(path.name for path in GPU.glob("test_*.py") if path.name not in BEYOND)
TOO_SLOW = "150000"  # rows, which take fibers a minute; of fewer the code is the same
WITHOUT_PYTORCH = "PyTorch cannot be imported: a rehearsal has none"


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    """That of a process which finds the package for the rehearsal, which is built where it has changed."""
    pybind11 = pytest.importorskip("pybind11", reason="needs pybind11")
    for tool in ("c++", "cmake"):
        if not shutil.which(tool):
            pytest.skip(f"needs {tool}")
    folder = ROOT / "build" / f"rehearsal-{sys.implementation.cache_tag}"
    package = folder / "package" / "fusedstep"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of all processes that test
        drivers.build(
            "rehearsal",
            folder,
            "FUSEDSTEP_REHEARSAL",
            CMAKE_CXX_COMPILER="c++",
            Python_EXECUTABLE=sys.executable,
            pybind11_DIR=pybind11.get_cmake_dir(),
        )
        shutil.copytree(
            ROOT / "python" / "fusedstep",
            package,
            ignore=shutil.ignore_patterns("*.so", "__pycache__"),
            dirs_exist_ok=True,
        )
        for built in folder.glob("_native.*"):
            (package / built.name).unlink(missing_ok=True)
            (package / built.name).symlink_to(built)
    return os.environ | {
        "PYTHONPATH": os.pathsep.join([str(package.parent), str(ROOT / "tests" / "standin")]),
        "LD_LIBRARY_PATH": str(folder),
        "PYTHONFAULTHANDLER": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    }


def rehearse(command: list[str], environment: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-20_000:]


@pytest.mark.parametrize("file", FILES)
def test_the_tests_of_gpus_pass(file: str, environment: dict[str, str], tmp_path: Path) -> None:
    """All of them but what takes PyTorch's own CUDA, and what takes too long."""
    command = ["-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider", "--junitxml", str(tmp_path / "results")]
    rehearse([*command, "-k", f"not {TOO_SLOW}", str(GPU / file)], environment)
    ran, skipped = 0, set[str]()
    for case in ET.parse(tmp_path / "results").iter("testcase"):
        reasons = [str(one.get("message")) for one in case.iter("skipped")]
        skipped |= set(reasons)
        ran += not reasons
    assert ran > 0
    assert skipped <= {WITHOUT_PYTORCH}


def test_the_stand_ins_do_as_they_should(environment: dict[str, str]) -> None:
    rehearse(["-m", "pytest", "-p", "no:cacheprovider", str(ROOT / "tests/standin/checks.py")], environment)


def test_steps_of_every_rule_stay_in_their_arrays(environment: dict[str, str]) -> None:
    """What compute-sanitizer is for on a GPU: bytes behind an array stay as they are."""
    rehearse([str(GPU / "small_run.py")], environment)


@pytest.mark.parametrize(
    "command",
    [
        ["train_digits.py", "--device", "cuda", "--epochs", "10"],
        ["train_transformer.py", "--device", "cuda", "--graph", "--epochs", "12"],
    ],
    ids=" ".join,
)
def test_the_examples_train(command: list[str], environment: dict[str, str], tmp_path: Path) -> None:
    """To their accuracy, though for a short time."""
    for module in ("sklearn", "matplotlib", "rich", "threadpoolctl"):
        pytest.importorskip(module, reason="needs the examples extra")
    output = ["--output", str(tmp_path / "picture.png")] if command[0] == "train_digits.py" else []
    rehearse([str(ROOT / "examples" / command[0]), *command[1:], *output], environment)
