"""The samples of a contestant on a workload, and what follows: medians, quartiles, ratios in pairs."""

from dataclasses import dataclass, field
from statistics import median, quantiles

# Quartiles further apart than this share of the median: the machine was too noisy to tell.
NOISY = 0.3


@dataclass(frozen=True)
class Spread:
    """A median between its quartiles."""

    first: float
    median: float
    third: float

    @classmethod
    def of(cls, samples: list[float]) -> "Spread":
        """The median and quartiles of some samples; of one, it is all three."""
        if len(samples) == 1:
            return cls(samples[0], samples[0], samples[0])
        first, _, third = quantiles(samples, n=4, method="inclusive")
        return cls(first, median(samples), third)

    @property
    def is_noisy(self) -> bool:
        """Whether the quartiles are far apart."""
        return self.third - self.first > NOISY * self.median

    @property
    def tells(self) -> bool:
        """Whether a ratio is on the same side of 1 in most rounds."""
        return not self.first <= 1 <= self.third


@dataclass
class Series:
    """The samples in seconds per step, one for each round.

    Attributes:
        workload: the workload's name.
        contestant: the contestant's name.
        steps: how many steps are timed at once; one in conditions in which times differ.
        samples: the time of a block over its steps, or the median of steps timed one by one.
        means: where steps are timed one by one, the mean of the block's.
        hosts: on a GPU, how long a call kept the host.
        error: the largest relative difference from the definition, after some steps from the same start.
        absent: why there are no samples, or no more.
    """

    workload: str
    contestant: str
    steps: int = 0
    samples: list[float] = field(default_factory=list)
    means: list[float] = field(default_factory=list)
    hosts: list[float] = field(default_factory=list)
    error: float | None = None
    absent: str = ""

    @property
    def median(self) -> float:
        """The median of the samples."""
        return median(self.samples)

    @property
    def spread(self) -> Spread:
        """The median of the samples, between quartiles."""
        return Spread.of(self.samples)

    def ratios(self, other: "Series") -> Spread:
        """How many times as long as the other one: the ratios within each round."""
        return Spread.of([mine / theirs for mine, theirs in zip(self.samples, other.samples, strict=False)])

    def over(self, other: "Series") -> float:
        """The median of the ratios within each round."""
        return self.ratios(other).median

    def mean_over(self, other: "Series") -> float:
        """The same with the blocks' means in the place of this one's medians."""
        return median(mine / theirs for mine, theirs in zip(self.means, other.samples, strict=False))


Key = tuple[str, str]  # workload and contestant
Results = dict[Key, Series]  # those that have samples


def by_key(series: list[Series]) -> Results:
    """Index the series that have samples."""
    return {(one.workload, one.contestant): one for one in series if one.samples}
