"""What every selector starts from: its input checked, in one precision, of unit length.

The letters, here and in the selectors:

    m  query vectors      n  candidates      k  picks      d  dimensions

Vectors are compared by direction: rows are brought to unit length, whatever length they come in,
so that `k(x, x) = 1` for the kernels here and one `noise` means the same for every embedder.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias, TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sift_rag.kernels import (
    Checked,
    Floats,
    Kernel,
    KernelFunction,
    Rbf,
    linear,
    positive,
    resolve,
)

if TYPE_CHECKING:
    from typing_extensions import Unpack

Combine: TypeAlias = Literal["sum", "worst"]

NOISE = 0.1  # a little better than 0.01 for retrieval, on every level of redundancy
# Below this noise the rounding of float32 products (1e-7) is no longer small beside it.
_FLOAT32_NOISE = 1e-4
_LEAST_NOISE = 1e-12  # and the same for float64
# A kernel of width tau multiplies the rounding by 1 / tau, and so the noise that it needs.
_FLOAT32_NOISE_TAU = 5e-4
_SLACK = 1e-12  # of the budget: 0.1 fits three times into 0.3
# Equal vectors may get cosines that differ in the last bits, by where BLAS finds them. Scores this
# close are a tie, so that copies are taken in the order in which they came.
TIE = {np.dtype(np.float32): 2e-6, np.dtype(np.float64): 1e-12}
KNOWN_FROM = 128  # the nearest candidates, from which the scale of an asymmetric kernel is taken


class Options(TypedDict, total=False):
    """The keyword arguments that all selectors share; `sift` describes them."""

    noise: float
    kernel: Kernel
    distinct: bool
    costs: ArrayLike | None
    budget: float | None
    combine: Combine


class Prior(NamedTuple):
    """Covariances before the first pick.

    Attributes:
        cross: Of queries and candidates, (m, n).
        variance: Of the queries, (m,).
        gram: Of the candidates with each other, (n, n), where it had to be computed.
    """

    cross: Floats
    variance: Floats
    gram: Floats | None


@dataclass(frozen=True, slots=True)
class Problem:
    """Made by `checked`; `Options` says what the settings are."""

    queries: NDArray[Any]  # (m, d) unit
    rows: NDArray[Any]  # (n, d) unit
    k: int
    noise: float
    kernel: KernelFunction
    distinct: bool
    costs: Floats | None  # (n,)
    budget: float
    combine: Combine

    @property
    def tie(self) -> float:
        """Scores this close are equal."""
        return TIE[self.rows.dtype]

    def relevance(self) -> Floats:
        """Mean cosine to the queries, (n,)."""
        return np.asarray(linear(self.queries, self.rows).mean(axis=0))

    def variance(self, rows: NDArray[Any]) -> Floats:
        """`k(x, x)` of each row, (n,)."""
        if not isinstance(self.kernel, Checked):
            return np.ones(len(rows))
        blocks = (rows[start : start + 64] for start in range(0, len(rows), 64))
        found = [self.kernel(block, block) for block in blocks]
        for covs in found:  # no proof for all rows, but most faults show in any 64
            try:
                np.linalg.cholesky(covs + self.noise * np.eye(len(covs)))
            except np.linalg.LinAlgError as error:
                raise self.indefinite() from error
        return np.concatenate([covs.diagonal() for covs in found])

    def prior(self) -> Prior:
        """What holds before the first pick.

        A kernel that is wider between question and passage leaves the scale of a question open: it
        moves no pick. It is set so that all candidates together (the nearest 128) would leave
        nothing of 1: gains are shares of what the candidates can tell, and each query counts the
        same.
        """
        if isinstance(self.kernel, Rbf) and self.kernel.tau != self.kernel.query_tau:
            cosines = linear(self.queries, self.rows)
            cosines -= cosines.max(axis=1, keepdims=True)  # the nearest counts 1: no underflow
            cross = np.exp(cosines / self.kernel.query_tau)
            few = cross.shape[1] <= KNOWN_FROM
            gram = self.kernel(self.rows, self.rows) if few else None
            cross /= np.sqrt(self._knowable(cross, gram))[:, None]
            return Prior(cross, np.ones(len(cross)), gram)
        return Prior(self.kernel(self.queries, self.rows), self.variance(self.queries), None)

    def _knowable(self, cross: Floats, gram: Floats | None) -> Floats:
        """Variance of each query that its nearest candidates together would remove, (m,)."""
        if gram is not None:
            return removable(gram, cross, self.noise)
        each = zip(cross, nearest_by(cross), strict=True)
        near = [(one[None, those], self.rows[those]) for one, those in each]
        return np.concatenate([removable(self.kernel(x, x), one, self.noise) for one, x in near])

    def indefinite(self) -> ValueError:
        """The error for a kernel that gave a variance below zero."""
        return ValueError(
            f"kernel {self.kernel!r} with noise {self.noise} is not positive definite on these "
            "candidates; use a kernel that is a covariance, or more noise"
        )


class Room:
    """Which candidates may still be taken: not twice, and not beyond the budget.

    Attributes:
        closed: (n,), 0 for those that may be taken and infinity for the others.
    """

    __slots__ = ("_costs", "_distinct", "_left", "closed")

    def __init__(self, problem: Problem) -> None:
        self._costs, self._distinct = problem.costs, problem.distinct
        self._left = problem.budget * (1.0 + _SLACK)
        self.closed = np.zeros(len(problem.rows))
        if self._costs is not None:
            self.closed[self._costs > self._left] = np.inf

    def take(self, i: int) -> None:
        """Close what this pick rules out."""
        if self._distinct:
            self.closed[i] = np.inf
        if self._costs is not None:
            self._left -= self._costs.item(i)
            self.closed[self._costs > self._left] = np.inf


def nearest_by(cross: Floats) -> NDArray[np.int64]:
    """Positions of the largest covariances with each query: (..., n) to (..., 128), in order."""
    return np.sort(np.argpartition(-cross, KNOWN_FROM)[..., :KNOWN_FROM])


def removable(covs: NDArray[Any], cross: Floats, noise: float | Floats) -> Floats:
    """Variance of each query that all candidates together would remove.

    The diagonal of `C (K + noise I)^-1 C^T`. Below the Cholesky factor L of K + noise I, bordered
    by C, stands `(L^-1 C^T)^T`: half the work of solving, and its squares are never negative.

    Args:
        covs: K, candidates with each other, (..., n, n).
        cross: C, queries with candidates, (..., m, n).
        noise: A variance, or (...) of them.

    Returns:
        (..., m)
    """
    m, n = cross.shape[-2:]
    bordered = np.zeros((*cross.shape[:-2], n + m, n + m))
    bordered[..., :n, :n] = covs
    bordered[..., n:, :n] = cross  # the upper triangle is not read
    diagonal = np.einsum("...ii->...i", bordered)  # a view
    diagonal[..., :n] += np.asarray(noise)[..., None]
    enough = 1.0 + 2.0 * np.square(cross).sum(axis=(-2, -1)) / noise
    diagonal[..., n:] = enough[..., None]
    known = np.linalg.cholesky(bordered)[..., n:, :n]
    return np.asarray(np.square(known).sum(axis=-1))


def checked(
    query: ArrayLike, candidates: ArrayLike, k: int | None, **options: Unpack[Options]
) -> Problem:
    """Check the arguments of a selector; `sift` documents them and their errors."""
    unknown = sorted(options.keys() - Options.__annotations__.keys())
    if unknown:
        raise TypeError(
            f"unknown keyword argument {unknown[0]!r}; selectors take "
            f"{', '.join(Options.__annotations__)}, and what their own documentation names"
        )
    rows = _vectors("candidates", candidates, (2,))
    queries = np.atleast_2d(_vectors("query", query, (1, 2)))
    if queries.shape[1] != rows.shape[1]:
        raise ValueError(
            f"query has {queries.shape[1]} dimensions and candidates have {rows.shape[1]}; they "
            "must have the same number: were both made by the same embedder?"
        )
    noise = positive("noise", options.get("noise", NOISE))
    if noise < _LEAST_NOISE:
        raise ValueError(
            f"noise is {noise}; it must be {_LEAST_NOISE} or more: rounding takes over below"
        )
    if noise < _FLOAT32_NOISE:
        rows = rows.astype(np.float64, copy=False)
    rows = at_unit_length("candidates", rows)
    exact = at_unit_length("query", queries.astype(np.float64))
    queries = exact.astype(rows.dtype, copy=False)
    kernel = resolve(options.get("kernel", "rbf"), queries, rows)
    if isinstance(kernel, Rbf):
        if rows.dtype == np.float32 and noise * kernel.tau < _FLOAT32_NOISE_TAU:
            queries, rows = exact, at_unit_length("candidates", rows.astype(np.float64))
        noise = max(noise, _LEAST_NOISE / kernel.tau)
    distinct = options.get("distinct", True)
    costs, budget = _spending(options.get("costs"), options.get("budget"), len(rows))
    most = _most(costs, budget, len(rows), distinct)
    if k is None and costs is not None:
        k = most
    return Problem(
        queries=queries,
        rows=rows,
        k=min(_count(k), most),
        noise=noise,
        kernel=kernel,
        distinct=distinct,
        costs=costs,
        budget=budget,
        combine=_combine(options.get("combine", "sum")),
    )


def _count(k: int | None) -> int:
    try:
        # NumPy's bool first: operator.index takes it on some versions and warns on others.
        count = None if isinstance(k, bool | np.bool_) or k is None else operator.index(k)
    except TypeError:
        count = None
    if count is None:
        raise TypeError(f"k is {k!r}; it must be a whole number, 1 or more: how many to pick")
    if count < 1:
        raise ValueError(f"k is {count}; it must be 1 or more: how many candidates to pick")
    return count


def _combine(combine: Combine) -> Combine:
    if combine not in ("sum", "worst"):
        raise ValueError(
            f"combine is {combine!r}; it must be 'sum', the gains of all queries added, or "
            "'worst', each pick for the query of which most is left"
        )
    return combine


def _spending(costs: ArrayLike | None, budget: float | None, n: int) -> tuple[Floats | None, float]:
    if costs is None and budget is None:
        return None, np.inf
    if costs is None or budget is None:
        given, missing = ("budget", "costs") if costs is None else ("costs", "budget")
        raise ValueError(
            f"{given} is given without {missing}; give both: what each candidate costs (its "
            "tokens, say), and how much the picks may cost together"
        )
    budget = positive("budget", budget)
    prices = np.asarray(costs)
    if prices.dtype.kind not in "fiu":
        raise TypeError(f"costs has dtype {prices.dtype}; it must hold numbers above 0")
    if prices.shape != (n,):
        raise ValueError(f"costs has shape {prices.shape}; it must be ({n},), one a candidate")
    bad = np.flatnonzero(~(np.isfinite(prices) & (prices > 0)))
    if bad.size:
        raise ValueError(
            f"costs has {bad.size} of {n} values that are not finite numbers above 0, first "
            f"{prices[bad[0]]} at {bad[0]}; an empty text has no cost: leave it out"
        )
    if prices.min() > budget:
        raise ValueError(
            f"budget is {budget:g} and the cheapest candidate costs {prices.min():g}; give a "
            "larger budget, or split the passages smaller"
        )
    return prices.astype(np.float64), budget


def _most(costs: Floats | None, budget: float, n: int, distinct: bool) -> int:
    """No selection can have more picks than this; a bound for k."""
    endless = int(np.iinfo(np.int64).max)
    if costs is None:
        return n if distinct else endless
    budget *= 1.0 + _SLACK
    if not distinct:
        return int(min(budget / float(costs.min()), endless))
    return int(np.searchsorted(np.sort(costs).cumsum(), budget, side="right"))


def _vectors(name: str, values: ArrayLike, ndims: tuple[int, ...]) -> NDArray[Any]:
    """A contiguous float32 or float64 array of one of these numbers of dimensions."""
    array = numbers(name, values, ndims)
    return np.ascontiguousarray(array, dtype=precision(array))


def precision(array: NDArray[Any]) -> type[np.float32] | type[np.float64]:
    """In which an array is multiplied."""
    single = array.dtype.kind == "f" and array.dtype.itemsize <= 4
    return np.float32 if single else np.float64


def numbers(name: str, values: ArrayLike, ndims: tuple[int, ...]) -> NDArray[Any]:
    """An array of one of these numbers of dimensions, not copied."""
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise ValueError(f"{name} is ragged; every vector must have the same length") from error
    if array.dtype.kind not in "fiu":
        raise TypeError(f"{name} has dtype {array.dtype}; it must hold numbers, float32 best")
    if array.ndim not in ndims:
        shapes = " or ".join({1: "(d,)", 2: "(rows, d)"}[ndim] for ndim in ndims)
        raise ValueError(f"{name} has shape {array.shape}; it must be {shapes}, a vector a row")
    if array.size == 0:
        raise ValueError(f"{name} is empty, shape {array.shape}; give at least one vector")
    return array


def at_unit_length(name: str, rows: NDArray[Any]) -> NDArray[Any]:
    """Rows (n, d) at unit length; one look at their lengths finds bad values too."""
    with np.errstate(all="ignore"):
        squares = (rows[:, None] @ rows[:, :, None])[:, 0, 0]  # (n,): a BLAS dot a row
        off = np.abs(squares - 1.0).max()
    limits = np.finfo(rows.dtype)
    if off <= 8 * limits.eps:  # as embedders give them: no copy
        return rows
    if not (squares.min() > limits.tiny / limits.eps and squares.max() <= limits.max):
        return at_unit_length(name, _tamed(name, rows))  # NaN fails both comparisons
    return np.asarray(rows * (1.0 / np.sqrt(squares))[:, None])


def _tamed(name: str, rows: NDArray[Any]) -> NDArray[Any]:
    """Rows whose squares overflow or vanish, brought near 1 in float64, or why they cannot be."""
    finite = np.isfinite(rows).all(axis=1)
    if not finite.all():
        raise ValueError(
            f"{name} has NaN or infinity in {(~finite).sum()} of {len(rows)} vectors, first in row "
            f"{finite.argmin()}; every number must be finite"
        )
    largest = np.abs(rows).max(axis=1, keepdims=True).astype(np.float64)
    if not largest.all():
        raise ValueError(
            f"{name} has {(largest == 0).sum()} of {len(rows)} vectors all zeros, first row "
            f"{largest.argmin()}; a zero vector has no direction: leave it out (an empty text?)"
        )
    return np.asarray(rows / largest)
