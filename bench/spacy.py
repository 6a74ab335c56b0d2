"""The optimizer's share of the time in which spaCy trains a pipeline: thinc's Adam, and fusedstep.thinc's."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median
from time import perf_counter
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.contestants.contestant import import_peer
from bench.figures import time

ROUNDS, UPDATES = 10, 10  # of each optimizer, one after the other
SENTENCES, WORDS = 32, 20  # of a batch
TAGS = ("NOUN", "VERB", "ADJ", "ADV")
VOCABULARY = 2000
LIBRARIES = {"thinc": "thinc.api", "fusedstep.thinc": "fusedstep.thinc"}


@dataclass
class Clocked:
    """An optimizer that knows how long its calls took."""

    optimizer: Callable[..., Any]
    seconds: float = 0.0

    def __call__(self, *arguments: Any, **more: Any) -> Any:
        """Call the optimizer."""
        begin = perf_counter()
        result = self.optimizer(*arguments, **more)
        self.seconds += perf_counter() - begin
        return result


@dataclass
class Training:
    """A pipeline, its optimizer, and what each round took: all of it, and the optimizer."""

    pipeline: Any
    batch: list[Any]
    optimizer: Clocked
    whole: list[float] = field(default_factory=list)
    step: list[float] = field(default_factory=list)

    def round(self) -> None:
        """Update the pipeline some times."""
        self.optimizer.seconds = 0.0
        begin = perf_counter()
        for _ in range(UPDATES):
            self.pipeline.update(self.batch, sgd=self.optimizer)
        self.whole.append((perf_counter() - begin) / UPDATES)
        self.step.append(self.optimizer.seconds / UPDATES)

    @property
    def share(self) -> float:
        """The optimizer's share of the time."""
        return median(step / whole for step, whole in zip(self.step, self.whole, strict=True))


def training(library: str) -> Training:
    """A tagger and a text categoriser, as spaCy makes them by default, for made-up sentences.

    Raises:
        UnavailableError: spaCy or thinc is not installed.
    """
    spacy, thinc = import_peer("spacy"), import_peer("thinc.api")
    example, doc = import_peer("spacy.training").Example, import_peer("spacy.tokens").Doc
    choose = random.Random(0)
    thinc.fix_random_seed(0)
    pipeline = spacy.blank("en")
    tagger, categoriser = pipeline.add_pipe("tagger"), pipeline.add_pipe("textcat")
    for tag in TAGS:
        tagger.add_label(tag)
    for label in ("GOOD", "BAD"):
        categoriser.add_label(label)
    batch = []
    for k in range(SENTENCES):
        words = [f"word{choose.randrange(VOCABULARY)}" for _ in range(WORDS)]
        tags = [choose.choice(TAGS) for _ in words]
        cats = {"GOOD": float(k % 2), "BAD": float(1 - k % 2)}
        about = {"words": words, "tags": tags, "cats": cats}
        batch.append(example.from_dict(doc(pipeline.vocab, words=words), about))
    pipeline.initialize(lambda: batch)
    return Training(pipeline, batch, Clocked(import_peer(library).Adam(1e-3)))


def measure() -> dict[str, Training]:
    """Train with both, in turns."""
    both = {name: training(library) for name, library in LIBRARIES.items()}
    for number in range(ROUNDS + 1):
        for one in both.values():
            one.round()
            if number == 0:  # the state is made
                one.whole.clear()
                one.step.clear()
    return both


def print_shares(console: Console, both: dict[str, Training]) -> None:
    """Print a table."""
    table = Table("", "an update", "in the optimizer", "its share", title="spaCy", title_justify="left")
    for name, one in both.items():
        table.add_row(name, time(median(one.whole)), time(median(one.step)), f"{one.share:.1%}")
    console.print(table)
    theirs, ours = both.values()
    elements = sum(
        node.get_param(name).size
        for _, component in ours.pipeline.pipeline
        for node in component.model.walk()
        for name in node.param_names
    )
    smaller = theirs.share / ours.share
    console.print(f"{elements / 1e6:.1f} M parameters; the optimizer's share is {smaller:.1f} times smaller.")
