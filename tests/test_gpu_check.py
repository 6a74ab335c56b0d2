"""tests/gpu/check.py: what it does with commands that are late, and what it tells. That needs no GPU."""

import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpu import check

LATE = """
import time
print("it was late", flush=True)
try:
    time.sleep(60)
except KeyboardInterrupt:
    print("and these are its last words")
"""
SUMMARY = "========= ERROR SUMMARY: 3 errors"
DEAF = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(60)"
LOG = """$ compute-sanitizer --error-exitcode 86 some.py
something
[was not done in time]
"""
LOG_OF_A_BUILD = """$ pip install --verbose
[1/9] Building CUDA object
sweep.hpp(12): error: identifier "x" is undefined
ninja: build stopped: subcommand failed.
error: subprocess-exited-with-error

[exit status 1]
"""


@pytest.fixture
def with_interrupts_ignored() -> Iterator[None]:
    """As a shell starts what it does not wait for."""
    former = signal.signal(signal.SIGINT, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGINT, former)


def test_who_is_late_is_asked_to_end_before_it_is_killed(
    with_interrupts_ignored: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """So tests have their tracebacks, and the bench its tables."""
    monkeypatch.setattr(check, "LAST_SECONDS", 3)
    commands = [[sys.executable, "-c", code] for code in (LATE, "print(1)", DEAF)]
    assert check.run_all(commands, tmp_path / "log", 6, {}) == [None, 0, None]
    log = (tmp_path / "log").read_text()
    assert "it was late\nand these are its last words\n\n[was not done in time]" in log
    assert log.count("was not done in time") == 2


def test_a_command_is_no_reason(tmp_path: Path) -> None:
    (tmp_path / "log").write_text(LOG)
    assert check.last_words(tmp_path / "log") == "[was not done in time]"


def test_versions_are_found_under_any_spelling(monkeypatch: pytest.MonkeyPatch) -> None:
    class Distribution:
        name, version = "scikit_build_core", "1.2.3"

    monkeypatch.setattr("importlib.metadata.distributions", lambda: [Distribution()])
    assert check.about_the_machine("some")["versions"]["scikit-build-core"] == "1.2.3"


def test_the_first_errors_of_a_build_are_its_reason(tmp_path: Path) -> None:
    (tmp_path / "log").write_text(LOG_OF_A_BUILD)
    words = check.first_words(tmp_path / "log")
    assert words == 'sweep.hpp(12): error: identifier "x" is undefined | error: subprocess-exited-with-error'


def test_a_late_sanitizer_tells_what_it_has_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    sanitizer = tmp_path / "compute-sanitizer"
    sanitizer.write_text(f"#!{sys.executable}\n{LATE.replace('and these are its last words', SUMMARY)}")
    sanitizer.chmod(0o755)
    tools = {"compute-sanitizer": str(sanitizer)}
    monkeypatch.setattr(check, "find_tool", tools.get)
    made = check.Check(tmp_path, tmp_path, "some")
    made.folder.rmdir()
    outcome = made.sanitize("memcheck", 4)
    assert (outcome.outcome, outcome.reason) == ("failed", "was not done in time; ERROR SUMMARY: 3 errors")
