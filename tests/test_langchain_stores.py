"""`langchain_sift.stores` on real stores: their vectors, and searches by the question's."""

import logging
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
from langchain_core.documents import Document
from langchain_core.vectorstores import InMemoryVectorStore, VectorStore
from langchain_sift.stores import asearch, astored_vectors, is_exact, search, stored_vectors
from langchain_stores import LOSSY, STORES, Builder, HashEmbeddings, passages, postgres_uri
from numpy.typing import NDArray

QUESTION = "which rivers flood the mills of the county?"
NORMALIZED = {"faiss-normalized", "qdrant"}  # these keep the direction only
DELETES = sorted(set(STORES) - {"faiss-hnsw"})  # faiss cannot take vectors out of an HNSW graph
ALL = {**STORES, **LOSSY}


@pytest.fixture
def embeddings() -> HashEmbeddings:
    return HashEmbeddings()


@pytest.fixture(params=sorted(STORES))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def store(name: str, embeddings: HashEmbeddings, tmp_path: Path) -> VectorStore:
    built = STORES[name](embeddings, passages(), tmp_path)
    embeddings.reset()
    return built


def nearest(store: VectorStore, embeddings: HashEmbeddings, k: int = 10) -> list[Document]:
    vector = embeddings.vector(QUESTION).tolist()
    return [document for document, _ in search(store, QUESTION, vector, k)]


def assert_right(
    rows: dict[int, NDArray[np.float32]],
    documents: list[Document],
    embeddings: HashEmbeddings,
    *,
    unit: bool = True,
) -> None:
    """Every document has its vector, and no other's."""
    assert sorted(rows) == list(range(len(documents)))
    for position, document in enumerate(documents):
        wanted = embeddings.vector(document.page_content)
        length = 1.0 if unit else np.linalg.norm(wanted)
        row = rows[position]
        assert row.dtype == np.float32
        np.testing.assert_allclose(row, wanted / np.linalg.norm(wanted) * length, atol=1e-6)


def test_vectors_are_those_that_were_embedded(
    store: VectorStore, embeddings: HashEmbeddings
) -> None:
    found = nearest(store, embeddings)
    assert len(found) == 10
    assert_right(stored_vectors(store, found), found, embeddings)
    assert is_exact(store) is True
    assert embeddings.queries == embeddings.documents == 0


def test_vectors_of_any_length_keep_it_or_are_normalized(name: str, tmp_path: Path) -> None:
    embeddings = HashEmbeddings(unit=False)
    store = STORES[name](embeddings, passages(), tmp_path)
    found = nearest(store, embeddings)
    rows = stored_vectors(store, found)
    assert_right(rows, found, embeddings, unit=name in NORMALIZED)


def test_any_order_and_repeated_documents(store: VectorStore, embeddings: HashEmbeddings) -> None:
    found = nearest(store, embeddings)
    twice = [*reversed(found), found[3], found[3]]
    assert_right(stored_vectors(store, twice), twice, embeddings)


