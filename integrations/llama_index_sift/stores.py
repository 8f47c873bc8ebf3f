"""The vectors that LlamaIndex's stores already hold.

A store is known by the name of its class, or of one that it derives from, and by the attributes
that are read: no store's package is imported. Letters: n nodes, d dimensions.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, TypeAlias
from uuid import UUID
from weakref import WeakKeyDictionary

import numpy as np
from llama_index.core.indices import VectorStoreIndex
from llama_index.core.schema import BaseNode
from llama_index.core.vector_stores.types import BasePydanticVectorStore

from sift_rag.stored import Found, Kind, Kinds, is_exact_faiss
from sift_rag.vectors import Rows

Store: TypeAlias = BasePydanticVectorStore | VectorStoreIndex
"""A vector store, or the index over it: FAISS knows vectors by number, only the index knows whose
they are. Where there is an index, pass it."""


def stored_vectors(store: Store, nodes: Sequence[BaseNode]) -> dict[int, Rows]:
    """The vectors that the store holds of nodes it has returned, in one call to the store.

    A store that fails, or has changed since, is no error: what it does not give is left out, and
    the first failure of each sort is logged.

    Args:
        store: Where the nodes come from, or the index over it. It is only read.
        nodes: n of them; those that are not in the store are left out.

    Returns:
        Position in `nodes` -> (d,) vector, scaled as the store keeps it. Empty where the store
        cannot give vectors back, as a FAISS store without its index. They may be lossy where
        `is_exact` is False.
    """
    return _KINDS.rows(_readable(store), nodes)


async def astored_vectors(store: Store, nodes: Sequence[BaseNode]) -> dict[int, Rows]:
    """`stored_vectors` for callers in an event loop, and for stores that are asynchronous only."""
    return await _KINDS.arows(_readable(store), nodes)


def is_exact(store: Store) -> bool:
    """Whether the vectors that the store gives are surely those that it was given, up to length.

    Returns:
        False where that is not known, as of most FAISS indexes and of stores that this module does
        not know by name: embed one node anew and compare before trusting the others.
    """
    return _KINDS.is_exact(_readable(store))


def _readable(store: Store) -> Any:
    """The vector store; of FAISS, whose vectors have numbers only, the index that has their ids."""
    if not isinstance(store, VectorStoreIndex):
        return store
    bases = {base.__name__ for base in type(store.vector_store).__mro__}
    numbered = "FaissVectorStore" in bases and "FaissMapVectorStore" not in bases
    return store if numbered else store.vector_store


def _from_simple(store: Any, ids: list[str]) -> Found:
    vectors = store.data.embedding_dict
    return [(name, vectors[name]) for name in ids if name in vectors]


_numbers: WeakKeyDictionary[Any, tuple[dict[str, str], int, dict[str, int]]] = WeakKeyDictionary()
"""Index -> its dict FAISS's number -> node id, the length that this had, and the way back."""


def _from_faiss(index: Any, ids: list[str]) -> Found:
    forward = index.index_struct.nodes_dict
    seen = _numbers.get(index)
    # FaissVectorStore cannot delete: nodes are only added, one with an id that is there as well.
    if seen is None or seen[0] is not forward or seen[1] != len(forward):
        seen = (forward, len(forward), {name: int(number) for number, name in forward.items()})
        _numbers[index] = seen
    size = index.vector_store.client.ntotal
    known = {name: seen[2][name] for name in ids if seen[2].get(name, size) < size}
    return _reconstructed(index.vector_store.client, known)


def _from_faiss_map(store: Any, ids: list[str]) -> Found:
    numbers, owners = store._node_id_to_faiss_id_map, store._faiss_id_to_node_id_map
    # After a deletion it hands out numbers that are taken: the later node has the vector.
    known = {name: numbers[name] for name in ids if owners.get(numbers.get(name)) == name}
    return _reconstructed(store.client, known)


def _reconstructed(index: Any, numbers: dict[str, int]) -> Found:
    wanted = np.fromiter(numbers.values(), dtype=np.int64, count=len(numbers))
    return zip(numbers, index.reconstruct_batch(wanted), strict=True) if numbers else ()


def _from_chroma(store: Any, ids: list[str]) -> Found:
    found = store.client.get(ids=ids, include=["embeddings"])
    return zip(found["ids"], found["embeddings"], strict=True)


