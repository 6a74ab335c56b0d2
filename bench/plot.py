"""Pictures of a saved run, SVG and PNG, without a background, in colours that read on white and on black."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.contestants import FUSEDSTEP, YARDSTICKS
from bench.figures import share, short, yardstick
from bench.result import Result
from bench.series import Series
from bench.workloads import workload

INK = "#767b83"  # text and axes
OURS = "#e8590c"
COLOURS = ["#3b82d6", "#2f9e63", "#b05fd0", "#d6457f", "#97830f", "#0f98a8", "#8b7566", "#7a6ff0"]
DASHES = ["-", "--", ":", "-."]
STYLE: Any = {
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "figure.constrained_layout.use": True,
    "font.size": 10.0,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "savefig.dpi": 150.0,
    "savefig.transparent": True,
    "svg.fonttype": "none",
    "svg.hashsalt": "fusedstep",  # so that the same data gives the same file
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}


def draw(
    result: Result,
    folder: Path,
    source: Path,
    *,
    pictures: Iterable[str] = ("counts", "sizes", "bars"),
    suffixes: Iterable[str] = (".svg", ".png"),
) -> list[Path]:
    """Draw the pictures that the workloads of a run allow, and return their files.

    Each is named after the source and itself, and carries the source's digest.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    with matplotlib.rc_context(STYLE):
        for name in pictures:
            figure = PICTURES[name](result)
            if figure is None:
                continue
            for suffix in suffixes:
                metadata = {"Description": digest(source)} | ({"Date": None} if suffix == ".svg" else {})
                files.append(folder / f"{source.stem}-{name}{suffix}")
                figure.savefig(files[-1], metadata=metadata)
            pyplot.close(figure)
    return files


def digest(source: Path) -> str:
    """What a picture says about the data that it was drawn from."""
    return f"of {source.name}, sha256 {hashlib.sha256(source.read_bytes()).hexdigest()}"


