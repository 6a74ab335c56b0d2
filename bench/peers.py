"""Make an environment of its own that has fusedstep and all peers, in the versions of peers.txt."""

import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).parent.parent
PINNED = Path(__file__).with_name("peers.txt")


def pinned() -> list[str]:
    """The requirements of peers.txt."""
    lines = PINNED.read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def install(folder: Path) -> None:
    """Make the environment, say what was installed and what was not, and how to go on.

    A peer that cannot be had on this machine is left out: the suite then runs without it.
    """
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
    pip = [str(python), "-m", "pip", "--disable-pip-version-check"]
    # Together, so that they agree; where that fails, one after the other.
    if not _succeeds([*pip, "install", "--quiet", "-r", str(PINNED)]):
        for requirement in pinned():
            if not _succeeds([*pip, "install", "--quiet", "-c", str(PINNED), requirement]):
                print(f"without {requirement}: it could not be installed")
    if not _succeeds([*pip, "install", "--quiet", "-c", str(PINNED), f"{ROOT}[bench]"]):
        sys.exit("fusedstep itself could not be installed")
    subprocess.run([*pip, "list", "--format=columns"], check=True)
    print(f"\n{python} -m bench run")


def _succeeds(command: list[str]) -> bool:
    print(*command, flush=True)
    return subprocess.run(command).returncode == 0
