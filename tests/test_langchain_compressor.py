"""`SIFTCompressor`, alone and in LangChain's compression retriever and pipeline."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("langchain_core")

from langchain_core.callbacks import (
    AsyncCallbackManager,
    BaseCallbackHandler,
    CallbackManager,
    Callbacks,
)
from langchain_core.documents import Document
from langchain_core.vectorstores import VectorStore
from langchain_sift import SIFTCallbackHandler, SIFTCompressor, SIFTRetriever
from langchain_stores import DIMENSIONS, STORES, HashEmbeddings, passages

from sift_rag import sift, vectors
from sift_rag.events import Control, Event

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*langchain-community.* is being sunset:DeprecationWarning"),
]

QUESTION = "Which rivers feed the mills and towns?"
DOCUMENTS = passages(30)


@pytest.fixture(autouse=True)
def nothing_was_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors, "_warned", set())


@pytest.fixture
def embeddings() -> HashEmbeddings:
    return HashEmbeddings()


@pytest.fixture
def store(embeddings: HashEmbeddings, tmp_path: Path) -> VectorStore:
    return STORES["faiss-l2"](embeddings, DOCUMENTS, tmp_path)


def texts(documents: Any) -> list[str]:
    return [document.page_content for document in documents]


def best(k: int) -> list[str]:
    """What the core selects, given the vectors."""
    embed = HashEmbeddings().vector
    rows = np.array([embed(document.page_content) for document in DOCUMENTS])
    return [DOCUMENTS[i].page_content for i in sift(embed(QUESTION), rows, k).indices]


class _Watch(SIFTCallbackHandler):
    """Keeps the selections."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.seen: list[Event] = []

    def on_selection(self, event: Event, control: Control) -> None:
        self.seen.append(event)


def test_it_selects_what_the_core_selects_and_remembers(embeddings: HashEmbeddings) -> None:
    compressor = SIFTCompressor(embeddings=embeddings, k=3)
    found = compressor.compress_documents(DOCUMENTS, QUESTION)
    assert texts(found) == best(3)
    assert [document.metadata["sift_rank"] for document in found] == [1, 2, 3]
    assert "sift_store_score" not in found[0].metadata
    assert not any("sift_rank" in document.metadata for document in DOCUMENTS)
    json.dumps([document.metadata for document in found])
    assert texts(asyncio.run(compressor.acompress_documents(DOCUMENTS, QUESTION))) == best(3)
    assert (embeddings.documents, embeddings.queries) == (30, 2)


MANAGERS: dict[str, Callable[[BaseCallbackHandler], Callbacks]] = {
    "list": lambda handler: [handler],
    "manager": lambda handler: CallbackManager([handler]),
    "async manager": lambda handler: AsyncCallbackManager([handler]),
}


@pytest.mark.parametrize("manager", MANAGERS)
def test_a_handler_watches_and_configures_by_any_sort_of_callbacks(
    manager: str, embeddings: HashEmbeddings
) -> None:
    compressor = SIFTCompressor(embeddings=embeddings, k=3)
    handler = _Watch(k=5)
    callbacks = MANAGERS[manager](handler)
    assert texts(compressor.compress_documents(DOCUMENTS, QUESTION, callbacks)) == best(5)
    later = compressor.acompress_documents(DOCUMENTS, QUESTION, callbacks=callbacks)
    assert texts(asyncio.run(later)) == best(5)
    assert [event["candidates"] for event in handler.seen] == [30, 30]


class _Refuses(SIFTCallbackHandler):
    def on_start(self, event: Event, control: Control) -> None:
        raise PermissionError("not these")


async def test_a_handler_that_raises_stops_the_call(embeddings: HashEmbeddings) -> None:
    compressor = SIFTCompressor(embeddings=embeddings)
    with pytest.raises(PermissionError, match="not these"):
        compressor.compress_documents(DOCUMENTS, QUESTION, [_Refuses()])
    with pytest.raises(PermissionError, match="not these"):
        await compressor.acompress_documents(DOCUMENTS, QUESTION, [_Refuses()])
    assert embeddings.queries == 0


async def test_inside_a_compression_retriever(
    store: VectorStore, embeddings: HashEmbeddings
) -> None:
    from langchain_classic.retrievers import ContextualCompressionRetriever

    retriever = ContextualCompressionRetriever(
        base_compressor=SIFTCompressor(embeddings=embeddings, k=3),
        base_retriever=store.as_retriever(search_kwargs={"k": 30}),
    )
    handler = _Watch()
    found = await asyncio.to_thread(retriever.invoke, QUESTION, {"callbacks": [handler]})
    assert texts(found) == texts(await retriever.ainvoke(QUESTION)) == best(3)
    assert len(handler.seen) == 1
    assert len(await retriever.ainvoke(QUESTION, {"callbacks": [_Watch(k=7)]})) == 7
    events = [each async for each in retriever.astream_events(QUESTION, version="v2")]
    sent = [each for each in events if each["event"] == "on_custom_event"]
    assert [each["name"] for each in sent] == ["sift_start", "sift_selection"]
    assert {each["run_id"] for each in sent} == {events[0]["run_id"]}


