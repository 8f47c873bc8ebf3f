"""LangChain's `Embeddings` over sentence-transformers, so that a chain needs no other package."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from langchain_core.embeddings import Embeddings

from sift_rag.embeddings import Embedder, SentenceTransformerEmbedder, minilm, unit_rows

if TYPE_CHECKING:
    from sift_rag.embeddings import Kind


class SIFTEmbeddings(Embeddings):
    """Any sentence-transformers model, with its own prompts for questions and for passages.

    Args:
        model: A folder, a name on the Hugging Face Hub, or an embedder of `sift_rag`. None takes
            all-MiniLM-L6-v2, offline, from the extra `sift-rag-ttt[embed]`.
        device: Where the model runs; by default an accelerator if there is one.

    Attributes:
        model: Its name.

    Raises:
        ImportError: sentence-transformers is not installed.
        OSError: No such model here, nor to be had.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | Embedder | None = None,
        *,
        device: str | None = None,
    ) -> None:
        if model is None:
            self._embedder: Embedder = minilm(device=device)
        elif isinstance(model, str | os.PathLike):
            self._embedder = SentenceTransformerEmbedder(os.fspath(model), device=device)
        else:
            self._embedder = model
        self.model = str(getattr(self._embedder, "name", type(self._embedder).__qualname__))

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """One unit vector per passage."""
        return self._rows(texts, "passage")

    def embed_query(self, text: str) -> list[float]:
        """The unit vector of a question."""
        return self._rows([text], "query")[0]

    def _rows(self, texts: list[str], kind: Kind) -> list[list[float]]:
        if not texts:
            return []
        rows = unit_rows(self._embedder, texts, kind=kind)
        return [[float(x) for x in row] for row in rows]
