"""Exact SIFT over a whole corpus: no copy of its vectors, and few passes over them.

`selection.sift` takes all its candidates at once and pays each pick with one row of the kernel
matrix. Over a whole corpus such a row is a pass over every vector, and costs more than all the
rest. So the picks to come are foreseen, by SIFT over the few hundred vectors that promise most,
and one pass gives the rows of all of them. Only rows are foreseen, never picks: each pick is the
best of all n, and one that was not foreseen costs a pass more.

Precision: products are made as in `sift`, in the precision of the vectors. What each pick explains
of every vector is stored in it too, which adds an error of the products' own size; covariances and
variances, summed over the picks, are float64.

The letters are those of `problem`; an `Array` is NumPy's, or a tensor of torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sift_rag.kernels import Checked, Floats, Kernel, Rbf, resolve
from sift_rag.problem import (
    KNOWN_FROM,
    NOISE,
    Combine,
    Problem,
    at_unit_length,
    checked,
    numbers,
    precision,
)
from sift_rag.selection import Context, Selection, best_gain, sift

Array: TypeAlias = Any

_POOL = 256  # vectors over which the next picks are foreseen
# With how many picks one pass multiplies: with 4 at first, at the cost of 1.7 passes with one,
# and with 8, at that of 2.2, where all that was foreseen came. So many products are kept.
_FIRST, _MOST, _KEPT = 4, 8, 16
# Vectors multiplied at a time stay in a CPU's second cache; so do numbers of so many rows, with
# fewer calls. A GPU wants to be kept busy.
_BLOCK, _BLOCK_AWAY, _WIDE = 2**9, 2**18, 16


def sift_corpus(
    query: ArrayLike,
    candidates: ArrayLike,
    k: int,
    *,
    noise: float = NOISE,
    kernel: Kernel = "rbf",
    distinct: bool = True,
    combine: Combine = "sum",
    device: str | None = None,
    block: int | None = None,
    keep: int = 100,
) -> Selection:
    """`sift` over a whole corpus, exactly, with bounded memory.

    The vectors are read in blocks, two to four times for k = 10, and never copied. Beside them
    about `(4 k + 12 m + 90) n` bytes are needed for float32 vectors: a tenth of the vectors' own
    for k = 10, m = 1 and d = 384.

    Args:
        query: One vector (d,) or several (m, d).
        candidates: All vectors (n, d); unit rows in float32 are read as they are, others are
            brought to that block by block at each reading, which takes longer.
        k: Picks to make.
        noise: As in `sift`. So small that float32 is not enough, every block is read as float64.
        kernel: As in `sift`. The default is calibrated from the `keep` rows nearest to the query,
            those that a search would have fetched. A function is called block by block.
        distinct: As in `sift`.
        combine: As in `sift`.
        device: None for NumPy, or a device of torch: "cpu", "cuda", ... On one that is not the CPU,
            the vectors are copied into its memory, once a call; it must have float64.
        block: Rows read at a time; 512 by default, 262,144 on a device. It changes no pick.
        keep: How many of the nearest rows `context` holds, beside the picks.

    Returns:
        The picks, by position in the corpus. `context` holds only the rows nearest to the query
        and the picks, nearest first, with their `positions`.

    Raises:
        ValueError: As `sift`; a device with a kernel that is a function; block or keep below 1.
        TypeError: As `sift`.
        ImportError: A device is given and torch is not installed.
    """
    rows = numbers("candidates", candidates, (2,))
    stand_in = np.eye(1, rows.shape[1], dtype=precision(rows))  # checks all but the rows
    asked = checked(
        query,
        stand_in,
        k,
        noise=noise,
        kernel="linear" if kernel == "rbf" else kernel,  # which needs rows to be calibrated
        distinct=False,
        combine=combine,
    )
    if device is not None and isinstance(asked.kernel, Checked):
        raise ValueError(
            f"device is {device!r} and kernel {kernel!r} is a function of NumPy's arrays; leave "
            "device out, or use 'linear', 'rbf' or rbf(tau)"
        )
    place = _HERE if device is None else _on(device)
    size = (_BLOCK_AWAY if place.away else _BLOCK) if block is None else block
    corpus = _Corpus(rows, asked.rows.dtype, place, _positive("block", size))
    cosines = corpus.cosines(asked.queries)  # (m, n)
    near = _nearest(cosines, _positive("keep", keep))
    problem = checked(
        query,
        corpus[near],
        k,
        noise=noise,
        kernel=resolve(kernel, asked.queries, corpus[near[:keep]]),
        distinct=False,
        combine=combine,
    )
    if distinct:
        problem = replace(problem, distinct=True, k=min(problem.k, len(rows)))
    if problem.rows.dtype != corpus.dtype:  # the calibrated kernel is too narrow for float32
        corpus = _Corpus(rows, problem.rows.dtype, place, size)
        cosines = corpus.cosines(problem.queries)
    run = _Run(corpus, problem, cosines)
    run.picks()
    shown = np.union1d(near[:keep], run.order)
    shown = shown[np.argsort(-cosines[:, shown].max(axis=0), kind="stable")]
    return run.selection(Context(problem.queries, corpus[shown], shown))


class _Place(NamedTuple):
    """Where the arrays are: NumPy's memory, or a device of torch."""

    lift: Callable[[NDArray[Any]], Array]
    lower: Callable[[Array], NDArray[Any]]
    exp: Callable[[Array], Array]
    away: bool  # not where the vectors are