def test_inside_a_pipeline_it_uses_the_vectors_that_documents_carry(
    embeddings: HashEmbeddings,
) -> None:
    from langchain_classic.retrievers.document_compressors import DocumentCompressorPipeline
    from langchain_community.document_transformers import EmbeddingsRedundantFilter

    compressor = SIFTCompressor(embeddings=embeddings, k=3)
    redundant: Any = EmbeddingsRedundantFilter(embeddings=embeddings, similarity_threshold=0.999)
    pipeline = DocumentCompressorPipeline(transformers=[redundant, compressor])
    handler = _Watch()
    twice = [*DOCUMENTS, *DOCUMENTS]
    found = pipeline.compress_documents(twice, QUESTION, callbacks=[handler])
    assert texts(found) == best(3)
    assert all(type(document) is Document for document in found)
    counts = {"object": 30, "store": 0, "cache": 0, "embedded": 0}
    assert handler.seen[0]["vectors"]["counts"] == counts
    later = asyncio.run(pipeline.acompress_documents(twice, QUESTION))
    assert sorted(texts(later)) == sorted(best(3))


def test_vectors_in_the_metadata_are_used(embeddings: HashEmbeddings) -> None:
    documents = [
        Document(each.page_content, metadata={"v": embeddings.vector(each.page_content).tolist()})
        for each in DOCUMENTS
    ]
    compressor = SIFTCompressor(embeddings=embeddings, k=3, vectors="store", vector_key="v")
    assert texts(compressor.compress_documents(documents, QUESTION)) == best(3)
    assert embeddings.documents == 0
    with pytest.raises(ValueError, match=r"30 of 30 passages have no vector.*forbids to embed"):
        compressor.compress_documents(DOCUMENTS, QUESTION)


def test_after_a_retriever_the_stores_score_is_kept(store: VectorStore) -> None:
    first = SIFTRetriever(vectorstore=store, k=10).invoke(QUESTION)
    found = SIFTCompressor(embeddings=HashEmbeddings(), k=2).compress_documents(first, QUESTION)
    scores = {each.page_content: each.metadata["sift_store_score"] for each in first}
    for rank, document in enumerate(found, 1):
        assert document.metadata["sift_rank"] == rank
        assert document.metadata["sift_store_score"] == scores[document.page_content]


async def test_odd_documents(embeddings: HashEmbeddings) -> None:
    compressor = SIFTCompressor(embeddings=embeddings, k=3)
    assert compressor.compress_documents([], QUESTION) == []
    assert await compressor.acompress_documents([], QUESTION) == []
    assert embeddings.queries == 0
    assert texts(compressor.compress_documents([Document("rivers")], QUESTION)) == ["rivers"]
    same = [Document("rivers", id="a"), Document("rivers", id="a"), Document("", id=None)]
    found = await compressor.acompress_documents(same, QUESTION)
    assert [document.id for document in found] == ["a", "a"]
    none = compressor.compress_documents([Document(""), Document(" ")], QUESTION)
    assert [document.metadata["sift_uncertainty"] for document in none] == [1.0, 1.0]


def test_budget_and_settings_as_in_the_retriever(embeddings: HashEmbeddings) -> None:
    compressor = SIFTCompressor(embeddings=embeddings, k=10, budget=40)
    found = compressor.compress_documents(DOCUMENTS, QUESTION)
    assert 1 <= sum(-(-len(text) // 4) for text in texts(found)) <= 40
    with pytest.raises(ValueError, match="k is 0; it must be at least 1"):
        SIFTCompressor(embeddings=embeddings, k=0)
    with pytest.raises(ValueError, match=r"SIFTCompressor has no embeddings for the question"):
        SIFTCompressor(k=3)


def test_documents_of_other_embeddings_are_a_clear_error(embeddings: HashEmbeddings) -> None:
    compressor = SIFTCompressor(embeddings=embeddings, vector_key="v")
    documents = [Document("a", id="first", metadata={"v": [1.0, 2.0]})]
    wanted = f"'first' has 2 dimensions, wanted {DIMENSIONS}"
    with pytest.raises(ValueError, match=wanted):
        compressor.compress_documents(documents, QUESTION)
