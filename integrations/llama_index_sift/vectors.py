"""The vectors of LlamaIndex's nodes: from the node, the store, a cache, or embedded anew."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.indices import VectorStoreIndex
from llama_index.core.schema import BaseNode, MetadataMode

from llama_index_sift import stores
from llama_index_sift.stores import Store
from sift_rag import vectors
from sift_rag.vectors import Rows


class VectorSource(vectors.VectorSource[BaseNode, BaseEmbedding, Store]):
    """`sift_rag.vectors.VectorSource` for LlamaIndex."""

    argument = "embed_model"

    @staticmethod
    def text(node: BaseNode) -> str:
        """What LlamaIndex embeds: the content with the metadata that are not excluded from it."""
        return node.get_content(MetadataMode.EMBED)

    @staticmethod
    def name(node: BaseNode) -> str:
        """Its id."""
        return node.node_id

    @staticmethod
    def carried(node: BaseNode, key: str | None) -> Any:
        """As some stores and pipelines leave it on the node, or in the metadata."""
        if node.embedding is None and key is not None:
            return node.metadata.get(key)
        return node.embedding

    @staticmethod
    def embed(embed_model: BaseEmbedding, texts: Sequence[str]) -> list[list[float]]:
        """In one call; how many texts go to the model at once is its own `embed_batch_size`."""
        return embed_model.get_text_embedding_batch(list(texts))

    @staticmethod
    def asked(store: Store, nodes: Sequence[BaseNode]) -> Mapping[int, Rows]:
        """See `stores.stored_vectors`."""
        return stores.stored_vectors(store, nodes)

    @staticmethod
    def exact(store: Store) -> bool:
        """See `stores.is_exact`."""
        return stores.is_exact(store)

    @staticmethod
    def title(store: Store) -> str:
        """The class of the vector store, also where the index over it was given."""
        return type(store.vector_store if isinstance(store, VectorStoreIndex) else store).__name__

    async def aasked(self, store: Store, nodes: Sequence[BaseNode]) -> Mapping[int, Rows]:
        """By the store's own asynchronous methods."""
        return await stores.astored_vectors(store, nodes)
