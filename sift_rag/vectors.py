"""The vectors of retrieved documents: from the object, the store, a cache, or embedded anew.

Stores search by vectors and then drop them. They are got back where that is cheapest, and each
answer says how many came from where. Letters: n documents, d dimensions.
"""

from __future__ import annotations

import asyncio
import threading
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from sift_rag.embeddings import CachedEmbedder, Kind

if TYPE_CHECKING:
    from typing_extensions import Self

D = TypeVar("D")  # a framework's document
E = TypeVar("E")  # its embeddings
S = TypeVar("S")  # its vector store
Policy: TypeAlias = Literal["auto", "store", "embed"]
Rows: TypeAlias = NDArray[np.float32]

SAME = 0.999  # cosine above which a stored vector is the embedded one, but for rounding
_warned: set[str] = set()
_warning = threading.Lock()


@dataclass(frozen=True, slots=True, eq=False)
class Resolved:
    """What `VectorSource.resolve` found.

    Attributes:
        rows: (n, d) float32, of any length; zeros where `known` is False.
        known: (n,) bool, False where a document has no vector that points anywhere.
        counts: Documents by where their vector came from: object, store, cache, embedded.
        seconds: Spent on asking the store, and on embedding (looking into the cache included).
    """

    rows: Rows
    known: NDArray[np.bool_]
    counts: dict[str, int]
    seconds: dict[str, float]

    @classmethod
    def of_store(cls, rows: Rows, seconds: float) -> Resolved:
        """Vectors that all came from the store."""
        counts = {"object": 0, "store": len(rows), "cache": 0, "embedded": 0}
        return cls(rows, _pointing(rows), counts, {"store": seconds, "embed": 0.0})


