"""Build, test, sanitize and measure on a machine with a GPU, by one command, in less than eight minutes.

    python3 tests/gpu/check.py --output results

It needs no network: this Python must have pip, scikit-build-core, pybind11, cmake, ninja, numpy, ml_dtypes,
pytest, CuPy and PyTorch (and rich for the bench), and nvcc must be there. The package is built for the GPU
at hand into a temporary folder. A stage that fails or runs past its time does not keep the next ones from
running. The folder gets a log of each stage, bench.json, and summary.json with everything; a table of it is
printed at the end.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("numpy", "ml-dtypes", "torch", "jax", "pytest", "pybind11", "scikit-build-core", "cmake", "ninja")
LARGEST_LOG = 2_000_000  # bytes
LAST_SECONDS = 5  # of its time, in which who is not done may still say what it knows
SANITIZED = 86  # the exit status for what the sanitizer finds
SUMMARIES = {
    "memcheck": "ERROR SUMMARY: 0 errors",
    "racecheck": "RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)",
}


@dataclass
class Outcome:
    """What came of a stage."""

    outcome: str  # ok, failed or skipped
    reason: str = ""
    seconds: float = 0.0
    details: dict[str, Any] = field(default_factory=dict)


@dataclass
class Stage:
    """A part of the whole, with the seconds it may take, and those that are kept for it."""

    name: str
    run: Callable[[float], Outcome]
    most: float
    kept: float


def run_all(
    commands: list[list[str]], log: Path, seconds: float, environment: dict[str, str]
) -> list[int | None]:
    """Run commands at once, their output one after another into a log; None for who was not done in time.

    Those are interrupted before they are killed: pytest tells of its failures then, and the bench has tables.
    """
    end = monotonic() + seconds
    interrupt_at = end - min(LAST_SECONDS, seconds / 2)
    with tempfile.TemporaryDirectory() as folder:
        outputs = [Path(folder) / str(number) for number in range(len(commands))]
        running = []
        for command, output in zip(commands, outputs, strict=True):
            with output.open("wb") as to:
                running.append(
                    subprocess.Popen(
                        command,
                        cwd=ROOT,
                        env=os.environ | environment,
                        stdin=subprocess.DEVNULL,
                        stdout=to,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                        preexec_fn=heed_interrupts,
                    )
                )
        late = [process for process in running if not ends_until(interrupt_at, process)]
        for process in late:
            os.killpg(process.pid, signal.SIGINT)
        for process in late:
            if not ends_until(end, process):
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        codes = [None if process in late else process.returncode for process in running]
        with log.open("wb") as to:
            for command, output, code in zip(commands, outputs, codes, strict=True):
                to.write(f"$ {' '.join(command)}\n".encode())
                text = output.read_bytes()
                most = LARGEST_LOG // len(commands)
                if len(text) > most:
                    text = text[: most // 2] + b"\n[...]\n" + text[-most // 2 :]
                ending = "was not done in time" if code is None else f"exit status {code}"
                to.write(text + f"\n[{ending}]\n\n".encode())
    return codes


def heed_interrupts() -> None:
    """Have a process end when it is interrupted, as those do not that a shell starts and goes on."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def ends_until(time: float, process: subprocess.Popen[bytes]) -> bool:
    """Wait for a process, and tell whether it has ended."""
    try:
        process.wait(max(0.0, time - monotonic()))
    except subprocess.TimeoutExpired:
        return False
    return True


