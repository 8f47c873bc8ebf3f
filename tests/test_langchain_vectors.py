"""Where vectors come from: the object, the store in one call, memory, one batch of embedding."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("langchain_core")

from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import VectorStore
from langchain_sift.vectors import VectorSource
from langchain_stores import DIMENSIONS, LOSSY, STORES, HashEmbeddings, passages

from sift_rag import vectors

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*langchain-community.* is being sunset:DeprecationWarning"),
]

DOCUMENTS = passages()


@pytest.fixture(autouse=True)
def nothing_was_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors, "_warned", set())


def store_of(name: str, folder: Path, **settings: Any) -> tuple[VectorStore, HashEmbeddings]:
    embeddings = HashEmbeddings(**settings)
    store = (STORES | LOSSY)[name](embeddings, DOCUMENTS, folder)
    embeddings.reset()
    return store, embeddings


def fetched(store: VectorStore, embeddings: HashEmbeddings, count: int = 12) -> list[Document]:
    found = store.similarity_search("rivers feed the mills", k=count)
    embeddings.reset()
    return found


def unit(rows: Any) -> Any:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize("name", STORES)
def test_a_store_gives_its_vectors_and_nothing_is_embedded(name: str, tmp_path: Path) -> None:
    store, embeddings = store_of(name, tmp_path, unit=False)
    documents = fetched(store, embeddings)
    found = VectorSource(embeddings, store).resolve(documents)
    assert found.counts == {"object": 0, "store": 12, "cache": 0, "embedded": 0}
    assert embeddings.documents == embeddings.queries == 0
    wanted = [embeddings.vector(document.page_content) for document in documents]
    np.testing.assert_allclose(unit(found.rows), unit(np.array(wanted)), atol=1e-5)
    assert found.rows.dtype == np.float32
    assert found.known.all()


@pytest.mark.parametrize("name", ["faiss-ivfpq", "faiss-ivf"])
def test_where_a_store_gives_no_vectors_they_are_embedded_once(name: str, tmp_path: Path) -> None:
    store, embeddings = store_of(name, tmp_path)
    documents = DOCUMENTS[:6]
    source = VectorSource(embeddings, store)
    with pytest.warns(UserWarning, match="The store FAISS gives no vectors: embedding 6 passages"):
        found = source.resolve(documents)
    assert found.counts == {"object": 0, "store": 0, "cache": 0, "embedded": 6}
    again = source.resolve(documents)
    assert again.counts == {"object": 0, "store": 0, "cache": 6, "embedded": 0}
    assert (embeddings.documents, embeddings.batches) == (6, 1)
    np.testing.assert_array_equal(found.rows, again.rows)


@pytest.mark.parametrize("name", ["faiss-pca", "faiss-ivfpq-direct", "faiss-lsh"])
def test_a_store_that_rounds_is_compared_once_and_then_left_alone(
    name: str, tmp_path: Path
) -> None:
    store, embeddings = store_of(name, tmp_path)
    source = VectorSource(embeddings, store)
    with pytest.warns(UserWarning, match="not those of the embeddings .cosine 0"):
        found = source.resolve(DOCUMENTS[:6])
    assert found.counts == {"object": 0, "store": 0, "cache": 1, "embedded": 5}  # one was compared
    assert source.resolve(DOCUMENTS[6:9]).counts["embedded"] == 3  # and no second warning
    assert embeddings.documents == 9


def test_an_index_that_turns_out_exact_is_used_after_one_comparison(tmp_path: Path) -> None:
    store, embeddings = store_of("faiss-ivf-direct", tmp_path)
    source = VectorSource(embeddings, store)
    assert source.resolve(DOCUMENTS).counts["store"] == 24
    assert source.resolve(DOCUMENTS).counts["store"] == 24
    assert embeddings.documents == 1


def test_the_object_goes_before_the_store_and_the_store_before_embedding(tmp_path: Path) -> None:
    from langchain_community.document_transformers.embeddings_redundant_filter import (
        _DocumentWithState,
    )

    store, embeddings = store_of("memory", tmp_path)
    carried = Document("a note", id="x", metadata={"v": [1.0] * DIMENSIONS})
    stateful = _DocumentWithState(page_content="b", state={"embedded_doc": [2.0] * DIMENSIONS})
    without = Document("not in the store", metadata={"v": None})
    source = VectorSource(embeddings, store, vector_key="v")
    found = source.resolve([carried, stateful, *DOCUMENTS[:3], without])
    assert found.counts == {"object": 2, "store": 3, "cache": 0, "embedded": 1}
    assert set(found.seconds) == {"store", "embed"}
    np.testing.assert_array_equal(found.rows[0], np.ones(DIMENSIONS))
    np.testing.assert_array_equal(found.rows[1], np.full(DIMENSIONS, 2.0))
    np.testing.assert_array_equal(found.rows[2], embeddings.vector(DOCUMENTS[0].page_content))
    assert embeddings.documents == 1


def test_policy_embed_never_asks_the_store(tmp_path: Path) -> None:
    store, embeddings = store_of("memory", tmp_path)
    source = VectorSource(embeddings, store, policy="embed")
    counts = source.resolve(DOCUMENTS).counts  # and warns of nothing
    assert counts == {"object": 0, "store": 0, "cache": 0, "embedded": 24}


def test_policy_store_never_embeds_and_says_what_is_missing(tmp_path: Path) -> None:
    store, embeddings = store_of("memory", tmp_path)
    source = VectorSource(embeddings, store, policy="store")
    assert source.resolve(DOCUMENTS).counts["store"] == 24
    strange = Document("a stranger's note", id="stranger")
    with pytest.raises(ValueError, match=r'1 of 3 passages .*\(stranger\).* vectors="store" forb'):
        source.resolve([*DOCUMENTS[:2], strange])
    assert embeddings.documents == 0


def test_without_embeddings_a_missing_vector_is_a_clear_error() -> None:
    with pytest.raises(ValueError, match=r"2 of 2 passages have no vector.*pass embeddings="):
        VectorSource(None).resolve([Document("a"), Document("b")])


@pytest.mark.parametrize(("dimensions", "asked"), [(None, 3), (8, 3), (8, 8)])
def test_another_number_of_dimensions_is_a_clear_error(dimensions: int | None, asked: int) -> None:
    documents = [Document(str(n), id=str(n), metadata={"v": [1.0] * n}) for n in (asked, 5)]
    with pytest.raises(ValueError, match=r"has \d dimensions, wanted \d.* are not those of the"):
        VectorSource(None, vector_key="v").resolve(documents, dimensions=dimensions)


@pytest.mark.parametrize("vector", ["[1, 2]", [[1.0, 2.0]], 3.0])
def test_what_is_no_vector_is_named(vector: Any) -> None:
    document = Document("a", id="first", metadata={"v": vector})
    with pytest.raises(ValueError, match=r"'first' carries .* must be a list of numbers"):
        VectorSource(None, vector_key="v").resolve([document])


class Faulty(HashEmbeddings):
    """Zeros for "zero", NaN for "nan"; refuses an empty text, as some services do."""

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        if not all(text.strip() for text in texts):
            raise ValueError("input cannot be an empty string")
        rows = super().embed_documents(texts)
        bad = {"zero": [0.0] * DIMENSIONS, "nan": [float("nan")] * DIMENSIONS}
        return [bad.get(text, row) for text, row in zip(texts, rows, strict=True)]


def test_texts_without_a_vector_are_marked_and_spoil_no_others() -> None:
    embeddings = Faulty()
    source = VectorSource(embeddings)
    documents = [Document(text) for text in ("rivers", "zero", "", " \n", "nan", "towns")]
    found = source.resolve(documents)
    assert found.known.tolist() == [True, False, False, False, False, True]
    assert not found.rows[~found.known].any()
    np.testing.assert_allclose(found.rows[0], embeddings.vector("rivers"), atol=1e-6)
    assert source.resolve(documents).counts["cache"] == 4  # the faults are remembered too
    assert embeddings.documents == 4


def test_no_documents_need_nothing() -> None:
    found = VectorSource(None).resolve([], dimensions=3)
    assert found.rows.shape == (0, 3)
    assert found.known.shape == (0,)


def test_equal_texts_are_embedded_once() -> None:
    embeddings = HashEmbeddings()
    counts = VectorSource(embeddings).resolve([Document("a"), Document("b"), Document("a")]).counts
    assert counts == {"object": 0, "store": 0, "cache": 1, "embedded": 2}
    assert embeddings.documents == 2


def test_memory_is_bounded() -> None:
    embeddings = HashEmbeddings()
    source = VectorSource(embeddings, max_entries=2)
    for text in ("a", "b", "c", "a"):
        assert source.resolve([Document(text)]).counts["embedded"] == 1
    assert source.resolve([Document("c")]).counts["cache"] == 1


class Short(Embeddings):
    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [[1.0]]

    def embed_query(self, text: str) -> list[float]:
        return [0.5, 1.0]


def test_embeddings_that_give_too_few_rows_are_named() -> None:
    with pytest.raises(ValueError, match=r"Short gave shape \(1, 1\) for 2 texts"):
        VectorSource(Short()).resolve([Document("a"), Document("b")])


class Ragged(Short):
    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [[1.0] * (i + 1) for i in range(len(texts))]


def test_embeddings_that_give_no_matrix_are_named() -> None:
    with pytest.raises(ValueError, match="The embeddings Ragged gave no numbers"):
        VectorSource(Ragged()).resolve([Document("a"), Document("b")])


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match="got 'never'"):
        VectorSource(None, policy="never")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="max_entries must be at least 1, got 0"):
        VectorSource(HashEmbeddings(), max_entries=0)


def test_a_like_source_shares_what_is_remembered() -> None:
    embeddings = HashEmbeddings()
    source = VectorSource(embeddings)
    assert source.like(embeddings, None, "auto", None) is source
    source.resolve(DOCUMENTS)
    assert source.like(embeddings, None, "embed", "v").resolve(DOCUMENTS).counts["cache"] == 24
    other = source.like(HashEmbeddings(), None, "auto", None)  # other embeddings, other vectors
    assert other.resolve(DOCUMENTS).counts["embedded"] == 24


def test_the_cost_of_embedding_is_told_once_in_a_process() -> None:
    store = STORES["memory"](HashEmbeddings(), [], Path())
    with pytest.warns(UserWarning, match='InMemoryVectorStore gives no.*vectors="embed"'):
        VectorSource(HashEmbeddings(), store).resolve(DOCUMENTS)
    VectorSource(HashEmbeddings(), store).resolve(DOCUMENTS)  # a warning would be an error


def test_counts_are_right_in_many_threads(tmp_path: Path) -> None:
    embeddings = HashEmbeddings()
    source = VectorSource(embeddings)
    sets = [[Document(f"text {t} {i}") for i in range(t + 1)] for t in range(16)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(source.resolve, sets))
    assert [each.counts["embedded"] for each in found] == list(range(1, 17))
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(source.resolve, sets))
    assert [each.counts["cache"] for each in found] == list(range(1, 17))


def test_one_comparison_however_many_threads(tmp_path: Path) -> None:
    store, embeddings = store_of("faiss-ivf-direct", tmp_path)
    source = VectorSource(embeddings, store)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(source.resolve, [DOCUMENTS] * 16))
    assert {each.counts["store"] for each in found} == {24}
    assert embeddings.documents == 1


@pytest.mark.parametrize("name", ["memory", "faiss-ivfpq", "qdrant"])
async def test_async_finds_the_same(name: str, tmp_path: Path) -> None:
    store, embeddings = store_of(name, tmp_path)
    vectors._warned.add("cost")
    now = VectorSource(embeddings, store).resolve(DOCUMENTS)
    later = await VectorSource(embeddings, store).aresolve(DOCUMENTS)
    np.testing.assert_array_equal(now.rows, later.rows)
    assert now.counts == later.counts
