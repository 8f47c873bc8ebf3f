"""Means of groups, drawn to a common centre as far as chance may have made them differ (numpy)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]
Group: TypeAlias = NDArray[np.int64]
"""Positions of values."""


def drawn(values: Floats, groups: Sequence[Group], centre: float) -> list[float]:
    """Each group's mean, drawn to the centre.

    The weights are those of a one-way random-effects model, with its variance between groups by the
    method of moments (DerSimonian and Laird 1986); the centre weighs one value at least, so that a
    group of two that agree is not believed altogether.

    Args:
        values: (n,)
        groups: Positions among them, at least one group and none empty.
        centre: Where to; one group alone, or groups that differ by no more than chance, are there.
    """
    if len(groups) == 1:
        return [centre]
    sizes = np.array([len(group) for group in groups], dtype=np.float64)
    means = np.array([values[group].mean() for group in groups])
    total, mean = sizes.sum(), values[np.concatenate(groups)].mean()
    squares = sum(float(((values[group] - values[group].mean()) ** 2).sum()) for group in groups)
    within = squares / max(total - len(groups), 1.0)
    between = (sizes * (means - mean) ** 2).sum() / (len(groups) - 1)
    size = (total - (sizes**2).sum() / total) / (len(groups) - 1)
    true = (between - within) / size
    if true <= 0:
        return [centre] * len(groups)
    weight = max(within / true, 1.0)
    return [float(x) for x in (sizes * means + weight * centre) / (sizes + weight)]


def sure(differences: Floats) -> float:
    """The mean of differences (n,), less the more of it may be chance; within one standard error 0.

    James and Stein's estimate (1961), its positive part.
    """
    mean, n = float(differences.mean()), len(differences)
    if n < 2 or mean == 0:
        return 0.0
    error = float(differences.var(ddof=1)) / n
    return mean * max(0.0, 1.0 - error / mean**2)


def differing(differences: Floats, groups: Sequence[Group]) -> list[float]:
    """Each group's mean difference, as far as it is no chance.

    Groups that differ are drawn to the mean that is sure, and those within a standard error of no
    difference have none.

    Args:
        differences: (n,) of pairs.
        groups: As in `drawn`.
    """
    used = differences[np.concatenate(groups)]
    centre = sure(used)
    found = drawn(differences, groups, centre)
    errors = [used.std() / len(group) ** 0.5 for group in groups]
    return [
        mean if mean == centre or abs(mean) > error else 0.0
        for mean, error in zip(found, errors, strict=True)
    ]


def rising(levels: Sequence[float], weights: Sequence[float]) -> list[float]:
    """The nearest values that never fall, in weighted least squares (isotonic regression)."""
    values, weight = np.asarray(levels, dtype=np.float64), np.asarray(weights, dtype=np.float64)
    n = len(values)

    def mean(a: int, b: int) -> float:
        return float(np.average(values[a : b + 1], weights=weight[a : b + 1]))

    return [max(min(mean(a, b) for b in range(i, n)) for a in range(i + 1)) for i in range(n)]


def split(order: Group, by: Floats, least: int) -> list[Group]:
    """Parts of positions in the order of `by`, 0 to 1: tenths of it, joined to so many at least.

    Where fewer are left at the end, they join the last part.
    """
    found: list[Group] = []
    part = order[:0]
    tenths = np.floor(by[order] * 10)
    for tenth in np.unique(tenths):
        part = np.concatenate([part, order[tenths == tenth]])
        if len(part) >= least:
            found.append(part)
            part = order[:0]
    if found:
        found[-1] = np.concatenate([found[-1], part])
    return found or [part]
