"""SIFT over a store that can only be searched: fetch, select, and prove or fetch again (numpy).

A search is more than its answer: what it did not bring is no nearer to its vector than the last one
that it brought, its floor. From the floors follows what an unseen document could gain at any pick
(`unseen`). Where that is less than what the pick gained, for all picks, the selection is that over
the whole store. Where it is not, the store is searched again: in the directions in which a better
document must lie, and in those whose floors are too high to tell.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sift_rag.kernels import Floats, Kernel, KernelFunction, Rbf, linear
from sift_rag.problem import NOISE, checked
from sift_rag.selection import Selection, sift
from sift_rag.unseen import Doubt, doubts

Search: TypeAlias = Callable[[NDArray[np.float32], int], tuple[Sequence[Hashable], ArrayLike]]
"""A unit vector (d,) and fetch_k to the ids of the nearest and their vectors, nearest first."""

_SAME = 1.0 - 1e-6  # cosine of two directions that are one


@dataclass(frozen=True, slots=True, eq=False)
class Fetched:
    """What `sift_search` found.

    Attributes:
        selection: SIFT over all fetched candidates.
        ids: Of the picks, in order of selection.
        fetched: Ids of all candidates, in the order of `selection.context.rows`.
        searches: How often the store was searched.
        proven: How many of the first picks are those of SIFT over the whole store.
        bound: The most that an unseen document could have gained at any of the picks, as a share of
            what the pick gained: below 1, nothing unseen could have been picked. 0 if everything
            has been fetched; infinite if the store contradicted itself.
        kernel: The kernel of all the picks. "rbf" is calibrated once, on the first fetch.
    """

    selection: Selection
    ids: tuple[Hashable, ...]
    fetched: tuple[Hashable, ...]
    searches: int
    proven: int
    bound: float
    kernel: KernelFunction

    @property
    def exact(self) -> bool:
        """Whether the picks are provably those of SIFT over the whole store."""
        return self.bound < 1.0


def sift_search(
    query: ArrayLike,
    search: Search,
    k: int,
    *,
    fetch_k: int = 50,
    max_fetch: int = 1000,
    noise: float = NOISE,
    kernel: Kernel = "rbf",
    distinct: bool = True,
) -> Fetched:
    """SIFT over a store that can only be searched, fetching more until the picks are proven.

    Args:
        query: One vector (d,).
        search: Given a unit vector (d,) float32 and a number, gives the ids of that many documents
            and their vectors (that many, d), nearest by cosine first. Ids are hashable; vectors may
            have any length; fewer may come back.
        k: Picks to make.
        fetch_k: Documents of a first search; at least k are asked for.
        max_fetch: Documents of a search at most. A search that proves too little is made again for
            twice as many.
        noise: As in `sift`.
        kernel: "rbf", `rbf(tau)` or "linear"; no other can be bounded.
        distinct: As in `sift`.

    Returns:
        The picks, and whether they are proven. The proof believes that the store returns the
        nearest; an answer that contradicts an earlier one is noticed, and nothing is proven then.
        Ties go to what was fetched first. A store that gives fewer than asked is
        believed to hold no more if a search in the opposite direction gives the same ones.

    Raises:
        ValueError: As in `sift`; several queries, a kernel that is a function, `fetch_k` below 1 or
            above `max_fetch`, a search that brings nothing or something else than it should.
    """
    start = _start(query, k, noise, kernel)
    store = _Store(search, start, fetch_k, max_fetch, k)
    store.look(start)
    if not store.ids:
        raise ValueError("search gave no documents for the query; is the store empty?")
    problem = checked(query, store.rows, k, noise=noise, kernel=kernel)
    while True:
        selection = sift(
            query, store.rows, k, noise=noise, kernel=problem.kernel, distinct=distinct
        )
        picks = store.unit[selection.indices]
        found = list(doubts(start, picks, problem.kernel, noise, store.most))
        wanted = _wanted(found, store)
        if wanted is None:
            return _fetched(selection, [doubt.share for doubt in found], store, k, problem.kernel)
        store.look(wanted)


def _start(query: ArrayLike, k: int, noise: float, kernel: Kernel) -> Floats:
    """The query as a unit vector (d,) float64, with all that does not need candidates checked."""
    vector = np.asarray(query)
    if vector.ndim != 1:
        raise ValueError(f"query has shape {vector.shape}; it must be (d,): one question a call")
    nothing = np.ones((1, max(1, len(vector))))  # float64
    start = checked(vector, nothing, k, noise=noise, kernel=kernel)
    if not (start.kernel is linear or isinstance(start.kernel, Rbf)):
        raise ValueError(
            f"kernel is {kernel!r}, and what an unseen document gains by a function cannot be "
            "bounded; use 'rbf', rbf(tau) or 'linear', or fetch candidates and call sift on them"
        )
    return np.asarray(start.queries[0])


class _Store:
    """The user's search, what it has brought, and what can be said of what it has not."""

    def __init__(self, search: Search, start: Floats, fetch_k: int, limit: int, k: int) -> None:
        if not 1 <= fetch_k <= limit:
            raise ValueError(
                f"fetch_k is {fetch_k} and max_fetch is {limit}; they must be 1 or more, and "
                "fetch_k no more than max_fetch"
            )
        self._search, self._fetch_k, self._limit = search, max(fetch_k, k), max(limit, k)
        self.ids: dict[Hashable, int] = {}  # and their rows
        self.rows: NDArray[Any] = np.empty((0, len(start)), np.float32)  # (n, d) as they came
        self.unit = np.empty((0, len(start)))  # (n, d) float64
        self._looks = np.empty((0, len(start)))  # unit vectors that were searched with
        self._floors = np.empty(0)  # no unseen document has a larger cosine with them
        self._asked: list[int] = []
        self.searches = 0
        self.complete = False  # everything has been fetched
        self.sound = True  # no answer contradicted another
        self.lost = False  # a pick cannot be proven: proofs are not worth a search any more

    def asked(self, direction: Floats) -> int:
        """How many documents the last search in this direction was for; 0 without one."""
        same = np.flatnonzero(self._looks @ direction >= _SAME * np.linalg.norm(direction))
        return max((self._asked[i] for i in same), default=0)

    def may_ask(self, direction: Floats) -> bool:
        return not self.complete and self.asked(direction) < self._limit

    def most(self, direction: Floats) -> float:
        """The largest inner product that an unseen document can have with a direction (d,).

        It is at least as far from each vector that was searched with as the floor says, so by the
        triangle inequality of angles it is not nearer to the direction than the difference.
        """
        length = float(np.linalg.norm(direction))
        if not length or not len(self._looks):
            return length
        between = np.arccos(np.clip(self._looks @ direction / length, -1.0, 1.0))
        between[between < 1e-6] = 0.0
        angle = (np.arccos(self._floors) - between).max()
        return length * math.cos(max(angle, 0.0))

    def look(self, direction: Floats) -> None:
        """Search in a direction: for `fetch_k`, or for twice as many as the last time."""
        fetch_k = min(max(self._fetch_k, 2 * self.asked(direction)), self._limit)
        found = self._ask(direction, fetch_k)
        if len(found) < fetch_k:  # all that there is, or all that the store ever gives?
            other = self._ask(-direction, fetch_k)
            self.complete = self.sound and set(found) == set(other) and len(found) > 0

    def _ask(self, direction: Floats, fetch_k: int) -> set[Hashable]:
        vector = (direction / np.linalg.norm(direction)).astype(np.float32)
        ids, vectors = self._search(vector, fetch_k)
        self.searches += 1
        found = list(ids)
        rows, unit = _answer(found, vectors, len(vector))
        before = len(self.ids)
        for each in found:
            self.ids.setdefault(each, len(self.ids))
        places = np.array([self.ids[each] for each in found], dtype=np.int64)
        _, first = np.unique(places, return_index=True)  # an answer may repeat itself
        new = first[places[first] >= before]  # in order of their places
        self.rows = np.concatenate([self.rows, rows[new]]) if before else rows[new]
        self.unit = np.concatenate([self.unit, unit[new]])
        # One id, one vector; and what is new now was in no floor's way before.
        self.sound &= bool(((self.unit[places] * unit).sum(axis=1) >= _SAME).all())
        self.sound &= bool((self.unit[before:] @ self._looks.T <= self._floors).all())
        self._learn(vector.astype(np.float64), places, fetch_k)
        return set(found)

    def _learn(self, vector: Floats, places: NDArray[np.int64], fetch_k: int) -> None:
        """The floor of a search, and whether it brought what it had to."""
        cosines = self.unit @ (vector / np.linalg.norm(vector))  # of everything fetched
        margin = _margin(len(vector))
        floor = min(1.0, float(cosines[places].min(initial=1.0)) + margin)
        self.sound &= bool((np.diff(cosines[places]) <= margin).all())  # nearest first
        self.sound &= bool((np.delete(cosines, places) <= floor).all())
        self._looks = np.vstack([self._looks, vector])
        self._floors = np.append(self._floors, floor)
        self._asked.append(fetch_k if len(places) >= fetch_k else self._limit)


