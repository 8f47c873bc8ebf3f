"""The index: documents with their vectors, and the exact search for the nearest of a question.

Letters: n documents, d dimensions, m questions. Every vector has length 1, so scores are cosines.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sift_rag import storage
from sift_rag.blocks import sift_corpus
from sift_rag.documents import Document, Progress, as_documents, content_hash
from sift_rag.embeddings import Embedder, embedder_name, unit_rows
from sift_rag.problem import checked
from sift_rag.selection import Selection, sift
from sift_rag.storage import IndexFormatError

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from sift_rag.problem import Options

__all__ = ["NEAR_COPY", "Candidates", "Index", "IndexFormatError"]

NEAR_COPY = 0.95
"""Cosine of two passages from which one counts as a copy of the other."""

_EMBED_AT_ONCE = 64  # texts between two reports of progress: about a second on a CPU
_PRODUCT = 2**24  # cosines computed at once: 64 MB


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """The documents nearest to a question, nearest first: what a selection chooses from.

    Attributes:
        query: (d,) float32 for one question, (m, d) for a list of m.
        documents: n of them.
        embeddings: (n, d) float32 unit rows.
        scores: (n,) float64, the cosine with the question, the highest one for several questions.
        positions: (n,) int64, where the documents stand in the index.
    """

    query: NDArray[np.float32]
    documents: tuple[Document, ...]
    embeddings: NDArray[np.float32]
    scores: NDArray[np.float64]
    positions: NDArray[np.int64]

    @classmethod
    def union(cls, each: Iterable[Candidates]) -> Candidates:
        """The candidates of several questions over one index, each document once, nearest first.

        One joint search has room for `fetch_k` documents, which the question with the nearest ones
        may fill alone. Here every question keeps its own, as sub-questions want it:

            found = Candidates.union(index.search_batch(parts, fetch_k=25))
            sift(found.query, found.embeddings, 10, combine="worst")

        Args:
            each: As `Index.search` and `Index.search_batch` give them.

        Returns:
            Candidates with all queries, (m, d), in the order given. A score is the highest cosine
            with any of them; equal ones go to the lower position.

        Raises:
            ValueError: There are none, or they are not from one index.
        """
        given = list(each)
        if not given:
            raise ValueError(
                "There are no candidates to unite: give those of one question or more."
            )
        documents = _by_position(given)
        query = np.concatenate([np.atleast_2d(one.query) for one in given])  # (m, d)
        positions, first = np.unique(
            np.concatenate([one.positions for one in given]), return_index=True
        )
        rows = np.concatenate([one.embeddings for one in given])[first]
        scores = _scores(query, rows)
        order = np.argsort(-scores, kind="stable")
        found = tuple(documents[i] for i in positions[order].tolist())
        return cls(query, found, rows[order], scores[order], positions[order])


@dataclass(frozen=True, slots=True, eq=False)
class Index:
    """Documents and their vectors. Made by `build` or `load`; it never changes.

    Attributes:
        documents: n of them, in the order given.
        embeddings: (n, d) float32 unit rows, read-only.
        embedder: Embeds the questions.
        embedded: Texts that `build` had to embed.
        reused: Documents that took over the vector of an equal text.
    """

    documents: tuple[Document, ...]
    embeddings: NDArray[np.float32]
    embedder: Embedder
    embedded: int = 0
    reused: int = 0

    def __post_init__(self) -> None:
        self.embeddings.flags.writeable = False

    def __len__(self) -> int:
        return len(self.documents)

    @classmethod
    def build(
        cls,
        documents: Iterable[str | Document],
        embedder: Embedder,
        *,
        previous: Index | None = None,
        progress: Progress | None = None,
    ) -> Index:
        """Embed documents; each text once, and only those that `previous` does not know.

        Args:
            documents: Strings or `Document`s. Split long ones first (`sift_rag.split`).
            embedder: Called with 64 texts at a time.
            previous: Its vectors are taken over where texts are equal, if its embedder has the
                same name and its vectors the same dimension.
            progress: Called with (texts embedded, texts to embed).

        Raises:
            ValueError: There are no documents, one is blank, or the embedder gives bad vectors.
        """
        corpus = tuple(as_documents(documents))
        _check_corpus(corpus)
        hashes = [content_hash(document.text) for document in corpus]
        known = _known(previous, embedder)
        new = {h: d.text for h, d in zip(hashes, corpus, strict=True) if h not in known}
        made = _embed(list(new.values()), embedder, progress)
        if known and made and len(made[0]) != len(next(iter(known.values()))):
            return cls.build(corpus, embedder, progress=progress)  # a model changed under its name
        known.update(zip(new, made, strict=True))
        return cls(
            corpus,
            np.stack([known[h] for h in hashes]),
            embedder,
            embedded=len(new),
            reused=len(corpus) - len(new),
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Save to a folder: all of it or, after an error or a kill, nothing.

        An older index there is replaced in one instant. Metadata must be what JSON can hold.

        Raises:
            FileExistsError: Something that is no index is there; it is left alone.
            ValueError: A document's metadata cannot be written as JSON.
            OSError: Disk full, read-only, ...; what was there before is untouched.
        """
        name = embedder_name(self.embedder)
        storage.save(path, storage.Stored(name, self.documents, self.embeddings))

    @classmethod
    def load(cls, path: str | os.PathLike[str], embedder: Embedder) -> Index:
        """Load what `save` wrote, after checking it; nothing is unpickled, nothing is embedded.

        Raises:
            IndexFormatError: No index, a damaged one, another format, or another embedder.
        """
        stored = storage.load(path)
        name = embedder_name(embedder)
        if stored.embedder != name:
            raise IndexFormatError(
                f"The index {os.fspath(path)!r} was made by the embedder {stored.embedder!r}, this"
                f" is {name!r}: their vectors do not compare. Give that embedder, or build anew."
            )
        return cls(stored.documents, stored.rows, embedder)

    def search(self, question: str | Sequence[str], *, fetch_k: int = 50) -> Candidates:
        """The `fetch_k` nearest documents, exactly; equal scores go to the lower position.

        Args:
            question: One, or several (m) that are searched for together.
            fetch_k: At most n are returned.

        Raises:
            ValueError: A blank question, `fetch_k` < 1, or vectors of another dimension.
        """
        questions = [question] if isinstance(question, str) else list(question)
        query = self._embedded(questions, fetch_k)  # (m, d)
        found = next(nearest_each([query], self.embeddings, min(fetch_k, len(self))))
        return self._candidates(query[0] if isinstance(question, str) else query, *found)

    def search_batch(self, questions: Sequence[str], *, fetch_k: int = 50) -> list[Candidates]:
        """The candidates of each of B separate questions, by position: `search`, but faster.

        The questions are embedded together, and one matrix product finds the nearest of all.

        Raises:
            ValueError: As `search`; one string in place of a list of them.
        """
        if isinstance(questions, str):
            raise ValueError("questions is one string: give a list of them, or use search.")
        if not questions:
            return []
        queries = self._embedded(list(questions), fetch_k)  # (B, d)
        each = nearest_each(list(queries[:, None]), self.embeddings, min(fetch_k, len(self)))
        return [self._candidates(query, *one) for query, one in zip(queries, each, strict=True)]

    def select(
        self,
        query: str | Sequence[str] | ArrayLike,
        k: int | None = None,
        fetch_k: int | None = None,
        *,
        device: str | None = None,
        **options: Unpack[Options],
    ) -> Selection:
        """SIFT over all documents, exactly, or over the `fetch_k` nearest.

        Args:
            query: A question, several (m) that are answered together, or their vectors (d,) or
                (m, d).
            k: Picks to make.
            fetch_k: How many of the nearest documents the selection sees; None for all of them, see
                `blocks.sift_corpus`.
            device: Where all of them are multiplied: None for NumPy, or a device of torch.
            **options: As in `sift`. Costs are by position in the index, (n,), and need `fetch_k`.

        Returns:
            The picks, by position in the index: `index.documents[i] for i in selection.indices`.

        Raises:
            ValueError: As `search` and `sift`; costs or a budget without `fetch_k`, or a device
                with it.
            TypeError: As `sift`.
        """
        settings: dict[str, Any] = {"k": k, **options}
        asked = self._asked(query)
        if fetch_k is not None:
            if device is not None:
                raise ValueError("device is for all documents: leave it out, or fetch_k.")
            return self._select_from(asked, fetch_k, settings)
        if settings.pop("costs", None) is not None or settings.pop("budget", None) is not None:
            raise ValueError("costs and a budget need fetch_k: how many documents to choose from.")
        return sift_corpus(asked, self.embeddings, device=device, **settings)

    def _select_from(self, asked: Any, fetch_k: int, settings: dict[str, Any]) -> Selection:
        if fetch_k < 1:
            raise ValueError(f"fetch_k must be at least 1, got {fetch_k}.")
        queries = checked(asked, self.embeddings[:1], 1, kernel="linear").queries  # (m, d) unit
        found = nearest_each([queries], self.embeddings, min(fetch_k, len(self)))
        positions, _ = next(found)
        if settings.get("costs") is not None:
            costs = np.asarray(settings["costs"])
            if costs.shape != (len(self),):
                raise ValueError(
                    f"costs has shape {costs.shape}, wanted ({len(self)},): one for each document"
                    " of the index, by position."
                )
            settings["costs"] = costs[positions]
        picked = sift(asked, self.embeddings[positions], **settings)
        context = replace(picked.context, positions=positions)
        return replace(picked, indices=positions[picked.indices], context=context)

    def _asked(self, query: Any) -> Any:
        """Vectors (m, d) of questions; vectors as they are given."""
        if isinstance(query, str):
            return self._embedded([query], 1)
        if isinstance(query, Sequence) and all(isinstance(text, str) for text in query):
            return self._embedded(list(query), 1)
        return query

    def _embedded(self, questions: list[str], fetch_k: int) -> NDArray[np.float32]:
        """Unit vectors (m, d) of what is searched for, once all is known to be in order."""
        if fetch_k < 1:
            raise ValueError(f"fetch_k must be at least 1, got {fetch_k}.")
        if not questions or not all(text.strip() for text in questions):
            raise ValueError("The question is empty: ask something.")
        query = unit_rows(self.embedder, questions, kind="query")
        if query.shape[1] != self.embeddings.shape[1]:
            raise ValueError(
                f"The question has {query.shape[1]} dimensions, the index"
                f" {self.embeddings.shape[1]}: is {embedder_name(self.embedder)!r} the embedder"
                " that the index was built with?"
            )
        return query

    def _candidates(
        self,
        query: NDArray[np.float32],
        positions: NDArray[np.int64],
        scores: NDArray[np.float64],
    ) -> Candidates:
        documents = tuple(self.documents[i] for i in positions)
        return Candidates(query, documents, self.embeddings[positions], scores, positions)