class VectorSource(ABC, Generic[D, E, S]):
    """Finds the vectors of a framework's documents; threads may share one.

    A subclass says, by the six methods at the end, what documents, embeddings and stores are.

    They are taken from the document itself, else from the store in one call, else from memory, else
    embedded in one batch. A store of which it is not sure that its vectors are exact (a compressed
    index, say) is asked for one that is embedded too, once: where they differ, it is not used.

    Attributes:
        argument: What the framework's users pass the embeddings as; messages name it.
    """

    argument: ClassVar[str] = "embeddings"

    def __init__(
        self,
        embeddings: E | None,
        store: S | None = None,
        *,
        policy: Policy = "auto",
        vector_key: str | None = None,
        max_entries: int = 10_000,
    ) -> None:
        """Remember where to look.

        Args:
            embeddings: Those that the passages in the store were embedded with.
            store: Where the documents come from.
            policy: "auto" for all places, "store" never to embed a passage, "embed" never to ask
                the store.
            vector_key: Metadata key under which documents carry their vector.
            max_entries: Embedded vectors remembered, by content; the longest unused go first.

        Raises:
            ValueError: An unknown policy, or `max_entries` below 1.
        """
        if policy not in ("auto", "store", "embed"):
            raise ValueError(f'vectors must be "auto", "store" or "embed", got {policy!r}.')
        self._embeddings, self._store = embeddings, store
        self._policy, self._key = policy, vector_key
        self._max_entries = max_entries
        self._adapter = None if embeddings is None else _Adapter(self, embeddings)
        self._cache = self._adapter and CachedEmbedder(self._adapter, max_entries=max_entries)
        self._trust = _Trust()

    def like(
        self,
        embeddings: E | None,
        store: S | None,
        policy: Policy,
        vector_key: str | None,
    ) -> Self:
        """This one if these are its settings, else one with them that shares what it remembers."""
        # Frameworks' own `==` may compare all vectors of two stores: here they are the same object.
        same = embeddings is self._embeddings and store is self._store
        if same and (policy, vector_key) == (self._policy, self._key):
            return self
        other = type(self)(
            embeddings, store, policy=policy, vector_key=vector_key, max_entries=self._max_entries
        )
        if embeddings is self._embeddings:
            other._adapter, other._cache = self._adapter, self._cache
            if store is self._store:
                other._trust = self._trust
        return other

    def resolve(self, documents: Sequence[D], *, dimensions: int | None = None) -> Resolved:
        """The vectors of some documents.

        Args:
            documents: n of them. One without a text to embed, or whose vector is zero or not
                finite, is marked as not known.
            dimensions: Those of the question's vector; None takes those of the first document.

        Raises:
            ValueError: Vectors are missing and may not or cannot be embedded, or have another
                number of dimensions.
        """
        found, wanted = self._on_objects(documents)
        started = time.perf_counter()
        if self._store is not None and wanted:
            given = self.asked(self._store, [documents[i] for i in wanted])
            found |= {wanted[i]: row for i, row in given.items()}
        return self._completed(documents, found, wanted, dimensions, time.perf_counter() - started)

    async def aresolve(self, documents: Sequence[D], *, dimensions: int | None = None) -> Resolved:
        """As `resolve`; the store is asked by its asynchronous methods, the rest is in a thread."""
        found, wanted = self._on_objects(documents)
        started = time.perf_counter()
        if self._store is not None and wanted:
            given = await self.aasked(self._store, [documents[i] for i in wanted])
            found |= {wanted[i]: row for i, row in given.items()}
        asked = time.perf_counter() - started
        return await asyncio.to_thread(self._completed, documents, found, wanted, dimensions, asked)

    def _on_objects(self, documents: Sequence[D]) -> tuple[dict[int, Rows], list[int]]:
        """Vectors that documents carry, and the positions for which the store is to be asked."""
        rows = {i: row for i, each in enumerate(documents) if (row := self._own(each)) is not None}
        asks = self._store is not None and self._policy != "embed" and not self._lossy
        return rows, [i for i in range(len(documents)) if i not in rows] if asks else []

    def _completed(
        self,
        documents: Sequence[D],
        found: dict[int, Rows],
        wanted: Sequence[int],
        dimensions: int | None,
        asked: float,
    ) -> Resolved:
        """What objects and store gave, checked, and the rest from memory or embedded."""
        started = time.perf_counter()
        stored = [i for i in wanted if i in found]
        if stored and not self._trusted(documents, found, stored):
            found = {i: row for i, row in found.items() if i not in stored}
            stored = []
        counts = {"object": len(found) - len(stored), "store": len(stored)}
        found, counts["cache"], counts["embedded"] = self._embedded(documents, found)
        seconds = {"store": asked, "embed": time.perf_counter() - started}
        self._warn_of_cost(counts["embedded"], len(documents), seconds["embed"])
        rows = self._stacked(documents, found, dimensions)
        known = _pointing(rows)
        rows[~known] = 0.0
        return Resolved(rows, known, counts, seconds)

    @property
    def _title(self) -> str:
        return "None" if self._store is None else self.title(self._store)

    def _own(self, document: D) -> Rows | None:
        """The vector that a document carries."""
        vector = self.carried(document, self._key)
        return None if vector is None else _row(vector, self.name(document))

    @property
    def _lossy(self) -> bool:
        return self._trust.verdict is False

    def _trusted(
        self, documents: Sequence[D], rows: dict[int, Rows], stored: Sequence[int]
    ) -> bool:
        """Whether the store's vectors are used; settled by the first one that can be compared."""
        if self._store is None or self._cache is None or self._policy == "store":
            return True
        with self._trust.lock:
            if self._trust.verdict is None and self.exact(self._store):
                self._trust.verdict = True
            probe = next((i for i in stored if self.text(documents[i]).strip()), None)
            if self._trust.verdict is None and probe is not None:
                again = self._cache.embed([self.text(documents[probe])])[0, :-1]
                cosine = _cosine(rows[probe], again)
                self._trust.verdict = cosine > SAME
                if self._lossy:
                    self._warn_of_loss(cosine)
        return not self._lossy

    def _embedded(
        self, documents: Sequence[D], found: dict[int, Rows]
    ) -> tuple[dict[int, Rows], int, int]:
        """All vectors; how many of them memory had, and how many were embedded in one batch."""
        left = [i for i in range(len(documents)) if i not in found]
        left = [i for i in left if self.text(documents[i]).strip()]  # some embedders refuse ""
        if not left:
            return found, 0, 0
        if self._cache is None or self._adapter is None or self._policy == "store":
            raise self._missing([documents[i] for i in left], len(documents))
        self._adapter.mine.texts = 0
        rows = self._cache.embed([self.text(documents[i]) for i in left])
        embedded = self._adapter.mine.texts
        new = dict(zip(left, rows[:, :-1], strict=True))
        return found | new, len(left) - embedded, embedded

    def _stacked(
        self, documents: Sequence[D], found: dict[int, Rows], dimensions: int | None
    ) -> Rows:
        if dimensions is None:
            dimensions = len(next(iter(found.values()), ()))
        for i, row in found.items():
            if len(row) != dimensions:
                raise ValueError(
                    f"The vector of document {self.name(documents[i])!r} has {len(row)} dimensions,"
                    f" wanted {dimensions} as the question's: the embeddings given"
                    f" ({type(self._embeddings).__name__}) are not those of the store"
                    f" ({self._title}). Pass those that its passages were embedded"
                    f" with: {self.argument}=..."
                )
        if len(found) == len(documents) > 0:
            return np.stack([found[i] for i in range(len(documents))])
        rows = np.zeros((len(documents), dimensions), dtype=np.float32)
        for i, row in found.items():
            rows[i] = row
        return rows

    def _missing(self, documents: list[D], n: int) -> ValueError:
        names = [self.name(each) or repr(self.text(each)[:40]) for each in documents]
        shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
        cure = (
            'vectors="store" forbids to embed them. Use vectors="auto", or a store that gives its'
            " vectors."
            if self._policy == "store"
            else f"There are no embeddings to embed them: pass {self.argument}=..."
        )
        return ValueError(f"{len(names)} of {n} passages have no vector ({shown}). {cure}")

    def _warn_of_loss(self, cosine: float) -> None:
        warnings.warn(
            f"The vectors that the store {self._title} gives are not those of the"
            f" embeddings (cosine {cosine:.3f}, wanted above {SAME}): its index is lossy, or these"
            " are not its embeddings. They are not used; passages are embedded anew.",
            stacklevel=2,
        )

    def _warn_of_cost(self, embedded: int, n: int, seconds: float) -> None:
        if self._policy != "auto" or self._store is None or self._lossy:  # that was said
            return
        if 2 * embedded > n:
            warn_once(
                "cost",
                f"The store {self._title} gives no vectors: embedding {embedded}"
                f" passages took {seconds:.2f} s a query. Use a store that gives them (see the"
                ' table in the integration\'s README), or vectors="embed" if that is as wanted.',
            )

    # What a framework's documents, embeddings and stores are.

    @staticmethod
    @abstractmethod
    def text(document: D) -> str:
        """What is embedded of a document."""

    @staticmethod
    @abstractmethod
    def name(document: D) -> str | None:
        """The id of a document."""

    @staticmethod
    @abstractmethod
    def carried(document: D, key: str | None) -> Any:
        """The vector that a document carries, under a metadata key or elsewhere; None without."""

    @staticmethod
    @abstractmethod
    def embed(embeddings: E, texts: Sequence[str]) -> Any:
        """(n, d) vectors of passages."""

    @staticmethod
    @abstractmethod
    def asked(store: S, documents: Sequence[D]) -> Mapping[int, Rows]:
        """By position, the vectors that a store gives in one call."""

    @staticmethod
    @abstractmethod
    def exact(store: S) -> bool:
        """Whether the store's vectors are surely those that it was given, up to length."""

    @staticmethod
    def title(store: S) -> str:
        """What messages call a store."""
        return type(store).__name__

    async def aasked(self, store: S, documents: Sequence[D]) -> Mapping[int, Rows]:
        """As `asked`, without blocking the event loop."""
        return await asyncio.to_thread(self.asked, store, documents)


