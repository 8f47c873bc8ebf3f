"""The vectors that LangChain's stores already hold, and a search by the question's vector.

A store is known by the name of its class, or of one that it derives from, and by the attributes
that are read: no store's package is imported. Letters: n documents, d dimensions.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from langchain_core.documents import Document
from langchain_core.runnables import run_in_executor
from langchain_core.vectorstores import VectorStore

from sift_rag.stored import Found, Kind, Kinds, is_exact_faiss
from sift_rag.vectors import Rows


def stored_vectors(store: VectorStore, documents: Sequence[Document]) -> dict[int, Rows]:
    """The vectors that the store holds of documents it has returned, in one call to the store.

    A store that fails, or has changed since, is no error: what it does not give is left out, and
    the first failure of each sort is logged.

    Args:
        store: Where the documents come from. It is only read.
        documents: n of them; those without an id, or not in the store, are left out.

    Returns:
        Position in `documents` -> (d,) vector, scaled as the store keeps it. Empty where the store
        is of an unknown kind, or its index cannot give vectors back. They may be lossy where
        `is_exact` is False.
    """
    return _KINDS.rows(store, documents)


async def astored_vectors(store: VectorStore, documents: Sequence[Document]) -> dict[int, Rows]:
    """`stored_vectors` for callers in an event loop, and for stores that are asynchronous only."""
    return await _KINDS.arows(store, documents)


def is_exact(store: VectorStore) -> bool:
    """Whether the vectors that the store gives are surely those that it was given, up to length.

    Returns:
        False where that is not known, as of most FAISS indexes: embed one document anew and
        compare before trusting the others.
    """
    return _KINDS.is_exact(store)


def search(
    store: VectorStore, query: str, vector: list[float], k: int, **kwargs: Any
) -> list[tuple[Document, float | None]]:
    """The k nearest documents, by the question's vector where the store can search by it.

    Args:
        store: Any vector store.
        query: The question; used by stores that search by text, or by text and vector.
        vector: Its d numbers, as `store.embeddings.embed_query` gives them.
        k: How many at most.
        kwargs: Handed on to the store: filters and the like. FAISS looks at 20 documents before it
            filters, whatever k is: without a `fetch_k` of yours it is told 5 k here, and more until
            k pass. LanceDB is told to filter first, unless you say otherwise.

    Returns:
        Documents in the store's order, with the store's own score (a distance or a similarity, as
        the store has it), or None where it tells none.
    """
    for name, wanted, given in _ways(store, query, vector, k, kwargs):
        method = getattr(store, name, None)
        if method is None:
            continue
        try:
            found = _scored(method(wanted, **given))
            while more := _wider(store, given, kwargs, len(found)):
                given = more
                found = _scored(method(wanted, **given))
            return found
        except NotImplementedError:
            continue
    raise _cannot_search(store)


async def asearch(
    store: VectorStore, query: str, vector: list[float], k: int, **kwargs: Any
) -> list[tuple[Document, float | None]]:
    """`search` by the store's own asynchronous methods; what it lacks runs in a thread."""
    for name, wanted, given in _ways(store, query, vector, k, kwargs):
        method = getattr(store, f"a{name}", None) if _has_async(store) else None
        plain = getattr(store, name, None)
        call: Any = method or (plain and partial(run_in_executor, None, plain))
        if call is None:
            continue
        try:
            found = _scored(await call(wanted, **given))
            while more := _wider(store, given, kwargs, len(found)):
                given = more
                found = _scored(await call(wanted, **given))
            return found
        except NotImplementedError:
            continue
    raise _cannot_search(store)


def _ways(
    store: VectorStore, query: str, vector: list[float], k: int, kwargs: Mapping[str, Any]
) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """Methods to try, best first: name, first argument, keyword arguments."""
    kind = _KINDS.of(store)
    name = kind.name if kind else ""
    given: dict[str, Any] = {"k": k, **kwargs}
    if name == "FAISS" and kwargs.get("filter") is not None:
        given.setdefault("fetch_k", max(20, 5 * k))  # the ratio of its own defaults, 20 and 4
    if not _wants_text(store, kwargs):
        if name == "Chroma":
            yield "similarity_search_by_vector_with_relevance_scores", vector, given
        elif name == "LanceDB":  # its ..._with_relevance_scores forgets the filter
            given.setdefault("prefilter", True)  # else after the search, and few or none are left
            yield "similarity_search_by_vector", vector, {"score": True, **given}
        # A PGVectorStore that is set up for hybrid search finds the words here; others ignore it.
        words = {"fts_query": query} if name == "PGVectorStore" else {}
        yield "similarity_search_with_score_by_vector", vector, {**words, **given}
        yield "similarity_search_by_vector", vector, given
    yield "similarity_search_with_score", query, given
    yield "similarity_search", query, given


def _wider(
    store: VectorStore, given: dict[str, Any], kwargs: Mapping[str, Any], found: int
) -> dict[str, Any] | None:
    """Arguments for another search, where FAISS's filter left too few of what it looked at."""
    looked = given.get("fetch_k")
    if looked is None or "fetch_k" in kwargs or kwargs.get("filter") is None or found >= given["k"]:
        return None
    whole = getattr(getattr(store, "index", None), "ntotal", 0)
    return {**given, "fetch_k": min(4 * looked, whole)} if looked < whole else None


def _wants_text(store: VectorStore, kwargs: Mapping[str, Any]) -> bool:
    """Whether the search is set up to need the question's words: Qdrant, LanceDB, Milvus."""
    mode = getattr(store, "retrieval_mode", "dense")
    several = isinstance(getattr(store, "embedding_func", None), list)
    return (
        getattr(mode, "value", mode) != "dense"
        or kwargs.get("query_type", "vector") != "vector"
        or several
        or bool(getattr(store, "builtin_func", None))
    )


