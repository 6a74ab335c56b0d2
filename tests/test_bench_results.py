"""bench: a small real run, from the command line to file, table and pictures; the README; the counts."""

import gc
import importlib.util
import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from time import monotonic, process_time, sleep
from typing import Any

import pytest

pytest.importorskip("rich", reason="needs the bench extra")
pytest.importorskip("matplotlib", reason="needs the bench extra")

from rich.console import Console

from bench import __main__ as command_line
from bench import commands, guard, machine, measure, plot, readme, report
from bench import run as of_run
from bench.compare import print_changes
from bench.contestants import FUSEDSTEP, NUMPY, PAIRS, SAME_BYTES, UnavailableError, make
from bench.contestants.contestant import Contestant, Timed
from bench.figures import time
from bench.goals import GOALS, judge
from bench.guard.instructions import read
from bench.guard.loops import STAGES, by_rule
from bench.measure import Lane, Settings
from bench.result import Result, UnreadableResultError
from bench.run import check_writable
from bench.series import Series
from bench.workloads import workload

ROOT = Path(__file__).parent.parent
NAMES = ["1x1", "1x8", "1x64", "2x64", "4x64", "3x40-clip", "1x64-sparse", "1x64-busy", "1x64-spinner"]
CONTESTANTS = [FUSEDSTEP, PAIRS, NUMPY, SAME_BYTES]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Blocks that are too short to measure anything, and the environment as it was."""
    monkeypatch.setattr(measure, "BLOCK_SECONDS", 1e-4)
    monkeypatch.setattr(measure, "SPINNER_BLOCK_SECONDS", 1e-4)
    monkeypatch.setattr(measure, "WARM_UP_SECONDS", 1e-4)
    monkeypatch.setattr(measure, "STEPS_OF_A_BLOCK", 2)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    processors = os.sched_getaffinity(0)
    yield
    os.sched_setaffinity(0, processors)


def run(file: Path, *arguments: str) -> Result:
    names = ["--peers", NUMPY, "--rounds", "3", "--threads", "1", "--output", str(file)]
    command_line.main(["run", *arguments, *names])
    return Result.load(file)


@pytest.fixture
def some_run(quick: None, tmp_path: Path) -> tuple[Result, Path]:
    file = tmp_path / "some.json"
    return run(file, "--workloads", *NAMES), file


def test_a_run_has_every_sample(quick: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cores = len(os.sched_getaffinity(0))
    result = run(tmp_path / "some.json", "--workloads", *NAMES)
    printed = capsys.readouterr().out
    assert result.contestants == CONTESTANTS
    for one in result.series:
        if one.workload.endswith("spinner") and one.contestant != FUSEDSTEP:
            assert "only fusedstep" in one.absent
            continue
        assert len(one.samples) == 3
        assert min(one.samples) > 0
        assert bool(one.means) == (one.steps == 1 and one.workload in ("1x64-busy", "1x64-spinner"))
        assert one.workload in printed
        expected = {SAME_BYTES: None, FUSEDSTEP: 0, PAIRS: 0}
        assert one.error == expected.get(one.contestant, one.error)
        if one.contestant == NUMPY:
            assert one.error is not None
            assert 0 < one.error < 1e-6
    assert result.machine["threads"] == 1
    assert result.machine["cores"] == cores  # also where the run has left itself fewer
    assert {"commit", "cpu", "cores", "versions", "build", "caches"} <= result.machine.keys()
    assert "The call itself" in printed
    assert "error" in printed


def test_a_file_is_read_as_it_was_written(some_run: tuple[Result, Path], tmp_path: Path) -> None:
    result, _ = some_run
    result.notes.append("a note")
    result.save(tmp_path / "again.json")
    assert Result.load(tmp_path / "again.json") == result
    assert json.loads((tmp_path / "again.json").read_text())["workloads"]["4x64"]["arrays"] == 4


@pytest.mark.parametrize("data", [b"", b"{}", b'{"format": 1}', b'{"format": 2}', b"[1]", b"\x89PNG"])
def test_other_files_are_refused(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "other.json").write_bytes(data)
    with pytest.raises(UnreadableResultError, match=r"other\.json"):
        Result.load(tmp_path / "other.json")


def test_another_format_is_refused(tmp_path: Path) -> None:
    saved = json.loads(readme.SOURCE.read_text()) | {"format": 1}
    (tmp_path / "old.json").write_text(json.dumps(saved))
    with pytest.raises(UnreadableResultError, match="has format 1, this reads 2"):
        Result.load(tmp_path / "old.json")


def test_workloads_of_other_sources_are_told(tmp_path: Path) -> None:
    saved = json.loads(readme.SOURCE.read_text())
    saved["series"][0]["workload"] = "vit"
    (tmp_path / "theirs.json").write_text(json.dumps(saved))
    with pytest.raises(UnreadableResultError, match=r"theirs\.json is of other sources.*'vit'"):
        Result.load(tmp_path / "theirs.json")


def test_two_files_side_by_side(some_run: tuple[Result, Path], capsys: pytest.CaptureFixture[str]) -> None:
    _, file = some_run
    command_line.main(["compare", str(file), str(file)])
    printed = capsys.readouterr().out
    assert printed.count("cannot tell") == 8 * len(CONTESTANTS) + 1
    assert "1.000" in printed


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_a_narrow_terminal_cuts_nothing_off(columns: int) -> None:
    """A row is whole, and a terminal breaks it: names had no width left, and figures ended in an ellipsis."""
    file = io.StringIO()
    result = Result.load(readme.SOURCE)
    console = Console(file=file, width=columns)
    report.print_figures(console, result)
    report.print_verdicts(console, judge(result.by_key, result.memory))
    print_changes(console, result, result)
    printed = file.getvalue()
    assert "…" not in printed
    ours = result.by_key["1000x256", FUSEDSTEP]
    row = next(line for line in printed.splitlines() if "│ 1000x256 " in line)
    for cell in (FUSEDSTEP, time(ours.median), time(ours.spread.first), "0 │"):
        assert cell in row
    assert re.search(r"│ +[01]\.\d\d │", row), "the share of the limit"


def test_runs_that_have_nothing_for_a_command_are_told_so(
    quick: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither an empty table nor silence; and with how many threads a run was made is seen."""
    file = tmp_path / "some.json"
    run(file, "--workloads", "1x8")
    command_line.main(["compare", str(file), str(readme.SOURCE)])
    printed = capsys.readouterr().out
    assert "no workload and contestant in common" in printed
    assert ", 1 threads, " in printed
    assert ", 2 threads, " in printed
    result = Result.load(file)
    result.series = [one for one in result.series if one.contestant != NUMPY]
    result.save(file)
    with pytest.raises(SystemExit, match="has nothing to draw"):
        command_line.main(["plot", str(file), "--folder", str(tmp_path)])


