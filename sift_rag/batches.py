"""SIFT for many separate questions at once, with the search for their candidates if wanted.

How problems are solved together is in `stacks`; here is who chooses from what. B queries.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sift_rag.candidates import nearest_each
from sift_rag.kernels import Kernel, Rbf, linear
from sift_rag.problem import NOISE, Combine, checked
from sift_rag.selection import Selection, sift
from sift_rag.stacks import together


def sift_batch(
    queries: NDArray[Any] | Sequence[ArrayLike],
    candidates: NDArray[Any] | Sequence[ArrayLike],
    k: int | None = None,
    *,
    fetch_k: int | None = None,
    noise: float = NOISE,
    kernel: Kernel = "rbf",
    distinct: bool = True,
    costs: NDArray[Any] | Sequence[ArrayLike] | None = None,
    budget: float | None = None,
    combine: Combine = "sum",
) -> list[Selection]:
    """`sift` for each of B separate queries, several times faster than one by one.

    The picks are those of `sift(queries[b], candidates[b], k)`, in their order. Products are summed
    in another order, so gains agree to rounding: in float64 to 1e-9 of their size and 1e-12; in
    float32 to 1e-3 and 1e-5, or to 1e-3 of the variance where all cosines are near 1. Where two
    candidates that are no copies are equally good within that, either may come first. Copies are
    taken from the lowest index. Costs, and a kernel that is a function of yours, are worked off one
    query at a time.

    Args:
        queries: (B, d), or a sequence of B queries, each (d,) or (m, d).
        candidates: One array (n, d) that all queries choose from; or, one set a query, an array
            (B, n, d) or a sequence of B arrays (n_b, d).
        k: Picks to make for each query.
        fetch_k: With one array (n, d), the corpus: each query chooses from its `fetch_k` nearest
            rows, found exactly. Indices and `context.positions` are those of the corpus.
        noise: This and `kernel`, `distinct`, `budget`, `combine` are as in `sift`, for each query.
        kernel: "rbf" is calibrated for each query on its own candidates.
        distinct: See `sift`.
        costs: (n,) for one array of candidates, else B of them, (n_b,) each.
        budget: See `sift`.
        combine: See `sift`.

    Returns:
        B selections, by position.

    Raises:
        ValueError: As `sift`, with "query 3: " before what is wrong with only that one; candidates
            for another number of queries; `fetch_k` below 1 or without a corpus.
        TypeError: As `sift`.
    """
    each = _queries(queries)
    shared = _is_shared(candidates, len(each))
    if fetch_k is not None and not (shared and fetch_k >= 1):
        raise ValueError(
            f"fetch_k is {fetch_k}; it must be 1 or more, and go with one array (n, d) of "
            "candidates: the corpus that all queries search"
        )
    if costs is not None and not shared and len(costs) != len(each):
        raise ValueError(f"there are {len(each)} queries and {len(costs)} costs; give (n_b,) each")
    if not each:
        return []
    options = {"noise": noise, "distinct": distinct, "budget": budget, "combine": combine}
    sets: Any = candidates
    prices: Any = [None] * len(each) if costs is None else costs
    near: list[NDArray[np.int64]] | None = None
    if shared:
        rows = _corpus(candidates, k, kernel, costs, options)
        if fetch_k is None:
            sets, prices = [rows] * len(each), [costs] * len(each)
        else:
            near = _search(each, rows, fetch_k)
            sets = np.asarray(candidates)[np.stack(near)]  # (B, fetch_k, d)
            prices = [None if costs is None else np.asarray(costs)[some] for some in near]
    solve = _one_by_one if costs is not None or _is_foreign(kernel) else _together
    found = solve(each, sets, k, prices, options | {"kernel": kernel})
    return found if near is None else list(map(_in_corpus, found, near))


def _queries(queries: Any) -> list[Any]:
    if not hasattr(queries, "__len__") or (len(queries) and np.ndim(queries[0]) == 0):
        raise ValueError(
            "queries is one vector or none; it must be vectors (B, d), or a sequence of queries, "
            "(d,) or (m, d) each: for one query, use sift"
        )
    return list(queries)


def _is_shared(candidates: Any, count: int) -> bool:
    """Whether all queries choose from one set; an error if there is neither one nor one each."""
    if not hasattr(candidates, "__len__") or (len(candidates) and np.ndim(candidates[0]) == 0):
        raise ValueError(
            "candidates is one vector or none; it must be one array (n, d) for all queries, or one "
            "such array a query"
        )
    if np.ndim(candidates[0]) == 1 if len(candidates) else getattr(candidates, "ndim", 3) == 2:
        return True
    if len(candidates) != count:
        raise ValueError(
            f"there are {count} queries and {len(candidates)} sets of candidates; give one set a "
            "query, or one array (n, d) for all"
        )
    return False


def _is_foreign(kernel: Kernel) -> bool:
    return callable(kernel) and kernel is not linear and not isinstance(kernel, Rbf)


@contextmanager
def _about(position: int) -> Iterator[None]:
    """Errors say which query they are about."""
    try:
        yield
    except (TypeError, ValueError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"query {position}: {error}") from error


def _corpus(
    candidates: Any, k: int | None, kernel: Kernel, costs: Any, options: dict[str, Any]
) -> NDArray[Any]:
    """Unit rows (n, d) for all. What is wrong with them, or with an option, is no query's fault."""
    known = "linear" if kernel == "rbf" else kernel  # "rbf" is calibrated on each query
    return checked(candidates[:1], candidates, k, costs=costs, kernel=known, **options).rows


def _search(queries: list[Any], rows: NDArray[Any], fetch_k: int) -> list[NDArray[np.int64]]:
    """Positions of the nearest rows for each query, (fetch_k,)."""
    unit = [query.astype(rows.dtype, copy=False) for query in _unit(queries, rows)]
    return [near for near, _ in nearest_each(unit, rows, min(fetch_k, len(rows)))]


def _unit(queries: list[Any], rows: NDArray[Any]) -> list[NDArray[Any]]:
    """Queries as unit vectors (m, d)."""
    try:  # all at once, if they are vectors (d,) and all is well
        return list(checked(np.stack(queries), rows[:1], 1, kernel="linear").queries[:, None])
    except (TypeError, ValueError):
        unit = []
        for position, query in enumerate(queries):
            with _about(position):
                unit.append(checked(query, rows[:1], 1, kernel="linear").queries)
        return unit


def _in_corpus(selection: Selection, positions: NDArray[np.int64]) -> Selection:
    context = replace(selection.context, positions=positions)
    return replace(selection, indices=positions[selection.indices], context=context)


def _one_by_one(
    queries: list[Any], sets: Any, k: int | None, costs: Any, options: dict[str, Any]
) -> list[Selection]:
    found = []
    for position, query in enumerate(queries):
        with _about(position):
            found.append(sift(query, sets[position], k, costs=costs[position], **options))
    return found


def _together(
    queries: list[Any], sets: Any, k: int | None, costs: Any, options: dict[str, Any]
) -> list[Selection]:
    problems = []
    for position, query in enumerate(queries):
        with _about(position):
            problems.append(checked(query, sets[position], k, **options))
    return together(problems)
