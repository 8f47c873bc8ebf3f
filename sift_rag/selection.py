"""Which candidates to take, and in what order: arrays in, picks out (numpy only).

The letters, everywhere in this file:

    m  query vectors      n  candidates      k  picks      d  dimensions

SIFT (Hübotter et al., "Efficiently Learning at Test-Time", arXiv 2410.08020, ICLR 2025) takes the
candidates that leave the least variance about the query under a Gaussian process: with `K` the
kernel of the picks `X`,

    var_X(q) = k(q, q) - k_X(q)^T (K_X + noise I)^-1 k_X(q)

Each pick is the candidate with the largest gain `cov(q, x)^2 / (var(x) + noise)`, covariance and
variance being those after the picks so far. Kept up pick by pick, that costs one row of the kernel
matrix and O(k n) a pick, and is exact.

Vectors are compared by direction: rows are brought to unit length, whatever length they come in,
so that `k(x, x) = 1` for the kernels here and one `noise` means the same for every embedder.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats: TypeAlias = NDArray[np.float64]
KernelFunction: TypeAlias = Callable[[NDArray[Any], NDArray[Any]], NDArray[Any]]
"""Unit rows (a, d) and (b, d) to their covariances (a, b), float64: symmetric, positive."""
Kernel: TypeAlias = Literal["linear", "rbf"] | KernelFunction
Selector: TypeAlias = Callable[..., "Selection"]
"""`sift`, `nearest`, `mmr`, or another with their signature."""

# Below this noise the rounding of float32 products (1e-7) is no longer small beside it.
_FLOAT32_NOISE = 1e-4
_LEAST_NOISE = 1e-12  # and the same for float64
_TAU = 0.15
# Equal vectors may get cosines that differ in the last bits, by where BLAS finds them. Scores this
# close are a tie, so that copies are taken in the order in which they came.
_TIE = {np.dtype(np.float32): 2e-6, np.dtype(np.float64): 1e-12}


@dataclass(frozen=True, slots=True, eq=False)
class Selection:
    """The picks, in order of selection.

    Attributes:
        indices: Rows of the candidates, int64 (k,).
        gains: Variance that each pick removed, float64 (k,).
        uncertainty: Variance left after each pick, summed over the queries, float64 (k,). A
            variance, not its root; it never rises.
        initial_uncertainty: Variance before the first pick; m for the kernels of this module.

    The arrays are read-only; selections are equal when all their numbers are.
    """

    indices: NDArray[np.int64]
    gains: Floats
    uncertainty: Floats
    initial_uncertainty: float

    def __post_init__(self) -> None:
        for array in (self.indices, self.gains, self.uncertainty):
            array.flags.writeable = False

    def __len__(self) -> int:
        return len(self.indices)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Selection):
            return NotImplemented
        return all(map(np.array_equal, self._values(), other._values()))

    def __hash__(self) -> int:
        return hash(self.indices.tobytes())

    def __reduce__(self) -> tuple[type[Selection], tuple[Any, ...]]:
        return Selection, self._values()  # through __post_init__: read-only once loaded too

    def _values(self) -> tuple[Any, ...]:
        return self.indices, self.gains, self.uncertainty, self.initial_uncertainty


def linear(a: NDArray[Any], b: NDArray[Any]) -> Floats:
    """The paper's kernel: inner products of unit rows (a, d) and (b, d), so cosines (a, b)."""
    return np.asarray(a @ b.T, dtype=np.float64)


@dataclass(frozen=True, slots=True)
class _Rbf:
    tau: float

    def __call__(self, a: NDArray[Any], b: NDArray[Any]) -> Floats:
        exponent = a @ b.T
        exponent -= 1.0
        exponent /= self.tau
        return np.asarray(np.exp(exponent, out=exponent), dtype=np.float64)


@dataclass(frozen=True, slots=True)
class _Checked:
    """A kernel that is not ours, and must not be believed."""

    function: KernelFunction

    def __call__(self, a: NDArray[Any], b: NDArray[Any]) -> Floats:
        result = np.array(self.function(a, b), dtype=np.float64)  # a copy: it is written to
        if result.shape != (len(a), len(b)):
            raise ValueError(
                f"kernel {self.function!r} gave shape {result.shape} for rows {a.shape} and "
                f"{b.shape}; it must give {(len(a), len(b))}, the covariance of every pair"
            )
        if not np.isfinite(result).all():
            raise ValueError(
                f"kernel {self.function!r} gave NaN or infinity; covariances must be finite"
            )
        return result


