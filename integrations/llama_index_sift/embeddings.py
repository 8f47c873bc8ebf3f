"""LlamaIndex's embeddings over sentence-transformers, so that an index needs no other package."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any

from llama_index.core.base.embeddings.base import BaseEmbedding
from pydantic import Field, PrivateAttr

from sift_rag.embeddings import (
    Embedder,
    SentenceTransformerEmbedder,
    embedder_name,
    minilm,
    unit_rows,
)

if TYPE_CHECKING:
    from sift_rag.embeddings import Kind

_MINILM = "sentence-transformers/all-MiniLM-L6-v2"


class SIFTEmbedding(BaseEmbedding):
    """Any sentence-transformers model, with its own prompts for questions and for passages.

    `to_dict` and `from_dict` keep the model's name, so an ingestion pipeline can cache by it.

    Args:
        model: A folder, a name on the Hugging Face Hub, or an embedder of `sift_rag`. None takes
            all-MiniLM-L6-v2, offline, from the extra `sift-rag-ttt[embed]`.
        device: Where the model runs; by default an accelerator if there is one.
        settings: Fields of LlamaIndex's `BaseEmbedding`.

    Raises:
        ImportError: sentence-transformers is not installed.
        OSError: No such model here, nor to be had.
    """

    embed_batch_size: int = Field(default=32, gt=0, le=2048)
    """Texts that LlamaIndex hands over at once."""

    _embedder: Embedder = PrivateAttr()

    def __init__(
        self,
        model: str | os.PathLike[str] | Embedder | None = None,
        *,
        device: str | None = None,
        **settings: Any,
    ) -> None:
        name = settings.pop("model_name", None)  # what `from_dict` knows
        model = name if model is None else model
        if model is None or model == _MINILM:
            embedder: Embedder = minilm(device=device)
        elif isinstance(model, str | os.PathLike):
            embedder = SentenceTransformerEmbedder(os.fspath(model), device=device)
        else:
            embedder = model
        super().__init__(model_name=embedder_name(embedder), **settings)
        self._embedder = embedder

    @classmethod
    def class_name(cls) -> str:
        """Its name in traces and in what is saved."""
        return "SIFTEmbedding"

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._rows([query], "query")[0]

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return await asyncio.to_thread(self._get_query_embedding, query)

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._rows([text], "passage")[0]

    async def _aget_text_embedding(self, text: str) -> list[float]:
        return await asyncio.to_thread(self._get_text_embedding, text)

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return self._rows(texts, "passage")

    async def _aget_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return await asyncio.to_thread(self._get_text_embeddings, texts)

    def _rows(self, texts: list[str], kind: Kind) -> list[list[float]]:
        if not texts:
            return []
        rows = unit_rows(self._embedder, texts, kind=kind)
        return [[float(x) for x in row] for row in rows]
