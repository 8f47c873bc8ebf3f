"""`llama_index_sift.stores` on real stores: the vectors that they hold."""

import logging
import math
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest

pytest.importorskip("llama_index.core")

from llama_index.core import StorageContext, VectorStoreIndex, load_index_from_storage
from llama_index.core.schema import BaseNode, QueryBundle, TextNode
from llama_index.core.vector_stores.types import BasePydanticVectorStore, VectorStoreQueryResult
from llama_index_sift.stores import astored_vectors, is_exact, stored_vectors
from llama_index_stores import LOSSY, MORE, STORES, HashEmbedding, embedded_text, nodes
from numpy.typing import NDArray

QUESTION = "which rivers flood the mills of the county?"
EXACT = STORES | MORE
NORMALIZED = {"qdrant"}  # keeps the direction only
DELETES = ["chroma", "faiss-map", "postgres", "qdrant", "simple"]


@pytest.fixture
def embed_model() -> HashEmbedding:
    return HashEmbedding()


@pytest.fixture(params=sorted(EXACT))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def index(name: str, embed_model: HashEmbedding, tmp_path: Path) -> VectorStoreIndex:
    built = EXACT[name](embed_model, nodes(), tmp_path)
    embed_model.reset()
    return built


def nearest(index: VectorStoreIndex, embed_model: HashEmbedding, k: int = 10) -> list[BaseNode]:
    asked = QueryBundle(QUESTION, embedding=embed_model.vector(QUESTION).tolist())
    return [found.node for found in index.as_retriever(similarity_top_k=k).retrieve(asked)]


def assert_right(
    rows: dict[int, NDArray[np.float32]],
    found: list[BaseNode],
    embed_model: HashEmbedding,
    *,
    unit: bool = True,
) -> None:
    """Every node has its vector, and no other's."""
    assert sorted(rows) == list(range(len(found)))
    for position, node in enumerate(found):
        wanted = embed_model.vector(embedded_text(node))
        length = 1.0 if unit else np.linalg.norm(wanted)
        assert rows[position].dtype == np.float32
        right = wanted / np.linalg.norm(wanted) * length
        np.testing.assert_allclose(rows[position], right, atol=1e-6)


