"""Paired statistics: the same questions through two ways, what the difference is and can be."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from itertools import combinations, count
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from sift_rag.metrics import Metric

Values: TypeAlias = NDArray[np.float64]
Test = Literal["exact McNemar", "sign-flip permutation"]

_POWER = 0.8
_NUMBERS = 3_000_000  # in one batch of resampling, 24 MB


@dataclass(frozen=True, slots=True, kw_only=True)
class Paired:
    """How way `b` differs from way `a` in one metric, over the questions that both have.

    Attributes:
        metric: The metric's name.
        a: Name of the first way.
        b: Name of the second way.
        n: Questions that count: both have a value.
        mean_a: Mean of the first over these.
        mean_b: Mean of the second over these.
        difference: mean_b - mean_a.
        low: Lower end of the 95 % interval of the difference, by the bootstrap over questions.
        high: Upper end.
        better: Questions on which b is better than a (by the metric's own direction).
        worse: Questions on which it is worse.
        p: Of the test, two-sided; 1 where no question differs.
        p_holm: The same after Holm's correction over all pairs of ways in this metric.
        test: Which test it is.
        smallest: The smallest difference that so many questions would have shown with 80 %
            probability at the level left by a correction for all pairs; None where they are too
            few to show any, or where nothing tells how much a graded metric varies.
        level: The level at which `p_holm` counts as shown, 0.05.
    """

    metric: str
    a: str
    b: str
    n: int
    mean_a: float
    mean_b: float
    difference: float
    low: float
    high: float
    better: int
    worse: int
    p: float
    p_holm: float
    test: Test
    smallest: float | None
    level: float = 0.05

    @property
    def shown(self) -> bool:
        """Whether a difference is shown: p after Holm's correction is below the level."""
        return self.p_holm < self.level

    def swapped(self) -> Paired:
        """The same seen from the other way: a and b change places."""
        return replace(
            self,
            a=self.b,
            b=self.a,
            mean_a=self.mean_b,
            mean_b=self.mean_a,
            difference=-self.difference,
            low=-self.high,
            high=-self.low,
            better=self.worse,
            worse=self.better,
        )


def compare_pairs(
    metric: Metric,
    values: Mapping[str, Values],
    *,
    seed: int = 0,
    resamples: int = 10_000,
    level: float = 0.05,
) -> tuple[Paired, ...]:
    """Hold every way against every other in one metric.

    The interval is BCa's (Efron 1987) by the bootstrap over questions. A metric of 0 and 1 is
    tested by exact McNemar, that is by the binomial law of the questions on which the two differ;
    any other by flipping the signs of the differences, all 2^n of them where that is few. The p
    values of all pairs are corrected together (Holm 1979). McNemar's test needs nothing but
    independent questions; sign flips also want differences that are as likely up as down, by as
    much, where the ways are equally good.

    Args:
        metric: What is measured: its name, whether it is binary, which direction is good.
        values: (n,) for each way, in the same order of questions; NaN where missing, and then
            the question is left out of that way's pairs.
        seed: Of the resampling; the same values and seed give the same result.
        resamples: Of bootstrap and sign flips; more are taken where so many pairs need them.
        level: Chance that any difference at all is shown where there is none.

    Returns:
        One `Paired` for each pair of ways, the one earlier in `values` as `a`.

    Raises:
        ValueError: Columns of different lengths, or an infinite value.
        ImportError: scipy is not installed.
    """
    _check(metric, values)
    binary = metric.binary and all(_zeros_and_ones(column) for column in values.values())
    good = 1 if metric.higher_is_better else -1
    names = list(combinations(values, 2))
    # A pair's p is a multiple of 2 / resamples: Holm's first step must be able to reach it.
    resamples = max(resamples, math.ceil(4 * len(names) / level))
    columns = [_both(values[a], values[b]) for a, b in names]
    differences = [b - a for a, b in columns]
    ends = _intervals(differences, seed, resamples)
    tested = _mcnemar(differences) if binary else _sign_flips(differences, seed, resamples)
    return tuple(
        Paired(
            metric=metric.name,
            a=a,
            b=b,
            n=len(difference),
            mean_a=_mean(one),
            mean_b=_mean(other),
            difference=_mean(difference),
            low=low,
            high=high,
            better=int((good * difference > 0).sum()),
            worse=int((good * difference < 0).sum()),
            p=p,
            p_holm=corrected,
            test="exact McNemar" if binary else "sign-flip permutation",
            smallest=_smallest(difference, level / len(names), binary=binary),
            level=level,
        )
        for (a, b), (one, other), difference, (low, high), p, corrected in zip(
            names, columns, differences, ends, tested, holm(tested), strict=True
        )
    )


def interval(values: Values, *, binary: bool, seed: int = 0) -> tuple[float, float]:
    """95 % interval of the mean of (n,) values, NaN ones left out.

    Wilson's for zeros and ones (Wilson 1927), else BCa by the bootstrap.

    Returns:
        Its ends; NaN without a value, the mean itself where nothing varies or n is below 3.
    """
    values = values[~np.isnan(values)]
    if not (binary and len(values) and _zeros_and_ones(values)):
        return _intervals([values], seed, 10_000)[0]
    found = _stats().binomtest(int(values.sum()), len(values)).proportion_ci(method="wilson")
    return float(found.low), float(found.high)


def holm(p: Sequence[float]) -> list[float]:
    """p values corrected for being the best of several (Holm 1979), in the order given."""
    order = np.argsort(p, kind="stable")
    factors = np.arange(len(p), 0, -1)
    corrected = np.empty(len(p))
    corrected[order] = np.minimum(np.maximum.accumulate(np.asarray(p)[order] * factors), 1.0)
    return [float(value) for value in corrected]


def fewest(level: float) -> int:
    """Questions that must differ, all one way, for either test's p (2 / 2^m) to be below it."""
    return next(m for m in count(1) if 2.0 ** (1 - m) < level)


def _check(metric: Metric, values: Mapping[str, Values]) -> None:
    sizes = {name: len(column) for name, column in values.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"The ways have values of different numbers of questions: {sizes}.")
    for name, column in values.items():
        if np.isinf(column).any():
            raise ValueError(
                f"Way {name!r} has an infinite value in metric {metric.name!r}: no mean is left "
                "then. Let the metric return a finite value, or None where there is none."
            )


def _zeros_and_ones(values: Values) -> bool:
    return bool(np.isin(values[~np.isnan(values)], (0.0, 1.0)).all())


def _both(a: Values, b: Values) -> tuple[Values, Values]:
    there = ~(np.isnan(a) | np.isnan(b))
    return a[there], b[there]


def _mean(values: Values) -> float:
    return float(values.mean()) if len(values) else math.nan


def _mcnemar(differences: Sequence[Values]) -> list[float]:
    binomtest, tiny = _stats().binomtest, np.finfo(np.float64).tiny
    ups = [(int((d > 0).sum()), int((d != 0).sum())) for d in differences]
    return [max(float(binomtest(up, n).pvalue), tiny) if n else 1.0 for up, n in ups]


def _sign_flips(differences: Sequence[Values], seed: int, resamples: int) -> list[float]:
    """p values; questions without a difference change nothing, so few others can be exact."""
    found = [1.0] * len(differences)
    changed = [difference[difference != 0] for difference in differences]
    few = [i for i, one in enumerate(changed) if 2 ** len(one) <= resamples]
    for i in few:
        if len(changed[i]) > 1:  # of one flip, p is 1
            found[i] = float(_flipped(changed[i], seed, resamples))
    for group in _same_length(differences, sorted(set(range(len(found))) - set(few))):
        p = _flipped(np.stack([differences[i] for i in group]), seed, resamples)
        for i, value in zip(group, p, strict=True):
            found[i] = float(value)
    return found


def _flipped(differences: Values, seed: int, resamples: int) -> Any:
    """p of (n,) or (pairs, n) differences."""
    options = {"permutation_type": "samples", "n_resamples": resamples} | _along(differences)
    rng, test = np.random.default_rng(seed), _stats().permutation_test
    with np.errstate(over="ignore"):  # of 2^n, which scipy 1.15 counts as a float
        return test((differences,), np.mean, rng=rng, **options).pvalue


def _intervals(samples: Sequence[Values], seed: int, resamples: int) -> list[tuple[float, float]]:
    """95 % intervals of the means; the mean itself where nothing varies or n is below 3."""
    ends = [(_mean(sample), _mean(sample)) for sample in samples]
    varied = [i for i, one in enumerate(samples) if len(one) > 2 and np.ptp(one) > 0]
    for group in _same_length(samples, varied):
        low, high = _bootstrapped(np.stack([samples[i] for i in group]), seed, resamples)
        for row, i in enumerate(group):
            ends[i] = (float(low[row]), float(high[row]))
    return ends


def _bootstrapped(rows: Values, seed: int, resamples: int) -> tuple[Values, Values]:
    """Ends for each row of (rows, n): BCa's, or percentiles where rounding leaves BCa none."""
    bootstrap, along, rng = _stats().bootstrap, _along(rows), np.random.default_rng(seed)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # of BCa without a result, which is seen below
        done = bootstrap((rows,), np.mean, n_resamples=resamples, rng=rng, **along)
        again = {"n_resamples": 0, "method": "percentile", "bootstrap_result": done} | along
        plain = bootstrap((rows,), np.mean, **again).confidence_interval
    bca = done.confidence_interval
    failed = np.isnan(bca.low) | np.isnan(bca.high)
    return np.where(failed, plain.low, bca.low), np.where(failed, plain.high, bca.high)


def _same_length(samples: Sequence[Values], chosen: Sequence[int]) -> Iterable[list[int]]:
    """Groups that can be resampled together, by the same draws."""
    groups: dict[int, list[int]] = {}
    for i in chosen:
        groups.setdefault(len(samples[i]), []).append(i)
    return groups.values()


def _along(rows: Values) -> dict[str, Any]:
    return {"axis": -1, "vectorized": True, "batch": max(1, _NUMBERS // rows.size)}


def _smallest(differences: Values, level: float, *, binary: bool) -> float | None:
    """The difference that the test shows with 80 % probability at this level.

    By the normal approximation, (z(1 - level / 2) + z(0.8)) sd / sqrt(n) (Cohen 1988, chapter 2),
    with the measured standard deviation of the differences. Of zeros and ones at least what
    McNemar's test needs where all that differ do so in one direction: the d at which
    `fewest(level)` of n questions differ with 80 % probability.
    """
    n, least = len(differences), fewest(level)
    if n < max(2, least):
        return None
    stats = _stats()
    z = stats.norm.ppf(1 - level / 2) + stats.norm.ppf(_POWER)
    found = float(z * differences.std(ddof=1) / math.sqrt(n))
    if binary:
        found = max(found, float(stats.beta.ppf(_POWER, least, n - least + 1)))
        return found if found <= 1.0 else None
    return found or None


def _stats() -> Any:
    try:
        return import_module("scipy.stats")
    except ImportError as error:
        raise ImportError(
            "The statistics of a comparison need the package scipy, which is not installed: "
            'pip install "sift-rag-ttt[compare]"'
        ) from error
