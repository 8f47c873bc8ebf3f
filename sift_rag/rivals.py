"""The selectors that SIFT is measured against, with its signature: swap one name to compare.

Each gives its own order; `gains` and `uncertainty` are those of SIFT for these picks in this order,
so that all curves are on one scale. The keyword arguments are those of `sift`, which documents
them; with a budget, a candidate that no longer fits is passed over.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sift_rag.kernels import Floats, KernelFunction, linear
from sift_rag.problem import Problem, Room, at_unit_length, checked
from sift_rag.selection import Selection, account

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from sift_rag.problem import Options

_NOTHING = 1e-9  # a variance that only rounding leaves, in float64
_EQUAL = 1e-14  # variances that only rounding tells apart, in float64


def nearest(
    query: ArrayLike, candidates: ArrayLike, k: int | None = None, **options: Unpack[Options]
) -> Selection:
    """Take the candidates with the largest cosine to the query (its mean over several queries).

    Arguments, ties and errors as in `sift`. With `distinct=False` the nearest is taken k times.
    """
    problem = checked(query, candidates, k, **options)
    relevance = problem.relevance()  # (n,)
    return account(_in_order(problem, lambda last: relevance), problem)


def mmr(
    query: ArrayLike,
    candidates: ArrayLike,
    k: int | None = None,
    *,
    lambda_mult: float = 0.5,
    **options: Unpack[Options],
) -> Selection:
    """Maximal marginal relevance: near the query, far from every pick so far.

    The first pick is the nearest; each next has the largest
    `lambda_mult * cos(q, x) - (1 - lambda_mult) * max over picks of cos(x, pick)`
    (Carbonell and Goldstein, SIGIR 1998). Other arguments, ties and errors as in `sift`.

    Args:
        lambda_mult: From 0, only far from the picks, to 1, only near the query.
    """
    if not 0.0 <= lambda_mult <= 1.0:
        raise ValueError(f"lambda_mult is {lambda_mult!r}; it must be between 0 and 1")
    problem = checked(query, candidates, k, **options)
    relevance = problem.relevance()  # (n,)
    redundancy = np.full(len(relevance), -np.inf)

    def score(last: int | None) -> Floats:
        if last is None:
            return relevance
        np.maximum(redundancy, linear(problem.rows[last], problem.rows), out=redundancy)
        return lambda_mult * relevance - (1.0 - lambda_mult) * redundancy

    return account(_in_order(problem, score), problem)


def dpp(
    query: ArrayLike,
    candidates: ArrayLike,
    k: int | None = None,
    *,
    relevance_weight: float = 0.5,
    **options: Unpack[Options],
) -> Selection:
    """Determinantal point process: greedily the set of the largest determinant, which is diverse.

    The kernel of candidates i and j is `w_i cos(i, j) w_j` with `w = exp(relevance_weight z)`, z
    being the cosine to the query less its mean over the candidates, over its standard deviation:
    so one weight means the same for every embedder. The greedy maximum a posteriori (Chen et al.,
    NeurIPS 2018, arXiv 1709.05135) takes what multiplies the determinant by most, `w^2` times the
    variance that the picks leave of a candidate. Where they leave none (copies of picks, or more
    picks than dimensions), the most relevant follow. Other arguments, ties and errors as in `sift`.

    Args:
        relevance_weight: From 0, only diversity, upwards. The default is that of pyversity, whose
            `diversity` is 1 - relevance_weight.
    """
    if not 0.0 <= relevance_weight < math.inf:
        raise ValueError(
            f"relevance_weight is {relevance_weight!r}; it must be a finite number, 0 or more"
        )
    problem = checked(query, candidates, k, **options)
    exact = _in_double(problem)
    relevance = exact.relevance()  # (n,)
    quality = 2.0 * relevance_weight * _standardised(relevance)
    last_resort = relevance + (quality.min() + math.log(_NOTHING) - 3.0)  # below all with variance
    left = _Left(linear, exact.rows, np.ones(len(relevance)))

    def score(last: int | None) -> Floats:
        left.condition(last)
        some = left.variance > _NOTHING
        return np.where(some, quality + np.log(np.where(some, left.variance, 1.0)), last_resort)

    return account(_in_order(exact, score), problem)


def uncertainty_sampling(
    query: ArrayLike, candidates: ArrayLike, k: int | None = None, **options: Unpack[Options]
) -> Selection:
    """Take the candidates about which most is uncertain, whatever the query: a baseline of SIFT's.

    Each pick has the largest variance after the picks so far, with `noise` and `kernel` as in
    `sift`. At first all variances are equal, so the first candidate is the first pick. Arguments,
    ties and errors as in `sift`.
    """
    problem = checked(query, candidates, k, **options)
    exact = _in_double(problem)
    left = _Left(exact.kernel, exact.rows, exact.variance(exact.rows) + exact.noise)

    def score(last: int | None) -> Floats:
        left.condition(last)
        return left.variance

    return account(_in_order(problem, score, tie=_EQUAL), problem)


def random(
    query: ArrayLike,
    candidates: ArrayLike,
    k: int | None = None,
    *,
    seed: int = 0,
    **options: Unpack[Options],
) -> Selection:
    """Take candidates by chance, all alike: without replacement, or with for `distinct=False`.

    Arguments and errors as in `sift`.

    Args:
        seed: Of NumPy's generator; the same seed gives the same picks.
    """
    problem = checked(query, candidates, k, **options)
    generator, n = np.random.default_rng(seed), len(problem.rows)
    once = generator.permutation(n).astype(np.float64)

    def score(last: int | None) -> Floats:
        return once if problem.distinct else generator.permutation(n).astype(np.float64)

    return account(_in_order(problem, score), problem)


def _in_double(problem: Problem) -> Problem:
    """Where a small difference in variance decides, which float32 cannot see."""
    queries, rows = problem.queries.astype(np.float64), problem.rows.astype(np.float64)
    queries, rows = at_unit_length("query", queries), at_unit_length("candidates", rows)
    return replace(problem, queries=queries, rows=rows)


class _Left:
    """Variance that picks leave of each candidate: the rows of a Cholesky factor, one a pick."""

    def __init__(self, kernel: KernelFunction, rows: NDArray[Any], variance: Floats) -> None:
        self.variance, self._kernel, self._rows = variance, kernel, rows  # (n,), k, (n, d)
        self._factor = np.empty((16, len(rows)))
        self._picks = 0

    def condition(self, i: int | None) -> None:
        """Learn candidate i; nothing at the first pick, or from one that has no variance left."""
        if i is None or self.variance.item(i) <= _NOTHING:
            return
        t = self._picks
        if t == len(self._factor):
            self._factor = np.concatenate([self._factor, np.empty_like(self._factor)])
        row = self._kernel(self._rows[i : i + 1], self._rows)[0]  # (n,)
        row -= self._factor[:t, i] @ self._factor[:t]
        self._factor[t] = row / math.sqrt(self.variance.item(i))
        self.variance = self.variance - np.square(self._factor[t])
        self._picks += 1


def _standardised(values: Floats) -> Floats:
    """Less their mean, over their standard deviation; zeros where all are equal."""
    spread = values.std()
    away = values - values.mean()
    return np.asarray(away / spread if spread > _NOTHING else np.zeros_like(away))


def _in_order(
    problem: Problem, score: Callable[[int | None], Floats], *, tie: float | None = None
) -> list[int]:
    """The open candidate with the highest score (n,), which may look at the last pick, k times."""
    room, order, last = Room(problem), list[int](), None
    close = problem.tie if tie is None else tie
    for _ in range(problem.k):
        now = score(last) - room.closed
        best = now.max()
        if best == -np.inf:  # nothing fits into the budget any more
            break
        last = int((now >= best - close).argmax())
        order.append(last)
        room.take(last)
    return order