@pytest.mark.parametrize(
    ("name", "owner", "method"),
    [
        ("chroma", "", "get"),
        ("qdrant", "client", "retrieve"),
        ("qdrant-named", "client", "retrieve"),
        ("lancedb", "", "get_table"),
        ("pgvector", "", "session_maker"),
        ("pgvectorstore", "", "get"),
    ],
)
def test_one_call_for_all(
    owner: str,
    method: str,
    store: VectorStore,
    embeddings: HashEmbeddings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = nearest(store, embeddings)
    target = getattr(store, owner) if owner else store
    real, calls = getattr(target, method), []

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(method)
        return real(*args, **kwargs)

    monkeypatch.setattr(target, method, counted)
    assert len(stored_vectors(store, found)) == len(found)
    assert calls == [method]


def test_documents_without_ids(name: str, embeddings: HashEmbeddings, tmp_path: Path) -> None:
    store = STORES[name](embeddings, passages(ids=False), tmp_path)
    found = nearest(store, embeddings)  # the store gave ids of its own
    assert_right(stored_vectors(store, found), found, embeddings)
    bare = [Document(document.page_content) for document in found]
    rows = stored_vectors(store, bare)
    if name == "lancedb":  # it goes by text
        assert_right(rows, bare, embeddings)
    else:
        assert rows == {}


def test_unknown_ids_are_left_out(store: VectorStore, embeddings: HashEmbeddings) -> None:
    found = nearest(store, embeddings, k=3)
    stranger = Document("not in any store", id=str(uuid4()))
    mixed = [found[0], stranger, found[1], Document("no id"), found[2]]
    rows = stored_vectors(store, mixed)
    assert sorted(rows) == [0, 2, 4]
    assert_right(dict(enumerate(rows[i] for i in sorted(rows))), found, embeddings)
    assert stored_vectors(store, [stranger]) == {}


def test_no_documents(store: VectorStore) -> None:
    assert stored_vectors(store, []) == {}


@pytest.mark.parametrize("name", DELETES)
def test_after_deleting_and_adding(store: VectorStore, embeddings: HashEmbeddings) -> None:
    before = nearest(store, embeddings, k=24)
    assert_right(stored_vectors(store, before), before, embeddings)
    gone, new = passages()[4], Document("rivers flood mills", id=str(uuid4()), metadata={})
    new.metadata = {"topic": "rivers", "number": 99}
    store.delete([str(gone.id)])
    rows = stored_vectors(store, before)
    left = [i for i, document in enumerate(before) if document.page_content != gone.page_content]
    assert sorted(rows) == left
    store.add_documents([new], ids=[str(new.id)])
    after = nearest(store, embeddings, k=24)
    texts = {document.page_content for document in after}
    assert new.page_content in texts
    assert gone.page_content not in texts
    assert_right(stored_vectors(store, after), after, embeddings)


@pytest.mark.parametrize("unsafe", ["it's", 'a "quoted" text', "100% of a_b\\c; --", "naïve ☃\n2"])
def test_texts_that_need_quoting(
    unsafe: str, store: VectorStore, embeddings: HashEmbeddings
) -> None:
    metadata = {"topic": unsafe, "number": 1}
    store.add_documents([Document(unsafe, metadata=metadata)], ids=[str(uuid4())])
    found = nearest(store, embeddings, k=25)
    assert unsafe in {document.page_content for document in found}
    assert_right(stored_vectors(store, found), found, embeddings)


def test_equal_texts_under_other_ids(store: VectorStore, embeddings: HashEmbeddings) -> None:
    metadata = {"topic": "rivers", "number": 1}
    copies = [Document(QUESTION, metadata=metadata) for _ in range(3)]
    store.add_documents(copies, ids=[str(uuid4()) for _ in copies])
    found = nearest(store, embeddings, k=5)
    assert [document.page_content for document in found[:3]] == [QUESTION] * 3
    assert_right(stored_vectors(store, found), found, embeddings)


def test_subclasses_are_known(store: VectorStore, embeddings: HashEmbeddings) -> None:
    kind = type(store)
    store.__class__ = type("Mine", (type("Ours", (kind,), {}),), {})
    assert type(store).__name__ == "Mine"
    found = nearest(store, embeddings)
    assert_right(stored_vectors(store, found), found, embeddings)


async def test_async_vectors_are_the_same(store: VectorStore, embeddings: HashEmbeddings) -> None:
    found = nearest(store, embeddings)
    assert_right(await astored_vectors(store, found), found, embeddings)
    assert await astored_vectors(store, []) == {}


def test_threads_share_a_store(store: VectorStore, embeddings: HashEmbeddings) -> None:
    found = nearest(store, embeddings)
    with ThreadPoolExecutor(8) as pool:
        for rows in pool.map(lambda _: stored_vectors(store, found), range(16)):
            assert_right(rows, found, embeddings)


@pytest.mark.filterwarnings("ignore:The class `Qdrant` was deprecated")
def test_qdrant_s_older_class(embeddings: HashEmbeddings, tmp_path: Path) -> None:
    new: Any = STORES["qdrant"](embeddings, passages(), tmp_path)
    from langchain_qdrant import Qdrant

    found = nearest(new, embeddings)
    old = Qdrant(new.client, "tests", embeddings)  # its own search calls what today's client lacks
    assert_right(stored_vectors(old, found), found, embeddings)


# Searching.


def pairs(found: list[Any]) -> list[tuple[str, Any]]:
    return [(document.page_content, pytest.approx(score)) for document, score in found]


@pytest.mark.parametrize("name", sorted(ALL))
async def test_search_is_the_store_s_own(
    name: str, embeddings: HashEmbeddings, tmp_path: Path
) -> None:
    store = ALL[name](embeddings, passages(), tmp_path)
    wanted = pairs(store.similarity_search_with_score(QUESTION, k=7))
    embeddings.reset()
    vector = embeddings.vector(QUESTION).tolist()
    found = search(store, QUESTION, vector, 7)
    assert pairs(found) == wanted
    assert all(type(score) is float for _, score in found)
    assert pairs(await asearch(store, QUESTION, vector, 7)) == wanted
    assert embeddings.queries == 0


def topic_filter(name: str, topic: str) -> Any:
    if name == "memory":
        return lambda document: document.metadata["topic"] == topic
    if name.startswith("qdrant"):
        from qdrant_client import models

        match = models.MatchValue(value=topic)
        condition = models.FieldCondition(key="metadata.topic", match=match)
        return models.Filter(must=[condition])
    if name == "milvus":
        return f"topic == '{topic}'"
    return f"metadata.topic = '{topic}'" if name == "lancedb" else {"topic": topic}


FILTERS = sorted(set(STORES) - {"pgvectorstore"})  # that one filters by columns of the table


@pytest.mark.parametrize("name", FILTERS)
async def test_filters_reach_the_store(
    name: str, store: VectorStore, embeddings: HashEmbeddings
) -> None:
    extra = {"prefilter": True} if name == "lancedb" else {}
    word = "expr" if name == "milvus" else "filter"
    asked = {word: topic_filter(name, "forests"), **extra}
    vector = embeddings.vector(QUESTION).tolist()
    found = search(store, QUESTION, vector, 6, **asked)
    assert len(found) == 6
    assert {document.metadata["topic"] for document, _ in found} == {"forests"}
    assert pairs(await asearch(store, QUESTION, vector, 6, **asked)) == pairs(found)
    documents = [document for document, _ in found]
    assert_right(stored_vectors(store, documents), documents, embeddings)


def test_faiss_with_a_filter_looks_at_more_than_its_20(
    embeddings: HashEmbeddings, tmp_path: Path
) -> None:
    store = STORES["faiss-l2"](embeddings, passages(200), tmp_path)
    vector = embeddings.vector(QUESTION).tolist()
    asked: dict[str, Any] = {"filter": {"topic": "forests"}}
    assert len(store.similarity_search(QUESTION, k=40, **asked)) < 10
    assert len(search(store, QUESTION, vector, 40, **asked)) == 40
    assert len(search(store, QUESTION, vector, 40, **asked, fetch_k=20)) < 10  # as the user says


@pytest.mark.filterwarnings("ignore:create_fts_index is deprecated")  # langchain-community's
def test_a_search_for_words_gets_them(embeddings: HashEmbeddings, tmp_path: Path) -> None:
    store = STORES["lancedb"](embeddings, passages(), tmp_path)
    store.add_texts(["zebra"], [{"topic": "zoo", "number": 1}])
    vector = embeddings.vector("rivers").tolist()
    found = search(store, "zebra", vector, 3, query_type="fts")
    assert [document.page_content for document, _ in found] == ["zebra"]


def test_qdrant_that_searches_words_too(embeddings: HashEmbeddings) -> None:
    pytest.importorskip("qdrant_client")
    from langchain_qdrant import QdrantVectorStore, RetrievalMode, SparseEmbeddings, SparseVector
    from qdrant_client import QdrantClient, models

    class Words(SparseEmbeddings):
        def embed_documents(self, texts: list[str]) -> list[SparseVector]:
            return [self.embed_query(text) for text in texts]

        def embed_query(self, text: str) -> SparseVector:
            found = sorted({zlib.crc32(word.encode()) % 9973 for word in text.split()})
            return SparseVector(indices=found, values=[1.0] * len(found))

    client = QdrantClient(":memory:")
    size = models.VectorParams(size=embeddings.dimensions, distance=models.Distance.COSINE)
    sparse = {"words": models.SparseVectorParams()}
    client.create_collection("tests", vectors_config=size, sparse_vectors_config=sparse)
    store = QdrantVectorStore(
        client,
        "tests",
        embeddings,
        retrieval_mode=RetrievalMode.HYBRID,
        sparse_embedding=Words(),
        sparse_vector_name="words",
    )
    store.add_documents([*passages(), Document("zebra", id=str(uuid4()))])
    far = embeddings.vector("rivers mountains harbours").tolist()
    found = search(store, "zebra", far, 6)  # by its words: by that vector alone it is not near
    assert pairs(found) == pairs(store.similarity_search_with_score("zebra", k=6))
    documents = [document for document, _ in found]
    assert "zebra" in {document.page_content for document in documents}
    assert_right(stored_vectors(store, documents), documents, embeddings)


class Plain(VectorStore):
    """A store of which only some methods are there; each tells what it was asked."""

    def __init__(self, *refusing: str) -> None:
        self.refusing = refusing

    def _answer(self, method: str, asked: Any, k: int, kwargs: Any) -> Document:
        if method in self.refusing:
            raise NotImplementedError
        return Document(method, metadata={"asked": asked, "k": k, **kwargs})

    def similarity_search_by_vector(self, embedding: Any, k: int = 4, **kwargs: Any) -> Any:
        return [self._answer("by_vector", embedding, k, kwargs)]

    def similarity_search_with_score(self, query: str, k: int = 4, **kwargs: Any) -> Any:
        return [(self._answer("with_score", query, k, kwargs), 0.5)]

    def similarity_search(self, query: str, k: int = 4, **kwargs: Any) -> Any:
        return [self._answer("plain", query, k, kwargs)]

    @classmethod
    def from_texts(cls, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError


async def test_unknown_stores_are_searched_as_well_as_they_can() -> None:
    for refused, method, asked, score in [
        ((), "by_vector", [1.0], None),
        (("by_vector",), "with_score", "q", 0.5),
        (("by_vector", "with_score"), "plain", "q", None),
    ]:
        store = Plain(*refused)
        for found in (
            search(store, "q", [1.0], 3, tenant="a"),
            await asearch(store, "q", [1.0], 3, tenant="a"),
        ):
            document = Document(method, metadata={"asked": asked, "k": 3, "tenant": "a"})
            assert found == [(document, score)]
    with_words: Any = Plain()
    with_words.builtin_func = "BM25"  # as Milvus has it
    assert search(with_words, "q", [1.0], 3)[0][0].page_content == "with_score"
    with pytest.raises(NotImplementedError, match="Plain can search neither"):
        search(Plain("by_vector", "with_score", "plain"), "q", [1.0], 3)
    with pytest.raises(NotImplementedError, match="Plain can search neither"):
        await asearch(Plain("by_vector", "with_score", "plain"), "q", [1.0], 3)


def test_an_error_of_the_search_reaches_the_caller(embeddings: HashEmbeddings) -> None:
    store = InMemoryVectorStore(embeddings)
    store.add_documents(passages())
    with pytest.raises(ValueError, match="broken filter"):
        search(store, "q", embeddings.embed_query("q"), 3, filter=_broken)


def _broken(_: Document) -> bool:
    raise ValueError("broken filter")


# FAISS indexes that must be asked first.


@pytest.mark.parametrize(
    ("name", "cosine"),
    [
        ("faiss-ivf", None),  # it has no way from an id to a vector
        ("faiss-ivfpq", None),
        ("faiss-ivf-direct", 1.0),
        ("faiss-sq", 0.99),
        ("faiss-ivfpq-direct", 0.0),
        ("faiss-pca", 0.0),
        ("faiss-lsh", 0.0),
    ],
)
def test_other_faiss_indexes_must_be_compared(
    name: str, cosine: float | None, embeddings: HashEmbeddings, tmp_path: Path
) -> None:
    store = LOSSY[name](embeddings, passages(), tmp_path)
    assert is_exact(store) is False
    before = _direct_map(store)
    found = nearest(store, embeddings, k=5)
    rows = stored_vectors(store, found)
    assert _direct_map(store) == before  # the user's index is as it was
    if cosine is None:
        assert rows == {}
        return
    wanted = [embeddings.vector(document.page_content) for document in found]
    same = [_cosine(rows[i], wanted[i]) for i in range(5)]
    if cosine:
        assert min(same) > cosine - 1e-5
    else:
        assert min(same) < 0.999


def _direct_map(store: Any) -> Any:
    direct = getattr(store.index, "direct_map", None)
    return direct and direct.type


def _cosine(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


@pytest.mark.parametrize(("inner", "exact"), [("Flat", True), ("SQ8", False)])
def test_faiss_with_ids_of_its_own(inner: str, exact: bool, embeddings: HashEmbeddings) -> None:
    store = _id_mapped(embeddings, inner)
    found = nearest(store, embeddings, k=5)
    rows = stored_vectors(store, found)
    assert is_exact(store) is exact
    for i, document in enumerate(found):
        assert _cosine(rows[i], embeddings.vector(document.page_content)) > 0.999


def _id_mapped(embeddings: HashEmbeddings, inner: str) -> VectorStore:
    """As users build one to choose faiss's own numbers."""
    store: Any = LOSSY["faiss-ivf"](embeddings, [], Path())
    import faiss

    documents = passages()
    numbers = np.arange(len(documents)) * 7 + 100
    rows = np.stack([embeddings.vector(document.page_content) for document in documents])
    index: Any = faiss.IndexIDMap2(faiss.index_factory(rows.shape[1], inner))
    index.train(rows)
    index.add_with_ids(rows, numbers)
    store.index = index
    store.docstore.add({str(document.id): document for document in documents})
    pairs = zip(numbers.tolist(), documents, strict=True)
    store.index_to_docstore_id = {number: str(document.id) for number, document in pairs}
    return store  # type: ignore[no-any-return]


def test_faiss_way_back_is_built_once(embeddings: HashEmbeddings, tmp_path: Path) -> None:
    class Counting(dict[int, str]):
        walks = 0

        def items(self) -> Any:
            Counting.walks += 1
            return super().items()

    store: Any = STORES["faiss-l2"](embeddings, passages(), tmp_path)
    store.index_to_docstore_id = Counting(store.index_to_docstore_id)
    found = nearest(store, embeddings)
    for _ in range(3):
        assert_right(stored_vectors(store, found), found, embeddings)
    assert Counting.walks == 1
    store.add_texts([QUESTION])  # lengthens the same dict
    found = nearest(store, embeddings)
    assert found[0].page_content == QUESTION
    assert_right(stored_vectors(store, found), found, embeddings)
    assert Counting.walks == 2


def test_faiss_one_out_and_one_in(embeddings: HashEmbeddings, tmp_path: Path) -> None:
    store = STORES["faiss-l2"](embeddings, passages(), tmp_path)
    found = nearest(store, embeddings)
    stored_vectors(store, found)  # remembers where each is
    store.delete([str(passages()[0].id)])
    store.add_texts([QUESTION])  # as many as before, all at other places
    found = nearest(store, embeddings)
    assert_right(stored_vectors(store, found), found, embeddings)


def test_faiss_store_that_an_add_left_half_done(embeddings: HashEmbeddings, tmp_path: Path) -> None:
    store = STORES["faiss-l2"](embeddings, passages(), tmp_path)
    found = nearest(store, embeddings)
    with pytest.raises(ValueError, match="ids that already exist"):
        store.add_documents(passages()[:1], ids=[str(passages()[0].id)])
    assert stored_vectors(store, found) == {}  # its vectors and ids no longer go together


# Failing stores.


def _close_chroma(store: Any) -> None:
    store.delete_collection()


def _close_qdrant(store: Any) -> None:
    store.client.close()


def _drop_lancedb(store: Any) -> None:
    store._connection.drop_all_tables()


def _drop_pgvector(store: Any) -> None:
    store.drop_tables()


@pytest.mark.parametrize(
    ("name", "break_it"),
    [
        ("memory", lambda store: setattr(store, "store", None)),
        ("faiss-l2", lambda store: setattr(store, "index", None)),
        ("chroma", _close_chroma),
        ("qdrant", _close_qdrant),
        ("lancedb", _drop_lancedb),
        ("pgvector", _drop_pgvector),
        ("pgvectorstore", lambda store: store._engine.drop_table(store.get_table_name())),
    ],
)
async def test_a_failing_store_gives_nothing_and_says_so_once(
    name: str,
    break_it: Callable[[Any], None],
    embeddings: HashEmbeddings,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sift_rag.stored._reported", set())
    store = STORES[name](embeddings, passages(), tmp_path)
    found = nearest(store, embeddings)
    break_it(store)
    with caplog.at_level(logging.WARNING, logger="langchain_sift.stores"):
        assert stored_vectors(store, found) == {}
        assert stored_vectors(store, found) == {}
    said = [each for each in caplog.records if each.name == "langchain_sift.stores"]
    assert len(said) == 1
    assert "embedded anew" in said[0].getMessage()
    assert await astored_vectors(store, found) == {}


def test_stores_of_unknown_kind_or_version_give_nothing(embeddings: HashEmbeddings) -> None:
    class FAISS(Plain):
        """Another one of that name."""

    documents = passages()
    for store in (Plain(), FAISS()):
        assert stored_vectors(store, documents) == {}
        assert is_exact(store) is False


# PostgreSQL.


async def test_pgvector_in_async_mode(embeddings: HashEmbeddings) -> None:
    uri = postgres_uri()
    from langchain_postgres import PGVector
    from sqlalchemy import NullPool
    from sqlalchemy.ext.asyncio import create_async_engine

    engine = create_async_engine(uri, poolclass=NullPool)
    store = PGVector(embeddings, connection=engine, collection_name=f"c{uuid4().hex}")
    await store.aadd_documents(passages())
    vector = embeddings.vector(QUESTION).tolist()
    found = [document for document, _ in await asearch(store, QUESTION, vector, 10)]
    assert len(found) == 10
    assert_right(await astored_vectors(store, found), found, embeddings)
    assert stored_vectors(store, found) == {}  # it cannot be asked without a loop
    await engine.dispose()


def test_pgvectorstore_that_searches_words_too(embeddings: HashEmbeddings) -> None:
    uri = postgres_uri()
    from langchain_postgres import PGEngine, PGVectorStore
    from langchain_postgres.v2.hybrid_search_config import HybridSearchConfig
    from sqlalchemy import NullPool

    engine = PGEngine.from_connection_string(uri, poolclass=NullPool)
    table = f"t{uuid4().hex}"
    config = HybridSearchConfig(tsv_lang="pg_catalog.english", primary_top_k=3, secondary_top_k=3)
    engine.init_vectorstore_table(table, embeddings.dimensions, hybrid_search_config=config)
    store = PGVectorStore.create_sync(engine, embeddings, table, hybrid_search_config=config)
    store.add_documents([*passages(), Document("zebra", id=str(uuid4()))])
    embeddings.reset()
    far = embeddings.vector("rivers mountains harbours").tolist()
    for word in ("zebra", "forests"):  # its own search would look for the first word twice
        texts = [each.page_content for each, _ in search(store, word, far, 6)]
        assert any(word in text for text in texts)
    assert embeddings.queries == 0


def test_builders_take_no_documents(embeddings: HashEmbeddings, tmp_path: Path) -> None:
    builders: dict[str, Builder] = {"memory": STORES["memory"], "faiss-l2": STORES["faiss-l2"]}
    for build in builders.values():
        assert search(build(embeddings, [], tmp_path), "q", embeddings.embed_query("q"), 3) == []