def _margin(d: int) -> float:
    """How far cosines by a store, which multiplies in float32, may be from ours."""
    return max(d, 16) * float(np.finfo(np.float32).eps)


def _answer(ids: list[Hashable], vectors: ArrayLike, d: int) -> tuple[NDArray[Any], Floats]:
    """The vectors of an answer (n, d), as they came and as unit rows."""
    try:
        rows = np.asarray(vectors)
    except ValueError:
        rows = np.empty(0)  # ragged
    if not ids and not rows.size:
        return np.empty((0, d), np.float32), np.empty((0, d))
    if rows.shape != (len(ids), d):
        raise ValueError(
            f"search gave {len(ids)} ids and vectors of shape {rows.shape}; the vectors must be of "
            f"shape ({len(ids)}, {d}): one for each id, of as many dimensions as the query"
        )
    try:  # with a noise for which everything is float64
        return rows, checked(np.ones(d), rows, 1, noise=1e-9, kernel="linear").rows
    except (TypeError, ValueError) as error:
        raise type(error)(f"search gave vectors that cannot be used: {error}") from error


def _wanted(found: list[Doubt], store: _Store) -> Floats | None:
    """The direction to search in next; None where that would prove nothing."""
    if store.complete:
        return None
    store.lost |= not store.sound
    for doubt in found:
        if doubt.share < 1.0:
            continue
        if not store.lost and doubt.proofs:
            direction = min(doubt.proofs, key=store.asked)  # the narrowest search first
            if store.may_ask(direction):
                return direction
        store.lost = True
        for direction in doubt.finds:
            if not store.asked(direction):
                return direction
    return None


def _fetched(
    selection: Selection, shares: list[float], store: _Store, k: int, kernel: KernelFunction
) -> Fetched:
    if len(selection) < k:  # there is no telling what a next pick would be
        shares.append(math.inf)
    if not store.sound:
        shares = [math.inf]
    if store.complete:
        shares = [0.0]
    fetched = tuple(store.ids)
    return Fetched(
        selection=selection,
        ids=tuple(fetched[i] for i in selection.indices),
        fetched=fetched,
        searches=store.searches,
        proven=next((t for t, share in enumerate(shares) if share >= 1.0), len(selection)),
        bound=max(shares),
        kernel=kernel,
    )