class Check:
    """The stages over one installed package."""

    def __init__(self, output: Path, installed: Path | None, commit: str) -> None:
        self.output = output
        self.folder = Path(tempfile.mkdtemp(prefix="fusedstep-check-"))
        self.package = installed or self.folder / "package"
        self.build_first = installed is None
        self.about = about_the_machine(commit)
        self.built = False
        self.results: dict[str, Outcome] = {}
        self.began = monotonic()
        former = os.environ.get("PYTHONPATH")
        self.environment = {
            "PYTHONPATH": os.pathsep.join([str(self.package), *([former] if former else [])]),
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONFAULTHANDLER": "1",
            "PYTHONUNBUFFERED": "1",
        }

    def stages(self) -> list[Stage]:
        """Return them in their order."""
        return [
            Stage("build", self.build, 260, 120),
            Stage("tests", self.test, 200, 60),
            Stage("memcheck", lambda seconds: self.sanitize("memcheck", seconds), 60, 20),
            Stage("racecheck", lambda seconds: self.sanitize("racecheck", seconds), 60, 20),
            Stage("bench", self.bench, 300, 60),
        ]

    def run(self, seconds: float) -> bool:
        """Run all stages; return whether none failed."""
        stages = self.stages()
        for number, stage in enumerate(stages):
            left = seconds - (monotonic() - self.began) - sum(later.kept for later in stages[number + 1 :])
            begin = monotonic()
            try:
                if self.built or stage.name == "build":
                    result = stage.run(max(1.0, min(stage.most, left)))
                else:
                    result = Outcome("skipped", "there is no package")
            except Exception as error:
                result = Outcome("failed", f"{type(error).__name__}: {error}")
            result.seconds = round(monotonic() - begin, 1)
            self.results[stage.name] = result
            self.save()
            print(f"{stage.name}: {result.outcome} after {result.seconds} s {result.reason}", flush=True)
        return all(result.outcome != "failed" for result in self.results.values())

    def save(self) -> None:
        """Write what is known so far."""
        everything = self.about | {
            "seconds": round(monotonic() - self.began, 1),
            "stages": {name: asdict(result) for name, result in self.results.items()},
        }
        (self.output / "summary.json").write_text(json.dumps(everything, indent=1) + "\n")

    def build(self, seconds: float) -> Outcome:
        """Compile for the GPU at hand, and import."""
        log = self.output / "build.log"
        if self.build_first:
            architecture = self.about["gpu"].get("compute capability", "").replace(".", "") or "native"
            command = [
                sys.executable,
                "-m",
                "pip",
                "install",
                "--verbose",
                "--no-build-isolation",
                "--no-deps",
            ]
            command += ["--no-index", "--disable-pip-version-check", "--no-cache-dir"]
            command += ["--target", str(self.package), f"-Cbuild-dir={self.folder / 'build'}"]
            command += ["-Ccmake.define.FUSEDSTEP_CUDA=ON"]
            command += [f"-Ccmake.define.FUSEDSTEP_CUDA_ARCHITECTURES={architecture}", str(ROOT)]
            nvcc = find_tool("nvcc")
            compiler = {"CUDACXX": nvcc} if nvcc and not shutil.which("nvcc") else {}
            if run_all([command], log, seconds, compiler) != [0]:
                return Outcome("failed", first_words(log))
        ask = "import fusedstep, json; from fusedstep import _native;"
        ask += " print(json.dumps(fusedstep.build_info() | {'cuda': _native.cuda_version,"
        ask += " 'from': fusedstep.__file__}))"
        done = subprocess.run(
            [sys.executable, "-c", ask],
            cwd=ROOT,
            env=os.environ | self.environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
        if done.returncode != 0:
            return Outcome("failed", f"the package cannot be imported: {done.stderr[-500:]}")
        info = json.loads(done.stdout)
        found = Path(info.pop("from")).resolve()
        if not found.is_relative_to(self.package.resolve()):
            reason = f"this Python finds fusedstep in {found.parent}, not what was built; uninstall that"
            return Outcome("failed", reason, details=info)
        if not info["cuda"]:
            return Outcome("failed", "the package was built without CUDA", details=info)
        self.built = True
        return Outcome("ok", details=info)

    def test(self, seconds: float) -> Outcome:
        """Run each file in a process of its own: who breaks its context on the GPU breaks no other's."""
        log, counts = self.output / "tests.log", Counter[str]()
        files = sorted(path.relative_to(ROOT) for path in Path(__file__).parent.glob("test_*.py"))
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-m",
            "gpu",
            "-v",
            "--tb=short",
            "--color=no",
            "-W",
            "default",
        ]
        # Tracebacks come when a file is done: one that fails all over must not run out of time before.
        command += ["-p", "no:cacheprovider", "-o", "faulthandler_timeout=100", "--maxfail=15"]
        plain = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "OMP_NUM_THREADS": "2"}
        codes = run_all([[*command, str(file)] for file in files], log, seconds, self.environment | plain)
        text = log.read_text(errors="replace")
        for outcome in re.findall(r"^tests/gpu/.*? (PASSED|FAILED|ERROR|SKIPPED)\b", text, re.MULTILINE):
            counts[outcome.lower()] += 1
        failures = [line[:300] for line in text.splitlines() if re.match(r"(FAILED|ERROR|!+.*broken)", line)]
        skips = [line[:300] for line in text.splitlines() if line.startswith("SKIPPED [")]
        details = dict(counts) | {"failures": failures[:40], "skips": skips[:40]}
        reasons = [
            f"{file.name} was not done in time" for file, c in zip(files, codes, strict=True) if c is None
        ]
        reasons += [
            f"{file.name}: exit status {c}"
            for file, c in zip(files, codes, strict=True)
            if c not in (None, 0)
        ]
        if counts["failed"] + counts["error"] or reasons or not counts["passed"]:
            return Outcome("failed", "; ".join(reasons) or "nothing passed", details=details)
        return Outcome("ok", details=details)

    def sanitize(self, tool: str, seconds: float) -> Outcome:
        """Run a few steps under one of compute-sanitizer's tools."""
        log, sanitizer = self.output / f"{tool}.log", find_tool("compute-sanitizer")
        if sanitizer is None:
            return Outcome("skipped", "compute-sanitizer is not installed")
        # Libraries try calls that fail and go on: only kernels are of interest.
        command = [sanitizer, "--tool", tool, "--error-exitcode", str(SANITIZED), "--print-limit", "30"]
        command += ["--report-api-errors", "no"] if tool == "memcheck" else []
        command += [sys.executable, str(Path(__file__).with_name("small_run.py"))]
        command += ["--few"] if tool == "racecheck" else []  # it takes many times as long
        [code] = run_all([command], log, seconds, self.environment)
        text = log.read_text(errors="replace")
        if "evice not supported" in text:
            return Outcome("skipped", "compute-sanitizer does not support this device")
        if code == 0 and SUMMARIES[tool] in text:
            return Outcome("ok")
        found = re.findall(r"^=+ ((?:ERROR|RACECHECK) SUMMARY.*)", text, re.MULTILINE)
        if code is None:
            return Outcome("failed", "; ".join(["was not done in time", *found[-1:]]))
        return Outcome("failed", found[-1] if found and code == SANITIZED else last_words(log))

    def bench(self, seconds: float) -> Outcome:
        """Measure, with what is left of the time."""
        log, result = self.output / "bench.log", self.output / "bench.json"
        command = [sys.executable, "-m", "bench", "run", "--device", "cuda", "--output", str(result)]
        # It begins nothing more after so long.
        command += ["--seconds", str(max(10, min(220, int(seconds) - 50)))]
        [code] = run_all([command], log, seconds, self.environment)
        if "which is not installed" in log.read_text(errors="replace"):
            return Outcome("skipped", last_words(log))
        if code != 0 or not result.exists():
            what_there_is = "what was measured until then is kept: " if result.exists() else ""
            why = "it was not done in time" if code is None else last_words(log)
            return Outcome("failed", what_there_is + why)
        return Outcome("ok")


