"""Where vectors come from: the node, the store in one call, memory, one batch of embedding."""

import asyncio
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("llama_index.core")

from langchain_stores import DIMENSIONS
from llama_index.core import VectorStoreIndex
from llama_index.core.node_parser import SentenceWindowNodeParser
from llama_index.core.postprocessor import MetadataReplacementPostProcessor
from llama_index.core.schema import BaseNode, Document, MetadataMode, QueryBundle, TextNode
from llama_index_sift.stores import Store
from llama_index_sift.vectors import VectorSource
from llama_index_stores import (
    LOSSY,
    MORE,
    STORES,
    HashEmbedding,
    embedded_text,
    nodes,
)

from sift_rag import vectors

NODES = nodes()
QUESTION = "rivers feed the mills"
MOVED = threading.Event()


@pytest.fixture(autouse=True)
def nothing_was_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors, "_warned", set())


def index_of(name: str, folder: Path, **settings: Any) -> tuple[VectorStoreIndex, HashEmbedding]:
    embed_model = HashEmbedding(**settings)
    index = (STORES | MORE | LOSSY)[name](embed_model, nodes(), folder)
    embed_model.reset()
    return index, embed_model


def fetched(index: VectorStoreIndex, embed_model: HashEmbedding, k: int = 12) -> list[BaseNode]:
    found = index.as_retriever(similarity_top_k=k).retrieve(QUESTION)
    embed_model.reset()
    return [each.node for each in found]


def unit(rows: Any) -> Any:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def wanted(found: list[BaseNode], embed_model: HashEmbedding) -> Any:
    return np.array([embed_model.vector(embedded_text(node)) for node in found])


@pytest.mark.parametrize("name", [*STORES, *MORE])
def test_a_store_gives_its_vectors_and_nothing_is_embedded(name: str, tmp_path: Path) -> None:
    index, embed_model = index_of(name, tmp_path, unit=False)
    found = fetched(index, embed_model)
    resolved = VectorSource(embed_model, index).resolve(found)
    assert resolved.counts == {"object": 0, "store": 12, "cache": 0, "embedded": 0}
    assert embed_model.texts == embed_model.queries == 0
    np.testing.assert_allclose(unit(resolved.rows), unit(wanted(found, embed_model)), atol=1e-5)
    assert resolved.rows.dtype == np.float32
    assert resolved.known.all()


@pytest.mark.parametrize("name", ["faiss-ivf", "faiss-map-one-way"])
def test_where_a_store_gives_no_vectors_they_are_embedded_once(name: str, tmp_path: Path) -> None:
    index, embed_model = index_of(name, tmp_path)
    source = VectorSource(embed_model, index)
    with pytest.warns(UserWarning, match=r"The store Faiss\w+ gives no vectors: embedding 6 passa"):
        found = source.resolve(NODES[:6])
    assert found.counts == {"object": 0, "store": 0, "cache": 0, "embedded": 6}
    again = source.resolve(NODES[:6])
    assert again.counts == {"object": 0, "store": 0, "cache": 6, "embedded": 0}
    assert (embed_model.texts, embed_model.batches) == (6, 1)
    np.testing.assert_array_equal(found.rows, again.rows)


def test_what_is_embedded_anew_equals_what_the_store_holds(tmp_path: Path) -> None:
    """That is the text with its metadata, as LlamaIndex embeds it."""
    index, embed_model = index_of("simple", tmp_path)
    assert NODES[0].get_content(MetadataMode.EMBED).startswith("topic: rivers\n")
    stored = VectorSource(embed_model, index).resolve(NODES)
    embedded = VectorSource(embed_model, index, policy="embed").resolve(NODES)
    assert embedded.counts == {"object": 0, "store": 0, "cache": 0, "embedded": 24}
    np.testing.assert_array_equal(stored.rows, embedded.rows)


def test_faiss_without_its_index_is_embedded(tmp_path: Path) -> None:
    index, embed_model = index_of("faiss", tmp_path)
    with pytest.warns(UserWarning, match="The store FaissVectorStore gives no vectors"):
        found = VectorSource(embed_model, index.vector_store).resolve(NODES)
    assert found.counts["embedded"] == 24