def _by_position(given: Sequence[Candidates]) -> dict[int, Document]:
    """The documents of candidates from one index."""
    seen: dict[int, Document] = {}
    for one in given:
        for position, document in zip(one.positions.tolist(), one.documents, strict=True):
            if seen.setdefault(position, document) != document:
                raise ValueError(
                    f"Position {position} is {seen[position].id!r} for one question and"
                    f" {document.id!r} for another: unite candidates of one index only."
                )
    dimensions = {one.embeddings.shape[1] for one in given}
    if len(dimensions) > 1:
        raise ValueError(
            f"The candidates have {sorted(dimensions)} dimensions: unite those of one index only."
        )
    return seen


def _check_corpus(corpus: Sequence[Document]) -> None:
    if not corpus:
        raise ValueError("There are no documents to index: the corpus is empty.")
    blank = [document.id for document in corpus if not document.text.strip()]
    if blank:
        raise ValueError(
            f"{len(blank)} of {len(corpus)} documents are blank, the first is {blank[0]!r}: they"
            " have nothing to find; leave them out."
        )


def _known(previous: Index | None, embedder: Embedder) -> dict[str, NDArray[np.float32]]:
    if previous is None or embedder_name(previous.embedder) != embedder_name(embedder):
        return {}
    rows = zip(previous.documents, previous.embeddings, strict=True)
    return {content_hash(document.text): row for document, row in rows}


