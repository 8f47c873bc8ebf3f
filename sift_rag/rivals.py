"""The selectors that SIFT is measured against, with its signature: swap one name to compare.

Each gives its own order; `gains` and `uncertainty` are those of SIFT for these picks in this order,
so that all curves are on one scale. The keyword arguments are those of `sift`, which documents
them; with a budget, a candidate that no longer fits is passed over.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from sift_rag.kernels import Floats, linear
from sift_rag.problem import Problem, Room, checked
from sift_rag.selection import Selection, account

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from sift_rag.problem import Options


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


def _in_order(problem: Problem, score: Callable[[int | None], Floats]) -> list[int]:
    """The open candidate with the highest score (n,), which may look at the last pick, k times."""
    room, order, last = Room(problem), list[int](), None
    for _ in range(problem.k):
        now = score(last) - room.closed
        best = now.max()
        if best == -np.inf:  # nothing fits into the budget any more
            break
        last = int((now >= best - problem.tie).argmax())
        order.append(last)
        room.take(last)
    return order