def _has_async(store: VectorStore) -> bool:
    """False for a PGVector on a synchronous engine: its `a...` methods are there, but fail."""
    return bool(getattr(store, "async_mode", True))


def _scored(found: Iterable[Any]) -> list[tuple[Document, float | None]]:
    pairs = [(item, None) if isinstance(item, Document) else item for item in found]
    return [(document, None if score is None else float(score)) for document, score in pairs]


def _cannot_search(store: VectorStore) -> NotImplementedError:
    return NotImplementedError(
        f"{type(store).__name__} can search neither by vector nor by text: every"
        " similarity_search method of it raised NotImplementedError."
    )


def _from_memory(store: Any, ids: list[str]) -> Found:
    return [(name, store.store[name]["vector"]) for name in ids if name in store.store]


_positions: WeakKeyDictionary[Any, tuple[dict[int, str], int, dict[str, int]]] = WeakKeyDictionary()
"""FAISS store -> its dict position -> id, the length that this had, and the way back."""


def _from_faiss(store: Any, ids: list[str]) -> Found:
    forward = store.index_to_docstore_id
    if store.index.ntotal != len(forward):  # an `add` failed half way: positions mean nothing
        raise ValueError(f"{store.index.ntotal} vectors, but {len(forward)} ids")
    seen = _positions.get(store)
    # FAISS.delete makes a new dict, adding lengthens the old one: nothing else changes it.
    if seen is None or seen[0] is not forward or seen[1] != len(forward):
        seen = (forward, len(forward), {name: place for place, name in forward.items()})
        _positions[store] = seen
    here = [name for name in ids if name in seen[2] and forward.get(seen[2][name]) == name]
    places = np.fromiter((seen[2][name] for name in here), dtype=np.int64, count=len(here))
    return zip(here, store.index.reconstruct_batch(places), strict=True)


def _from_get(store: Any, ids: list[str]) -> Found:
    """Chroma, PGVectorStore."""
    found = store.get(ids=ids, include=["embeddings"])
    return zip(found["ids"], found["embeddings"], strict=True)


async def _from_aget(store: Any, ids: list[str]) -> Found:
    found = await store.aget(ids=ids, include=["embeddings"])
    return zip(found["ids"], found["embeddings"], strict=True)


def _from_qdrant(store: Any, ids: list[Any]) -> Found:
    name = store.vector_name or ""
    points = store.client.retrieve(
        store.collection_name, ids, with_payload=False, with_vectors=[name] if name else True
    )
    for point in points:
        vectors = point.vector
        yield point.id, vectors.get(name) if isinstance(vectors, dict) else vectors


def _from_lancedb(store: Any, texts: list[str]) -> Found:
    """By text, as its documents come back without ids: equal texts have equal vectors."""
    text, vector = store._text_key, store._vector_key
    quoted = ", ".join("'" + name.replace("'", "''") + "'" for name in texts)
    query = store.get_table().search().where(f"`{text}` IN ({quoted})").select([text, vector])
    # Of texts that the table has many times not all rows are needed: bounded.
    found = query.limit(10 * len(texts)).to_arrow()
    return zip(found[text].to_pylist(), found[vector].to_pylist(), strict=True)


def _from_milvus(store: Any, keys: list[Any]) -> Found:
    key, vector = store._primary_field, store._vector_field
    found = store.client.query(store.collection_name, ids=keys, output_fields=[key, vector])
    return [(row[key], row[vector]) for row in found]


def _pgvector_rows(session: Any, store: Any, ids: list[str]) -> Found:
    row = store.EmbeddingStore
    found: Found = session.query(row.id, row.embedding).filter(row.id.in_(ids)).all()
    return found


def _from_pgvector(store: Any, ids: list[str]) -> Found:
    with store.session_maker() as session:
        return _pgvector_rows(session, store, ids)


async def _afrom_pgvector(store: Any, ids: list[str]) -> Found:
    async with store.session_maker() as session:
        found: Found = await session.run_sync(_pgvector_rows, store, ids)
    return found


def _is_exact(store: Any) -> bool:
    return is_exact_faiss(store.index)


def _id(document: Document) -> Any:
    return document.id


def _qdrant_id(document: Document) -> Any:
    return document.metadata.get("_id", document.id)


def _text(document: Document) -> Any:
    return document.page_content


def _pk(document: Document) -> Any:
    return document.metadata.get("pk")  # unless the user renamed that field


_FAISS = ("index", "index_to_docstore_id")
_QDRANT = ("client", "collection_name", "vector_name")
_LANCE = ("get_table", "_text_key", "_vector_key")
_MILVUS = ("client", "collection_name", "_primary_field", "_vector_field")
_KINDS = Kinds(
    (
        Kind("InMemoryVectorStore", ("store",), _from_memory, _id),
        Kind("FAISS", _FAISS, _from_faiss, _id, is_exact=_is_exact),
        Kind("Chroma", ("get",), _from_get, _id),
        Kind("QdrantVectorStore", _QDRANT, _from_qdrant, _qdrant_id),
        Kind("Qdrant", _QDRANT, _from_qdrant, _qdrant_id),
        Kind("LanceDB", _LANCE, _from_lancedb, _text),
        Kind("Milvus", _MILVUS, _from_milvus, _pk),
        Kind("PGVector", ("session_maker",), _from_pgvector, _id, _afrom_pgvector, _has_async),
        Kind("PGVectorStore", ("get", "aget"), _from_get, _id, _from_aget),
    ),
    logging.getLogger(__name__),
)
