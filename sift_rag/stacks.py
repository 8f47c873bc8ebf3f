"""Several problems solved together: the loop of `selection` over picks, with all in common arrays.

A pick for one query is some twenty calls of NumPy on few numbers; for G queries it is the same
twenty calls on G times as many. So their state stands in common arrays, problems of about one size
padded to one shape. Products of vectors stay with each problem's own rows, which need not be
copied, or are one product where all problems share the same rows.

The letters of `problem`, and G problems in one stack.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sift_rag.kernels import Floats, Rbf
from sift_rag.problem import KNOWN_FROM, Problem, nearest_by, removable
from sift_rag.selection import Context, Selection, best_gain

# Numbers in the largest array of a stack: problems with their own rows are quickest while all of
# them stay in the cache, those with common rows when these are read as seldom as possible.
_APART, _SHARED = 2**19, 2**22
_GRAM = 2048  # candidates; the cosines of all with each other then take 16 MB


def together(problems: list[Problem]) -> list[Selection]:
    """What `sift` makes of each, by position: kernels "linear" and rbf, without costs."""
    found: dict[int, Selection] = {}
    for positions in _stacks(problems):
        stack = _Stack([problems[position] for position in positions])
        found.update(zip(positions, stack.selections(), strict=True))
    return [found[position] for position in range(len(problems))]


def _stacks(problems: list[Problem]) -> Iterator[list[int]]:
    """Positions of problems that are worth padding to one shape, and are not too many."""

    def shape(position: int) -> tuple[Any, ...]:
        problem = problems[position]
        n = len(problem.rows)
        return problem.rows.dtype.char, len(problem.queries), n > KNOWN_FROM, n

    stack: list[int] = []
    for position in sorted(range(len(problems)), key=shape):
        *kind, n = shape(position)
        if stack:
            *first, least = shape(stack[0])
            shared = problems[position].rows is problems[stack[0]].rows
            width = 1 if shared and n > KNOWN_FROM else min(n, KNOWN_FROM)
            size = (len(stack) + 1) * n * max(problems[position].k, width)
            full = size > (_SHARED if shared else _APART)
            if full or kind != first or n > 1.25 * least + 8:
                yield stack
                stack = []
        stack.append(position)
    yield stack


class _Stack:
    """G problems with m queries each, their candidates padded to n: arrays as in `selection`."""

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = problems
        self.rows = [problem.rows for problem in problems]
        self.shared = all(rows is self.rows[0] for rows in self.rows)
        self.n = max(map(len, self.rows))
        self.k = max(problem.k for problem in problems)
        self.each = np.arange(len(problems))  # (G,)
        real = np.arange(self.n) < np.array([[len(rows)] for rows in self.rows])
        self.real = None if real.all() else real  # (G, n), not of the padding
        self.noise = np.array([problem.noise for problem in problems])  # (G,)
        kernels = [problem.kernel for problem in problems]
        widths = [(each.tau, each.query_tau) for each in kernels if isinstance(each, Rbf)]
        # Widths between passages and towards the queries, (G,) each; None for linear.
        self.taus: Any = None
        self.query_taus: Any = None
        if widths:
            self.taus, self.query_taus = np.array(widths).T
        self.gram: NDArray[Any] | None = None  # (G, n, n) covariances, where all are needed
        self.covs = self._prior()  # (G, m, n)
        self.cosines: NDArray[Any] | None = None  # (G or, shared, 1; n, n), where that pays
        pays = 4 * self.k * (len(problems) if self.shared else 1)
        if self.gram is None and self.n <= min(pays, _GRAM):
            self.cosines = _grams(self.rows[:1] if self.shared else self.rows, self.n)

    def selections(self) -> list[Selection]:
        order, gains = self._greedy()  # (G, k)
        initial = float(self.covs.shape[1])
        left = np.maximum(initial - gains.cumsum(axis=1), 0.0)
        each = zip(self.problems, order, gains, left, strict=True)
        return [
            Selection(
                picks[: problem.k].copy(),
                gain[: problem.k].copy(),
                after[: problem.k].copy(),
                initial,
                Context(problem.queries, problem.rows),
            )
            for problem, picks, gain, after in each
        ]

    def _greedy(self) -> tuple[NDArray[np.int64], Floats]:
        """Picks and their gains, (G, k); for a query with fewer candidates the first ones count."""
        covs, each, worst = self.covs, self.each, self.problems[0].combine == "worst"
        left = np.ones(covs.shape[:2])  # (G, m)
        closed = np.zeros((len(each), self.n))
        if self.real is not None:
            closed[~self.real] = np.inf
        spread = np.zeros(closed.shape) + (1.0 + self.noise)[:, None]
        factor = np.empty((len(each), self.k, self.n))
        order = np.empty((len(each), self.k), dtype=np.int64)
        gains = np.empty(order.shape)
        for t in range(self.k):
            served = covs[each, left.argmax(axis=1), None] if worst else covs
            gain = np.square(served).sum(axis=1)  # (G, n)
            gain /= spread
            gain -= closed
            order[:, t] = i = self._best(gain)  # (G,)
            here, root = covs[each, :, i], np.sqrt(spread[each, i])[:, None]  # (G, m), (G, 1)
            here /= root
            gone = here * here
            gains[:, t] = gone.sum(axis=1)
            left -= gone
            if self.problems[0].distinct:
                closed[each, i] = np.inf
            row = self._row(i)  # (G, n)
            if t:
                row -= (factor[each, None, :t, i] @ factor[:, :t])[:, 0]
            row /= root
            factor[:, t] = row
            covs -= here[:, :, None] * row[:, None]
            spread -= row * row
        return order, gains

    def _best(self, gain: Floats) -> NDArray[np.int64]:
        i: NDArray[np.int64] = gain.argmax(axis=1)
        near = gain >= 0.999 * gain[self.each, i][:, None]
        for g in np.flatnonzero(near.argmax(axis=1) != i):
            i[g] = best_gain(gain[g], self.rows[g], self.problems[g].tie)
        return i

    def _row(self, i: NDArray[np.int64]) -> Floats:
        """Prior covariances of one candidate of each problem with all of its candidates, (G, n)."""
        if self.gram is not None:
            return self.gram[self.each, i].astype(np.float64)
        if self.cosines is not None:
            cosines = self.cosines[0 if self.shared else self.each, i]
        elif self.shared:
            cosines = self.rows[0][i] @ self.rows[0].T
        else:
            cosines = np.zeros((len(i), self.n), dtype=self.rows[0].dtype)
            for rows, pick, out in zip(self.rows, i, cosines, strict=True):
                np.matmul(rows[pick], rows.T, out=out[: len(rows)])
        return _kernel(cosines, self.taus).astype(np.float64)

    def _with_queries(self) -> NDArray[Any]:
        """Cosines of queries and candidates, (G, m, n)."""
        queries = [problem.queries for problem in self.problems]
        if self.shared:
            together = np.concatenate(queries) @ self.rows[0].T
            return np.asarray(together.reshape(len(queries), -1, self.n))
        cosines = np.zeros((len(queries), len(queries[0]), self.n), dtype=self.rows[0].dtype)
        for query, rows, out in zip(queries, self.rows, cosines, strict=True):
            np.matmul(query, rows.T, out=out[:, : len(rows)])
        return cosines

    def _prior(self) -> Floats:
        """As `Problem.prior`; 0 in the padding."""
        cosines = self._with_queries()
        if self.query_taus is not None and np.any(self.taus != self.query_taus):
            exponent = cosines.astype(np.float64)
            if self.real is not None:
                exponent[~np.broadcast_to(self.real[:, None], exponent.shape)] = -np.inf
            exponent -= exponent.max(axis=2, keepdims=True)
            covs: Floats = np.exp(exponent / self.query_taus[:, None, None])
            covs /= np.sqrt(self._knowable(covs))[..., None]
            return covs
        covs = _kernel(cosines, self.taus).astype(np.float64)
        if self.real is not None:
            covs *= self.real[:, None]
        return covs

    def _knowable(self, covs: Floats) -> Floats:
        """`Problem.prior` says what for: (G, m)."""
        if self.n <= KNOWN_FROM:
            grams = _grams(self.rows[:1] if self.shared else self.rows, self.n)
            self.gram = _kernel(grams, self.taus)
            if self.real is not None:
                self.gram *= self.real[:, None] & self.real[:, :, None]
            return removable(self.gram, covs, self.noise)
        near = nearest_by(covs)  # (G, m, 128)
        m = near.shape[1]
        sets = [rows[those] for rows, each in zip(self.rows, near, strict=True) for those in each]
        gram = _kernel(_grams(sets, KNOWN_FROM), np.repeat(self.taus, m))  # (G m, 128, 128)
        cross = np.take_along_axis(covs, near, axis=2).reshape(len(sets), 1, KNOWN_FROM)
        return removable(gram, cross, np.repeat(self.noise, m)).reshape(-1, m)


def _grams(sets: list[NDArray[Any]], n: int) -> NDArray[Any]:
    """Cosines of rows with each other, padded with zeros to (sets, n, n)."""
    grams = np.zeros((len(sets), n, n), dtype=sets[0].dtype)
    for rows, out in zip(sets, grams, strict=True):
        np.matmul(rows, rows.T, out=out[: len(rows), : len(rows)])
    return grams


def _kernel(cosines: NDArray[Any], taus: NDArray[Any] | None) -> NDArray[Any]:
    """Covariances from cosines, for each problem its own width."""
    if taus is None:
        return cosines
    exponent = cosines - 1.0
    exponent = exponent / taus.astype(cosines.dtype).reshape(-1, *[1] * (cosines.ndim - 1))
    return np.asarray(np.exp(exponent, out=exponent))
