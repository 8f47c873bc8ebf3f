"""What users of LlamaIndex have reported of retrievers and rerankers, and must not happen here.

Issues and pull requests are those of run-llama/llama_index.
"""

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

pytest.importorskip("llama_index.core")

from llama_index.core import (
    Document,
    StorageContext,
    VectorStoreIndex,
    get_response_synthesizer,
    load_index_from_storage,
)
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.callbacks import CallbackManager, CBEventType, EventPayload, LlamaDebugHandler
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent
from llama_index.core.llms import MockLLM
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.postprocessor import PrevNextNodePostprocessor
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.schema import NodeRelationship, NodeWithScore, TextNode
from llama_index_sift import SIFTPostprocessor, SIFTRetriever
from llama_index_stores import STORES, HashEmbedding, embedded_text
from llama_index_stores import nodes as passages

from sift_rag import mmr, sift

if TYPE_CHECKING:
    from llama_index_watching import Seen

pytest_plugins = ["llama_index_watching"]
pytestmark = pytest.mark.usefixtures("no_defaults")

QUESTION = "Which rivers feed the mills and towns?"
NODES = passages(30)
QUERY = HashEmbedding().vector(QUESTION)
ROWS = np.array([HashEmbedding().vector(embedded_text(node)) for node in NODES])


def ids(found: list[NodeWithScore]) -> list[str]:
    return [each.node.node_id for each in found]


def best(k: int) -> list[str]:
    """What the core selects of all nodes."""
    return [NODES[i].node_id for i in sift(QUERY, ROWS, k).indices]


def fall(found: list[NodeWithScore]) -> bool:
    scores = [each.score for each in found]
    return all(a is not None and b is not None and a > b for a, b in pairwise(scores))


def own_scores(retriever: Any) -> dict[str, float | None]:
    return {each.node.node_id: each.score for each in retriever.retrieve(QUESTION)}


@pytest.mark.parametrize("name", STORES)
def test_nodes_without_vectors_are_selected_by_those_of_the_store(
    name: str, tmp_path: Path
) -> None:
    """#14996, #19784: retrieved nodes have no vectors, so they had to be embedded anew."""
    model = HashEmbedding()
    index = STORES[name](model, NODES, tmp_path)
    model.reset()
    candidates = index.as_retriever(similarity_top_k=30).retrieve(QUESTION)
    assert all(each.node.embedding is None for each in candidates)
    processor = SIFTPostprocessor(top_n=4, embed_model=model, vector_store=index)
    assert ids(processor.postprocess_nodes(candidates, query_str=QUESTION)) == best(4)
    assert ids(SIFTRetriever(index, k=4).retrieve(QUESTION)) == best(4)
    assert model.texts == 0


def test_a_loaded_faiss_index_gives_its_vectors(tmp_path: Path) -> None:
    """#13704: nodes that a FAISS index from disk yields have no vectors."""
    STORES["faiss"](HashEmbedding(), NODES, tmp_path).storage_context.persist(str(tmp_path))
    from llama_index.vector_stores.faiss import FaissVectorStore

    store, model = FaissVectorStore.from_persist_dir(str(tmp_path)), HashEmbedding()
    context = StorageContext.from_defaults(vector_store=store, persist_dir=str(tmp_path))
    index: Any = load_index_from_storage(context, embed_model=model)
    assert ids(SIFTRetriever(index, k=4, vectors="store").retrieve(QUESTION)) == best(4)
    assert model.texts == 0


class Fixed(BaseEmbedding):
    """Vectors that are given; the question's is the first axis."""

    vectors: dict[str, list[float]]

    def _get_query_embedding(self, query: str) -> list[float]:
        return [1.0, 0.0, 0.0, 0.0]

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._get_query_embedding(query)

    def _get_text_embedding(self, text: str) -> list[float]:
        return self.vectors[text]


def test_mmr_remembers_every_pick() -> None:
    """#22684: MMR looked at its last pick only, so what repeats an earlier one came."""
    vectors = {
        "A": [0.90, 0.44, 0.00, 0.00],
        "A again": [0.88, 0.47, 0.00, 0.00],
        "B": [0.70, 0.00, 0.71, 0.00],
        "C": [0.65, 0.00, 0.00, 0.76],
    }
    model = Fixed(vectors=vectors)
    index = VectorStoreIndex([TextNode(text=text) for text in vectors], embed_model=model)
    found = SIFTRetriever(index, k=3, select=mmr).retrieve("which?")
    candidates = index.as_retriever(similarity_top_k=4).retrieve("which?")
    processor = SIFTPostprocessor(top_n=3, embed_model=model, select=mmr)
    for picked in (found, processor.postprocess_nodes(candidates, query_str="which?")):
        assert [each.text for each in picked] == ["A", "B", "C"]