@pytest.mark.parametrize("name", ["faiss-pca", "faiss-ivfpq-direct", "faiss-lsh"])
def test_a_store_that_rounds_is_compared_once_and_then_left_alone(
    name: str, tmp_path: Path
) -> None:
    index, embed_model = index_of(name, tmp_path)
    source = VectorSource(embed_model, index)
    with pytest.warns(UserWarning, match=r"FaissVectorStore gives are not those .* .cosine 0"):
        found = source.resolve(NODES[:6])
    assert found.counts == {"object": 0, "store": 0, "cache": 1, "embedded": 5}  # one was compared
    assert source.resolve(NODES[6:9]).counts["embedded"] == 3  # and no second warning
    assert embed_model.texts == 9


@pytest.mark.parametrize("name", ["faiss-ivf-direct", "postgres-half"])
def test_an_index_that_turns_out_exact_is_used_after_one_comparison(
    name: str, tmp_path: Path
) -> None:
    index, embed_model = index_of(name, tmp_path)
    source = VectorSource(embed_model, index)
    assert source.resolve(NODES).counts["store"] == 24
    assert source.resolve(NODES).counts["store"] == 24
    assert embed_model.texts == 1


def test_the_node_goes_before_the_store_and_the_store_before_embedding(tmp_path: Path) -> None:
    index, embed_model = index_of("simple", tmp_path)
    keyed = TextNode(text="a note", metadata={"v": [1.0] * DIMENSIONS})
    both = TextNode(text="b", embedding=[2.0] * DIMENSIONS, metadata={"v": [3.0] * DIMENSIONS})
    without = TextNode(text="not in the store", metadata={"v": None})
    source = VectorSource(embed_model, index, vector_key="v")
    found = source.resolve([keyed, both, *NODES[:3], without])
    assert found.counts == {"object": 2, "store": 3, "cache": 0, "embedded": 1}
    assert set(found.seconds) == {"store", "embed"}
    np.testing.assert_array_equal(found.rows[0], np.ones(DIMENSIONS))
    np.testing.assert_array_equal(found.rows[1], np.full(DIMENSIONS, 2.0))
    np.testing.assert_array_equal(found.rows[2], embed_model.vector(embedded_text(NODES[0])))
    assert embed_model.texts == 1


def test_nodes_that_all_carry_vectors_need_neither_store_nor_model() -> None:
    carrying = [TextNode(text=str(i), embedding=[float(i), 1.0]) for i in range(4)]
    found = VectorSource(None).resolve(carrying)
    assert found.counts == {"object": 4, "store": 0, "cache": 0, "embedded": 0}
    assert found.rows.tolist() == [[i, 1.0] for i in range(4)]
    assert [node.embedding for node in carrying] == [[i, 1.0] for i in range(4)]


def test_nodes_are_left_as_they_are(tmp_path: Path) -> None:
    index, embed_model = index_of("chroma", tmp_path)
    found = fetched(index, embed_model)
    before = [node.model_dump() for node in found]
    VectorSource(embed_model, index).resolve(found)
    VectorSource(embed_model, index, policy="embed").resolve(found)
    assert [node.model_dump() for node in found] == before


def test_policy_store_never_embeds_and_says_what_is_missing(tmp_path: Path) -> None:
    index, embed_model = index_of("simple", tmp_path)
    source = VectorSource(embed_model, index, policy="store")
    assert source.resolve(NODES).counts["store"] == 24
    strange = TextNode(text="a stranger's note", id_="stranger")
    with pytest.raises(ValueError, match=r'1 of 3 passages .*\(stranger\).* vectors="store" forb'):
        source.resolve([*NODES[:2], strange])
    assert embed_model.texts == 0


def test_without_a_model_a_missing_vector_is_a_clear_error() -> None:
    with pytest.raises(ValueError, match=r"2 of 2 passages have no vector.*pass embed_model="):
        VectorSource(None).resolve([TextNode(text="a"), TextNode(text="b")])


