"""A guard against regressions that needs no quiet machine: counts, stored and updated on purpose only.

Instructions of a few fixed steps, under valgrind's callgrind; the vectorised loops of each rule and target.
"""

import json
import sys
from pathlib import Path
from typing import Any

from bench.guard.instructions import count_instructions
from bench.guard.loops import count_loops

STORED = Path(__file__).with_name("counts.json")
# What the same sources may differ by: the interpreter's own bookkeeping falls here and there.
TOLERANCE = 0.01

Counts = dict[str, Any]  # "made with" and "counts", of "instructions" and of "vectorised loops"


def compare(stored: Counts, counted: Counts) -> list[str]:
    """Say what differs: instructions by more than the tolerance, loops at all.

    With another compiler, interpreter or target counts are others, which says nothing.
    """
    differences = []
    for what, tolerance in (("instructions", TOLERANCE), ("vectorised loops", 0.0)):
        before, now = stored[what], counted[what]
        if before["made with"] != now["made with"]:
            print(f"{what}: not judged: stored with {before['made with']}, here are {now['made with']}")
            continue
        new = sorted(now["counts"].keys() - before["counts"].keys())
        if new:
            print(f"{what}: not judged, for they are new: {', '.join(new)}; --update loops stores them")
        for name in before["counts"]:
            first, second = before["counts"][name], now["counts"].get(name, 0)
            if abs(second - first) > tolerance * first:
                percent = f" ({100 * (second / first - 1):+.1f} %)" if first else ""
                differences.append(f"{what} of {name}: {first} stored, {second} now{percent}")
    return differences


def count() -> Counts:
    """Count everything."""
    return {"instructions": count_instructions(), "vectorised loops": count_loops()}


def main(update: str | None) -> None:
    """Count, and store the counts, all or those of the loops, or compare them with the stored ones."""
    if update == "loops":  # which any build has, where instructions are those of an installed package
        stored = json.loads(STORED.read_text())
        _store({**stored, "vectorised loops": count_loops()})
        return
    counted = count()
    if update == "all":
        _store(counted)
        return
    differences = compare(json.loads(STORED.read_text()), counted)
    if differences:
        sys.exit("\n".join([*differences, "If this is meant: python -m bench guard --update all, or loops"]))
    number = sum(len(one["counts"]) for one in counted.values())
    print(f"{number} counts looked at, none differs")


def _store(counts: Counts) -> None:
    STORED.write_text(json.dumps(counts, indent=1) + "\n")
    print(f"stored in {STORED.name}")