def about_the_machine(commit: str) -> dict[str, Any]:
    """Return what results depend on."""
    gpu: dict[str, str] = {}
    names = {
        "name": "name",
        "driver": "driver_version",
        "memory": "memory.total",
        "compute capability": "compute_cap",
    }
    answer = output_of(
        [find_tool("nvidia-smi"), f"--query-gpu={','.join(names.values())}", "--format=csv,noheader"]
    )
    if answer:
        gpu = dict(zip(names, answer.splitlines()[0].split(", "), strict=False))
    release = re.search(r"release ([\d.]+)", output_of([find_tool("nvcc"), "--version"]))
    versions = {"python": platform.python_version()}
    for distribution in importlib.metadata.distributions():
        name = distribution.name.lower().replace("_", "-")
        if name in PACKAGES or name.startswith("cupy"):
            versions[name] = distribution.version
    if commit == "unknown":
        commit = output_of(["git", "-C", str(ROOT), "rev-parse", "HEAD"]) or commit
        commit += " and changes" if output_of(["git", "-C", str(ROOT), "status", "--porcelain"]) else ""
    cuda = release[1] if release else "no nvcc"
    return {"commit": commit, "gpu": gpu, "cuda": cuda, "cpus": os.cpu_count(), "versions": versions}


def find_tool(name: str) -> str | None:
    """Return the path of a tool of CUDA or its driver, on the PATH or where they are installed."""
    places = [os.environ.get("CUDA_HOME", ""), "/usr/local/cuda", "/usr/local/nvidia"]
    return shutil.which(name) or shutil.which(
        name, path=":".join(f"{place}/bin" for place in places if place)
    )