def cosine(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def test_vectors_are_those_that_were_embedded(
    index: VectorStoreIndex, embed_model: HashEmbedding
) -> None:
    found = nearest(index, embed_model)
    assert len(found) == 10
    assert [node.embedding for node in found] == [None] * 10  # stores drop them
    assert_right(stored_vectors(index, found), found, embed_model)
    assert is_exact(index) is True
    assert embed_model.queries == embed_model.texts == 0


def test_vectors_of_any_length_keep_it_or_are_normalized(name: str, tmp_path: Path) -> None:
    embed_model = HashEmbedding(unit=False)
    index = EXACT[name](embed_model, nodes(), tmp_path)
    found = nearest(index, embed_model)
    rows = stored_vectors(index, found)
    assert_right(rows, found, embed_model, unit=name in NORMALIZED)


def test_the_store_alone_is_enough_but_for_faiss(
    name: str, index: VectorStoreIndex, embed_model: HashEmbedding
) -> None:
    found = nearest(index, embed_model)
    rows = stored_vectors(index.vector_store, found)
    if name.startswith("faiss") and name != "faiss-map":  # only the index has the ids
        assert rows == {}
        assert is_exact(index.vector_store) is False
    else:
        assert_right(rows, found, embed_model)
        assert is_exact(index.vector_store) is True


def test_any_order_and_repeated_nodes(index: VectorStoreIndex, embed_model: HashEmbedding) -> None:
    found = nearest(index, embed_model)
    twice = [*reversed(found), found[3], found[3]]
    assert_right(stored_vectors(index, twice), twice, embed_model)


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("chroma", "get"),
        ("qdrant", "retrieve"),
        ("faiss", "reconstruct_batch"),
        ("faiss-map", "reconstruct_batch"),
    ],
)
def test_one_call_for_all(
    method: str,
    index: VectorStoreIndex,
    embed_model: HashEmbedding,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = nearest(index, embed_model)
    client = index.vector_store.client
    real, calls = getattr(client, method), []

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(method)
        return real(*args, **kwargs)

    # Chroma's collection is a pydantic model, which takes no new attributes.
    monkeypatch.setitem(client.__dict__, method, counted)
    assert len(stored_vectors(index, found)) == len(found)
    assert calls == [method]


@pytest.mark.parametrize("name", ["postgres"])
def test_one_statement_for_all(index: VectorStoreIndex, embed_model: HashEmbedding) -> None:
    from sqlalchemy import event

    found = nearest(index, embed_model)
    asked: list[str] = []
    engine = index.vector_store.client
    event.listen(engine, "before_cursor_execute", lambda *given: asked.append(given[2]))
    assert len(stored_vectors(index, found)) == len(found)
    ours = [statement for statement in asked if "embedding" in statement]
    assert len(ours) == 1
    assert ".text" not in ours[0]  # the passages are not sent again


def test_unknown_ids_are_left_out(index: VectorStoreIndex, embed_model: HashEmbedding) -> None:
    found = nearest(index, embed_model, k=3)
    strangers = [TextNode(text="not in any store"), TextNode(text="no UUID", id_="stranger's")]
    mixed = [found[0], strangers[0], found[1], strangers[1], found[2]]
    rows = stored_vectors(index, mixed)
    assert sorted(rows) == [0, 2, 4]
    assert_right(dict(enumerate(rows[i] for i in sorted(rows))), found, embed_model)
    assert stored_vectors(index, strangers) == {}


def test_no_nodes(index: VectorStoreIndex) -> None:
    assert stored_vectors(index, []) == {}


@pytest.mark.parametrize("name", DELETES)
def test_after_deleting_and_adding(index: VectorStoreIndex, embed_model: HashEmbedding) -> None:
    before = nearest(index, embed_model, k=24)
    gone = nodes()[23]
    index.delete_nodes([gone.node_id])
    rows = stored_vectors(index, before)
    left = [i for i, node in enumerate(before) if node.node_id != gone.node_id]
    assert sorted(rows) == left
    assert_right(dict(enumerate(rows[i] for i in left)), [before[i] for i in left], embed_model)
    new = TextNode(text=QUESTION, id_=str(uuid4()))
    index.insert_nodes([new])
    index.delete_nodes([gone.node_id])  # a second time
    asked = [new, *before]
    rows = stored_vectors(index, asked)
    assert sorted(rows) == [0, *(i + 1 for i in left)]
    assert_right({0: rows[0]}, [new], embed_model)


@pytest.mark.parametrize("name", ["chroma", "postgres", "qdrant", "simple"])
def test_after_deleting_a_source(index: VectorStoreIndex, embed_model: HashEmbedding) -> None:
    before = nearest(index, embed_model, k=24)
    index.delete_ref_doc("notes-1", delete_from_docstore=True)
    rows = stored_vectors(index, before)
    left = [i for i, node in enumerate(before) if node.ref_doc_id != "notes-1"]
    assert len(left) == 16
    assert sorted(rows) == left


@pytest.mark.parametrize(
    "unsafe", ["it's", 'a "quoted" id', "100% of a_b\\c; --", "naïve ☃\n2", ""]
)
def test_ids_that_need_quoting(
    unsafe: str, name: str, index: VectorStoreIndex, embed_model: HashEmbedding
) -> None:
    node: BaseNode = TextNode(text="a note of its own", id_=unsafe)
    if name == "qdrant" or (name == "chroma" and not unsafe):  # they refuse such ids
        assert stored_vectors(index, [node]) == {}
        return
    index.insert_nodes([node])
    assert_right(stored_vectors(index, [node]), [node], embed_model)


def test_subclasses_are_known(index: VectorStoreIndex, embed_model: HashEmbedding) -> None:
    store = index.vector_store
    kind = type(store)
    found = nearest(index, embed_model)
    store.__class__ = type("Mine", (type("Ours", (kind,), {}),), {})
    index.__class__ = type("MyIndex", (VectorStoreIndex,), {})
    assert type(store).__name__ == "Mine"
    assert_right(stored_vectors(index, found), found, embed_model)
    assert is_exact(index) is True


def test_nothing_is_changed(index: VectorStoreIndex, embed_model: HashEmbedding) -> None:
    found = nearest(index, embed_model)
    before = [node.model_dump() for node in found]
    for row in stored_vectors(index, found).values():
        row[:] = 0.0  # the caller's own copy
    assert [node.model_dump() for node in found] == before
    assert [node.node_id for node in nearest(index, embed_model)] == [n.node_id for n in found]
    assert_right(stored_vectors(index, found), found, embed_model)


async def test_async_vectors_are_the_same(
    index: VectorStoreIndex, embed_model: HashEmbedding
) -> None:
    found = nearest(index, embed_model)
    assert_right(await astored_vectors(index, found), found, embed_model)
    assert await astored_vectors(index, []) == {}


def test_threads_share_a_store(index: VectorStoreIndex, embed_model: HashEmbedding) -> None:
    found = nearest(index, embed_model)
    with ThreadPoolExecutor(8) as pool:
        for rows in pool.map(lambda _: stored_vectors(index, found), range(16)):
            assert_right(rows, found, embed_model)


# FAISS, whose vectors have numbers only.


@pytest.mark.parametrize("name", ["faiss", "faiss-map", "simple"])
def test_an_index_from_disk(
    name: str, index: VectorStoreIndex, embed_model: HashEmbedding, tmp_path: Path
) -> None:
    found = nearest(index, embed_model)
    folder = str(tmp_path / "kept")
    index.storage_context.persist(folder)
    given: dict[str, Any] = {}
    if name != "simple":
        kind: Any = type(index.vector_store)
        given["vector_store"] = kind.from_persist_dir(folder)
    context = StorageContext.from_defaults(persist_dir=folder, **given)
    again: Any = load_index_from_storage(context, embed_model=embed_model)
    assert [node.node_id for node in nearest(again, embed_model)] == [n.node_id for n in found]
    assert_right(stored_vectors(again, found), found, embed_model)


@pytest.mark.parametrize("name", ["faiss", "faiss-map"])
def test_a_node_that_is_added_again_has_its_newest_vector(
    index: VectorStoreIndex, embed_model: HashEmbedding
) -> None:
    node: BaseNode = TextNode(text=QUESTION, id_=nodes()[5].node_id)
    assert len(stored_vectors(index, [node])) == 1  # the old one, and where it lies is remembered
    index.insert_nodes([node])
    assert_right(stored_vectors(index, [node]), [node], embed_model)


@pytest.mark.parametrize("name", ["faiss"])
def test_two_indexes_over_one_faiss(index: VectorStoreIndex, embed_model: HashEmbedding) -> None:
    other = VectorStoreIndex(
        [TextNode(text=QUESTION)],
        storage_context=StorageContext.from_defaults(vector_store=index.vector_store),
        embed_model=embed_model,
    )
    theirs: list[BaseNode] = list(other.docstore.docs.values())
    mine: list[BaseNode] = list(index.docstore.docs.values())
    assert_right(stored_vectors(other, theirs), theirs, embed_model)
    assert_right(stored_vectors(index, mine), mine, embed_model)
    assert stored_vectors(index, theirs) == stored_vectors(other, mine) == {}


@pytest.mark.parametrize("name", ["faiss"])
def test_numbers_that_faiss_has_no_more_are_not_asked_for(
    index: VectorStoreIndex, caplog: pytest.LogCaptureFixture
) -> None:
    index.vector_store.client.reset()
    assert stored_vectors(index, list(nodes())) == {}
    assert not [each for each in caplog.records if each.name == "llama_index_sift.stores"]


@pytest.mark.parametrize("name", ["faiss-map"])
def test_faiss_map_that_gave_one_number_twice(
    index: VectorStoreIndex, embed_model: HashEmbedding
) -> None:
    """Of 24, delete one and add one: the new one gets number 23, which the last one has."""
    last = nodes()[23]
    new = TextNode(text=QUESTION)
    index.delete_nodes([nodes()[4].node_id])
    index.insert_nodes([new])
    assert index.vector_store._node_id_to_faiss_id_map[last.node_id] == 23  # type: ignore[attr-defined]
    found: list[BaseNode] = [new, *nodes()[:4], *nodes()[5:23]]
    rows = stored_vectors(index, [*found, last])
    assert len(found) not in rows  # it is not known which of the two vectors is the last one's
    assert_right(rows, found, embed_model)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("faiss-map-one-way", None),  # it has no way from an id to a vector
        ("faiss-ivf", None),
        ("faiss-ivf-direct", 1.0),
        ("postgres-half", 1.0),
        ("faiss-sq", 0.99),
        ("faiss-ivfpq-direct", 0.0),
        ("faiss-pca", 0.0),
        ("faiss-lsh", 0.0),
    ],
)
async def test_other_indexes_must_be_compared(
    name: str, wanted: float | None, embed_model: HashEmbedding, tmp_path: Path
) -> None:
    index = LOSSY[name](embed_model, nodes(), tmp_path)
    assert is_exact(index) is False
    before = _direct_map(index)
    found = nearest(index, embed_model, k=4)
    rows = stored_vectors(index, found)
    assert _direct_map(index) == before  # the user's index is as it was
    assert sorted(await astored_vectors(index, found)) == sorted(rows)
    if wanted is None:
        assert rows == {}
        return
    same = [cosine(rows[i], embed_model.vector(embedded_text(n))) for i, n in enumerate(found)]
    assert min(same) > wanted - 1e-5 if wanted else min(same) < 0.999


