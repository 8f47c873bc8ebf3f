"""What came of `evidence_world.py`, as numbers: each figure with its 95 % interval."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
from evidence_figures import UNDONE
from evidence_world_items import BOTH, STUFF, TRAIN, Asked, Condition
from numpy.typing import NDArray

from sift_rag.cases import Reply
from sift_rag.comparison import Comparison
from sift_rag.paired import Paired, compare_pairs, holm
from sift_rag.sizes import ModelSize, reading

EXACT = "exact_match"
LINEAR = (0.9, 1.1)  # a log-log slope in here is called linear
Values = NDArray[np.float64]
Fate = Literal["confirmed", "refuted", "not shown"]


class Figure(NamedTuple):
    """A number and its 95 % interval."""

    value: float
    low: float
    high: float

    def above(self, least: float) -> Fate:
        """Whether it is at least so much: the whole interval tells, or it is not shown."""
        return "confirmed" if self.low >= least else "refuted" if self.high < least else "not shown"

    def over(self, least: float) -> Fate:
        """Whether it is more than that, by the same rule."""
        return "confirmed" if self.low > least else "refuted" if self.high < least else "not shown"

    def within(self, low: float, high: float) -> Fate:
        """Whether it lies in there, by the same rule."""
        if low <= self.low and self.high <= high:
            return "confirmed"
        return "refuted" if self.high < low or self.low > high else "not shown"


@dataclass(frozen=True)
class Cell:
    """One condition and what came of it."""

    condition: Condition
    comparison: Comparison

    @property
    def n(self) -> int:
        """Questions."""
        return len(self.comparison.cases)

    def right(self, way: Asked) -> Values:
        """(n,) 1 where the answer is the reference."""
        return self.comparison.values(EXACT, str(way))

    def share(self, way: Asked) -> Figure:
        """Of right answers, with Wilson's interval."""
        return Figure(float(self.right(way).mean()), *self.comparison.interval(EXACT, str(way)))

    def against(self, a: Asked, b: Asked, chosen: NDArray[np.bool_] | None = None) -> Paired:
        """Way b against way a by itself, on all questions or the chosen ones."""
        some = slice(None) if chosen is None else chosen
        columns = {str(way): self.right(way)[some] for way in (a, b)}
        return compare_pairs(self.comparison.metric(EXACT), columns)[0]

    @cached_property
    def against_stuff(self) -> dict[str, tuple[Paired, float]]:
        """Each other way against stuff, and its p after Holm's correction over these."""
        others = [way for way in self.condition.ways if way != STUFF]
        pairs = {str(way): self.against(STUFF, way) for way in others}
        corrected = holm([pair.p for pair in pairs.values()])
        return dict(zip(pairs, zip(pairs.values(), corrected, strict=True), strict=True))

    def against_once(self, once: "Cell", way: Asked) -> Paired:
        """This condition against the one without copies, on the questions that both have."""
        here = dict(zip((c.id for c in self.comparison.cases), self.right(way), strict=True))
        cases = [case.id for case in once.comparison.cases]
        pairs = [(v, here[i]) for i, v in zip(cases, once.right(way), strict=True) if i in here]
        columns = np.array(pairs).reshape(-1, 2)
        values = {"once": columns[:, 0], "copied": columns[:, 1]}
        return compare_pairs(self.comparison.metric(EXACT), values)[0]

    def ratio(self, way: Asked, *, weights_only: bool = False) -> Figure:
        """What it gets right as a share of what stuff does.

        Args:
            way: One that trains.
            weights_only: Whether an answer counts as wrong where the training was undone.
        """
        right = self.right(way) * ~self.undone(way) if weights_only else self.right(way)
        return resampled(_ratio, [np.stack([self.right(STUFF), right], axis=1)])  # (n, 2)

    def gain_of_both(self) -> Figure:
        """Both less the better of stuff and train; which is better is seen in each resample."""
        rows = np.stack([self.right(way) for way in (BOTH, STUFF, TRAIN)], axis=1)  # (n, 3)
        return resampled(_over_the_better, [rows])

    def undone(self, way: Asked) -> NDArray[np.bool_]:
        """(n,) where the guard undid the training."""
        return np.array([reply.note.startswith(UNDONE) for reply in self._replies(way)])

    @property
    def left_out(self) -> Values:
        """(n,) passages that stuffing had no room for."""
        given = [len(set(case.metadata["passages"])) for case in self.comparison.cases]
        laid = [len(reply.documents or ()) for reply in self._replies(STUFF)]
        return np.array(given, dtype=np.float64) - laid

    @property
    def unread(self) -> NDArray[np.bool_]:
        """(n,) where no answering passage was in the prompt of stuffing."""
        gold = [set(case.gold) for case in self.comparison.cases]
        read = [{one.text for one in reply.documents or ()} for reply in self._replies(STUFF)]
        return np.array([bool(a) and not a & b for a, b in zip(gold, read, strict=True)])

    def training_seconds(self) -> Values:
        """(n,) of the training that `train` and `both` of a question share."""
        return np.array([reply.seconds["train"] for reply in self._trained()], dtype=np.float64)

    def training_flops(self) -> Values:
        """(n,) of the same, an estimate."""
        replies = self._trained()
        read = np.array([r.tokens["in"] + r.tokens["out"] for r in replies], dtype=np.float64)
        whole = np.array([reply.flops for reply in replies], dtype=np.float64)
        return whole - reading(self._size, read)

    def prefill_seconds(self) -> Values:
        """Of stuffing."""
        return self.comparison.seconds(str(STUFF), "prefill")

    def prefill_flops(self) -> Values:
        """Of stuffing, an estimate."""
        return reading(self._size, self.comparison.tokens(str(STUFF), "in"))

    @property
    def _size(self) -> ModelSize:
        size = self.comparison.size
        assert size is not None  # our own engine
        return size

    def _trained(self) -> list[Reply]:
        """Of each question the reply that trained; the other one found the adapter."""
        pairs = zip(self._replies(TRAIN), self._replies(BOTH), strict=True)
        first = (train if train.tokens["trained"] else both for train, both in pairs)
        return [reply for reply in first if reply.tokens["trained"]]

    def _replies(self, way: Asked) -> list[Reply]:
        """Of all cases; one that failed says nothing."""
        rows = (self.comparison.row(case.id, str(way)) for case in self.comparison.cases)
        nothing = Reply(text="", tokens={"trained": 0})
        return [row.reply if row and row.reply else nothing for row in rows]


