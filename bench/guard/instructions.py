"""Instructions of a step under callgrind: the same at every run, on a busy machine, too."""

import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import fusedstep

# Few elements tell what the call costs, many arrays what each costs, and many elements what the loops do.
WORKLOADS = (
    "1x1",
    "1x64",
    "1000x64",
    "1000x64-fresh",
    "1x65536",
    "1x65536-sgd",
    "1x65536-lion",
    "1x65536-bfloat16",
    "1x65536-adamw-clip",
    "1x65536-adamw-clip-ema",
    "1x65536-sparse",
)
STEPS = 10  # counted together, after some that are not
TARGETS = ("avx2", "baseline")  # the first that the CPU runs; valgrind has no AVX-512

Counts = dict[str, Any]


def target() -> str:
    """The target to count for."""
    supported = fusedstep.build_info()["targets"]
    return next(name for name in TARGETS if supported.get(name))


def count_instructions() -> Counts:
    """Run the steps under callgrind."""
    for tool in ("valgrind", "cc"):
        if shutil.which(tool) is None:
            sys.exit(f"The guard needs {tool}, which is not installed")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        library = folder / "callgrind.so"
        source = Path(__file__).with_name("callgrind.c")
        subprocess.run(["cc", "-O1", "-shared", "-fPIC", str(source), "-o", str(library)], check=True)
        counts = _run(folder, library)
    made_with = {
        "compiler": fusedstep.build_info()["compiler"],
        "python": platform.python_version(),
        "numpy": ".".join(np.__version__.split(".")[:2]),
        "target": target(),
    }
    return {"made with": made_with, "counts": counts}


def _run(folder: Path, library: Path) -> dict[str, int]:
    command = ["valgrind", "--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={folder}/out"]
    program = [sys.executable, "-m", "bench.guard.counted", str(library), str(STEPS), *WORKLOADS]
    # One thread, and a hash that does not change: nothing is left to chance.
    fixed = {"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0", "FUSEDSTEP_TARGET": target()}
    done = subprocess.run([*command, *program], env=os.environ | fixed, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"valgrind failed:\n{done.stderr}")
    nothing, *totals = [read(folder / f"out.{part + 1}") for part in range(len(WORKLOADS) + 1)]
    return {name: (total - nothing) // STEPS for name, total in zip(WORKLOADS, totals, strict=True)}


def read(dump: Path) -> int:
    """The instructions of one of callgrind's files."""
    found = re.search(r"^totals: (\d+)", dump.read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1])