def _direct_map(index: Any) -> Any:
    direct = getattr(index.vector_store.client, "direct_map", None)
    return direct and direct.type


# Qdrant, whose points may have several vectors, and whose client may be asynchronous only.


def _qdrant(embed_model: HashEmbedding, **settings: Any) -> VectorStoreIndex:
    pytest.importorskip("qdrant_client")
    from llama_index.vector_stores.qdrant import QdrantVectorStore

    store = QdrantVectorStore("tests", index_doc_id=False, **settings)
    context = StorageContext.from_defaults(vector_store=store)
    return VectorStoreIndex([], storage_context=context, embed_model=embed_model)


def _sparse(texts: list[str]) -> tuple[list[list[int]], list[list[float]]]:
    return [[len(text)] for text in texts], [[1.0] for _ in texts]


def test_qdrant_that_searches_words_too(embed_model: HashEmbedding) -> None:
    from qdrant_client import QdrantClient

    client = QdrantClient(":memory:")
    hybrid = {"enable_hybrid": True, "sparse_doc_fn": _sparse, "sparse_query_fn": _sparse}
    index = _qdrant(embed_model, client=client, dense_vector_name="mine", **hybrid)
    index.insert_nodes(nodes())
    found = nearest(index, embed_model)
    assert_right(stored_vectors(index, found), found, embed_model)
    again = _qdrant(embed_model, client=client, dense_vector_name="mine", **hybrid)
    assert_right(stored_vectors(again, found), found, embed_model)