class _Trust:
    """Whether the vectors of a store are exact; None until it is known."""

    def __init__(self) -> None:
        self.verdict: bool | None = None
        self.lock = threading.Lock()


class _Adapter:
    """A framework's embeddings as the core's `Embedder`.

    The core refuses a text whose vector is zero or not finite. Here such a text must not spoil the
    others, and is remembered too: rows have one column more, 1 for such a text and else 0.

    Attributes:
        mine: `mine.texts` counts the texts that this thread has had embedded.
    """

    def __init__(self, source: VectorSource[Any, E, Any], embeddings: E) -> None:
        self.name = type(embeddings).__name__
        self.mine = threading.local()
        self._embed = source.embed
        self._embeddings = embeddings

    def embed(self, texts: Sequence[str], *, kind: Kind = "passage") -> Rows:
        """(n, d + 1)"""
        vectors = self._embed(self._embeddings, list(texts))
        self.mine.texts = getattr(self.mine, "texts", 0) + len(texts)
        try:
            rows = np.asarray(vectors, dtype=np.float32)
        except (TypeError, ValueError) as error:
            raise ValueError(f"The embeddings {self.name} gave no numbers: {error}") from error
        if rows.ndim != 2 or len(rows) != len(texts):
            raise ValueError(
                f"The embeddings {self.name} gave shape {rows.shape} for {len(texts)} texts, wanted"
                f" ({len(texts)}, d)."
            )
        bad = ~_pointing(rows)
        rows = np.where(bad[:, None], np.float32(0.0), rows)
        return np.column_stack([rows, bad.astype(np.float32)])


def warn_once(about: str, message: str) -> None:
    """Warn of something the first time in this process."""
    with _warning:
        if about in _warned:
            return
        _warned.add(about)
    warnings.warn(message, stacklevel=3)


def _pointing(rows: Rows) -> NDArray[np.bool_]:
    """Which rows are finite and not all zeros, (n,)."""
    return np.logical_and(np.isfinite(rows).all(axis=1), rows.any(axis=1))


def _row(vector: Any, name: str | None) -> Rows:
    try:
        row = np.asarray(vector, dtype=np.float32)
    except (TypeError, ValueError):
        row = np.empty((), dtype=np.float32)
    if row.ndim != 1:
        raise ValueError(
            f"Document {name!r} carries {type(vector).__name__} where its vector should be;"
            " it must be a list of numbers."
        )
    return row


def _cosine(a: Rows, b: Rows) -> float:
    lengths = np.linalg.norm(a) * np.linalg.norm(b)
    return float(a @ b / lengths) if len(a) == len(b) and lengths > 0 else 0.0