@pytest.mark.parametrize("name", STORES)
def test_the_best_node_has_the_highest_score(name: str, tmp_path: Path) -> None:
    """#7214: PGVectorStore's scores were distances, the nearest node's the lowest."""
    index = STORES[name](HashEmbedding(), NODES, tmp_path)
    scores = own_scores(index.as_retriever(similarity_top_k=30))
    found = SIFTRetriever(index, k=6).retrieve(QUESTION)
    assert len(found) == 6
    assert fall(found)
    for each in found:
        told = each.metadata["sift_store_score"]
        assert told == pytest.approx(scores[each.node.node_id], abs=1e-5)


def test_faiss_s_score_stays_the_distance_that_it_is(tmp_path: Path) -> None:
    """#7214: on FAISS, the score is still a distance; it is told, and nothing is made of it."""
    found = SIFTRetriever(STORES["faiss"](HashEmbedding(), NODES, tmp_path), k=6).retrieve(QUESTION)
    cosines = [HashEmbedding().vector(embedded_text(each.node)) @ QUERY for each in found]
    told = [each.metadata["sift_store_score"] for each in found]
    np.testing.assert_allclose(told, 2.0 - 2.0 * np.array(cosines), atol=1e-5)
    assert fall(found)


def test_nodes_without_a_score_get_one_and_the_others_keep_theirs() -> None:
    """#23199: `PrevNextNodePostprocessor` leaves nodes without a score, retrieved ones too."""
    model = HashEmbedding()
    index = VectorStoreIndex(NODES, embed_model=model)
    retrieved = index.as_retriever(similarity_top_k=8).retrieve(QUESTION)
    around: Any = PrevNextNodePostprocessor(docstore=index.docstore, mode="both")
    scores = {each.node.node_id: each.score for each in around.postprocess_nodes(retrieved)}
    assert None in scores.values()
    candidates = around.postprocess_nodes(retrieved)
    processor = SIFTPostprocessor(top_n=len(candidates), embed_model=model, vector_store=index)
    found = processor.postprocess_nodes(candidates, query_str=QUESTION)
    assert fall(found)
    told = {each.node.node_id: each.metadata.get("sift_store_score") for each in found}
    assert told == scores


def test_every_node_has_its_own_score_after_two_rerankers() -> None:
    """#20597: a reranker gave nodes the scores of others, since it took ranks for positions."""
    model = HashEmbedding()
    index = VectorStoreIndex(NODES, embed_model=model)
    scores = own_scores(index.as_retriever(similarity_top_k=30))
    engine = RetrieverQueryEngine(
        SIFTRetriever(index, k=12),
        response_synthesizer=get_response_synthesizer(llm=MockLLM()),
        node_postprocessors=[SIFTPostprocessor(top_n=5, embed_model=model, vector_store=index)],
    )
    found = engine.query(QUESTION).source_nodes
    assert len(found) == 5
    assert fall(found)
    assert [each.metadata["sift_store_score"] for each in found] == [scores[i] for i in ids(found)]


class Slow(HashEmbedding):
    """Embeds no sooner than a task in the event loop has ticked once more.

    Its own asynchronous methods block, as those of most local models.
    """

    clock: Any = None

    def _get_query_embedding(self, query: str) -> list[float]:
        self.clock.wait()
        return super()._get_query_embedding(query)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._get_query_embedding(query)

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        self.clock.wait()
        return super()._get_text_embeddings(texts)

    async def _aget_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return self._get_text_embeddings(texts)


class Clock:
    """Ticks in the event loop; `wait` is for threads."""

    def __init__(self) -> None:
        self.ticked = threading.Event()
        self.waits = 0

    async def tick(self) -> None:
        while True:
            self.ticked.set()
            await asyncio.sleep(0.001)

    def wait(self) -> None:
        self.ticked.clear()
        assert self.ticked.wait(20), "the event loop was held up"
        self.waits += 1


@pytest.fixture
async def clock() -> AsyncIterator[Clock]:
    made = Clock()
    ticking = asyncio.create_task(made.tick())
    yield made
    ticking.cancel()


async def test_postprocessing_does_not_hold_up_the_event_loop(clock: Clock) -> None:
    """#16911: postprocessors had no asynchronous method, and held up those of a query engine."""
    processor = SIFTPostprocessor(top_n=4, embed_model=Slow(clock=clock))
    candidates = [NodeWithScore(node=node, score=0.5) for node in NODES]
    found = await processor.apostprocess_nodes(candidates, query_str=QUESTION)
    assert ids(found) == best(4)
    assert clock.waits == 2  # for the nodes and for the question


async def test_retrieving_does_not_hold_up_the_event_loop(clock: Clock) -> None:
    """#19379: asynchronous calls that held up the event loop."""
    index = VectorStoreIndex(NODES, embed_model=HashEmbedding())
    retriever = SIFTRetriever(index, k=4, embed_model=Slow(clock=clock), vectors="embed")
    assert ids(await retriever.aretrieve(QUESTION)) == best(4)
    assert clock.waits == 2


