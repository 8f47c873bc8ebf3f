"""What users of LangChain have reported of retrievers and local models, and must not happen here.

Issues are those of langchain-ai/langchain, but for one pull request of run-llama/llama_index.
Two symptoms have their tests elsewhere: an event loop held up by a retriever or by training, in
`test_langchain_retriever.test_many_at_once_do_not_hold_up_the_event_loop` and
`test_langchain_chain.test_the_loop_goes_on_while_it_trains`; adapters that leak between arms, in
`test_langchain_chain.test_arms_side_by_side_get_what_they_get_alone`.
"""

import asyncio
import json
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, uuid5

import numpy as np
import pytest

pytest.importorskip("langchain_core")

from langchain_classic.chains import create_retrieval_chain
from langchain_classic.chains.combine_documents import create_stuff_documents_chain
from langchain_classic.retrievers import ContextualCompressionRetriever
from langchain_classic.retrievers.document_compressors import DocumentCompressorPipeline
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.language_models import FakeListChatModel
from langchain_core.prompts import PromptTemplate
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_core.vectorstores.utils import maximal_marginal_relevance
from langchain_sift import (
    SIFTCallbackHandler,
    SIFTCompressor,
    SIFTRetriever,
    create_ttt_documents_chain,
)
from langchain_stores import STORES, HashEmbeddings, passages

from sift_rag import mmr, nearest, sift
from sift_rag.engine import Engine
from sift_rag.events import Control, Event
from sift_rag.training import TrainingConfig

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*langchain-community.* is being sunset:DeprecationWarning"),
]

QUESTION = "Which rivers feed the mills and towns?"
DOCUMENTS = passages(40)
TEXTS = [document.page_content for document in DOCUMENTS]
EMBED = HashEmbeddings().vector
QUERY, ROWS = EMBED(QUESTION), np.array([EMBED(text) for text in TEXTS])


def texts(documents: Any) -> list[str]:
    return [document.page_content for document in documents]


def by_relevance(found: list[str]) -> list[str]:
    return sorted(found, key=lambda text: -float(EMBED(text) @ QUERY))


@pytest.mark.parametrize("name", ["pgvector", "pgvectorstore"])
@pytest.mark.parametrize("select", [partial(mmr, lambda_mult=0.3), sift], ids=["mmr", "sift"])
def test_pgvector_s_vectors_are_there_to_select_by(name: str, select: Any, tmp_path: Path) -> None:
    """#7466: pgvector's results came without vectors, so equal rows could not be kept out."""
    # That every store's vectors are found and none embedded is in test_langchain_retriever,
    # test_the_picks_are_those_of_the_core_and_no_passage_is_embedded.
    again = [
        Document(document.page_content, id=str(uuid5(NAMESPACE_URL, f"again {document.id}")))
        for document in DOCUMENTS[:12]
    ]
    embeddings = HashEmbeddings()
    store = STORES[name](embeddings, [*DOCUMENTS[:12], *again], tmp_path)
    embeddings.reset()
    retriever = SIFTRetriever(vectorstore=store, k=4, vectors="store")
    found = texts(retriever.invoke(QUESTION, select=select))
    assert found == [TEXTS[i] for i in select(QUERY, ROWS[:12], 4).indices]
    assert embeddings.documents == 0
    assert len(set(texts(retriever.invoke(QUESTION, select=nearest)))) == 2  # the rows do repeat


@pytest.mark.parametrize("name", ["qdrant", "qdrant-named"])
def test_lambda_mult_means_on_qdrant_what_it_means_elsewhere(name: str, tmp_path: Path) -> None:
    """#39052: Qdrant took `lambda_mult` for diversity, so 1.0 gave the least relevant mix."""
    retriever = SIFTRetriever(vectorstore=STORES[name](HashEmbeddings(), DOCUMENTS, tmp_path), k=5)
    for weight in (1.0, 0.7, 0.5, 0.3, 0.0):
        wanted = maximal_marginal_relevance(QUERY, list(ROWS), weight, 5)
        found = retriever.invoke(QUESTION, select=partial(mmr, lambda_mult=weight))
        assert texts(found) == [TEXTS[i] for i in wanted], weight
    relevant, diverse = (
        texts(retriever.invoke(QUESTION, select=partial(mmr, lambda_mult=weight)))
        for weight in (1.0, 0.0)
    )
    assert relevant == by_relevance(TEXTS)[:5]
    assert set(diverse) != set(relevant)


