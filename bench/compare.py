"""Two saved runs, side by side: how the times of the second compare with the first's."""

from dataclasses import dataclass

import numpy as np
from rich.console import Console
from rich.table import Table

from bench.contestants import YARDSTICKS
from bench.figures import share, time
from bench.report import print_table
from bench.result import Result
from bench.series import Key

# Rounds of two runs are no pairs: the spread of the ratio of medians is that of samples drawn again.
DRAWS, LOW, HIGH = 2000, 2.5, 97.5


@dataclass(frozen=True)
class Change:
    """What became of one series.

    Attributes:
        before: the median time of the first run.
        after: the median time of the second run.
        ratio: after over before.
        low: where 95 of 100 ratios of samples drawn again begin.
        high: where they end.
        shares: the shares of the limit in both runs, where both have them. Of two machines, or of a machine
            in two moods, they say more than times do.
    """

    before: float
    after: float
    ratio: float
    low: float
    high: float
    shares: tuple[float, float] | None

    @property
    def verdict(self) -> str:
        """What one may say of the two runs, of which each has a machine in some mood."""
        if self.low <= 1 <= self.high:
            return "cannot tell"
        return "faster" if self.ratio < 1 else "slower"


def compare(first: Result, second: Result) -> dict[Key, Change]:
    """Compare all series that both runs have."""
    rng = np.random.default_rng(0)
    before, after = first.by_key, second.by_key
    changes = {}
    for key in before:
        if key not in after:
            continue
        drawn = [
            np.median(rng.choice(one.samples, (DRAWS, len(one.samples))), axis=1)
            for one in (before[key], after[key])
        ]
        low, high = np.percentile(drawn[1] / drawn[0], (LOW, HIGH))
        medians = before[key].median, after[key].median
        shares = share(before[key], before), share(after[key], after)
        both = (
            None if key[1] in YARDSTICKS or shares[0] is None or shares[1] is None else (shares[0], shares[1])
        )
        changes[key] = Change(*medians, medians[1] / medians[0], float(low), float(high), both)
    return changes


def print_changes(console: Console, first: Result, second: Result) -> None:
    """Print a table of all changes."""
    for result in (first, second):
        about = result.machine
        made = about["cpu"], about["build"]["target"], f"{about['threads']} threads"
        console.print(f"{', '.join(made)}, {about['date']}, {about['commit']}")
    changes = compare(first, second)
    if not changes:
        console.print("They have no workload and contestant in common: there is nothing to compare.")
        return
    table = Table(title="The second run beside the first", title_justify="left")
    table.add_column("workload")
    table.add_column("contestant")
    for name in ("first", "second", "ratio", "95 % of draws", "of the limit", ""):
        table.add_column(name, justify="right", no_wrap=True)
    former = ""
    for (workload, contestant), change in changes.items():
        if workload != former:
            table.add_section()
        former = workload
        shares = "" if change.shares is None else f"{change.shares[0]:.2f}, {change.shares[1]:.2f}"
        table.add_row(
            workload,
            contestant,
            time(change.before),
            time(change.after),
            f"{change.ratio:.3f}",
            f"{change.low:.3f} - {change.high:.3f}",
            shares,
            change.verdict,
        )
    print_table(console, table)
    console.print(
        "faster, slower: of these two runs. Between them the machine may have changed, too: a third run, of"
        " the same sources as the first, says how much."
    )
