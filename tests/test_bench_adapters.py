"""The adapters as contestants of the benchmark, and spaCy's training: each where its library is installed."""

import importlib.util
import io

import pytest

pytest.importorskip("rich", reason='needs pip install ".[bench]"')

from rich.console import Console

from bench import errors
from bench.contestants import CPU, KERAS_TORCH, OURS_KERAS, OURS_TORCH, UnavailableError
from bench.contestants.worker import stop_workers
from bench.optimizers import OPTIMIZERS
from bench.workloads import Workload, workload

# Keras' own, where it asks PyTorch for a NumPy array.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def error(name: str, measured: Workload) -> float:
    missing = CPU[name].missing()
    if missing:
        pytest.skip(f"{' and '.join(missing)} not installed")
    try:
        return errors.error(name, measured, threads=1)
    except UnavailableError as refusal:
        pytest.skip(str(refusal))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_fusedstep_torch_has_the_bits_of_the_definition(optimizer: str) -> None:
    assert error(OURS_TORCH, Workload("1x64", optimizer)) == 0


@pytest.mark.parametrize("name", [OURS_KERAS, KERAS_TORCH])
def test_fusedstep_keras_computes_what_keras_does(name: str) -> None:
    try:
        for measured in ("1x64", "1x64-rmsprop", "1x64-adamw-clip-ema"):
            assert error(name, workload(measured)) < 1e-5
    finally:
        stop_workers()


def test_the_share_of_spacys_training(monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("spacy") is None:
        pytest.skip("spaCy is not installed")
    from bench import spacy

    monkeypatch.setattr(spacy, "ROUNDS", 2)
    monkeypatch.setattr(spacy, "UPDATES", 1)
    both = spacy.measure()
    for one in both.values():
        assert len(one.whole) == len(one.step) == 2
        assert 0 < one.share < 1
    printed = io.StringIO()
    spacy.print_shares(Console(file=printed, width=100), both)
    assert "times smaller" in printed.getvalue()
