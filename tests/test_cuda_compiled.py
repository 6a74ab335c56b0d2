"""What nvcc made of the kernels: accesses of 16 bytes, nothing in local memory, no fma in a rule.

Reads the device code of the installed package, where it has some.
"""

import os
import re
import shutil
import subprocess
import sysconfig
from functools import cache
from pathlib import Path

import pytest

from conftest import WITH_POW
from fusedstep import _native

WITH_POW_RULES = {optimizer._rule() for optimizer in WITH_POW}
# The wheels that have it put it beside the packages, and no link to where commands are.
WHEELS = Path(sysconfig.get_path("purelib")) / "nvidia"
CUOBJDUMP = shutil.which("cuobjdump") or next(map(str, WHEELS.glob("*/bin/cuobjdump")), None)

pytestmark = [
    pytest.mark.skipif(not _native.cuda_version, reason="this build has no kernels for GPUs"),
    pytest.mark.skipif(CUOBJDUMP is None, reason='needs cuobjdump: pip install ".[cuda-test]"'),
]


def dump(option: str) -> str:
    assert CUOBJDUMP is not None
    tools = os.pathsep.join([str(Path(CUOBJDUMP).parent), os.environ["PATH"]])  # it calls nvdisasm
    command = [CUOBJDUMP, option, str(_native.__file__)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "PATH": tools})
    assert done.returncode == 0, done.stderr
    return done.stdout
