"""The machine and the versions that the figures belong to."""

import contextlib
import multiprocessing
import os
import platform
import subprocess
from collections.abc import Iterator
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import fusedstep

CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
OWN_GROUPS, GROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
PACKAGES = (
    "numpy",
    "ml_dtypes",
    "numba",
    "torch",
    "deepspeed",
    "jax",
    "optax",
    "keras",
    "tensorflow-cpu",
    "tensorflow",
    "thinc",
    "cupy-cuda12x",
    "cupy-cuda13x",
    "apex",
    "bitsandbytes",
)


def describe(cores: int, threads: int, device: str) -> dict[str, Any]:
    """Return what the figures depend on, by name.

    Args:
        cores: the processors that this process might use as it began; it has left itself as many as threads.
        threads: how many it uses.
        device: cpu or cuda.
    """
    info = fusedstep.build_info()
    about: dict[str, Any] = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": commit(),
        "cpu": cpu_model(),
        "cores": cores,
        "threads": threads,
        "caches": caches(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "huge_pages": huge_pages(),
        "kernel": platform.release(),
        "build": {name: info[name] for name in ("compiler", "target", "openmp")},
        "versions": {
            "python": platform.python_version(),
            "fusedstep": info["version"],
            **{name: found for name in PACKAGES if (found := version(name)) is not None},
        },
    }
    if device == "cuda":
        from bench.contestants import cuda

        about["gpu"] = cuda.describe()
    return about


def version(package: str) -> str | None:
    """Return the version of a package, or None where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def caches() -> dict[str, int]:
    """Return the bytes of each cache for data that the first core sees; none where Linux does not tell."""
    found = {}
    for folder in sorted(CACHES.glob("index*")):
        try:
            level, kind, size = ((folder / name).read_text().strip() for name in ("level", "type", "size"))
        except FileNotFoundError:  # the firmware of many virtual machines with aarch64 tells no sizes
            continue
        if kind != "Instruction" and size.endswith("K"):
            found[f"L{level}"] = 1024 * int(size[:-1])
    return found


def others_seconds() -> float:
    """Return the processor time that all other processes have used so far."""
    user, nice, system, _idle, _waiting, *more = Path("/proc/stat").read_text().split()[1:9]
    busy = sum(int(ticks) for ticks in (user, nice, system, *more)) / os.sysconf("SC_CLK_TCK")
    return busy - own_seconds()


def own_seconds() -> float:
    """Return the processor time that this process and its children, also those that still run, have used."""
    own = os.times()
    seconds = own.user + own.system + own.children_user + own.children_system
    for child in multiprocessing.active_children():
        with contextlib.suppress(FileNotFoundError):  # it has just ended
            after_name = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
            seconds += sum(map(int, after_name[11:13])) / os.sysconf("SC_CLK_TCK")
    return seconds


def available_bytes() -> int:
    """Return how much memory can be taken before Linux takes it from others, or ends who takes it."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return min([1024 * int(line.split()[1]), *_left_by_limits()])
    raise RuntimeError("/proc/meminfo does not tell MemAvailable")


def _left_by_limits() -> Iterator[int]:
    """What each control group that the process is in leaves: a container's, or that of a job."""
    for line in OWN_GROUPS.read_text().splitlines() if OWN_GROUPS.exists() else ():
        _, controllers, path = line.split(":", 2)
        if controllers == "":  # version 2
            root, limit, used, cached = GROUPS, "memory.max", "memory.current", "inactive_file"
        elif controllers == "memory":
            root, cached = GROUPS / "memory", "total_inactive_file"
            limit, used = "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        own = root / path.lstrip("/")
        for group in (own, *own.parents):
            # Within a container only the root is seen, and that is the container's; a limit may be "max".
            with contextlib.suppress(OSError, ValueError):
                left = int((group / limit).read_text()) - int((group / used).read_text())
                statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
                yield max(left + int(statistics.get(cached, 0)), 0)


def cpu_model() -> str:
    """Return the processor's name, or its architecture where Linux does not tell it."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def huge_pages() -> str | None:
    """Return when Linux gives huge pages: its three choices, the one in force in brackets."""
    setting = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    return setting.read_text().strip() if setting.exists() else None


def commit() -> str | None:
    """Return the commit of these sources, with "+" where they have changed since; None without git."""
    command = ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+"]
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return done.stdout.strip() or None