def slope(cells: Sequence[Cell], cost: Callable[[Cell], Values]) -> Figure | None:
    """Of log median cost against log passages; None where there are fewer than two numbers."""
    known = {cell.condition.devices: cost(cell) for cell in cells}
    known = {passages: values for passages, values in known.items() if len(values)}
    if len(known) < 2:
        return None
    x = np.log(list(known))

    def fitted(samples: Sequence[Values]) -> float:
        return float(np.polyfit(x, np.log([np.median(one) for one in samples]), 1)[0])

    return resampled(fitted, list(known.values()))


def resampled(
    figure: Callable[[Sequence[Values]], float],
    samples: Sequence[Values],
    *,
    seed: int = 0,
    resamples: int = 4000,
) -> Figure:
    """A figure with its percentile interval, each sample resampled along its first axis."""
    random = np.random.default_rng(seed)
    found = []
    for _ in range(resamples):
        found.append(figure([one[random.integers(len(one), size=len(one))] for one in samples]))
    low, high = np.nanpercentile(found, (2.5, 97.5))
    return Figure(figure(samples), float(low), float(high))


def _ratio(samples: Sequence[Values]) -> float:
    a, b = samples[0].mean(axis=0)
    return float(b / a) if a else math.nan


def _over_the_better(samples: Sequence[Values]) -> float:
    both, stuff, train = samples[0].mean(axis=0)
    return float(both - max(stuff, train))
