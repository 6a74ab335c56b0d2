"""The version, as it was built."""

from fusedstep import _native

__version__: str = _native.version
