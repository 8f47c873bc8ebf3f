"""The index: documents with their vectors, and the exact search for the nearest of a question.

Letters: n documents, d dimensions, m questions. Every vector has length 1, so scores are cosines.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sift_rag import storage
from sift_rag.documents import Document, Progress, as_documents, content_hash
from sift_rag.embeddings import Embedder, embedder_name, unit_rows
from sift_rag.storage import IndexFormatError

__all__ = ["Candidates", "Index", "IndexFormatError"]

_EMBED_AT_ONCE = 64  # texts between two reports of progress: about a second on a CPU


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
        if fetch_k < 1:
            raise ValueError(f"fetch_k must be at least 1, got {fetch_k}.")
        if not questions or not all(text.strip() for text in questions):
            raise ValueError("The question is empty: ask something.")
        query = unit_rows(self.embedder, questions, kind="query")  # (m, d)
        if query.shape[1] != self.embeddings.shape[1]:
            raise ValueError(
                f"The question has {query.shape[1]} dimensions, the index"
                f" {self.embeddings.shape[1]}: is {embedder_name(self.embedder)!r} the embedder"
                " that the index was built with?"
            )
        positions, scores = _nearest(query, self.embeddings, min(fetch_k, len(self)))
        return Candidates(
            query[0] if isinstance(question, str) else query,
            tuple(self.documents[i] for i in positions),
            self.embeddings[positions],
            scores,
            positions,
        )


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


def _nearest(
    query: NDArray[np.float32], rows: NDArray[np.float32], k: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Positions (k,) and scores (k,) of the k nearest rows: (m, d), (n, d) -> best of m cosines.

    Matrix products round equal rows differently by where they stand. So float32 finds all rows
    that may be among the k, by its error bound d eps, and float64 sums row by row rank them.
    """
    rough = (rows @ query.T).max(axis=1)  # (n,)
    kth = np.partition(rough, len(rough) - k)[len(rough) - k]
    margin = 2 * rows.shape[1] * np.finfo(np.float32).eps
    near = np.flatnonzero(rough >= kth - margin)  # in order of position
    exact = rows[near].astype(np.float64)
    scores = np.max([(exact * one).sum(axis=1) for one in query.astype(np.float64)], axis=0)
    order = np.argsort(-scores, kind="stable")[:k]
    return near[order], scores[order]