def test_no_model_at_all_is_needed_where_the_store_gives_all(tmp_path: Path) -> None:
    index, _ = index_of("qdrant", tmp_path)
    assert VectorSource(None, index).resolve(NODES).counts["store"] == 24


def test_another_number_of_dimensions_is_a_clear_error(tmp_path: Path) -> None:
    index, _ = index_of("faiss", tmp_path)
    other = HashEmbedding(dimensions=8)
    cure = r"has 64 dimensions, wanted 8 .*FaissVectorStore.* embed_model="
    with pytest.raises(ValueError, match=cure):
        VectorSource(other, index).resolve(NODES, dimensions=8)


def test_a_vector_of_a_node_that_is_none_is_named() -> None:
    node = TextNode(text="a", id_="first", metadata={"v": "[1, 2]"})
    with pytest.raises(ValueError, match=r"'first' carries str .* must be a list of numbers"):
        VectorSource(None, vector_key="v").resolve([node])


class Faulty(HashEmbedding):
    """Zeros for "zero", NaN for "nan"; refuses an empty text, as some services do."""

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        if not all(text.strip() for text in texts):
            raise ValueError("input cannot be an empty string")
        rows = super()._get_text_embeddings(texts)
        bad = {"zero": [0.0] * DIMENSIONS, "nan": [float("nan")] * DIMENSIONS}
        return [bad.get(text, row) for text, row in zip(texts, rows, strict=True)]


def test_texts_without_a_vector_are_marked_and_spoil_no_others() -> None:
    embed_model = Faulty()
    source = VectorSource(embed_model)
    texts = ["rivers", "zero", "", " \n", "nan", "towns"]
    found = source.resolve([TextNode(text=text) for text in texts])
    assert found.known.tolist() == [True, False, False, False, False, True]
    assert not found.rows[~found.known].any()
    np.testing.assert_allclose(found.rows[0], embed_model.vector("rivers"), atol=1e-6)
    again = source.resolve([TextNode(text=text) for text in texts])
    assert again.counts["cache"] == 4  # the faults are remembered too
    assert embed_model.texts == 4


@pytest.mark.parametrize("name", ["simple", "faiss", "chroma", "postgres", "qdrant"])
def test_zero_vectors_in_a_store_are_marked(name: str, tmp_path: Path) -> None:
    index, embed_model = index_of(name, tmp_path)
    zero: BaseNode = TextNode(text="a note of nothing", embedding=[0.0] * DIMENSIONS)
    index.insert_nodes([zero])
    kept: BaseNode = TextNode(text="a note of nothing", id_=zero.node_id)  # as it is retrieved
    found = VectorSource(embed_model, index).resolve([NODES[0], kept, NODES[1]])
    assert found.counts["store"] == 3
    assert found.known.tolist() == [True, False, True]
    assert not found.rows[1].any()


def test_no_nodes_need_nothing() -> None:
    found = VectorSource(None).resolve([], dimensions=3)
    assert found.rows.shape == (0, 3)
    assert found.known.shape == (0,)


def test_equal_texts_are_embedded_once() -> None:
    embed_model = HashEmbedding()
    texts = [TextNode(text=text) for text in "aba"]
    counts = VectorSource(embed_model).resolve(texts).counts
    assert counts == {"object": 0, "store": 0, "cache": 1, "embedded": 2}
    assert embed_model.texts == 2


def test_a_model_with_small_batches_is_still_called_once() -> None:
    calls: list[int] = []

    class Small(HashEmbedding):
        def get_text_embedding_batch(self, texts: list[str], *args: Any, **kwargs: Any) -> Any:
            calls.append(len(texts))
            return super().get_text_embedding_batch(texts, *args, **kwargs)

    embed_model = Small(embed_batch_size=5)
    VectorSource(embed_model).resolve(NODES)
    assert calls == [24]
    assert embed_model.batches == 5  # it cuts the batch itself