def _embed(
    texts: Sequence[str], embedder: Embedder, progress: Progress | None
) -> list[NDArray[np.float32]]:
    """One (d,) row per text."""
    rows: list[NDArray[np.float32]] = []
    for start in range(0, len(texts), _EMBED_AT_ONCE):
        rows.extend(unit_rows(embedder, texts[start : start + _EMBED_AT_ONCE]))
        if len(rows[-1]) != len(rows[0]):
            raise ValueError(
                f"The embedder {embedder_name(embedder)!r} gave {len(rows[0])} dimensions first and"
                f" {len(rows[-1])} later: the vectors of one index must have the same."
            )
        if progress:
            progress(len(rows), len(texts))
    return rows


def nearest_each(
    queries: Sequence[NDArray[Any]], rows: NDArray[Any], k: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float64]]]:
    """Positions (k,) and scores (k,) of the k nearest rows, for each of separate queries.

    Args:
        queries: Unit vectors, (m, d) each, of which the largest cosine counts.
        rows: (n, d) unit rows, of the same precision.
        k: At most n. Equal scores go to the lower position.
    """
    at_once = max(1, _PRODUCT // (len(rows) * max(map(len, queries), default=1)))
    for start in range(0, len(queries), at_once):
        block = queries[start : start + at_once]
        rough = np.concatenate(block) @ rows.T  # (m of all of them, n): one product
        ends = np.cumsum([len(query) for query in block])
        for query, end in zip(block, ends, strict=True):
            own = rough[end - len(query) : end]
            yield _ranked(own[0] if len(own) == 1 else own.max(axis=0), query, rows, k)


def _ranked(
    rough: NDArray[Any], query: NDArray[Any], rows: NDArray[Any], k: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The k nearest rows, from their cosines (n,) as a matrix product rounds them.

    It rounds equal rows differently by where they stand. So it finds all rows that may be among
    the k, by its error bound d eps, and float64 sums row by row rank them.
    """
    kth = np.partition(rough, len(rough) - k)[len(rough) - k]
    margin = 2 * rows.shape[1] * np.finfo(rough.dtype).eps
    near = np.flatnonzero(rough >= kth - margin)  # in order of position
    scores = _scores(query, rows[near])
    order = np.argsort(-scores, kind="stable")[:k]
    return near[order], scores[order]


def _scores(query: NDArray[Any], rows: NDArray[Any]) -> NDArray[np.float64]:
    """The best of m cosines of each row, (m, d), (n, d) -> (n,), summed row by row in float64."""
    exact = rows.astype(np.float64)
    each = [(exact * one).sum(axis=1) for one in query.astype(np.float64)]
    return each[0] if len(each) == 1 else np.asarray(np.max(each, axis=0))