def test_pictures_in_both_formats(some_run: tuple[Result, Path], tmp_path: Path) -> None:
    result, file = some_run
    command_line.main(["plot", str(file), "--folder", str(tmp_path / "pictures")])
    made = sorted(picture.name for picture in (tmp_path / "pictures").iterdir())
    assert made == sorted(
        f"some-{name}.{suffix}" for name in ("counts", "sizes", "bars") for suffix in ("svg", "png")
    )
    for name in ("counts", "sizes", "bars"):
        svg = (tmp_path / "pictures" / f"some-{name}.svg").read_text()
        assert plot.digest(file) in svg
        for contestant in (FUSEDSTEP, NUMPY):
            assert f">{contestant}<" in svg
        assert (tmp_path / "pictures" / f"some-{name}.png").read_bytes().startswith(b"\x89PNG")
    for cache in result.machine["caches"]:
        assert f">{cache}<" in (tmp_path / "pictures" / "some-sizes.svg").read_text()


def luminance(colour: str) -> float:
    """As WCAG 2 defines it."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("background", ["#ffffff", "#0d1117"])
def test_colours_read_in_light_and_dark(background: str) -> None:
    def contrast(colour: str) -> float:
        dark, light = sorted((luminance(colour), luminance(background)))
        return (light + 0.05) / (dark + 0.05)

    assert contrast(plot.INK) > 4.2  # no grey has 4.5 on both
    assert min(map(contrast, plot.COLOURS)) > 3
    assert plot.STYLE["savefig.transparent"]


def test_names_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    command_line.main(["list"])
    printed = capsys.readouterr().out
    for name in (FUSEDSTEP, NUMPY, "Keras, jax", "bitsandbytes", "llama1b", "clip-ema", "busy", "lion"):
        assert name in printed


@pytest.mark.parametrize(
    "wrong", [["--workloads", "none"], ["--peers", "none-such"], ["--optimizers", "none"], ["--rounds", "1"]]
)
def test_wrong_arguments_end_it(wrong: list[str], quick: None) -> None:
    with pytest.raises(SystemExit):
        command_line.main(["run", "--threads", "1", *wrong])


@pytest.mark.parametrize(
    ("missing", "command"),
    [("rich", ["list"]), ("matplotlib", ["plot", str(readme.SOURCE)]), ("matplotlib", ["readme", "--check"])],
)
def test_a_package_that_is_missing_is_named(
    missing: str, command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == missing else installed(name)
    )
    with pytest.raises(
        SystemExit, match=rf'needs {missing}, which is not installed: pip install "\.\[bench\]"'
    ):
        command_line.main(command)


def test_a_place_that_cannot_be_written_is_refused_before_anything_is_measured(
    quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands, "measured_run", lambda *_, **__: pytest.fail("it has measured"))
    (tmp_path / "file").write_text("mine")
    for output in (tmp_path, tmp_path / "file" / "some.json"):
        with pytest.raises(SystemExit, match=f"--output {re.escape(str(output))} cannot be written: "):
            command_line.main(["run", "--threads", "1", "--output", str(output)])
    with pytest.raises(SystemExit, match=r"--folder .*file cannot be written: "):
        command_line.main(["plot", str(readme.SOURCE), "--folder", str(tmp_path / "file")])
    check_writable(tmp_path / "folder" / "some.json")
    check_writable(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"
    assert list((tmp_path / "folder").iterdir()) == []


def test_a_saved_run_is_judged(capsys: pytest.CaptureFixture[str], quick: None) -> None:
    command_line.main(["goals", "--threads", "1", "--from", str(readme.SOURCE)])
    printed = capsys.readouterr().out
    assert "1x64 takes <= 3 us" in printed
    measured = {one.workload for one in Result.load(readme.SOURCE).series if "fusedstep." in one.contestant}
    of_adapters = [goal.text.partition(":")[0] for goal in GOALS if "fusedstep." in goal.text]
    assert f"{sum(one not in measured for one in of_adapters)} goals were not measured" in printed


def test_what_there_is_no_time_for_is_told(
    quick: None, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command_line, "BEGAN", command_line.BEGAN - 1000)
    result = run(tmp_path / "some.json", "--workloads", "1x8", "1x9", "1x10")
    assert result.workloads == ["1x8"]
    assert "The time was over before 1x9, 1x10" in capsys.readouterr().out
    assert "1x9" in result.notes[0]


def test_an_interrupt_ends_a_run_with_what_there_is(
    quick: None, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted_at(number: int) -> None:
        groups = iter(range(3))

        def measured(*arguments: Any) -> list[Series]:
            if next(groups) == number:
                raise KeyboardInterrupt
            return measure.measure(*arguments)

        monkeypatch.setattr(of_run, "measure", measured)

    interrupted_at(0)
    with pytest.raises(SystemExit, match=r"interrupted before 1x8, 1x9, 1x10 had been measured"):
        run(tmp_path / "some.json", "--workloads", "1x8", "1x9", "1x10")
    assert not (tmp_path / "some.json").exists()
    interrupted_at(1)
    with pytest.raises(SystemExit) as exit_:
        run(tmp_path / "some.json", "--workloads", "1x8", "1x9", "1x10")
    assert exit_.value.code == 130
    assert "interrupted before 1x9, 1x10 had been measured" in " ".join(capsys.readouterr().out.split())
    result = Result.load(tmp_path / "some.json")
    assert result.workloads == ["1x8"]
    assert result.notes == ["It was interrupted before 1x9, 1x10 had been measured."]


def test_an_interrupt_may_come_before_the_first_workload(
    quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While memory was measured, which the goals begin with, it was a traceback."""

    def interrupted(dtype: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(of_run, "measure_memory", interrupted)
    with pytest.raises(SystemExit, match="interrupted before 1x8 had been measured"):
        command_line.main(["goals", "--workloads", "1x8", "--output", str(tmp_path / "some.json")])


def test_what_a_killed_run_leaves_tells_what_other_programs_used(
    quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = iter([0.0, 1e6])
    monkeypatch.setattr(machine, "others_seconds", lambda: next(others))
    kept: list[float] = []
    monkeypatch.setattr(commands, "save", lambda result, _: kept.append(result.cores_used_by_others))
    with pytest.raises(FileNotFoundError):
        run(tmp_path / "some.json", "--workloads", "1x8")
    assert kept[0] > 1000


def burn(seconds: float, connection: Connection) -> None:
    while process_time() < seconds:
        pass
    connection.send("done")
    connection.recv()


def test_a_cache_whose_size_is_not_told_is_left_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for index, (level, size) in enumerate([(1, "32K"), (2, None)]):
        folder = tmp_path / f"index{index}"
        folder.mkdir()
        (folder / "level").write_text(f"{level}\n")
        (folder / "type").write_text("Data\n")
        if size is not None:
            (folder / "size").write_text(f"{size}\n")
    monkeypatch.setattr(machine, "CACHES", tmp_path)
    assert machine.caches() == {"L1": 32768}


@pytest.mark.parametrize(
    ("own", "folder", "files"),
    [
        ("0::/", "", ("memory.max", "memory.current", "inactive_file")),  # a container
        ("0::/job/step", "job", ("memory.max", "memory.current", "inactive_file")),
        (
            "4:memory:/docker/unseen",
            "memory",
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ),
    ],
)
def test_the_memory_of_a_container_is_all_there_is(
    own: str, folder: str, files: tuple[str, str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Linux kills who takes more, however much the machine has."""
    groups = tmp_path / "groups"
    for group, most in ((groups / folder / "step", "max"), (groups / folder, "9000")):
        group.mkdir(parents=True, exist_ok=True)
        limit, used, cached = files
        (group / limit).write_text(f"{most}\n")
        (group / used).write_text("5000\n")
        (group / "memory.stat").write_text(f"anon 3000\n{cached} 2000\n")
    (tmp_path / "own").write_text(f"3:cpu:/job\n{own}\n")
    whole = machine.available_bytes()
    monkeypatch.setattr(machine, "GROUPS", groups)
    monkeypatch.setattr(machine, "OWN_GROUPS", tmp_path / "own")
    assert machine.available_bytes() == 6000 < whole
    (groups / folder / files[0]).write_text("max\n")
    assert machine.available_bytes() > 6000
    (tmp_path / "own").unlink()
    assert machine.available_bytes() > 6000


def test_a_child_that_still_runs_is_no_other_program() -> None:
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    child = context.Process(target=burn, args=(1.0, theirs), daemon=True)
    before = machine.own_seconds()
    child.start()
    ours.recv()
    grown = machine.own_seconds() - before
    ours.send("end")
    child.join()
    assert grown > 0.9
    assert machine.own_seconds() - before > 0.9  # once: when it has ended, too


def test_a_run_that_is_killed_leaves_no_busy_processes() -> None:
    """They would keep all cores busy for ever, and spoil the next run."""
    program = (
        "import time; from bench.conditions import busy_processes\n"
        "with busy_processes():\n    print('busy', flush=True); time.sleep(60)"
    )
    run = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE)
    assert run.stdout is not None
    run.stdout.readline()
    children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
    assert children
    run.kill()
    run.wait()
    run.stdout.close()
    until = monotonic() + 30
    while left := [child for child in children if command_of(child)]:
        if monotonic() > until:
            for child in left:
                os.kill(int(child), signal.SIGKILL)
            pytest.fail(f"{len(left)} still run")
        sleep(0.1)


def command_of(process: str) -> bytes:
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return b""


def test_who_fails_loses_nobody_else(monkeypatch: pytest.MonkeyPatch, quick: None, tmp_path: Path) -> None:
    def fails(name: str, *arguments: Any, **more: Any) -> Contestant:
        if name == NUMPY:
            raise OSError("no such luck")
        return make(name, *arguments, **more)

    monkeypatch.setattr(measure, "make", fails)
    found = {one.contestant: one for one in run(tmp_path / "some.json", "--workloads", "1x8").series}
    assert found[NUMPY].absent == "OSError: no such luck"
    assert len(found[FUSEDSTEP].samples) == 3


def test_who_fails_late_keeps_the_samples(
    monkeypatch: pytest.MonkeyPatch, quick: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter([1e-3] * 12)

    def fails_late(name: str, *arguments: Any, **more: Any) -> Contestant:
        made = make(name, *arguments, **more)
        if name != NUMPY:
            return made
        return Contestant(made.step, made.variables, made.scale, {}, lambda *_: Timed(next(clock)))

    monkeypatch.setattr(measure, "make", fails_late)
    monkeypatch.setattr(measure, "PLACEMENTS", 1)
    monkeypatch.setattr(measure, "WARM_UP_SECONDS", 0)
    found = {one.contestant: one for one in run(tmp_path / "some.json", "--workloads", "1x8").series}
    assert (len(found[NUMPY].samples), len(found[FUSEDSTEP].samples)) == (3, 3)
    clock = iter([1e-3] * 6)
    found = {one.contestant: one for one in run(tmp_path / "some.json", "--workloads", "1x8").series}
    assert (len(found[NUMPY].samples), len(found[FUSEDSTEP].samples)) == (2, 3)
    assert found[NUMPY].absent.startswith("StopIteration")
    assert f"without {NUMPY}" in capsys.readouterr().out


def test_what_does_not_fit_together_goes_one_at_a_time(
    monkeypatch: pytest.MonkeyPatch, quick: None, tmp_path: Path
) -> None:
    def together(*_: Any) -> None:
        raise AssertionError("they do not fit")

    monkeypatch.setattr(measure, "_measure_together", together)
    monkeypatch.setattr(machine, "available_bytes", lambda: 3 * workload("1x1000").held_bytes)
    result = run(tmp_path / "some.json", "--workloads", "1x1000")
    assert [len(one.samples) for one in result.series] == [3] * len(CONTESTANTS)
    monkeypatch.setattr(machine, "available_bytes", lambda: 10)
    result = run(tmp_path / "some.json", "--workloads", "1x1000")
    assert {one.absent for one in result.series} == {"too little memory is free"}


@pytest.mark.parametrize("measured", [measure._measure_together, measure._measure_one_at_a_time])
def test_rounds_are_the_same_for_large_and_small(monkeypatch: pytest.MonkeyPatch, measured: Any) -> None:
    """5 of them in any case, each in an order of its own, and no garbage collected while the clock runs."""
    order: list[str] = []

    def lane_of(series: Series, *_: Any) -> Lane:
        def clock(*_: Any) -> Timed:
            assert not gc.isenabled()
            order.append(series.contestant)
            return Timed(1.0)

        return Lane(series, Contestant(list, list, float, {}, clock), "usual", 10.0)

    monkeypatch.setattr(measure, "prepare", lane_of)
    monkeypatch.setattr(measure, "run_for", lambda *_: [])
    wanted = [(Series("1x64", name), workload("1x64")) for name in (FUSEDSTEP, NUMPY)]
    measured(wanted, Settings("cpu", 1, 30, [FUSEDSTEP, NUMPY]), 0.0, str)
    rounds = [order[at : at + 2] for at in range(0, len(order), 2)]
    assert rounds == [measure.shuffled([FUSEDSTEP, NUMPY], number) for number in range(5)]
    assert [FUSEDSTEP, NUMPY] in rounds
    assert [NUMPY, FUSEDSTEP] in rounds
    assert gc.isenabled()


def test_nobody_always_steps_after_the_same_one() -> None:
    """Whose threads may still be spinning, and whose arrays are in the caches."""
    rounds = [measure.shuffled(list("ABCD"), number) for number in range(30)]
    assert all(sorted(one) == list("ABCD") for one in rounds)
    assert rounds == [measure.shuffled(list("ABCD"), number) for number in range(30)]
    for who in "ABCD":
        before = [one[one.index(who) - 1] for one in rounds if one[0] != who]
        assert max(map(before.count, before)) < 0.6 * len(before)


def test_who_is_far_behind_steps_in_few_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would only take the others' time; its ratios are of the first rounds."""
    clock = {FUSEDSTEP: 0.01, NUMPY: 1.0}
    settings = Settings("cpu", 1, 8, [FUSEDSTEP, NUMPY])

    def lane_of(series: Series, *_: Any) -> Lane:
        timed = Timed(clock[series.contestant])
        return Lane(series, Contestant(list, list, float, {}, lambda *_: timed), "usual", 10.0)

    monkeypatch.setattr(measure, "prepare", lane_of)
    monkeypatch.setattr(measure, "WARM_UP_SECONDS", 0)
    wanted = [(Series("1x64", name), workload("1x64")) for name in clock]
    measure._measure_together(wanted, settings, float("inf"), str)
    assert [len(series.samples) for series, _ in wanted] == [8, measure.FEWEST_ROUNDS]


def measured_together(monkeypatch: pytest.MonkeyPatch, rounds: int, clock: dict[str, Any]) -> list[Series]:
    """Blocks of a step each, whose times are told: an iterator for each contestant."""

    def lane_of(series: Series, *_: Any) -> Lane:
        times = clock[series.contestant]
        made = Contestant(list, list, float, {}, lambda *_: Timed(next(times)))
        return Lane(series, made, "usual", 10.0)

    monkeypatch.setattr(measure, "prepare", lane_of)
    monkeypatch.setattr(measure, "run_for", lambda *_: [])
    wanted = [(Series("1x64", name), workload("1x64")) for name in clock]
    measure._measure_together(wanted, Settings("cpu", 1, rounds, [*clock]), float("inf"), str)
    return [series for series, _ in wanted]


def test_who_fails_in_the_first_round_loses_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = measured_together(monkeypatch, 8, {FUSEDSTEP: iter([0.01] * 8), NUMPY: iter([])})
    assert (len(ours.samples), len(theirs.samples)) == (8, 0)
    assert theirs.absent.startswith("StopIteration")


def test_who_sat_out_a_round_does_not_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next sample would be paired with another round's."""
    clock = {FUSEDSTEP: iter([0.009] * 5 + [0.02] * 7), NUMPY: iter([0.1] * 12)}
    ours, theirs = measured_together(monkeypatch, 12, clock)
    assert (len(ours.samples), len(theirs.samples)) == (12, measure.FEWEST_ROUNDS)


@pytest.mark.parametrize("condition", ["usual", "fresh", "pauses"])
def test_each_block_begins_with_steps_that_are_not_counted(
    condition: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the conditions of the block: with a renewal before each step, where the gradients are fresh."""
    done: list[str] = []
    clock = iter([9.0] + [1.0] * measure.STEPS_OF_A_BLOCK)

    def takes(step: Any, steps: int, before: Callable[[], object]) -> Timed:
        before()
        done.append("step")
        return Timed(next(clock))

    made = Contestant(list, list, float, {}, takes, lambda: done.append("renewal"))
    lane = Lane(Series("1x64", FUSEDSTEP, 1), made, condition, 0.0)
    monkeypatch.setattr(measure, "WARM_UP_SECONDS", 0)
    lane.run_block()
    assert lane.series.samples == [1.0]
    assert set(lane.series.means) <= {1.0}
    counted = 1 if condition == "usual" else measure.STEPS_OF_A_BLOCK
    assert done == (["renewal", "step"] if condition == "fresh" else ["step"]) * (1 + counted)


def test_the_readme_has_the_figures_of_the_saved_run() -> None:
    command = [sys.executable, "-m", "bench", "readme", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_other_figures_in_the_readme_are_seen(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, quick: None
) -> None:
    (tmp_path / "README.md").write_text(readme.README.read_text().replace(" µs", " ms", 1))
    monkeypatch.setattr(readme, "README", tmp_path / "README.md")
    with pytest.raises(SystemExit, match="has other figures"):
        readme.check()
    monkeypatch.setattr(readme, "SOURCE", ROOT / "bench" / "results" / "amd-epyc-avx2-2-cores.json")
    with pytest.raises(SystemExit, match=r"does not show .*\n.* is drawn from another"):
        readme.check()


def test_saved_runs_can_be_read() -> None:
    files = sorted((ROOT / "bench" / "results").glob("*.json"))
    assert files
    for file in files:
        result = Result.load(file)
        assert result.machine["commit"]
        assert all(workload(name).name == name for name in result.workloads)


def counts(instructions: int, loops: int, compiler: str = "1") -> guard.Counts:
    made_with = {"compiler": compiler}
    return {
        "instructions": {"made with": made_with, "counts": {"1x64": instructions}},
        "vectorised loops": {"made with": made_with, "counts": {"Adam, avx2": loops}},
    }


@pytest.mark.parametrize(
    ("now", "differs"),
    [
        (counts(1000, 9), []),
        (counts(1010, 9), []),
        (counts(1011, 9), ["instructions of 1x64: 1000 stored, 1011 now (+1.1 %)"]),
        (counts(900, 9), ["instructions of 1x64: 1000 stored, 900 now (-10.0 %)"]),
        (counts(1000, 8), ["vectorised loops of Adam, avx2: 9 stored, 8 now (-11.1 %)"]),
        (counts(5, 5, compiler="2"), []),
    ],
)
def test_counts_are_compared(
    now: guard.Counts, differs: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert guard.compare(counts(1000, 9), now) == differs
    told = "not judged" in capsys.readouterr().out
    assert told == (now["instructions"]["made with"]["compiler"] == "2")


def test_counts_that_came_or_went_are_seen(capsys: pytest.CaptureFixture[str]) -> None:
    now = counts(1000, 9)
    now["vectorised loops"]["counts"] = {"Lion, avx2": 9}
    assert guard.compare(counts(1000, 9), now) == [
        "vectorised loops of Adam, avx2: 9 stored, 0 now (-100.0 %)"
    ]
    assert "not judged, for they are new: Lion, avx2" in capsys.readouterr().out


def test_the_guard_ends_with_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    stored = json.loads(guard.STORED.read_text())
    monkeypatch.setattr(guard, "count", lambda: stored)
    guard.main(update=None)
    other = json.loads(guard.STORED.read_text())
    other["instructions"]["counts"]["1x64"] *= 2
    monkeypatch.setattr(guard, "count", lambda: other)
    with pytest.raises(SystemExit, match=r"1x64: .*\n.*--update"):
        guard.main(update=None)


def test_what_the_tools_say_is_read(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("version: 1\nevents: Ir\ntotals: 12345\n")
    assert read(tmp_path / "out") == 12345
    found = "x.hpp:1:2: optimized: loop vectorized using 32 byte vectors\n"
    narrow = found.replace("32", "16")
    dump = (
        f"\n;; Function fusedstep::avx2::sweep_run<fusedstep::avx2::Adam<float>, float> (_Z1)\n"
        f"{found}{narrow}"
        f";; Function fusedstep::avx2::load<float> (_Z2)\n{found}"
        f";; Function fusedstep::avx2::tile_rule<Adam<double>, double>()::<lambda()>::_FUN (_Z3)\n{found}"
    )
    assert by_rule(dump, 32) == {"Adam": 2, STAGES: 1}


def test_peers_are_pinned_and_torch_is_spelled_plainly() -> None:
    from bench.peers import pinned

    assert all(re.fullmatch(r"[\w-]+==[\d.]+", line) for line in pinned())
    assert "torch==2.13.0" in pinned()


def test_a_contestant_that_is_missing_says_so() -> None:
    with pytest.raises(UnavailableError, match=r"not installed|has no sparse"):
        make("thinc", workload("1x64-sparse"), threads=1)