@pytest.mark.parametrize("name", ["qdrant"])
def test_qdrant_is_asked_for_uuids_only(
    index: VectorStoreIndex, embed_model: HashEmbedding, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server, unlike the local mode, refuses all ids for one that is none."""
    client = index.vector_store.client
    real, asked = client.retrieve, []

    def heard(ids: list[str], **kwargs: Any) -> Any:
        asked.append(ids)
        return real(ids=ids, **kwargs)

    monkeypatch.setattr(client, "retrieve", heard)
    found = nearest(index, embed_model, k=2)
    assert sorted(stored_vectors(index, [found[0], TextNode(id_="page 3"), found[1]])) == [0, 2]
    assert asked == [[node.node_id for node in found]]


async def test_qdrant_that_is_asynchronous_only(embed_model: HashEmbedding) -> None:
    from qdrant_client import AsyncQdrantClient

    index = _qdrant(embed_model, aclient=AsyncQdrantClient(":memory:"))
    await index.ainsert_nodes(nodes())
    asked = QueryBundle(QUESTION, embedding=embed_model.vector(QUESTION).tolist())
    found = [each.node for each in await index.as_retriever(similarity_top_k=5).aretrieve(asked)]
    assert len(found) == 5
    assert_right(await astored_vectors(index, found), found, embed_model)
    assert stored_vectors(index, found) == {}  # it cannot be asked without a loop


async def test_qdrant_that_is_synchronous_only(embed_model: HashEmbedding) -> None:
    from qdrant_client import QdrantClient

    index = _qdrant(embed_model, client=QdrantClient(":memory:"))
    index.insert_nodes(nodes())
    found = nearest(index, embed_model)
    assert_right(await astored_vectors(index, found), found, embed_model)


# Failing stores.


def _drop_postgres(index: Any) -> None:
    store = index.vector_store
    store._table_class.__table__.drop(store.client)


@pytest.mark.parametrize(
    ("name", "break_it"),
    [
        ("simple", lambda index: setattr(index.vector_store, "data", None)),
        ("faiss", lambda index: setattr(index.vector_store, "_faiss_index", None)),
        ("faiss-map", lambda index: setattr(index.vector_store, "_faiss_index", None)),
        ("chroma", lambda index: setattr(index.vector_store, "_collection", None)),
        ("qdrant", lambda index: index.vector_store.client.delete_collection("tests")),
        ("postgres", _drop_postgres),
    ],
)
async def test_a_failing_store_gives_nothing_and_says_so_once(
    break_it: Callable[[Any], None],
    index: VectorStoreIndex,
    embed_model: HashEmbedding,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sift_rag.stored._reported", set())
    found = nearest(index, embed_model)
    break_it(index)
    with caplog.at_level(logging.WARNING, logger="llama_index_sift.stores"):
        assert stored_vectors(index, found) == {}
        assert stored_vectors(index, found) == {}
    said = [each for each in caplog.records if each.name == "llama_index_sift.stores"]
    assert len(said) == 1
    assert "embedded anew" in said[0].getMessage()
    assert await astored_vectors(index, found) == {}


# Stores that are not known by name.


class Plain(BasePydanticVectorStore):
    """A store that can do no more than it must."""

    stores_text: bool = True

    @property
    def client(self) -> Any:
        return None

    def add(self, nodes: Any, **kwargs: Any) -> list[str]:
        return []

    def delete(self, ref_doc_id: str, **kwargs: Any) -> None:
        return None

    def query(self, query: Any, **kwargs: Any) -> VectorStoreQueryResult:
        return VectorStoreQueryResult(nodes=[], similarities=[], ids=[])


class Giving(Plain):
    """Its nodes come back by id, in another order, with their vectors; the first one has none."""

    asked: list[Any] = []  # noqa: RUF012

    def get_nodes(self, node_ids: list[str] | None = None, filters: Any = None) -> list[Any]:
        here = threading.current_thread() is threading.main_thread()
        self.asked.append("get_nodes" if here else "get_nodes in a thread")
        kept = {node.node_id: node for node in nodes(4)}
        for node in list(kept.values())[1:]:
            node.embedding = [float(node.metadata["number"]), 1.0]
        return [kept[name] for name in reversed(node_ids or []) if name in kept]


class GivingLater(Giving):
    """The same by an asynchronous method."""

    async def aget_nodes(self, node_ids: Any = None, filters: Any = None) -> list[Any]:
        self.asked.append("aget_nodes")
        return super().get_nodes(node_ids, filters)


@pytest.mark.parametrize("kind", [Giving, GivingLater])
async def test_another_store_is_asked_for_its_nodes(kind: type[Giving]) -> None:
    store = kind(asked=[])
    found: list[BaseNode] = [*nodes(4), TextNode(text="a stranger")]
    for rows in (stored_vectors(store, found), await astored_vectors(store, found)):
        assert {i: row.tolist() for i, row in rows.items()} == {i: [i, 1.0] for i in (1, 2, 3)}
    later = ["aget_nodes", "get_nodes"] if kind is GivingLater else ["get_nodes in a thread"]
    assert store.asked == ["get_nodes", *later]
    assert is_exact(store) is False  # whether they are is for the first comparison to tell


async def test_a_store_that_gives_no_nodes_is_no_failure(caplog: pytest.LogCaptureFixture) -> None:
    found: list[BaseNode] = list(nodes(3))
    assert stored_vectors(Plain(), found) == {}
    assert await astored_vectors(Plain(), found) == {}
    assert is_exact(Plain()) is False
    assert not [each for each in caplog.records if each.name == "llama_index_sift.stores"]


def test_a_store_of_a_known_name_but_another_make_is_asked_as_others_are() -> None:
    other = type("QdrantVectorStore", (Plain,), {"__module__": __name__})()
    assert stored_vectors(other, list(nodes(3))) == {}
    assert is_exact(other) is False
    giving = type("PGVectorStore", (Giving,), {"__module__": __name__})(asked=[])
    assert sorted(stored_vectors(giving, list(nodes(4)))) == [1, 2, 3]


def test_scores_of_faiss_are_distances(embed_model: HashEmbedding, tmp_path: Path) -> None:
    """Why no score of a store is ever interpreted."""
    index = STORES["faiss"](embed_model, nodes(), tmp_path)
    asked = QueryBundle(QUESTION, embedding=embed_model.vector(QUESTION).tolist())
    scores = [each.score or math.nan for each in index.as_retriever().retrieve(asked)]
    assert scores == sorted(scores)
