"""What nvcc made of the kernels, as the installed package has it."""

import os
import shutil
import subprocess
import sysconfig
from pathlib import Path

from fusedstep import _native

# A wheel puts it beside the packages, where no command is looked for.
WHEELS = Path(sysconfig.get_path("purelib")) / "nvidia"
CUOBJDUMP = shutil.which("cuobjdump") or next(map(str, WHEELS.glob("*/bin/cuobjdump")), None)

MISSING = (
    "this build has no kernels for GPUs"
    if not _native.cuda_version
    else 'needs cuobjdump: pip install ".[test]"'
    if CUOBJDUMP is None
    else None
)


def dump(option: str) -> str:
    """What cuobjdump prints."""
    assert CUOBJDUMP is not None
    environment = {**os.environ, "PATH": f"{Path(CUOBJDUMP).parent}{os.pathsep}{os.environ['PATH']}"}
    command = [CUOBJDUMP, option, str(_native.__file__)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout
