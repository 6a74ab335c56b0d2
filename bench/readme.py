"""Print the README's table from a saved run: python -m bench.readme bench/results/FILE.json."""

import json
import sys
from pathlib import Path
from typing import Any

from bench.workloads import DEEPSPEED, FUSEDSTEP, NUMPY, PYTORCH, SAME_BYTES

ROWS = {
    "1x64": "one array of 64",
    "1000x256": "1000 arrays of 256",
    "10000x64": "10 000 arrays of 64",
    "1000x256-pauses": "1000 arrays of 256, after a pause",
    "1x100000": "one array of 100 000",
    "1x1000000": "one array of 1 000 000",
    "1x1000000-pauses": "one array of 1 000 000, after a pause",
    "resnet50": "ResNet-50: 161 arrays, 25.6 M",
    "gpt2": "GPT-2: 148 arrays, 124 M",
}
COLUMNS = {FUSEDSTEP: "fusedstep", PYTORCH: "PyTorch fused", DEEPSPEED: "DeepSpeed CPUAdam", NUMPY: "NumPy"}


def time(seconds: float) -> str:
    """Return a time in the unit that suits it."""
    microseconds = 1e6 * seconds
    if microseconds < 1000:
        return f"{microseconds:.3g} µs"
    return f"{microseconds / 1000:.3g} ms"


def table(run: dict[str, Any]) -> str:
    """Return the table in Markdown: times, ratios to fusedstep, share of the same-bytes loop, errors."""
    series = {(one["workload"], one["contestant"]): one for one in run["series"] if one["samples"]}

    def cell(workload: str, contestant: str) -> str:
        one = series.get((workload, contestant))
        if one is None:
            return ""
        ratio = one[f"over {FUSEDSTEP}"]
        return time(one["median"]) + (f" ({ratio:.3g} x)" if contestant != FUSEDSTEP else "")

    lines = [
        f"| one step of Adam, float32 | {' | '.join(COLUMNS.values())} | of the limit |",
        "|---" * (len(COLUMNS) + 2) + "|",
    ]
    for workload, text in ROWS.items():
        share = 1 / series[workload, FUSEDSTEP][f"over {SAME_BYTES}"]
        cells = [cell(workload, contestant) for contestant in COLUMNS]
        lines.append(f"| {text} | {' | '.join(cells)} | {share:.2f} |")
    errors = run["largest_relative_differences"]
    cells = [f"{errors[contestant]:.0e}" for contestant in COLUMNS if contestant != FUSEDSTEP]
    lines.append(f"| error, relative | 0 | {' | '.join(cells)} | |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(json.loads(Path(sys.argv[1]).read_text())))
