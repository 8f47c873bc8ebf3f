"""What `retrieval.py` counts, as functions of arrays: no texts, no models, no files.

Letters: B questions, n candidates each, F facts at most that a question needs, t picks in order.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Flags = NDArray[np.bool_]
Verdict = Literal["yes", "tie", "no"]

KS = (2, 4, 8, 16)
RESAMPLES = 2_000


def found(tells: Flags, needs: Integers, order: Integers, taken: Flags | None = None) -> Floats:
    """Share of its facts that each question has after each pick, (B, t).

    Args:
        tells: Which candidate tells which fact, (B, n, F); a question with fewer facts than F has
            columns that nobody tells.
        needs: Facts of each question, (B,); those that no candidate tells count too.
        order: Positions among the candidates, (B, t).
        taken: Which of the picks count, (B, t); all of them by default.
    """
    told = np.take_along_axis(tells, order[:, :, None], axis=1)  # (B, t, F)
    if taken is not None:
        told &= taken[:, :, None]
    return np.asarray(np.logical_or.accumulate(told, axis=1).sum(axis=2) / needs[:, None])


def distinct(sources: Integers) -> Floats:
    """Share of different sources among the first picks, (B, t), from the source of each pick."""
    t = sources.shape[1]
    same = sources[:, :, None] == sources[:, None, :]  # (B, t, t)
    new = ~(same & np.tri(t, k=-1, dtype=bool)).any(axis=2)
    return np.asarray(new.cumsum(axis=1) / np.arange(1, t + 1))


def near_duplicates(picks: Sequence[tuple[int, Sequence[int]]]) -> list[bool]:
    """For each pick (source, sentences): did earlier picks hold at least half of its sentences?"""
    seen: dict[int, set[int]] = {}
    result = []
    for source, sentences in picks:
        known = seen.setdefault(source, set())
        result.append(2 * len(known.intersection(sentences)) >= len(sentences))
        known.update(sentences)
    return result


def within(costs: Floats, budget: float) -> Flags:
    """Which picks of an order (B, t) a budget pays, passing over those that do not fit."""
    taken = np.zeros(costs.shape, dtype=bool)
    left = np.full(len(costs), float(budget))
    for t in range(costs.shape[1]):
        taken[:, t] = costs[:, t] <= left
        left -= costs[:, t] * taken[:, t]
    return taken


def at(values: Floats, k: int) -> Floats:
    """The value after k picks, or after all of them where there are fewer: (B, t) to (B,)."""
    return np.asarray(values[:, min(k, values.shape[1]) - 1])


def over_ks(values: Floats) -> Floats:
    """Mean over `KS`, (B, t) to (B,)."""
    return np.asarray(np.mean([at(values, k) for k in KS], axis=0))


def mean(values: Floats, sets: Integers) -> float:
    """Mean over the sets of the mean over a set's questions: (B,) and the set of each, (B,)."""
    return float(np.mean([values[sets == each].mean() for each in np.unique(sets)]))


class Interval(NamedTuple):
    """A paired difference, and the middle 95 % of its bootstrap."""

    difference: float
    low: float
    high: float

    def reaches(self, target: float = 0.0) -> Verdict:
        """Is it at or above a target: surely, surely not, or within the interval?"""
        if self.low >= target:
            return "yes"
        return "no" if self.high < target else "tie"


def bootstrap(
    differences: Floats, sets: Integers, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """Resample the questions of each set, with the differences (B,) that belong to them."""
    random = np.random.default_rng(seed)
    means = []  # of each set, (resamples,)
    for each in np.unique(sets):
        values = differences[sets == each]
        counts = random.multinomial(len(values), np.full(len(values), 1 / len(values)), resamples)
        means.append(counts @ values / len(values))
    low, high = np.quantile(np.mean(means, axis=0), (0.025, 0.975))
    return Interval(mean(differences, sets), float(low), float(high))
