"""A rehearsal of tests/gpu where there is no GPU: over a stand-in for CUDA's runtime, and one for CuPy.

The kernels run on the host, with all of the binding (tests/native/rehearsal.cmake), and CuPy is
tests/standin/cupy. What is looked at so is the host's side, and the tests themselves: on which stream and
device work goes, who waits for it, which memory is whose, what goes into a graph.

Where the installed package has kernels for GPUs, it is these that run: instruction for instruction of the
PTX that nvcc made (tests/ptx.py). Elsewhere the host's compiler makes them of the same text.
"""

import fcntl
import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

import device_code
import drivers
import ptx
from drivers import ROOT
from fusedstep import _native

GPU = ROOT / "tests" / "gpu"
# All tests of these take PyTorch's CUDA, or arrays of 2^31 elements; or minutes, of what runs in short here.
BEYOND = {"test_keras.py", "test_large.py", "test_torch.py", "test_examples.py"}
FILES = sorted(path.name for path in GPU.glob("test_*.py") if path.name not in BEYOND)
TOO_SLOW = "150000"  # rows, which take fibers a minute; of fewer the code is the same
WITHOUT_PYTORCH = "PyTorch cannot be imported: a rehearsal has none"
FOLDER = ROOT / "build" / f"rehearsal-{sys.implementation.cache_tag}"
KERNELS = ("rules", "core", "cuda")  # folders of what they are made of
FILES_OF_NVCC = 4  # that compile at the same time, as far as there are processors


def write_kernels_of_nvcc() -> list[Path]:
    """C++ of them, where there are some. Files that would be the same are left alone, as already compiled."""
    paths = [FOLDER / f"nvcc_{number}.cpp" for number in range(FILES_OF_NVCC)]
    if device_code.MISSING is not None:
        return []
    sources = (path for folder in KERNELS for path in (ROOT / "csrc" / folder).iterdir())
    newest = max(sources, key=lambda path: path.stat().st_mtime)
    is_older = Path(_native.__file__).stat().st_mtime < newest.stat().st_mtime
    assert not is_older, f"the package's kernels are older than {newest}: install it again"
    for path, text in zip(paths, ptx.translate(device_code.dump("-ptx"), len(paths)), strict=True):
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
    return paths


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    """That of a process which finds the package for the rehearsal, which is built where it has changed."""
    pybind11 = pytest.importorskip("pybind11", reason="needs pybind11")
    for tool in ("c++", "cmake"):
        if not shutil.which(tool):
            pytest.skip(f"needs {tool}")
    package = FOLDER / "package" / "fusedstep"
    FOLDER.mkdir(parents=True, exist_ok=True)
    with (FOLDER / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of all processes that test
        drivers.build(
            "rehearsal",
            FOLDER,
            "FUSEDSTEP_REHEARSAL",
            FUSEDSTEP_REHEARSAL_KERNELS=";".join(map(str, write_kernels_of_nvcc())),
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
        for built in FOLDER.glob("_native.*"):
            (package / built.name).unlink(missing_ok=True)
            (package / built.name).symlink_to(built)
    return os.environ | {
        "PYTHONPATH": os.pathsep.join([str(package.parent), str(ROOT / "tests" / "standin")]),
        "LD_LIBRARY_PATH": str(FOLDER),
        "PYTHONFAULTHANDLER": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    }


def symbols(path: Path, kind: str) -> set[str]:
    """Names that an object file defines: T strong, W weak."""
    lines = (line.split() for line in drivers.run(["nm", "--defined-only", str(path)]).splitlines())
    return {name for _, of_kind, name in lines if of_kind == kind}


@pytest.mark.skipif(device_code.MISSING is not None, reason=str(device_code.MISSING))
def test_all_kernels_are_those_of_nvcc(environment: dict[str, str]) -> None:
    """A strong symbol takes the place of a weak one."""
    of_nvcc = {name for path in FOLDER.rglob("nvcc_*.o") for name in symbols(path, "T") if "kernel" in name}
    (compiled_here,) = FOLDER.rglob("kernels.cu.o")
    assert of_nvcc == {name for name in symbols(compiled_here, "W") if re.search(r"cuda\d+\w+_kernel", name)}
    assert len(of_nvcc) > 40


UNKNOWN = [
    "mul.f32 %f1, %f2, %f3;",  # which may be contracted
    "add.f32 %f1, %f2, %f3;",
    "add.ftz.f32 %f1, %f2, %f3;",
    "min.f32 %f1, %f2, %f3;",
    "cvt.rzi.s32.f32 %r1, %f1;",
    "abs.s32 %r1, %r2;",
    "setp.num.f32 %p1, %f1, %f2;",
    "atom.global.add.u32 %r1, [%rd1], %r2;",
    "membar.cta;",
    "trap;",
    "mul.rn.f32 %f1, %f2, %f3",  # and no end
    ".shared .b8 as_much_as_the_launch_says[];",
    ".shared .b8 too_much[50000];",
]


@pytest.mark.parametrize("statement", UNKNOWN)
def test_what_is_not_known_of_ptx_is_refused(statement: str) -> None:
    kernel = ".visible .entry kernelNS_6LaunchE(.param .b32 given)\n{{\n.reg .f32 %f<4>;\n{}\n}}\n"
    ptx.translate(kernel.format("mul.rn.f32 %f1, %f2, %f3; ret;"), 1)
    with pytest.raises(ptx.UnknownError):
        ptx.translate(kernel.format(statement), 1)


def rehearse(command: list[str], environment: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-20_000:]


@pytest.mark.parametrize("file", FILES)
def test_the_tests_of_gpus_pass(file: str, environment: dict[str, str], tmp_path: Path) -> None:
    """All of them but what takes PyTorch's own CUDA, and what takes too long."""
    if file == "test_thinc.py":
        pytest.importorskip("thinc", reason="thinc is not installed")
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


@pytest.mark.skipif(device_code.MISSING is not None, reason=str(device_code.MISSING))
def test_what_nvcc_made_moves_no_byte_too_many(environment: dict[str, str]) -> None:
    rehearse(["-m", "pytest", "-p", "no:cacheprovider", str(ROOT / "tests/standin/traffic.py")], environment)


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
