"""`SIFTCompressor`: of the documents that were retrieved, those that tell most about a question."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
from langchain_core.callbacks import CallbackManager, Callbacks
from langchain_core.documents import BaseDocumentCompressor, Document
from langchain_core.runnables import run_in_executor
from pydantic import model_validator
from typing_extensions import Self

from langchain_sift.selecting import Found, Selecting
from sift_rag.choosing import Call


class SIFTCompressor(Selecting, BaseDocumentCompressor):
    """Keeps `k` of the documents given, those that leave least uncertainty about the question.

    For `ContextualCompressionRetriever(base_compressor=SIFTCompressor(embeddings=...),
    base_retriever=...)`, whose base should yield many documents, and for
    `DocumentCompressorPipeline`. Documents are new ones, with the metadata that `SIFTRetriever`
    gives. Vectors that documents carry are used: those of the community's
    `EmbeddingsRedundantFilter`, and those under `vector_key`.

    Raises:
        ValueError: No embeddings (the question needs them), or a setting out of range.
    """

    @model_validator(mode="after")
    def _check_embeddings(self) -> Self:
        self._needed_embedder()
        return self

    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> list[Document]:
        """The selected documents, in order of selection.

        Args:
            documents: Candidates, nearest first as far as that is known.
            query: The question.
            callbacks: A manager, handlers, or None. `SIFTCallbackHandler`s among them watch and
                configure the call.
        """
        call = self._announced(query, callbacks, len(documents))
        started = time.perf_counter()
        vector = self._needed_embedder().embed_query(query) if documents else [0.0]
        return self._compressed(call, documents, vector, started)

    async def acompress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> list[Document]:
        """As `compress_documents`; the event loop is never held up."""
        call = await run_in_executor(None, self._announced, query, callbacks, len(documents))
        started = time.perf_counter()
        vector = await self._needed_embedder().aembed_query(query) if documents else [0.0]
        return await run_in_executor(None, self._compressed, call, documents, vector, started)

    def _announced(self, query: str, callbacks: Callbacks | None, n: int) -> Call:
        # A manager of either sort, a list or None, brought to one form; nothing is added to it.
        manager = CallbackManager.configure(inheritable_callbacks=callbacks)
        return self._begin(query, manager.handlers, manager, k=self.k, fetch_k=n)

    def _compressed(
        self, call: Call, documents: Sequence[Document], vector: list[float], started: float
    ) -> list[Document]:
        embedded = time.perf_counter()
        found = Found(documents, [None] * len(documents), np.asarray(vector, dtype=np.float32))
        resolved = self._needed_source().resolve(documents, dimensions=len(vector))
        seconds = {"search": embedded - started, "vectors": time.perf_counter() - embedded}
        return self._finish(call, found, resolved, seconds)