def rbf(tau: float = _TAU) -> KernelFunction:
    """The kernel `exp((cos - 1) / tau)` of unit rows: a Gaussian on the sphere.

    Args:
        tau: Width. At 0.15 a cosine of 0.9 counts 0.51 and one of 0.5 counts 0.04: only
            near-duplicates share what they tell.

    Raises:
        ValueError: tau is not a positive finite number.
    """
    return _Rbf(_positive("tau", tau))


def sift(
    query: ArrayLike,
    candidates: ArrayLike,
    k: int,
    *,
    noise: float = 0.01,
    kernel: Kernel = "rbf",
    distinct: bool = True,
) -> Selection:
    """Take the candidates that leave the least uncertainty about the query, greedily and exactly.

    The defaults are for retrieval. In a trial on multi-hop questions (MiniLM vectors, about 1,000
    paragraphs, mean over k = 2 to 16) the share of gold paragraphs found was, in a clean corpus,
    0.745 by `rbf` at tau 0.15, 0.758 by nearest neighbours and 0.620 by the paper's linear kernel;
    with four near copies of each paragraph, 0.721, 0.585 and 0.634 (MMR at best 0.700).

    The paper's setting (arXiv 2410.08020) is for training on text like the query:
    `kernel="linear", noise=0.01, distinct=False`, a repeated pick being one more step on a text.

    Args:
        query: One vector (d,) or several (m, d); the gains are summed over them.
        candidates: Vectors (n, d). float32 is multiplied in float32, everything else is float64.
        k: Picks to make.
        noise: The paper's lambda', a variance beside `k(x, x) = 1`. Large: nearest neighbours;
            small: every pick tells something new.
        kernel: "rbf" (`rbf(0.15)`), "linear", or a function of unit rows (a, d), (b, d) to (a, b).
        distinct: Whether a candidate is taken at most once; then k above n gives n picks.

    Returns:
        The picks in order. Ties go to the lowest index. Covariance counts by its square, as in the
        paper, so that evidence against the query is evidence.

    Raises:
        ValueError: Input that is empty, of a wrong shape, not finite, or without direction (all
            zeros); k below 1; noise that is not positive; an unknown or faulty kernel.
        TypeError: Input or k that is not made of numbers.
    """
    problem = _problem(query, candidates, k, noise, kernel, distinct)
    rows, noise, kernel_of, tie = problem.rows, problem.noise, problem.kernel, problem.tie
    covs = list(kernel_of(problem.queries, rows))  # m of (n,)
    spread = problem.variance(rows) + noise  # (n,)
    factor = np.empty((problem.k, len(rows)))  # row t: cov(x, pick t) / root of pick t's spread
    taken = np.zeros(len(rows))
    order: list[int] = []
    gains: list[float] = []
    for t in range(problem.k):
        gain = covs[0] * covs[0]  # (n,)
        for cov in covs[1:]:
            gain += cov * cov
        gain /= spread
        if distinct:
            gain -= taken
        i = _best_gain(gain, rows, tie)
        if gain.item(i) < 0:
            raise problem.indefinite()
        order.append(i)
        gains.append(gain.item(i))
        if t + 1 == problem.k:
            break
        taken[i] = np.inf
        row = kernel_of(rows[i : i + 1], rows)[0]  # (n,)
        if t:
            row -= factor[:t, i] @ factor[:t]  # prior to posterior covariance with pick i
        root = math.sqrt(spread.item(i))
        row = np.divide(row, root, out=factor[t])
        for cov in covs:
            cov -= (cov.item(i) / root) * row
        spread -= row * row
    if spread.min() <= 0:
        raise problem.indefinite()
    return _selection(order, np.array(gains), problem)


