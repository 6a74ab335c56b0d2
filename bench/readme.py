"""The figures of the project's README, from a saved run: a table, and the picture that it shows."""

import sys
from dataclasses import replace
from pathlib import Path

from bench.contestants import DEEPSPEED, FUSEDSTEP, NUMPY, PYTORCH
from bench.figures import number, share, short, time
from bench.result import Result

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
SOURCE = ROOT / "bench" / "results" / "amd-epyc-avx512-2-cores.json"
PICTURE = "bars"
BEGIN, END = "<!-- python -m bench readme -->\n", "<!-- end of figures -->"

ROWS = {
    "1x64": "one array of 64",
    "1000x256": "1000 arrays of 256",
    "1000x256-fresh": "1000 arrays of 256, with gradients in new arrays",
    "10000x64": "10 000 arrays of 64",
    "1000x256-pauses": "1000 arrays of 256, after a pause",
    "1x100000": "one array of 100 000",
    "1x1000000": "one array of 1 000 000",
    "1x1000000-pauses": "one array of 1 000 000, after a pause",
    "resnet50": "ResNet-50: 161 arrays, 25.6 M",
    "gpt2": "GPT-2: 148 arrays, 124 M",
}
PICTURED = (
    "1x64",
    "1000x256",
    "1000x256-adamw-clip-ema",
    "1x100000",
    "1x1000000",
    "resnet50",
    "resnet50-bfloat16",
    "resnet50-adamw-clip-ema",
    "gpt2",
)
COLUMNS = {
    FUSEDSTEP: "fusedstep",
    PYTORCH: "PyTorch fused",
    DEEPSPEED: "DeepSpeed CPUAdam",
    "optax": "optax",
    "numba": "numba",
    NUMPY: "NumPy",
}


def table(result: Result) -> str:
    """Return the table in Markdown: times, ratios to fusedstep, share of the limit, errors."""
    series = result.by_key
    columns = {name: text for name, text in COLUMNS.items() if name in result.contestants}

    def cell(workload: str, contestant: str) -> str:
        one = series.get((workload, contestant))
        if one is None:
            return ""
        ratio = "" if contestant == FUSEDSTEP else f" ({short(one.over(series[workload, FUSEDSTEP]))} x)"
        return time(one.median) + ratio

    def error(contestant: str) -> str:
        of_all = [one.error for one in result.series if one.contestant == contestant and one.workload in ROWS]
        known = [one for one in of_all if one is not None]
        return number(max(known)) if known else ""

    lines = [
        f"| one step of Adam, float32 | {' | '.join(columns.values())} | same bytes |",
        "|---" * (len(columns) + 2) + "|",
    ]
    for workload, text in ROWS.items():
        if (workload, FUSEDSTEP) in series:
            rests = workload.endswith("-pauses")  # before the loop that moves the same bytes, too
            limit = None if rests else share(series[workload, FUSEDSTEP], series)
            cells = [cell(workload, contestant) for contestant in columns]
            lines.append(f"| {text} | {' | '.join(cells)} | {'' if limit is None else f'{limit:.2f}'} |")
    lines.append(f"| error, relative | {' | '.join(map(error, columns))} | |")
    return "\n".join(lines)


def figures() -> str:
    """Return what stands in the README between the marks."""
    return table(Result.load(SOURCE)) + "\n"


def write() -> None:
    """Put the figures into the README, and draw its picture."""
    from bench.plot import draw

    before, _, after = _parts()
    README.write_text(before + BEGIN + figures() + END + after)
    result = Result.load(SOURCE)
    pictured = replace(result, series=[one for one in result.series if one.workload in PICTURED])
    draw(pictured, SOURCE.parent, SOURCE, pictures=(PICTURE,), suffixes=(".svg",))


def check() -> None:
    """Exit with a word where the README or its picture is not of the saved run."""
    from bench.plot import digest

    picture = SOURCE.with_name(f"{SOURCE.stem}-{PICTURE}.svg")
    wrong = []
    if _parts()[1] != figures():
        wrong.append(f"{README.name} has other figures than {SOURCE.name}")
    if f"({picture.relative_to(ROOT)})" not in README.read_text():
        wrong.append(f"{README.name} does not show {picture.name}")
    if not picture.exists() or digest(SOURCE) not in picture.read_text():
        wrong.append(f"{picture.name} is drawn from another {SOURCE.name}")
    if wrong:
        sys.exit("\n".join([*wrong, "python -m bench readme writes them"]))
    print(f"the figures of {README.name} are those of {SOURCE.name}")


def _parts() -> tuple[str, str, str]:
    """The README before, between and after the marks."""
    before, _, rest = README.read_text().partition(BEGIN)
    between, _, after = rest.partition(END)
    return before, between, after


if __name__ == "__main__":
    print(table(Result.load(Path(sys.argv[1]))))