def test_a_like_source_shares_what_is_remembered() -> None:
    embed_model = HashEmbedding()
    source = VectorSource(embed_model)
    assert source.like(embed_model, None, "auto", None) is source
    source.resolve(NODES)
    assert source.like(embed_model, None, "embed", "v").resolve(NODES).counts["cache"] == 24
    other = source.like(HashEmbedding(), None, "auto", None)  # equal, but not the same: who knows
    assert other.resolve(NODES).counts["embedded"] == 24


def test_like_never_compares_two_stores_number_by_number(tmp_path: Path) -> None:
    """LlamaIndex's `==` would: two stores with equal vectors are equal to it."""
    index, embed_model = index_of("simple", tmp_path)
    again, _ = index_of("simple", tmp_path)
    assert index.vector_store == again.vector_store
    source = VectorSource(embed_model, index.vector_store)
    assert source.like(embed_model, again.vector_store, "auto", None) is not source


def test_the_cost_of_embedding_is_told_once_in_a_process(tmp_path: Path) -> None:
    store: Store = STORES["simple"](HashEmbedding(), [], tmp_path)
    with pytest.warns(UserWarning, match='SimpleVectorStore gives no vectors.*vectors="embed"'):
        VectorSource(HashEmbedding(), store).resolve(NODES)
    VectorSource(HashEmbedding(), store).resolve(NODES)  # a warning would be an error


def test_a_window_around_a_sentence_keeps_the_sentence_s_vector(tmp_path: Path) -> None:
    """The text is replaced after the search; the vector by which the node was found stays."""
    embed_model = HashEmbedding()
    text = "Rivers feed the mills. Herds cross the fields. Roads divide the towns."
    parts: Any = SentenceWindowNodeParser.from_defaults().get_nodes_from_documents(
        [Document(text=text)]
    )
    index = STORES["simple"](embed_model, parts, tmp_path)
    found = index.as_retriever(similarity_top_k=3).retrieve(QUESTION)
    replaced = MetadataReplacementPostProcessor(target_metadata_key="window").postprocess_nodes(
        found, QueryBundle(QUESTION)
    )
    assert len(replaced[0].node.get_content()) > len("Rivers feed the mills. ")
    rows = VectorSource(embed_model, index).resolve([each.node for each in replaced])
    assert rows.counts["store"] == 3
    sentences = [each.node.metadata["original_text"] for each in replaced]
    by_text = {part.metadata["original_text"]: part for part in parts}
    right = [embed_model.vector(embedded_text(by_text[sentence])) for sentence in sentences]
    np.testing.assert_allclose(rows.rows, right, atol=1e-6)


def test_counts_are_right_in_many_threads() -> None:
    source = VectorSource(HashEmbedding())
    sets = [[TextNode(text=f"text {t} {i}") for i in range(t + 1)] for t in range(16)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(source.resolve, sets))
    assert [each.counts["embedded"] for each in found] == list(range(1, 17))
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(source.resolve, sets))
    assert [each.counts["cache"] for each in found] == list(range(1, 17))


@pytest.mark.parametrize("name", [*STORES, *MORE, "faiss-ivfpq-direct", "postgres-half"])
async def test_async_finds_the_same(name: str, tmp_path: Path) -> None:
    index, embed_model = index_of(name, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of the lossy one
        now = VectorSource(embed_model, index).resolve(NODES)
        later = await VectorSource(embed_model, index).aresolve(NODES)
    np.testing.assert_array_equal(now.rows, later.rows)
    assert now.counts == later.counts


class Slow(HashEmbedding):
    """Waits until the event loop has moved on; if the loop is blocked, in vain."""

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        if not MOVED.wait(5):
            raise TimeoutError("the event loop stood still")
        return super()._get_text_embeddings(texts)


async def test_embedding_does_not_block_the_event_loop() -> None:
    MOVED.clear()
    waiting = asyncio.create_task(VectorSource(Slow()).aresolve(list(NODES)))
    await asyncio.sleep(0.01)
    MOVED.set()
    assert (await waiting).counts["embedded"] == 24
