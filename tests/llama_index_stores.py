"""Real vector stores of LlamaIndex, in process: what the tests of `llama_index_sift` share.

`STORES[name](embed_model, nodes, folder)` builds an index over one and adds the nodes. What is not
installed, or cannot start, skips the test with its reason.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
from langchain_stores import DIMENSIONS, HashEmbeddings, passages, postgres_uri
from llama_index.core import StorageContext, VectorStoreIndex
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.bridge.pydantic import Field, PrivateAttr
from llama_index.core.schema import (
    MetadataMode,
    NodeRelationship,
    RelatedNodeInfo,
    TextNode,
)
from llama_index.core.vector_stores import SimpleVectorStore
from llama_index.core.vector_stores.types import BasePydanticVectorStore
from numpy.typing import NDArray


class HashEmbedding(BaseEmbedding):
    """A bag of hashed words: texts that share words have near vectors, equal texts equal ones."""

    model_name: str = "hashed words"
    embed_batch_size: int = 2048  # one call is one batch
    unit: bool = Field(default=True, description="Whether vectors have length 1.")
    dimensions: int = Field(default=DIMENSIONS, description="Numbers in a vector.")
    _words: HashEmbeddings = PrivateAttr()

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._words = HashEmbeddings(unit=self.unit, dimensions=self.dimensions)

    @property
    def queries(self) -> int:
        """Questions embedded so far."""
        return self._words.queries

    @property
    def texts(self) -> int:
        """Texts embedded so far."""
        return self._words.documents

    @property
    def batches(self) -> int:
        """Calls that embedded texts."""
        return self._words.batches

    def reset(self) -> None:
        """Count from zero again."""
        self._words.reset()

    def vector(self, text: str) -> NDArray[np.float32]:
        """(d,), not counted."""
        return self._words.vector(text)

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._words.embed_query(query)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._words.embed_query(query)

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._words.embed_documents([text])[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return self._words.embed_documents(texts)

    async def _aget_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return self._words.embed_documents(texts)


def embedded_text(node: Any) -> str:
    """What LlamaIndex embeds of a node: its text and the metadata that are not excluded."""
    text: str = node.get_content(MetadataMode.EMBED)
    return text


def nodes(count: int = 24) -> list[TextNode]:
    """Short texts that share words, with the metadata `topic` (of four) and `number`.

    Eight in a row come from one source, `notes-0`, `notes-1`, ..., and are each other's neighbours.
    """
    made = [
        TextNode(
            id_=str(passage.id),  # Qdrant takes UUIDs only
            text=passage.page_content,
            metadata=dict(passage.metadata),
            excluded_embed_metadata_keys=["number"],
        )
        for passage in passages(count)
    ]
    for number, node in enumerate(made):
        source = RelatedNodeInfo(node_id=f"notes-{number // 8}")
        node.relationships[NodeRelationship.SOURCE] = source
        if number % 8:
            before = made[number - 1]
            node.relationships[NodeRelationship.PREVIOUS] = RelatedNodeInfo(node_id=before.node_id)
            before.relationships[NodeRelationship.NEXT] = RelatedNodeInfo(node_id=node.node_id)
    return made


def _indexed(
    store: BasePydanticVectorStore, embed_model: BaseEmbedding, nodes: list[TextNode]
) -> VectorStoreIndex:
    context = StorageContext.from_defaults(vector_store=store)
    return VectorStoreIndex(nodes, storage_context=context, embed_model=embed_model)


def _size(embed_model: BaseEmbedding) -> int:
    return len(embed_model.get_query_embedding("how long are the rows?"))


def _simple(embed_model: BaseEmbedding, nodes: list[TextNode], _: Path) -> VectorStoreIndex:
    return _indexed(SimpleVectorStore(), embed_model, nodes)


def _faiss(factory: str, *, inner: bool = False) -> "Builder":
    """On an index made by `factory`; "IDMap..." can delete, "... direct" adds IVF's direct map."""

    def build(embed_model: BaseEmbedding, nodes: list[TextNode], _: Path) -> VectorStoreIndex:
        faiss = pytest.importorskip("faiss")
        from llama_index.vector_stores.faiss import FaissMapVectorStore, FaissVectorStore

        d = _size(embed_model)
        metric = faiss.METRIC_INNER_PRODUCT if inner else faiss.METRIC_L2
        index: Any = faiss.index_factory(d, factory.removesuffix(" direct"), metric)
        if not index.is_trained:
            rows = np.random.default_rng(0).standard_normal((1000, d)).astype(np.float32)
            index.train(rows / np.linalg.norm(rows, axis=1, keepdims=True))
        if factory.endswith(" direct"):
            index.make_direct_map()
        kind = FaissMapVectorStore if factory.startswith("IDMap") else FaissVectorStore
        return _indexed(kind(faiss_index=index), embed_model, nodes)

    return build