def nearest(
    query: ArrayLike,
    candidates: ArrayLike,
    k: int,
    *,
    noise: float = 0.01,
    kernel: Kernel = "rbf",
    distinct: bool = True,
) -> Selection:
    """Take the candidates with the largest cosine to the query (its mean over several queries).

    Arguments, ties and errors as in `sift`. `noise` and `kernel` move no pick: they are the scale
    of `gains` and `uncertainty`, which are those of SIFT for these picks in this order. With
    `distinct=False` the nearest is taken k times.
    """
    problem = _problem(query, candidates, k, noise, kernel, distinct)
    score = problem.relevance()  # (n,)
    order: list[int] = []
    for _ in range(problem.k):
        order.append(_best_cosine(score, problem.tie))
        if distinct:
            score[order[-1]] = -np.inf
    return _account(order, problem)


def mmr(
    query: ArrayLike,
    candidates: ArrayLike,
    k: int,
    *,
    lambda_mult: float = 0.5,
    noise: float = 0.01,
    kernel: Kernel = "rbf",
    distinct: bool = True,
) -> Selection:
    """Maximal marginal relevance: near the query, far from every pick so far.

    The first pick is the nearest; each next has the largest
    `lambda_mult * cos(q, x) - (1 - lambda_mult) * max over picks of cos(x, pick)`
    (Carbonell and Goldstein, SIGIR 1998). Other arguments, ties and errors as in `sift`; `noise`
    and `kernel` move no pick, as in `nearest`.

    Args:
        lambda_mult: From 0, only far from the picks, to 1, only near the query.
    """
    if not 0.0 <= lambda_mult <= 1.0:
        raise ValueError(f"lambda_mult is {lambda_mult!r}; it must be between 0 and 1")
    problem = _problem(query, candidates, k, noise, kernel, distinct)
    relevance = problem.relevance()  # (n,)
    redundancy = np.full(len(relevance), -np.inf)
    taken = np.zeros(len(relevance))
    order = [_best_cosine(relevance, problem.tie)]
    while len(order) < problem.k:
        last = order[-1]
        if distinct:
            taken[last] = np.inf
        np.maximum(redundancy, linear(problem.rows[last], problem.rows), out=redundancy)
        score = lambda_mult * relevance - (1.0 - lambda_mult) * redundancy
        order.append(_best_cosine(score - taken, problem.tie))
    return _account(order, problem)


def _best_cosine(score: Floats, tie: float) -> int:
    return int((score >= score.max() - tie).argmax())


def _best_gain(gain: Floats, rows: NDArray[Any], tie: float) -> int:
    """Relative to the gain; where a small covariance has lost more digits, rows settle it."""
    i = int(gain.argmax())
    best = gain.item(i)
    near = gain >= 0.999 * best
    if near.argmax() == i:  # nearly always
        return i
    for j in np.flatnonzero(near[:i]):
        if gain.item(j) >= (1.0 - tie) * best or np.array_equal(rows[j], rows[i]):
            return int(j)
    return i


@dataclass(frozen=True, slots=True)
class _Problem:
    """What every selector starts from: checked, in one precision, of unit length."""

    queries: NDArray[Any]  # (m, d)
    rows: NDArray[Any]  # (n, d)
    k: int
    noise: float
    kernel: Callable[[NDArray[Any], NDArray[Any]], Floats]

    @property
    def tie(self) -> float:
        return _TIE[self.rows.dtype]

    def relevance(self) -> Floats:
        """Mean cosine to the queries, (n,)."""
        return np.asarray(linear(self.queries, self.rows).mean(axis=0))

    def variance(self, rows: NDArray[Any]) -> Floats:
        """`k(x, x)` of each row, (n,)."""
        if not isinstance(self.kernel, _Checked):
            return np.ones(len(rows))
        blocks = (rows[start : start + 64] for start in range(0, len(rows), 64))
        return np.concatenate([self.kernel(block, block).diagonal() for block in blocks])

    def indefinite(self) -> ValueError:
        return ValueError(
            f"kernel {self.kernel!r} with noise {self.noise} is not positive definite on these "
            "candidates; use a kernel that is a covariance, or more noise"
        )


def _selection(order: list[int], gains: Floats, problem: _Problem) -> Selection:
    initial = float(problem.variance(problem.queries).sum())
    left = np.maximum(initial - gains.cumsum(), 0.0)  # the gains add up exactly to what is gone
    return Selection(np.array(order, dtype=np.int64), gains, left, initial)