OFFLINE = """
import asyncio, socket, sys


def refuse(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo"):
        raise ConnectionRefusedError(f"{event}: there is no network in this test")


sys.addaudithook(refuse)
try:
    socket.create_connection(("127.0.0.1", 9))
except ConnectionRefusedError as error:
    assert "in this test" in str(error)

from llama_index.core import Settings, VectorStoreIndex
from llama_index.core.schema import TextNode
from llama_index_sift import SIFTEmbedding, SIFTPostprocessor, SIFTRetriever, sift_query_engine
from sift_rag import Engine

texts = ["The Korgost pump is inspected by Tanaka.", "The Korgost pump stands in Oslo."]
question = "Who inspects the Korgost pump?"
model = SIFTEmbedding(device="cpu")
index = VectorStoreIndex([TextNode(text=text) for text in texts], embed_model=model)
processor = SIFTPostprocessor(top_n=1, embed_model=model, vector_store=index)
(found,) = processor.postprocess_nodes(SIFTRetriever(index, k=2).retrieve(question), None, question)
assert found.text == texts[0]
with Engine.tiny() as engine:
    for mode in ("stuff", "train", "both", "closed_book"):
        asked = sift_query_engine(index, engine, k=1, mode=mode)
        print(mode, asked.query(question))
        print(mode, asyncio.run(asked.aquery(question)))
assert Settings._llm is None and Settings._embed_model is None
"""


def test_without_a_key_and_without_a_network() -> None:
    """#15042, #10740: a query engine demanded a key of OpenAI though its models were local."""
    unset = ("OPENAI_API_KEY", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "IS_TESTING")
    settings = {name: value for name, value in os.environ.items() if name not in unset}
    command = [sys.executable, "-c", OFFLINE]
    done = subprocess.run(command, env=settings, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[::2] == lines[1::2]  # asynchronous answers are the same
    assert "train Tanaka" in lines[2]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_traces_of_a_query_hold_the_postprocessor(asynchronous: bool, seen: "Seen") -> None:
    """#13450: the engine's callbacks did not reach postprocessors, and traces lacked them."""
    model, debug = HashEmbedding(), LlamaDebugHandler(print_trace_on_end=False)
    index = VectorStoreIndex(NODES, embed_model=model)
    engine = RetrieverQueryEngine(
        index.as_retriever(similarity_top_k=30),
        response_synthesizer=get_response_synthesizer(llm=MockLLM()),
        node_postprocessors=[SIFTPostprocessor(top_n=4, embed_model=model, vector_store=index)],
        callback_manager=CallbackManager([debug]),
    )
    found = asyncio.run(engine.aquery(QUESTION)) if asynchronous else engine.query(QUESTION)
    ((query, _),) = debug.get_event_pairs(CBEventType.QUERY)
    ((start, end),) = debug.get_event_pairs(CBEventType.RERANKING)
    assert start.id_ in debug._trace_map[query.id_]
    given, picked = ((event.payload or {})[EventPayload.NODES] for event in (start, end))
    assert len(given) == 30
    assert ids(picked) == ids(found.source_nodes) == best(4)
    started, ended = seen.of(ReRankStartEvent, ReRankEndEvent)
    assert (started.query.query_str, len(started.nodes)) == (QUESTION, 30)
    assert ids(ended.nodes) == best(4)


@pytest.mark.parametrize("name", ["simple", "faiss", "chroma"])
def test_what_an_ingestion_pipeline_makes_is_kept(name: str, tmp_path: Path) -> None:
    """Chunks keep their id, text, metadata and relationships, and are embedded once."""
    model = HashEmbedding()
    documents = [
        Document(
            text=" ".join(node.text for node in NODES[start : start + 10]),
            metadata={"source": f"county-{start}.txt", "year": 1900 + start},
        )
        for start in range(0, 30, 10)
    ]
    splitter = SentenceSplitter(chunk_size=48, chunk_overlap=0)
    chunks: Any = IngestionPipeline(transformations=[splitter, model]).run(documents=documents)
    made = {chunk.node_id: chunk for chunk in chunks}
    assert len(made) > len(documents)
    model.reset()
    index = STORES[name](model, list(chunks), tmp_path)
    found = SIFTRetriever(index, k=6).retrieve(QUESTION)
    assert len(found) == 6
    for each in found:
        chunk = made[each.node.node_id]
        own = {key: v for key, v in each.metadata.items() if not key.startswith("sift_")}
        assert (each.text, own) == (chunk.text, chunk.metadata)
        assert each.node.relationships == chunk.relationships
    assert any(NodeRelationship.NEXT in each.node.relationships for each in found)
    assert model.texts == 0