def styles(result: Result) -> dict[str, tuple[str, str]]:
    """A colour and dashes for each contestant, the same in all pictures of a run.

    fusedstep's ways have one colour, yardsticks that of text; peers have dashes where colours are too few.
    """
    ours = [name for name in result.contestants if name.startswith(FUSEDSTEP)]
    peers = [name for name in result.contestants if name not in (*ours, *YARDSTICKS)]
    found = dict.fromkeys(YARDSTICKS, (INK, "--"))
    found |= {name: (OURS, DASHES[k % len(DASHES)]) for k, name in enumerate(ours)}
    for k, name in enumerate(peers):
        found[name] = COLOURS[k % len(COLOURS)], DASHES[k // len(COLOURS) % len(DASHES)]
    return found


def machine_of(result: Result) -> str:
    """Where a run was made."""
    about = result.machine
    what = about["gpu"]["name"] if "gpu" in about else f"{about['cpu']}, {about['build']['target']}"
    return f"{what}, {about['threads']} threads"


def counts(result: Result) -> Figure | None:
    """Time per step against the number of arrays: what the call and each array cost."""
    found = list(_plain_arrays(result))
    sizes = [size for _, size, _ in found]
    size = max(set(sizes), key=sizes.count, default=0)
    points = [(count, one) for count, of_size, one in found if of_size == size]
    if len({count for count, _ in points}) < 3:
        return None
    figure, axes = _figure(f"One step over arrays of {size} elements, {machine_of(result)}")
    _lines(axes, result, points, lambda one: (one.spread.first, one.median, one.spread.third))
    axes.set(xscale="log", yscale="log", xlabel="number of arrays", ylabel="seconds per step")
    _legend(figure)
    return figure


def sizes(result: Result) -> Figure | None:
    """Share of the limit against size: what is left to win, in each cache and in memory."""
    found = [(size, one) for count, size, one in _plain_arrays(result) if count == 1]
    if len({size for size, _ in found}) < 3:
        return None
    results = result.by_key

    def shares(one: Series) -> tuple[float, float, float] | None:
        limit = yardstick(one, results)
        if limit is None:
            return None
        spread = limit.ratios(one)
        return spread.first, spread.median, spread.third

    points = [
        (workload(one.workload).held_bytes, one) for _, one in found if one.contestant not in YARDSTICKS
    ]
    figure, axes = _figure(f"Share of the limit, one array, {machine_of(result)}")
    _lines(axes, result, points, shares)
    axes.axhline(1, color=INK, linewidth=1)
    gpu = result.machine.get("gpu")
    caches = {"L2": gpu["L2_bytes"]} if gpu else result.machine["caches"]
    for name, bytes_ in caches.items():
        axes.axvline(bytes_, color=INK, linestyle=":", linewidth=1)
        axes.annotate(
            name, (bytes_, 1), xycoords=("data", "axes fraction"), ha="right", va="top", rotation=90
        )
    axes.set(
        xscale="log",
        xlabel="bytes of variable, gradient and slots",
        ylabel="speed; the same-bytes loop is 1",
        ylim=(0, None),
    )
    _legend(figure)
    return figure


def bars(result: Result) -> Figure | None:
    """How many times as long as fusedstep each peer takes, for each workload."""
    results, style = result.by_key, styles(result)
    peers = [name for name in result.contestants if not name.startswith(FUSEDSTEP) and name not in YARDSTICKS]
    bars_of = {
        name: [
            (peer, results[name, peer].ratios(results[name, FUSEDSTEP]))
            for peer in peers
            if (name, peer) in results
        ]
        for name in result.workloads
        if (name, FUSEDSTEP) in results
    }
    rows = {name: of_one for name, of_one in bars_of.items() if of_one}
    if not rows:
        return None
    count = sum(map(len, rows.values())) + len(rows)
    figure, axes = _figure(f"Times as long as fusedstep, {machine_of(result)}", height=1.5 + 0.18 * count)
    at, ticks = 0.0, []
    for name, of_one in rows.items():
        limit = share(results[name, FUSEDSTEP], results)
        label = name if limit is None else f"{name}\n{limit:.2f} of the limit"
        ticks.append((at + (len(of_one) - 1) / 2, label))
        for peer, spread in of_one:
            _bar(axes, at, spread.median - 1, style[peer], 0.85, left=1)
            axes.plot([spread.first, spread.third], [at, at], color=INK, linewidth=1)
            axes.annotate(f" {short(spread.median)}", (max(spread.third, 1), at), va="center", fontsize=7)
            at += 1
        at += 1
    axes.axvline(1, color=OURS, linewidth=2, label=FUSEDSTEP)
    for peer in peers:
        _bar(axes, 0, 0, style[peer], label=peer)
    axes.set_yticks(*zip(*ticks, strict=True))
    axes.set(xscale="log", xlabel="times as long as fusedstep, between quartiles", ylim=(at - 1, -1))
    _legend(figure)
    return figure


PICTURES: dict[str, Callable[[Result], Figure | None]] = {"counts": counts, "sizes": sizes, "bars": bars}


def _figure(title: str, height: float = 5) -> tuple[Figure, Axes]:
    figure, axes = pyplot.subplots(figsize=(8, max(height, 3)))
    axes.set_title(title)
    return figure, axes


def _bar(axes: Axes, at: float, length: float, style: tuple[str, str], *height: float, **more: Any) -> None:
    colour, dashes = style
    axes.barh(
        at,
        length,
        *height,
        color=colour,
        hatch="" if dashes == "-" else "////",
        edgecolor="#ffffff",
        linewidth=0,
        **more,
    )


def _legend(figure: Figure) -> None:
    figure.legend(loc="outside lower center", ncols=4)


def _plain_arrays(result: Result) -> Iterator[tuple[int, int, Series]]:
    """Series of Adam's plain steps over equal arrays: their number, their size."""
    for one in result.series:
        if one.samples and one.workload.replace("x", "").isdigit():
            count, size = map(int, one.workload.split("x"))
            yield count, size, one


def _lines(
    axes: Axes,
    result: Result,
    points: list[tuple[int, Series]],
    values: Callable[[Series], tuple[float, float, float] | None],
) -> None:
    """A line through the medians for each contestant, over a band from quartile to quartile."""
    style = styles(result)
    for name in result.contestants:
        line: list[tuple[Any, ...]] = [
            (x, *of_one)
            for x, one in sorted(points, key=lambda point: point[0])
            if one.contestant == name and (of_one := values(one)) is not None
        ]
        if line:
            x, first, middle, third = zip(*line, strict=True)
            colour, dashes = style[name]
            width = 2.5 if name == FUSEDSTEP else 1.2
            axes.plot(
                x,
                middle,
                marker="o",
                markersize=3,
                label=name,
                linewidth=width,
                color=colour,
                linestyle=dashes,
            )
            axes.fill_between(x, first, third, color=colour, alpha=0.2, linewidth=0)