_HERE = _Place(lambda array: array, lambda array: array, np.exp, False)


def _on(device: str) -> _Place:
    try:
        import torch
    except ImportError as error:
        raise ImportError(
            f'device {device!r} needs torch: pip install "sift-rag-ttt[engine]"'
        ) from error

    def lift(array: NDArray[Any]) -> Array:
        owned = array if array.flags.writeable else array.copy()  # torch cannot promise to read
        return torch.as_tensor(owned, device=device)

    away = torch.device(device).type != "cpu"
    return _Place(lift, lambda tensor: tensor.cpu().numpy(), torch.exp, away)


class _Corpus:
    """Unit rows (n, d) of what was given, a few at a time."""

    def __init__(self, rows: NDArray[Any], dtype: np.dtype[Any], place: _Place, block: int) -> None:
        self.rows, self.dtype, self.place = rows, dtype, place
        self.spans, self.wide = _spans(len(rows), block), _spans(len(rows), _WIDE * block)
        self._unit = False  # all rows are, as they were given
        self._moved: Array = None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, where: Any) -> NDArray[Any]:
        rows = np.ascontiguousarray(self.rows[where], dtype=self.dtype)
        if self._unit:
            return rows
        return at_unit_length("candidates", np.atleast_2d(rows)).astype(self.dtype, copy=False)

    def block(self, span: slice) -> Array:
        """The rows of a span, where they are multiplied."""
        return self.place.lift(self[span]) if self._moved is None else self._moved[span]

    def cosines(self, queries: NDArray[Any]) -> NDArray[Any]:
        """(m, n), and a look at every row: bad ones are an error."""
        found = np.empty((len(queries), len(self)), self.dtype)
        unit = True
        if self.place.away:
            self._moved = self.place.lift(np.empty(self.rows.shape, self.dtype))
        for span in self.spans:
            given = np.ascontiguousarray(self.rows[span], dtype=self.dtype)
            rows = self._checked(given)
            unit = unit and rows is given
            np.matmul(queries, rows.T, out=found[:, span])
            if self._moved is not None:
                self._moved[span] = self.place.lift(rows)
        self._unit = unit
        return found

    def _checked(self, rows: NDArray[Any]) -> NDArray[Any]:
        try:
            return at_unit_length("candidates", rows)
        except ValueError:  # says where among these rows; where among all, and how many:
            largest = [np.abs(self.rows[span].astype(float)).max(axis=1) for span in self.spans]
            at_unit_length("candidates", np.concatenate(largest)[:, None])
            raise