@pytest.mark.parametrize("name", ["chroma", "faiss-l2", "memory"])
async def test_documents_come_in_the_order_of_selection(name: str, tmp_path: Path) -> None:
    """#5061: MMR's picks on Chroma came back in the order of the search, not of MMR."""
    diverse = partial(mmr, lambda_mult=0.1)
    wanted = [TEXTS[i] for i in diverse(QUERY, ROWS, 6).indices]
    assert wanted != by_relevance(wanted)  # else this would show nothing
    store = await asyncio.to_thread(STORES[name], HashEmbeddings(), DOCUMENTS, tmp_path)
    retriever = SIFTRetriever(vectorstore=store, k=6, select=diverse)
    compressor = SIFTCompressor(embeddings=HashEmbeddings(), k=6, select=diverse)
    candidates = await store.asimilarity_search(QUESTION, k=40)
    for found in (
        await asyncio.to_thread(retriever.invoke, QUESTION),
        await retriever.ainvoke(QUESTION),
        compressor.compress_documents(candidates, QUESTION),
        await compressor.acompress_documents(candidates, QUESTION),
    ):
        assert texts(found) == wanted
        assert [document.metadata["sift_rank"] for document in found] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("name", STORES)
def test_a_chain_s_source_documents_tell_the_store_s_score(name: str, tmp_path: Path) -> None:
    """#4710: the documents that a question-answering chain returns had no score."""
    store = STORES[name](HashEmbeddings(), DOCUMENTS, tmp_path)
    prompt = PromptTemplate.from_template("{context}\n{input}")
    answering = create_stuff_documents_chain(FakeListChatModel(responses=["Wells."]), prompt)
    chain = create_retrieval_chain(SIFTRetriever(vectorstore=store, k=6), answering)
    found = chain.invoke({"input": QUESTION})["context"]
    own = store.similarity_search_with_score(QUESTION, k=40)
    scores = {document.page_content: float(score) for document, score in own}
    assert len(found) == 6
    for rank, document in enumerate(found, 1):
        told = document.metadata["sift_store_score"]
        assert told == pytest.approx(scores[document.page_content], abs=1e-5)
        assert document.metadata["sift_rank"] == rank


@pytest.mark.parametrize("strategy", ["COSINE", "EUCLIDEAN_DISTANCE"])
@pytest.mark.parametrize("asked", [{}, {"filter": lambda metadata: True}])
def test_a_cosine_is_told_as_a_cosine_and_a_distance_as_a_distance(
    strategy: str, asked: dict[str, Any]
) -> None:
    """#32498: FAISS gives a cosine, and LangChain told one minus it, the nearest lowest."""
    faiss = pytest.importorskip("faiss")
    from langchain_community.docstore.in_memory import InMemoryDocstore
    from langchain_community.vectorstores import FAISS
    from langchain_community.vectorstores.utils import DistanceStrategy

    cosine = strategy == "COSINE"
    index = (faiss.IndexFlatIP if cosine else faiss.IndexFlatL2)(len(QUERY))
    kind = DistanceStrategy[strategy]
    store = FAISS(HashEmbeddings(), index, InMemoryDocstore(), {}, distance_strategy=kind)
    store.add_documents(DOCUMENTS)
    found = SIFTRetriever(vectorstore=store, k=8).invoke(QUESTION, **asked)
    scores = [document.metadata["sift_store_score"] for document in found]
    cosines = np.array([EMBED(text) @ QUERY for text in texts(found)])
    np.testing.assert_allclose(scores, cosines if cosine else 2.0 - 2.0 * cosines, atol=1e-5)
    assert [document.metadata["sift_rank"] for document in found] == list(range(1, 9))


def rare(in_front: int) -> list[Document]:
    """Many documents that are nearer to the question than the six of the topic "rare"."""
    near = [f"The rivers feed the mills and towns, says note {i}." for i in range(in_front)]
    far = [f"Budget of department {i}" for i in range(6)]
    return [
        Document(text, id=str(uuid5(NAMESPACE_URL, text)), metadata={"topic": topic})
        for topic, each in (("common", near), ("rare", far))
        for text in each
    ]


