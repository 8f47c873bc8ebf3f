"""The vectors of LangChain's documents: from the object, the store, a cache, or embedded anew."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import VectorStore

from langchain_sift import stores
from sift_rag import vectors
from sift_rag.vectors import Rows


class VectorSource(vectors.VectorSource[Document, Embeddings, VectorStore]):
    """`sift_rag.vectors.VectorSource` for LangChain."""

    @staticmethod
    def text(document: Document) -> str:
        """Its content."""
        return document.page_content

    @staticmethod
    def name(document: Document) -> str | None:
        """Its id, if it has one."""
        return document.id

    @staticmethod
    def carried(document: Document, key: str | None) -> Any:
        """As the document transformers of the community leave it, or in the metadata."""
        # Asking a plain Document for an attribute that it lacks costs more than all the rest here.
        state = None if type(document) is Document else getattr(document, "state", None)
        vector = state.get("embedded_doc") if isinstance(state, dict) else None
        return document.metadata.get(key) if vector is None and key is not None else vector

    @staticmethod
    def embed(embeddings: Embeddings, texts: Sequence[str]) -> list[list[float]]:
        """In one batch."""
        return embeddings.embed_documents(list(texts))

    @staticmethod
    def asked(store: VectorStore, documents: Sequence[Document]) -> Mapping[int, Rows]:
        """See `stores.stored_vectors`."""
        return stores.stored_vectors(store, documents)

    @staticmethod
    def exact(store: VectorStore) -> bool:
        """See `stores.is_exact`."""
        return stores.is_exact(store)

    async def aasked(self, store: VectorStore, documents: Sequence[Document]) -> Mapping[int, Rows]:
        """By the store's own asynchronous methods."""
        return await stores.astored_vectors(store, documents)
