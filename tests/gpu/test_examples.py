"""The examples train on a GPU."""

import subprocess
import sys
from pathlib import Path

import pytest

from gpu.libraries import GPU, loaded

pytestmark = GPU

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize(
    "command",
    [
        ["train_digits.py", "--device", "cuda", "--epochs", "40"],
        ["train_transformer.py", "--device", "cuda"],
        ["train_transformer.py", "--device", "cuda", "--graph"],
    ],
    ids=" ".join,
)
def test_it_reaches_its_accuracy(command: list[str], tmp_path: Path) -> None:
    loaded("cupy")
    for module in ("sklearn", "matplotlib", "rich", "threadpoolctl"):
        pytest.importorskip(module, reason="needs the examples extra")
    output = ["--output", str(tmp_path / "picture.png")] if command[0] == "train_digits.py" else []
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / command[0]), *command[1:], *output],
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert done.returncode == 0, done.stdout + done.stderr