class _Run:
    """Greedy SIFT: what is known of every row, and how a pick changes it."""

    def __init__(self, corpus: _Corpus, problem: Problem, cosines: NDArray[Any]) -> None:
        self.corpus, self.problem = corpus, problem
        self.lift, self.lower, self.exp, _ = corpus.place
        kernel, n, later = problem.kernel, len(corpus), problem.k - 1  # picks that others follow
        covs, self.prior = _prior(corpus, problem, cosines)
        self.left = self.prior.copy()  # (m,)
        self.covs = self.lift(covs)  # (m, n)
        self.spread = self.lift(_variance(corpus, problem) + problem.noise)  # (n,)
        self.tau = kernel.tau if isinstance(kernel, Rbf) else None
        dtype = np.float64 if isinstance(kernel, Checked) else corpus.dtype
        self.factor = self.lift(np.empty((later, n), dtype))  # as in `sift`
        self.ahead = self.lift(np.empty((min(later, _KEPT), n), dtype))  # see `_read`
        self.slots: dict[int, int] = {}  # row: its place in `ahead`
        self.foresight = _FIRST
        self.gain = np.empty(n)
        self.order: list[int] = []
        self.gains: list[float] = []
        self.roots: list[float] = []  # of the spread of each pick

    def picks(self) -> None:
        rows: Any = self.corpus  # of which it looks at two
        for span in self.corpus.wide:
            self._promise(span)
        for t in range(self.problem.k):
            i = best_gain(self.gain, rows, self.problem.tie)
            self._take(i)
            if t + 1 < self.problem.k:
                self._learn(i, t)
        if float(self.spread.min()) <= 0:
            raise self.problem.indefinite()

    def selection(self, context: Context) -> Selection:
        gains, initial = np.array(self.gains), float(self.prior.sum())
        left = np.maximum(initial - gains.cumsum(), 0.0)
        return Selection(np.array(self.order, dtype=np.int64), gains, left, initial, context)

    def _take(self, i: int) -> None:
        spread = float(self.spread[i])
        each = [float(cov) ** 2 / spread for cov in self.covs[:, i]]
        if min(each) < 0:
            raise self.problem.indefinite()
        self.order.append(i)
        self.gains.append(sum(each))
        self.roots.append(math.sqrt(spread))
        self.left -= each

    def _promise(self, span: slice) -> None:
        """Gains of a span, for the queries that the next pick is to serve."""
        worst = int(self.left.argmax())
        served = slice(None) if self.problem.combine == "sum" else slice(worst, worst + 1)
        covs = self.covs[served, span]
        self.gain[span] = self.lower((covs * covs).sum(0) / self.spread[span])

    def _learn(self, i: int, t: int) -> None:
        """Condition every row on pick t, which is row i."""
        covs, since = self._covariances(i, t)
        root = self.roots[t]
        shares = self.covs[:, i, None] / root  # (m, 1)
        known = self.factor[since:t, i]
        for span in self.corpus.wide:
            row = covs(span) - known @ self.factor[since:t, span]  # posterior
            row /= root
            self.factor[t, span] = row
            self.covs[:, span] -= shares * row
            self.spread[span] -= row * row
            self._promise(span)
        if self.problem.distinct:
            self.gain[self.order] = -np.inf

    def _covariances(self, i: int, t: int) -> tuple[Callable[[slice], Array], int]:
        """Of row i with the rows of a span, given the first picks, and how many these are."""
        first = self.order.index(i)
        if first < t:  # picked before: it was known then
            return lambda span: self.roots[first] * self.factor[first, span], first
        if i not in self.slots:
            self._read(self._foreseen(i, t))
        row = self.ahead[self.slots[i]]
        if self.tau is None:
            return lambda span: row[span], 0
        return lambda span: self.exp((row[span] - 1.0) / self.tau), 0

    def _read(self, coming: list[int]) -> None:
        """One pass over the vectors: inner products with some, or a user's covariances."""
        start = len(self.slots)
        if start + len(coming) > len(self.ahead):
            start, self.slots = 0, {}
        self.slots |= {row: slot for slot, row in enumerate(coming, start)}
        end, kernel, picks = len(self.slots), self.problem.kernel, self.corpus[coming]
        lifted = self.lift(picks)
        for span in self.corpus.spans:
            rows = self.corpus.block(span)
            if isinstance(kernel, Checked):
                self.ahead[start:end, span] = kernel(picks, rows)
            elif end - start < _FIRST:  # BLAS is quicker with one at a time
                for slot, pick in enumerate(lifted, start):
                    self.ahead[slot, span] = rows @ pick
            else:
                self.ahead[start:end, span] = lifted @ rows.T

    def _foreseen(self, i: int, t: int) -> list[int]:
        """Row i, the pick t, and what would probably follow: the picks among the best as of now."""
        if self.slots and self.slots.keys() <= {*self.order}:
            self.foresight = _MOST
        problem, pool = self.problem, np.union1d(self.order, _largest(self.gain, _POOL))
        found = sift(
            problem.queries,
            self.corpus[pool],
            min(problem.k - 1, t + self.foresight),
            noise=problem.noise,
            kernel=problem.kernel,
            distinct=problem.distinct,
            combine=problem.combine,
        )
        known = {*self.order, *self.slots}
        coming = [int(row) for row in pool[found.indices] if row not in known]
        return [i, *dict.fromkeys(coming)][: self.foresight]


def _prior(corpus: _Corpus, problem: Problem, cosines: NDArray[Any]) -> tuple[Floats, Floats]:
    """`Problem.prior` of all rows, its scale taken from the nearest: (m, n) and (m,)."""
    kernel, (near, prior, _) = problem.kernel, problem.prior()
    covs = np.array(cosines, dtype=np.float64)
    if isinstance(kernel, Checked):
        for span in corpus.spans:
            covs[:, span] = kernel(problem.queries, corpus[span])
    elif isinstance(kernel, Rbf):
        symmetric = kernel.tau == kernel.query_tau
        for cov, largest in zip(covs, near.max(axis=1), strict=True):
            cov -= 1.0 if symmetric else cov.max()
            cov /= kernel.query_tau
            np.exp(cov, out=cov)
            if not symmetric:
                cov *= largest
    return covs, prior


def _variance(corpus: _Corpus, problem: Problem) -> Floats:
    if not isinstance(problem.kernel, Checked):
        return np.ones(len(corpus))
    return np.concatenate([problem.variance(corpus[span]) for span in corpus.spans])


def _nearest(cosines: NDArray[Any], keep: int) -> NDArray[np.int64]:
    """The nearest rows, nearest first; then whatever else tells the scale of a query."""
    first = _largest(cosines.max(axis=0), keep)
    each = [_largest(one, KNOWN_FROM) for one in cosines]
    return np.concatenate([first, np.setdiff1d(each, first)])


def _largest(values: NDArray[Any], count: int) -> NDArray[np.int64]:
    """Positions of the largest values (n,), largest first; equal ones go to the lowest index."""
    n = len(values)
    found = np.arange(n)
    if count < n:
        found = np.flatnonzero(values >= np.partition(values, n - count)[n - count])
    return found[np.argsort(-values[found], kind="stable")[:count]]


def _spans(n: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, n)) for start in range(0, n, size)]


def _positive(name: str, value: int) -> int:
    if value < 1:
        raise ValueError(f"{name} is {value}; it must be 1 or more")
    return value
