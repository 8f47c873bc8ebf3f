"""What `SIFTRetriever` and `SIFTCompressor` share: their settings, and the call that selects."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from langchain_core.callbacks import BaseCallbackHandler, BaseCallbackManager
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import VectorStore
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from typing_extensions import Self

from langchain_sift.callbacks import watchers
from langchain_sift.vectors import VectorSource
from sift_rag.choosing import (
    Call,
    Pick,
    Settings,
    announce,
    approximate_tokens,
    at_least_one,
    begin,
    choose,
)
from sift_rag.selection import Selector, Stop, sift
from sift_rag.vectors import Policy, Resolved


@dataclass(frozen=True, slots=True)
class Found:
    """Candidates, nearest first, with the store's scores (None where it tells none)."""

    documents: Sequence[Document]
    scores: Sequence[float | None]
    query: NDArray[np.float32]  # (d,)


class Selecting(BaseModel):
    """Settings of a selection."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    k: int = 4
    """How many passages to select."""

    noise: float | None = None
    """Noise of the selection, a variance. Large: nearest neighbours; small: every pick tells
    something new. None leaves the selector's own."""

    select: Selector = Field(default=sift, exclude=True)
    """Which candidates are taken: a selector of `sift_rag`, or `functools.partial` of one."""

    stop: Stop | None = Field(default=None, exclude=True)
    """A rule of `sift_rag.stopping` that keeps the first picks only. None keeps all k."""

    budget: int | None = None
    """Tokens that the selected passages may have together. None sets no limit. It is never
    exceeded: where not even the shortest passage fits, a warning says so and none is selected."""

    length_function: Callable[[str], int] = Field(default=approximate_tokens, exclude=True)
    """Counts the tokens of a text for `budget`: by default a quarter of its characters."""

    vectors: Policy = "auto"
    """Where passages' vectors may come from: "auto" for anywhere, "store" never to embed one,
    "embed" never to ask the store."""

    vector_key: str | None = None
    """Metadata key under which documents carry their vector, if they do."""

    embeddings: Embeddings | None = Field(default=None, exclude=True)
    """Those that the passages were embedded with. None takes the store's own."""

    source: VectorSource | None = Field(default=None, exclude=True, repr=False)
    """Finds the vectors and remembers embedded ones; made from the fields above. Give one
    retriever's to another to share what it remembers."""

    @field_validator("k")
    @classmethod
    def _check_k(cls, k: int) -> int:
        return at_least_one("k", k)

    @model_validator(mode="after")
    def _check_settings(self) -> Self:
        self._settings()
        return self

    @model_validator(mode="after")
    def _make_source(self) -> Self:
        """A field, not a private attribute: those are lost when `configurable_fields` rebuilds."""
        settings = (self._embedder(), self._store(), self.vectors, self.vector_key)
        source = self.source or VectorSource(*settings[:2])
        self.source = source.like(*settings)
        return self

    def _embedder(self) -> Embeddings | None:
        """The embeddings given, else those of the store."""
        return self.embeddings

    def _store(self) -> VectorStore | None:
        return None

    def _needed_embedder(self) -> Embeddings:
        found = self._embedder()
        if found is None:
            raise ValueError(
                f"{type(self).__name__} has no embeddings for the question; pass those that the"
                " passages were embedded with: embeddings=..."
            )
        return found

    def _needed_source(self) -> VectorSource:
        if self.source is None:  # the validator has made it
            raise ValueError("source was set to None; leave it as it was made.")
        return self.source

    def _begin(
        self,
        question: str,
        handlers: Iterable[BaseCallbackHandler],
        child: BaseCallbackManager | None,
        *,
        k: int,
        fetch_k: int,
    ) -> Call:
        """Announce the question; a handler may change k and noise."""
        return begin(question, watchers(handlers, child), self._settings(), k=k, fetch_k=fetch_k)

    def _finish(
        self, call: Call, found: Found, resolved: Resolved, seconds: dict[str, float]
    ) -> list[Document]:
        """Select, announce, and give new documents."""
        started = time.perf_counter()
        choice = choose(call, found.query, resolved, (d.page_content for d in found.documents))
        picks = choice.picks
        chosen = [found.documents[pick.index] for pick in picks]
        scores = [found.scores[pick.index] for pick in picks]
        if call.callbacks:
            seconds = {**seconds, "select": time.perf_counter() - started}
            ids = [document.id for document in chosen]
            announce(call, choice, resolved, seconds, ids=ids, scores=scores)
        each = enumerate(zip(chosen, scores, picks, strict=True), 1)
        return [_marked(*one, rank, choice.coverage) for rank, one in each]

    def _settings(self) -> Settings:
        return Settings(self.noise, self.select, self.stop, self.budget, self.length_function)


def _marked(own: Document, score: float | None, pick: Pick, rank: int, coverage: float) -> Document:
    """A copy: the candidate may be the store's own object."""
    metadata = {
        **own.metadata,
        "sift_rank": rank,
        "sift_gain": pick.gain,
        "sift_uncertainty": pick.uncertainty,
        "sift_coverage": coverage,
    }
    if score is not None:
        metadata["sift_store_score"] = score
    return Document(own.page_content, id=own.id, metadata=metadata)
