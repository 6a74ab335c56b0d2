"""What Python does first with this folder on its path: it finds the rehearsal's package, and no PyTorch."""

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from types import ModuleType


class NoPyTorch(MetaPathFinder):
    """PyTorch would look for its own CUDA, and find a stand-in for the driver."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> None:
        if name == "torch":
            raise ImportError("a rehearsal has none")


# An editable install comes before all that is on the path.
sys.meta_path[:] = [one for one in sys.meta_path if type(one).__name__ != "ScikitBuildRedirectingFinder"]
sys.meta_path.insert(0, NoPyTorch())