def _from_qdrant(store: Any, ids: list[str]) -> Found:
    points = store.client.retrieve(**_qdrant_call(store, ids))
    return [(str(point.id), _dense(store, point.vector)) for point in points]


async def _afrom_qdrant(store: Any, ids: list[str]) -> Found:
    points = await store._aclient.retrieve(**_qdrant_call(store, ids))
    return [(str(point.id), _dense(store, point.vector)) for point in points]


def _qdrant_call(store: Any, ids: list[str]) -> dict[str, Any]:
    return {
        "collection_name": store.collection_name,
        "ids": [name for name in ids if _is_uuid(name)],  # a server refuses all for another one
        "with_payload": False,
        "with_vectors": True,
    }


def _dense(store: Any, vector: Any) -> Any:
    """Of named vectors the one that the store searches by; older collections leave it unnamed."""
    if not isinstance(vector, dict):
        return vector
    return vector.get(store.dense_vector_name, vector.get(""))


def _is_uuid(name: str) -> bool:
    try:
        UUID(name)
    except ValueError:
        return False
    return True


def _pg_rows(session: Any, store: Any, ids: list[str]) -> Found:
    row = store._table_class
    found = session.query(row.node_id, row.embedding).filter(row.node_id.in_(ids)).all()
    return [(name, _plain(vector)) for name, vector in found]


def _from_postgres(store: Any, ids: list[str]) -> Found:
    """Not by its `get_nodes`, which fails on half vectors and sends the texts as well."""
    with store._session() as session:
        return _pg_rows(session, store, ids)


async def _afrom_postgres(store: Any, ids: list[str]) -> Found:
    async with store._async_session() as session:
        found: Found = await session.run_sync(_pg_rows, store, ids)
    return found


def _plain(vector: Any) -> Any:
    return vector.to_list() if hasattr(vector, "to_list") else vector


def _from_nodes(store: Any, ids: list[str]) -> Found:
    """Milvus and others: where the nodes that are got by id carry their vectors."""
    try:
        return [(node.node_id, node.embedding) for node in store.get_nodes(node_ids=ids)]
    except NotImplementedError:
        return ()


async def _afrom_nodes(store: Any, ids: list[str]) -> Found:
    try:
        return [(node.node_id, node.embedding) for node in await store.aget_nodes(node_ids=ids)]
    except NotImplementedError:
        return ()


def _own_async(store: Any) -> bool:
    """Whether its `aget_nodes` is more than the default, which would block the event loop."""
    return type(store).aget_nodes is not BasePydanticVectorStore.aget_nodes


def _id(node: BaseNode) -> Any:
    return node.node_id


_QDRANT = ("client", "collection_name", "dense_vector_name")
_POSTGRES = ("_table_class", "_session", "_async_session")
_KINDS = Kinds(
    (
        Kind("SimpleVectorStore", ("data",), _from_simple, _id),
        Kind(
            "VectorStoreIndex",  # over a FaissVectorStore
            ("index_struct", "vector_store"),
            _from_faiss,
            _id,
            is_exact=lambda index: is_exact_faiss(index.vector_store.client),
        ),
        Kind(
            "FaissMapVectorStore",
            ("client", "_node_id_to_faiss_id_map", "_faiss_id_to_node_id_map"),
            _from_faiss_map,
            _id,
            is_exact=lambda store: is_exact_faiss(store.client),
        ),
        Kind("ChromaVectorStore", ("client",), _from_chroma, _id),
        Kind(
            "QdrantVectorStore",
            _QDRANT,
            _from_qdrant,
            _id,
            _afrom_qdrant,
            is_async=lambda store: getattr(store, "_aclient", None) is not None,
        ),
        Kind(
            "PGVectorStore",
            _POSTGRES,
            _from_postgres,
            _id,
            _afrom_postgres,
            is_exact=lambda store: not store.use_halfvec,
        ),
    ),
    logging.getLogger(__name__),
    other=Kind(
        "get_nodes",
        ("get_nodes", "aget_nodes"),
        _from_nodes,
        _id,
        _afrom_nodes,
        is_async=_own_async,
        is_exact=lambda _: False,
    ),
)
