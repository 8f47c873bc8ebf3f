"""How vector stores are known by name, and asked for the vectors that they already hold.

A framework's integration lists its stores as `Kind`s: no store's package is imported. Letters:
n documents, d dimensions.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeAlias, TypeVar

import numpy as np

from sift_rag.vectors import Rows

D = TypeVar("D")  # a framework's document
Found: TypeAlias = Iterable[tuple[Any, Any]]
"""What a store gave: (key, vector), in any order."""

_reported: set[tuple[str, str]] = set()


@dataclass(frozen=True)
class Kind(Generic[D]):
    """How one sort of store is known and read.

    Attributes:
        name: Of its class, or of one that it derives from.
        needs: Attributes without which it is another store of that name, or another version.
        fetch: The one call: store, distinct keys -> (key, vector) of those that it has.
        key: What the store calls a document, None where that cannot be told.
        afetch: The same as `fetch` for stores that may be asynchronous only.
        is_async: Whether `afetch` can be used with this store.
        is_exact: Whether the vectors are surely those that the store was given, up to length.
    """

    name: str
    needs: tuple[str, ...]
    fetch: Callable[[Any, list[Any]], Found]
    key: Callable[[D], Any]
    afetch: Callable[[Any, list[Any]], Awaitable[Found]] | None = None
    is_async: Callable[[Any], bool] = lambda _: True
    is_exact: Callable[[Any], bool] = lambda _: True


class Kinds(Generic[D]):
    """The stores of one framework, and what they are asked."""

    def __init__(
        self, kinds: Iterable[Kind[D]], logger: logging.Logger, other: Kind[D] | None = None
    ) -> None:
        """Remember them.

        Args:
            kinds: Each with a name of its own.
            logger: Told of failures: as a warning the first time of each sort.
            other: How a store of none of these kinds is read; None to leave it alone.
        """
        self._kinds = {kind.name: kind for kind in kinds}
        self._logger = logger
        self._other = other

    def of(self, store: Any) -> Kind[D] | None:
        """The kind of a store, None where it is unknown."""
        names = (base.__name__ for base in type(store).__mro__)
        found = next((self._kinds[name] for name in names if name in self._kinds), None)
        for kind in (found, self._other):
            if kind is not None and all(hasattr(store, name) for name in kind.needs):
                return kind
        return None

    def is_exact(self, store: Any) -> bool:
        """Whether the vectors that the store gives are surely those that it was given.

        They may have another length. False where that is not known.
        """
        kind = self.of(store)
        return kind is not None and kind.is_exact(store)

    def rows(self, store: Any, documents: Sequence[D]) -> dict[int, Rows]:
        """The vectors that the store holds of documents it has returned, in one call.

        A store that fails, or has changed since, is no error: what it does not give is left out,
        and the failure is logged.

        Returns:
            Position in `documents` -> (d,) vector, scaled as the store keeps it.
        """
        kind = self.of(store)
        places = _places(kind, documents)
        if kind is None or not places:
            return {}
        try:
            return _placed(kind.fetch(store, list(places)), places)
        except Exception as error:  # whatever a store raises: a retrieval goes on without vectors
            return self._report(store, error)

    async def arows(self, store: Any, documents: Sequence[D]) -> dict[int, Rows]:
        """`rows` without blocking the event loop, and for stores that are asynchronous only."""
        kind = self.of(store)
        if kind is None or kind.afetch is None or not kind.is_async(store):
            return await asyncio.to_thread(self.rows, store, documents)
        places = _places(kind, documents)
        if not places:
            return {}
        try:
            return _placed(await kind.afetch(store, list(places)), places)
        except Exception as error:  # as above
            return self._report(store, error)

    def _report(self, store: Any, error: Exception) -> dict[int, Rows]:
        """Log a failure, as a warning only the first time, and give nothing."""
        name = f"{type(store).__name__}: {type(error).__name__}"
        level = logging.DEBUG if (self._logger.name, name) in _reported else logging.WARNING
        _reported.add((self._logger.name, name))
        message = "No vectors from the store (%s: %s); they are embedded anew."
        self._logger.log(level, message, name, error)
        return {}


def is_exact_faiss(index: Any) -> bool:
    """Whether a FAISS index surely gives back the vectors that were added.

    Flat and HNSW-over-flat do, and an `IndexIDMap2` of one. IVF does if it has a direct map, which
    cannot be told from here; product quantizers, PCA and LSH do not.
    """
    name = type(index).__name__
    faiss = sys.modules.get("faiss")
    if name == "IndexIDMap2" and faiss is not None:  # the index inside comes without its class
        return is_exact_faiss(faiss.downcast_index(index.index))
    return name in {"IndexFlat", "IndexFlatL2", "IndexFlatIP", "IndexHNSWFlat"}


def _places(kind: Kind[D] | None, documents: Sequence[D]) -> dict[Any, list[int]]:
    """Key of a document -> its positions, as one document may come more than once."""
    places: dict[Any, list[int]] = {}
    for position, document in enumerate(documents if kind else ()):
        key = kind.key(document) if kind else None
        if key is not None:
            places.setdefault(key, []).append(position)
    return places


def _placed(found: Found, places: Mapping[Any, list[int]]) -> dict[int, Rows]:
    rows: dict[int, Rows] = {}
    for key, vector in found:
        # Some stores give text, which has every digit of a float32.
        row = np.asarray(json.loads(vector) if isinstance(vector, str) else vector, np.float32)
        if row.ndim == 1 and row.size:  # else there is none, or there are several
            rows.update(dict.fromkeys(places.get(key, ()), row))
    return rows