def output_of(command: list[str | None]) -> str:
    """Return what a command prints; nothing where it fails or is missing."""
    try:
        return subprocess.run(
            [str(one) for one in command], capture_output=True, text=True, timeout=20
        ).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""


def last_words(log: Path) -> str:
    """Return the last lines of a log that look like a reason."""
    return " | ".join(telling_lines(log)[-3:])


def first_words(log: Path) -> str:
    """Return the first ones: a compiler's are the cause, while who calls it knows only that it failed."""
    return " | ".join(telling_lines(log)[:3])


def telling_lines(log: Path) -> list[str]:
    """Return the lines that look like a reason, or all where none does."""
    lines = [line.strip()[:200] for line in log.read_text(errors="replace").splitlines()]
    lines = [line for line in lines if line and not line.startswith("$ ")]  # the command
    return [line for line in lines if re.search(r"error|not done in time", line, re.IGNORECASE)] or lines


def table(check: Check) -> str:
    """Return the results, to be read."""
    gpu = check.about["gpu"]
    lines = [
        f"{gpu.get('name', 'no GPU found')}, driver {gpu.get('driver', '?')}, CUDA {check.about['cuda']}",
        f"commit {check.about['commit']}",
        "",
    ]
    for name, result in check.results.items():
        counts = [
            f"{result.details[key]} {key}"
            for key in ("passed", "failed", "error", "skipped")
            if key in result.details
        ]
        lines.append(
            f"{name:10} {result.outcome:8} {result.seconds:6.1f} s  {', '.join(counts)} {result.reason[:200]}"
        )
        lines += [f"    {failure[:160]}" for failure in result.details.get("failures", [])[:15]]
    return "\n".join(lines)


def main() -> int:
    """Return the exit status: 1 where a stage failed."""
    parser = argparse.ArgumentParser(description="Build, test, sanitize and measure on a machine with a GPU.")
    parser.add_argument("--output", type=Path, required=True, help="a folder for logs and results")
    parser.add_argument(
        "--installed", type=Path, help="a folder with the built package, in the place of a build"
    )
    parser.add_argument("--commit", default="unknown", help="where git cannot tell it")
    parser.add_argument("--seconds", type=float, default=465, help="that all stages may take (default: 465)")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    check = Check(options.output.resolve(), options.installed and options.installed.resolve(), options.commit)
    try:
        good = check.run(options.seconds)
    finally:
        shutil.rmtree(check.folder, ignore_errors=True)
    print(table(check))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
