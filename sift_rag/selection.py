"""Which candidates to take, and in what order: arrays in, picks out (numpy only).

SIFT (Hübotter et al., "Efficiently Learning at Test-Time", arXiv 2410.08020, ICLR 2025) takes the
candidates that leave the least variance about the query under a Gaussian process: with `K` the
kernel of the picks `X`,

    var_X(q) = k(q, q) - k_X(q)^T (K_X + noise I)^-1 k_X(q)

Each pick is the candidate with the largest gain `cov(q, x)^2 / (var(x) + noise)`, covariance and
variance being those after the picks so far. Kept up pick by pick, that costs one row of the kernel
matrix and O(k n) a pick, and is exact.

The letters are those of `problem`: m query vectors, n candidates, k picks, d dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sift_rag.coverage import coverage
from sift_rag.kernels import Floats, Kernel, Rbf
from sift_rag.problem import NOISE, Combine, Prior, Problem, Room, checked

if TYPE_CHECKING:
    from sift_rag.explaining import Explanation, Texts
    from sift_rag.plotting import Axes, Figure


@dataclass(frozen=True, slots=True, eq=False)
class Context:
    """What a selection was made from, for those who explain it.

    Attributes:
        queries: (m, d) unit rows.
        rows: (n, d) unit rows.
        positions: (n,) int64, the index that a selection gives to each row; None where that is
            simply its number.
        alike: Of an rbf kernel the width and the (n, n) covariances of the rows, where they had to
            be computed.
    """

    queries: NDArray[Any]
    rows: NDArray[Any]
    positions: NDArray[np.int64] | None = None
    alike: tuple[float, Floats] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Selection:
    """The picks, in order of selection.

    Attributes:
        indices: Rows of the candidates, int64 (k,).
        gains: Variance that each pick removed, float64 (k,).
        uncertainty: Variance left after each pick, summed over the queries, float64 (k,). A
            variance, not its root; it never rises.
        initial_uncertainty: Variance before the first pick; m for the kernels of this package.
        context: The vectors that it was made from.

    The arrays are read-only; selections are equal when all their numbers are.
    """

    indices: NDArray[np.int64]
    gains: Floats
    uncertainty: Floats
    initial_uncertainty: float
    context: Context = field(repr=False)

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
        return Selection, (*self._values(), self.context)  # read-only once loaded too

    def _values(self) -> tuple[Any, ...]:
        return self.indices, self.gains, self.uncertainty, self.initial_uncertainty

    @property
    def coverage(self) -> float:
        """How likely the candidates hold an answer, from 0 to 1: see `coverage.coverage`."""
        return coverage(self.context)

    def until(self, stop: Stop | None) -> Selection:
        """The first picks, as many as a rule of `stopping` keeps; all of them for None."""
        kept = len(self) if stop is None else stop(self)
        if not 1 <= kept <= len(self):
            raise ValueError(
                f"the stopping rule {stop!r} keeps {kept} of {len(self)} picks; it must keep at "
                "least 1 and no more than there are"
            )
        first = {name: getattr(self, name)[:kept] for name in ("indices", "gains", "uncertainty")}
        return self if kept == len(self) else replace(self, **first)

    def explain(self, texts: Texts | None = None) -> Explanation:
        """Why these passages: what each pick told, and what each dropped one would have repeated.

        Dropped are those among the k nearest, k being the number of picks, that were not picked.
        All is said in cosines, so that it is true of any selector. Several queries: the nearest
        are those with the highest cosine to one of them.

        Args:
            texts: The candidates' texts, to show beside the numbers: one for each, by index.

        Raises:
            ValueError: There are more or fewer texts than candidates.
            TypeError: A text that is not a string.
        """
        from sift_rag.explaining import explain

        return explain(self, texts)

    def plot(self, ax: Sequence[Axes] | None = None, texts: Texts | None = None) -> Figure:
        """Draw the gain curve and a map of picked, dropped and other candidates.

        The map shows the two directions in which the candidates differ most. Nothing global is
        changed and no window opens: save it with `figure.savefig("picks.png")`.

        Args:
            ax: Two matplotlib axes to draw on, the gain curve's and the map's; a new figure by
                default.
            texts: As in `explain`; the first ones are listed below, shortened.

        Raises:
            ImportError: matplotlib is not installed.
            ValueError: `ax` is not two axes, or as in `explain`.
        """
        from sift_rag.plotting import plot

        return plot(self, ax, texts)


Selector: TypeAlias = Callable[..., Selection]
"""`sift`, `nearest`, `mmr`, or another with their signature."""
Stop: TypeAlias = Callable[[Selection], int]
"""How many of its picks a selection keeps, the first ones: see `stopping`."""


def sift(
    query: ArrayLike,
    candidates: ArrayLike,
    k: int | None = None,
    *,
    noise: float = NOISE,
    kernel: Kernel = "rbf",
    distinct: bool = True,
    costs: ArrayLike | None = None,
    budget: float | None = None,
    combine: Combine = "sum",
) -> Selection:
    """Take the candidates that leave the least uncertainty about the query, greedily and exactly.

    The paper's setting (arXiv 2410.08020) is for training on text like the query:
    `kernel="linear", noise=0.01, distinct=False`, a repeated pick being one more step on a text.

    Args:
        query: One vector (d,) or several (m, d), sub-questions or rewrites.
        candidates: Vectors (n, d). float32 is multiplied in float32, everything else is float64.
        k: Picks to make; None, where there is a budget, for as many as it pays.
        noise: The paper's lambda', a variance beside `k(x, x) = 1`. Large: nearest neighbours;
            small: every pick tells something new.
        kernel: "rbf" (widths calibrated, see `kernels.calibrated`), "linear", `rbf(tau)`, or a
            function of unit rows (a, d), (b, d) to (a, b).
        distinct: Whether a candidate is taken at most once; then k above n gives n picks.
        costs: What each candidate costs, (n,) above 0: its tokens, say.
        budget: What the picks may cost together. Picks are then made by gain per cost, and by gain
            alone, passing over what no longer fits; what leaves less uncertainty is taken, so that
            the result is no worse than the plain greedy picks or the best single passage.
        combine: How several queries count: "sum", gains are added; "worst", each pick is for the
            query about which most is left; with the linear kernel one may keep its place though
            no candidate tells anything about it.

    Returns:
        The picks in order. Ties go to the lowest index. Covariance counts by its square, as in the
        paper, so that evidence against the query is evidence.

    Raises:
        ValueError: Input that is empty, of a wrong shape, not finite, or without direction (all
            zeros); k below 1; noise that is not positive; an unknown or faulty kernel; costs that
            are not positive, or a budget below the cheapest.
        TypeError: Input or k that is not made of numbers.
    """
    problem = checked(
        query,
        candidates,
        k,
        noise=noise,
        kernel=kernel,
        distinct=distinct,
        costs=costs,
        budget=budget,
        combine=combine,
    )
    prior = problem.prior()
    order, gains, gone = _greedy(problem, prior, None)
    if problem.costs is not None:
        other = _greedy(problem, prior, problem.costs)
        told, more = (_told(problem, prior, each) for each in (gone, other[2]))
        if more > told * (1.0 + problem.tie):  # more than another order's rounding
            order, gains, _ = other
    return _selection(order, np.array(gains), prior, problem)


def _told(problem: Problem, prior: Prior, gone: Floats) -> float:
    """What picks are to make large: the variance removed, or removed from the worst query."""
    if problem.combine == "sum":
        return float(gone.sum())
    return float(prior.variance.max() - (prior.variance - gone).max())


def _greedy(
    problem: Problem, prior: Prior, price: Floats | None
) -> tuple[list[int], list[float], Floats]:
    """Picks by gain, or by gain per price (n,); their gains; what each query (m,) has lost."""
    rows, noise, kernel, tie = problem.rows, problem.noise, problem.kernel, problem.tie
    covs = list(prior.cross.copy())  # m of (n,)
    gone = np.zeros_like(prior.variance)
    spread = problem.variance(rows) + noise  # (n,)
    factor = np.empty((min(problem.k, 64), len(rows)))  # row t: cov(x, pick t) / root of its spread
    room = Room(problem)
    order: list[int] = []
    gains: list[float] = []
    for t in range(problem.k):
        served = covs if problem.combine == "sum" else [covs[int((prior.variance - gone).argmax())]]
        gain = served[0] * served[0]  # (n,)
        for cov in served[1:]:
            gain += cov * cov
        gain /= spread
        if price is not None:
            gain /= price
        gain -= room.closed
        i = best_gain(gain, rows, tie)
        if gain.item(i) == -np.inf:  # nothing fits into the budget any more
            break
        each = [cov.item(i) ** 2 / spread.item(i) for cov in covs]
        if min(each) < 0:
            raise problem.indefinite()
        order.append(i)
        gains.append(sum(each))
        gone += each
        if t + 1 == problem.k:
            break
        room.take(i)
        row = kernel(rows[i : i + 1], rows)[0] if prior.gram is None else prior.gram[i]  # (n,)
        if t:
            row = row - factor[:t, i] @ factor[:t]  # prior to posterior covariance with pick i
        root = math.sqrt(spread.item(i))
        if t == len(factor):
            factor = np.concatenate([factor, np.empty_like(factor)])
        row = np.divide(row, root, out=factor[t])
        for cov in covs:
            cov -= (cov.item(i) / root) * row
        spread -= row * row
    if spread.min() <= 0:
        raise problem.indefinite()
    return order, gains, gone


def best_gain(gain: Floats, rows: NDArray[Any], tie: float) -> int:
    """The first of the best; where a small covariance has lost more digits, the rows settle it."""
    i = int(gain.argmax())
    best = gain.item(i)
    near = gain >= 0.999 * best
    if near.argmax() == i:  # nearly always
        return i
    for j in np.flatnonzero(near[:i]):
        if gain.item(j) >= (1.0 - tie) * best or np.array_equal(rows[j], rows[i]):
            return int(j)
    return i


def account(order: list[int], problem: Problem) -> Selection:
    """The gains of SIFT for a given order: squares of `L^-1 k_X(q)`, `L L^T = K_X + noise I`."""
    picks = problem.rows[order]  # (k, d)
    prior = problem.prior()
    noisy = problem.kernel(picks, picks) + problem.noise * np.eye(len(picks))  # (k, k)
    try:
        root = np.linalg.cholesky(noisy)
    except np.linalg.LinAlgError as error:
        raise problem.indefinite() from error
    whitened = np.linalg.solve(root, prior.cross[:, order].T)  # (k, m)
    gains = np.add.reduce(whitened * whitened, axis=1)
    return _selection(order, gains, prior, problem)


def _selection(order: list[int], gains: Floats, prior: Prior, problem: Problem) -> Selection:
    initial = float(prior.variance.sum())
    left = np.maximum(initial - gains.cumsum(), 0.0)  # the gains add up exactly to what is gone
    kernel, gram = problem.kernel, prior.gram
    alike = (kernel.tau, gram) if isinstance(kernel, Rbf) and gram is not None else None
    context = Context(problem.queries, problem.rows, alike=alike)
    return Selection(np.array(order, dtype=np.int64), gains, left, initial, context)