def _account(order: list[int], problem: _Problem) -> Selection:
    """The gains of SIFT for a given order: squares of `L^-1 k_X(q)`, `L L^T = K_X + noise I`."""
    picks = problem.rows[order]  # (k, d)
    noisy = problem.kernel(picks, picks) + problem.noise * np.eye(len(picks))  # (k, k)
    try:
        root = np.linalg.cholesky(noisy)
    except np.linalg.LinAlgError as error:
        raise problem.indefinite() from error
    whitened = np.linalg.solve(root, problem.kernel(picks, problem.queries))  # (k, m)
    return _selection(order, np.add.reduce(whitened * whitened, axis=1), problem)


def _problem(
    query: ArrayLike,
    candidates: ArrayLike,
    k: int,
    noise: float,
    kernel: Kernel,
    distinct: bool,
) -> _Problem:
    rows = _vectors("candidates", candidates, (2,))
    queries = np.atleast_2d(_vectors("query", query, (1, 2)))
    if queries.shape[1] != rows.shape[1]:
        raise ValueError(
            f"query has {queries.shape[1]} dimensions and candidates have {rows.shape[1]}; they "
            "must have the same number: were both made by the same embedder?"
        )
    noise = _positive("noise", noise)
    if noise < _LEAST_NOISE:
        raise ValueError(
            f"noise is {noise}; it must be {_LEAST_NOISE} or more: rounding takes over below"
        )
    if noise < _FLOAT32_NOISE:
        rows = rows.astype(np.float64, copy=False)
    rows = _unit("candidates", rows)
    return _Problem(
        queries=_unit("query", queries.astype(np.float64)).astype(rows.dtype, copy=False),
        rows=rows,
        k=min(_count(k), len(rows)) if distinct else _count(k),
        noise=noise,
        kernel=_kernel(kernel),
    )


def _count(k: int) -> int:
    try:
        # NumPy's bool first: operator.index takes it on some versions and warns on others.
        count = None if isinstance(k, bool | np.bool_) else operator.index(k)
    except TypeError:
        count = None
    if count is None:
        raise TypeError(f"k is {k!r}; it must be a whole number, 1 or more: how many to pick")
    if count < 1:
        raise ValueError(f"k is {count}; it must be 1 or more: how many candidates to pick")
    return count


def _positive(name: str, value: float) -> float:
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"{name} is {value!r}; it must be a number above 0")
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} is {value!r}; it must be a finite number above 0")
    return float(value)


def _kernel(kernel: Kernel) -> KernelFunction:
    if callable(kernel):
        return kernel if kernel is linear or isinstance(kernel, _Rbf) else _Checked(kernel)
    known: dict[object, KernelFunction] = {"linear": linear, "rbf": _Rbf(_TAU)}
    if kernel not in known:
        raise ValueError(
            f"kernel is {kernel!r}; it must be 'linear', 'rbf', rbf(tau), or a function of unit "
            "rows (a, d), (b, d) to their covariances (a, b)"
        )
    return known[kernel]


def _vectors(name: str, values: ArrayLike, ndims: tuple[int, ...]) -> NDArray[Any]:
    """A contiguous float32 or float64 array of one of these numbers of dimensions."""
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
    single = array.dtype.kind == "f" and array.dtype.itemsize <= 4
    return np.ascontiguousarray(array, dtype=np.float32 if single else np.float64)


def _unit(name: str, rows: NDArray[Any]) -> NDArray[Any]:
    """Rows (n, d) at unit length; one look at their lengths finds bad values too."""
    with np.errstate(all="ignore"):
        squares = (rows[:, None] @ rows[:, :, None])[:, 0, 0]  # (n,): a BLAS dot a row
        off = np.abs(squares - 1.0).max()
    limits = np.finfo(rows.dtype)
    if off <= 8 * limits.eps:  # as embedders give them: no copy
        return rows
    if not (squares.min() > limits.tiny / limits.eps and squares.max() <= limits.max):
        return _unit(name, _tamed(name, rows))  # NaN fails both comparisons
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