def _chroma(embed_model: BaseEmbedding, nodes: list[TextNode], _: Path) -> VectorStoreIndex:
    chromadb = pytest.importorskip("chromadb")
    from llama_index.vector_stores.chroma import ChromaVectorStore

    client = chromadb.EphemeralClient(chromadb.Settings(anonymized_telemetry=False))
    collection = client.create_collection(f"c{uuid4().hex}")  # all clients share one memory
    return _indexed(ChromaVectorStore(chroma_collection=collection), embed_model, nodes)


def _qdrant(embed_model: BaseEmbedding, nodes: list[TextNode], _: Path) -> VectorStoreIndex:
    qdrant = pytest.importorskip("qdrant_client")
    from llama_index.vector_stores.qdrant import QdrantVectorStore

    client, aclient = qdrant.QdrantClient(":memory:"), qdrant.AsyncQdrantClient(":memory:")
    aclient._client.collections = client._client.collections  # one memory, as one server would be
    # Local mode has no payload indexes.
    store = QdrantVectorStore("tests", client=client, aclient=aclient, index_doc_id=False)
    return _indexed(store, embed_model, nodes)


def _postgres(**settings: Any) -> "Builder":
    def build(embed_model: BaseEmbedding, nodes: list[TextNode], _: Path) -> VectorStoreIndex:
        pytest.importorskip("llama_index.vector_stores.postgres")
        uri = postgres_uri()
        from llama_index.vector_stores.postgres import PGVectorStore
        from sqlalchemy import NullPool

        store = PGVectorStore.from_params(
            connection_string=uri,  # psycopg 3 serves both ways
            async_connection_string=uri,
            table_name=f"t{uuid4().hex}",
            embed_dim=_size(embed_model),
            create_engine_kwargs={"poolclass": NullPool},  # no connection is left open
            **settings,
        )
        return _indexed(store, embed_model, nodes)

    return build


Builder = Callable[[BaseEmbedding, list[TextNode], Path], VectorStoreIndex]

STORES: dict[str, Builder] = {
    "simple": _simple,
    "faiss": _faiss("Flat"),
    "chroma": _chroma,
    "qdrant": _qdrant,
    "postgres": _postgres(),
}
"""Stores that can give the vectors of their nodes exactly."""

MORE: dict[str, Builder] = {
    "faiss-ip": _faiss("Flat", inner=True),
    "faiss-hnsw": _faiss("HNSW16,Flat"),
    "faiss-map": _faiss("IDMap2,Flat"),
}
"""Further ones of that sort, less in use."""

LOSSY: dict[str, Builder] = {
    "faiss-map-one-way": _faiss("IDMap,Flat"),
    "faiss-ivf": _faiss("IVF4,Flat"),
    "faiss-ivf-direct": _faiss("IVF4,Flat direct"),
    "faiss-ivfpq-direct": _faiss("IVF4,PQ8x4 direct"),
    "faiss-sq": _faiss("SQ8"),
    "faiss-pca": _faiss("PCA32,Flat"),
    "faiss-lsh": _faiss("LSH"),
    "postgres-half": _postgres(use_halfvec=True),
}
"""Stores that cannot, or must be asked first."""