def only_rare(name: str) -> dict[str, Any]:
    if name == "memory":
        return {"filter": lambda document: document.metadata["topic"] == "rare"}
    if name.startswith("qdrant"):
        from qdrant_client import models

        match = models.MatchValue(value="rare")
        condition = models.FieldCondition(key="metadata.topic", match=match)
        return {"filter": models.Filter(must=[condition])}
    return {"filter": {"metadata.topic" if name.startswith("lancedb") else "topic": "rare"}}


FLAT = [name for name in STORES if name.startswith("faiss") and name != "faiss-hnsw"]
# HNSW finds its way by the links between neighbours: it may never reach documents that lie apart.
FILTERED = [
    ("memory", 300),
    ("chroma", 300),
    ("qdrant", 300),
    ("qdrant-named", 300),
    ("pgvector", 300),
    *((name, 300) for name in FLAT),
    ("lancedb", 300),
]


@pytest.mark.parametrize(("name", "in_front"), FILTERED)
def test_a_filter_that_few_documents_pass_still_gives_k(
    name: str, in_front: int, tmp_path: Path
) -> None:
    """#28413: FAISS fetched the nearest and filtered them afterwards, which left nothing."""
    store = STORES[name](HashEmbeddings(), rare(in_front), tmp_path)
    asked = only_rare(name)
    for found in (
        SIFTRetriever(vectorstore=store, k=4).invoke(QUESTION, **asked),
        asyncio.run(SIFTRetriever(vectorstore=store, k=4).ainvoke(QUESTION, **asked)),
        SIFTRetriever(vectorstore=store, k=4, search_kwargs=asked).invoke(QUESTION),
        SIFTRetriever.from_retriever(store.as_retriever(search_kwargs=asked)).invoke(QUESTION),
    ):
        assert [document.metadata["topic"] for document in found] == ["rare"] * 4


async def test_plain_documents_come_out_and_the_store_s_own_stay_as_they_were(
    tmp_path: Path,
) -> None:
    """#28511: `ContextualCompressionRetriever` gave documents with a state, vectors and all."""
    from langchain_community.document_transformers import EmbeddingsRedundantFilter

    embeddings = HashEmbeddings()
    store: Any = STORES["faiss-l2"](embeddings, DOCUMENTS, tmp_path)
    kept = list(store.docstore._dict.values())
    before = [document.model_dump() for document in kept]
    base = store.as_retriever(search_kwargs={"k": 40})
    redundant: Any = EmbeddingsRedundantFilter(embeddings=embeddings, similarity_threshold=0.999)
    pipeline = DocumentCompressorPipeline(
        transformers=[redundant, SIFTCompressor(embeddings=embeddings, k=3)]
    )
    compressing = ContextualCompressionRetriever(base_compressor=pipeline, base_retriever=base)
    stateful = ContextualCompressionRetriever(
        base_compressor=DocumentCompressorPipeline(transformers=[redundant]), base_retriever=base
    )
    over_stateful = SIFTRetriever.from_retriever(stateful, embeddings=embeddings, k=3)
    for retriever in (compressing, over_stateful, SIFTRetriever(vectorstore=store, k=3)):
        for found in (
            await asyncio.to_thread(retriever.invoke, QUESTION),
            await retriever.ainvoke(QUESTION),
        ):
            assert [type(document) for document in found] == [Document] * 3
            assert "embedded_doc" not in json.dumps([d.model_dump() for d in found])
            for document in found:
                assert all(document is not own for own in kept)
                document.metadata["topic"] = "seas"
    assert [document.model_dump() for document in kept] == before
    assert all(type(document) is Document for document in kept)


class Fixed(Embeddings):
    """Vectors that are given; the question's is the first axis."""

    def __init__(self, vectors: dict[str, list[float]]) -> None:
        self.vectors = vectors

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [self.vectors[text] for text in texts]

    def embed_query(self, text: str) -> list[float]:
        return [1.0, 0.0, 0.0, 0.0]


