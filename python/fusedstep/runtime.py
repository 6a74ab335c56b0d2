"""What this build is and how it runs: targets and threads."""

import os
from typing import Any, SupportsIndex

from fusedstep import _native
from fusedstep.checks import integer_in


def select_target_from_environment() -> None:
    """Use the target that ``FUSEDSTEP_TARGET`` names, where it is set."""
    name = os.environ.get("FUSEDSTEP_TARGET")
    if name:
        _native.select_target(name)


def build_info() -> dict[str, Any]:
    """Tell what was built and what is in use.

    Returns:
        ``version``; ``compiler``; ``target``, the instruction set in use; ``targets``, each one of
        this build, best first, and whether this CPU runs it; ``openmp``; ``num_threads``; ``cuda``, the
        version of CUDA that kernels were compiled with, or None.

    The target is the best one that the CPU runs. The environment variable ``FUSEDSTEP_TARGET``, read
    at import, names another. All targets compute the same bits.

    >>> import fusedstep
    >>> "baseline" in fusedstep.build_info()["targets"]
    True
    """
    return {
        "version": _native.version,
        "compiler": _native.compiler,
        "target": _native.current_target(),
        "targets": _native.targets(),
        "openmp": _native.openmp,
        "num_threads": _native.thread_count(),
        "cuda": _native.cuda_version or None,
    }


def get_num_threads() -> int:
    """Return the number of threads that a large step uses."""
    return _native.thread_count()


def set_num_threads(count: SupportsIndex | None) -> None:
    """Set the number of threads that a large step uses; the bits do not depend on it.

    Args:
        count: at least 1, or None to follow OpenMP again (``OMP_NUM_THREADS``, threadpoolctl, or one
            per CPU). Small steps use fewer. A process made by fork steps on one thread.

    Raises:
        TypeError: ``count`` is not an integer.
        ValueError: ``count`` is below 1.

    >>> import fusedstep
    >>> fusedstep.set_num_threads(1)
    >>> fusedstep.get_num_threads()
    1
    >>> fusedstep.set_num_threads(None)
    """
    number = 0 if count is None else integer_in(count, "set_num_threads: count", "[1, 32768]")
    _native.set_thread_count(number)
