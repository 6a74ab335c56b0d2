"""How many loops of each rule GCC vectorised, in the widest vectors of each target of x86-64."""

import json
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
VECTOR_BYTES = {"baseline": 16, "avx2": 32, "avx512": 64}
STAGES = "stages"  # loops that all rules share


def count_loops() -> dict[str, Any]:
    """Compile each target with the commands of the package's build."""
    for tool in ("cmake", "ninja", "g++"):
        if shutil.which(tool) is None:
            sys.exit(f"The guard needs {tool}, which is not installed")
    version = subprocess.run(["g++", "-dumpfullversion"], check=True, capture_output=True, text=True)
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as pool:
        commands = build_commands(Path(folder))
        found = pool.map(lambda name: _of_target(name, commands[name], Path(folder)), commands)
        counts = {
            f"{rule}, {name}": number
            for name, of_one in zip(commands, found, strict=True)
            for rule, number in sorted(of_one.items())
        }
    return {"made with": {"compiler": version.stdout.strip()}, "counts": counts}


def build_commands(build: Path) -> dict[str, str]:
    """Return the command with which the package's build compiles each target; that folder is written to."""
    options = ["-DCMAKE_EXPORT_COMPILE_COMMANDS=ON", "-DFUSEDSTEP_DRIVERS=ON", "-DCMAKE_BUILD_TYPE=Release"]
    cmake = ["cmake", "-G", "Ninja", "-S", str(ROOT), "-B", str(build), "-DCMAKE_CXX_COMPILER=g++"]
    subprocess.run([*cmake, *options], check=True, capture_output=True)
    found = {}
    for entry in json.loads((build / "compile_commands.json").read_text()):
        target = re.search(r"-DFUSEDSTEP_TARGET=(\w+)", entry["command"])
        if target and entry["file"].endswith("csrc/cpu/target.cpp"):
            found[target[1]] = entry["command"]
    return found


def _of_target(target: str, command: str, folder: Path) -> Counter[str]:
    dump = folder / f"{target}.txt"
    command = re.sub(r" -o \S+", f" -o {folder / target}.o", command)
    told = [*shlex.split(command), f"-fdump-tree-vect-optimized={dump}"]
    subprocess.run(told, check=True, capture_output=True, cwd=folder)
    return by_rule(dump.read_text(), VECTOR_BYTES[target])


def by_rule(dump: str, vector_bytes: int) -> Counter[str]:
    """Count what GCC's dump of a target says: of each function, what was vectorised in it."""
    counts: Counter[str] = Counter()
    for function in re.split(r"^;; Function ", dump, flags=re.MULTILINE)[1:]:
        name = function.partition("\n")[0]
        rule = re.search(r"([A-Z]\w+)<(?:float|double)>?", name)
        counts[rule[1] if rule else STAGES] += function.count(f"loop vectorized using {vector_bytes} byte")
    return +counts