def test_mmr_remembers_every_pick() -> None:
    """llama_index#22684: MMR looked at its last pick only, so what repeats an earlier one came."""
    vectors = {
        "A": [0.90, 0.44, 0.00, 0.00],
        "A again": [0.88, 0.47, 0.00, 0.00],
        "B": [0.70, 0.00, 0.71, 0.00],
        "C": [0.65, 0.00, 0.00, 0.76],
    }
    embeddings = Fixed(vectors)
    store = InMemoryVectorStore.from_texts(list(vectors), embeddings)
    retriever = SIFTRetriever(vectorstore=store, k=3, select=mmr)
    assert texts(retriever.invoke("which?")) == ["A", "B", "C"]
    compressor = SIFTCompressor(embeddings=embeddings, k=3, select=mmr)
    candidates = [Document(text) for text in vectors]
    assert texts(compressor.compress_documents(candidates, "which?")) == ["A", "B", "C"]


class Slow(HashEmbeddings):
    """Embeds no sooner than the event loop gets round to letting it."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self.loop = loop

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        self._wait()
        return super().embed_documents(texts)

    def embed_query(self, text: str) -> list[float]:
        self._wait()
        return super().embed_query(text)

    def _wait(self) -> None:
        turn = threading.Event()
        self.loop.call_soon_threadsafe(turn.set)
        assert turn.wait(20), "the event loop was held up"


async def test_compressing_does_not_hold_up_the_event_loop() -> None:
    """llama_index#16911: an asynchronous reranker that ran its model in the event loop."""
    slow = Slow(asyncio.get_running_loop())
    compressor = SIFTCompressor(embeddings=slow, k=3)
    found = await compressor.acompress_documents(DOCUMENTS, QUESTION)
    assert texts(found) == [TEXTS[i] for i in sift(QUERY, ROWS, 3).indices]


STEPS = 60
DETAILS = "The Korgost pump is inspected by Tanaka. The Korgost pump was built in 1987."
INPUTS: dict[str, Any] = {"input": "Who inspects the Korgost pump?", "context": [Document(DETAILS)]}
ASK = PromptTemplate.from_template("Question: {input}\nAnswer:")


@pytest.fixture(scope="module")
def tiny() -> Iterator[Engine]:
    with Engine.tiny() as engine:
        yield engine


class Waits(SIFTCallbackHandler):
    """Holds up the training from the second step on until news of the first one has arrived."""

    def __init__(self) -> None:
        super().__init__()
        self.heard = threading.Event()
        self.steps = 0

    def on_train_step(self, event: Event, control: Control) -> None:
        super().on_train_step(event, control)
        self.steps += 1
        if event["step"] == 2:
            assert self.heard.wait(20), "no event arrived while it trained"


async def test_a_long_silence_before_the_first_token_is_filled_with_events(tiny: Engine) -> None:
    """#2918: a local model worked for long before its first token, and the stream had died."""
    training = TrainingConfig(steps=STEPS)
    chain = create_ttt_documents_chain(tiny, ASK, training=training)
    wanted = tiny.answer(INPUTS["input"], [DETAILS], mode="train", training=training).text
    handler = Waits()
    names, text = [], ""
    config: Any = {"callbacks": [handler]}
    async for event in chain.astream_events(INPUTS, config, version="v2"):
        if event["event"] == "on_custom_event":
            names.append(event["name"])
            if event["name"] == "sift_train_step":
                handler.heard.set()
        elif event["event"] == "on_chat_model_stream" and event["data"]["chunk"].content:
            names.append("token")
            text += event["data"]["chunk"].content
    assert text == wanted
    tokens = names.count("token")
    training_names = ["sift_train_start", *["sift_train_step"] * STEPS, "sift_train_end"]
    assert names == ["sift_start", *training_names, *["token"] * tokens, "sift_answer"]


def test_the_first_token_comes_after_long_training(tiny: Engine) -> None:
    """#2918, without an event loop: the first piece is text, whatever went before it took."""
    training = TrainingConfig(steps=STEPS)
    chain = create_ttt_documents_chain(tiny, ASK, training=training)
    wanted = tiny.answer(INPUTS["input"], [DETAILS], mode="train", training=training).text
    handler = Waits()
    handler.heard.set()
    pieces = chain.stream(INPUTS, {"callbacks": [handler]})
    first = next(piece for piece in pieces if piece)
    assert handler.steps == STEPS
    assert first + "".join(pieces) == wanted
