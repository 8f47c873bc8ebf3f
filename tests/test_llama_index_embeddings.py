"""Embeddings for LlamaIndex: those of the embedder, on the real MiniLM weights."""

import asyncio
from pathlib import Path

import numpy as np
import pytest
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.callbacks import CallbackManager, LlamaDebugHandler
from llama_index.core.callbacks.schema import CBEventType
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.ingestion.pipeline import get_transformation_hash
from llama_index.core.schema import TextNode
from llama_index_sift import SIFTEmbedding

from sift_rag.embeddings import SentenceTransformerEmbedder, minilm

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
TEXTS = ["A pump in Oslo.", "A crane in Lima.", ""]


@pytest.fixture(scope="module")
def embedder() -> SentenceTransformerEmbedder:
    return minilm(device="cpu")


@pytest.fixture(scope="module")
def model(embedder: SentenceTransformerEmbedder) -> SIFTEmbedding:
    return SIFTEmbedding(embedder)


async def test_it_is_the_embedder(
    model: SIFTEmbedding, embedder: SentenceTransformerEmbedder
) -> None:
    assert model.model_name == MINILM
    wanted = embedder.embed(TEXTS)
    for rows in (
        model.get_text_embedding_batch(TEXTS),
        await model.aget_text_embedding_batch(TEXTS),
        [model.get_text_embedding(text) for text in TEXTS],
        [await model.aget_text_embedding(text) for text in TEXTS],
    ):
        np.testing.assert_allclose(np.array(rows), wanted, atol=1e-6)
    query = model.get_query_embedding("Where is the pump?")
    assert all(type(number) is float for number in query)
    assert await model.aget_query_embedding("Where is the pump?") == query
    assert np.allclose(query, embedder.embed(["Where is the pump?"], kind="query")[0], atol=1e-6)
    assert model.get_text_embedding_batch([]) == []


class Asymmetric:
    """As E5 and others, another prompt for a question than for a passage."""

    name = "asymmetric"

    def embed(self, texts: list[str], *, kind: str = "passage") -> np.ndarray:
        return np.array([[1.0, 0.0] if kind == "query" else [0.0, 1.0] for _ in texts])


async def test_questions_and_passages_are_told_apart() -> None:
    model = SIFTEmbedding(Asymmetric())  # type: ignore[arg-type]
    assert model.model_name == "asymmetric"
    assert model.get_query_embedding("x") == await model.aget_query_embedding("x") == [1, 0]
    assert model.get_text_embedding("x") == await model.aget_text_embedding("x") == [0, 1]


async def test_the_loop_goes_on_while_it_embeds(model: SIFTEmbedding) -> None:
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0.001)

    ticking = asyncio.create_task(tick())
    await model.aget_text_embedding_batch([f"The pump number {i}." for i in range(64)])
    ticking.cancel()
    assert ticks > 5


def test_it_is_saved_and_read_by_name(model: SIFTEmbedding) -> None:
    again = SIFTEmbedding.from_dict(model.to_dict() | {"embed_batch_size": 5})
    assert isinstance(again, SIFTEmbedding)
    assert (again.model_name, again.embed_batch_size) == (MINILM, 5)
    assert again.get_text_embedding("A pump.") == model.get_text_embedding("A pump.")
    nodes, named = [TextNode(text="x")], SIFTEmbedding(MINILM)
    assert get_transformation_hash(nodes, named) == get_transformation_hash(nodes, model)


def test_in_an_ingestion_pipeline(model: SIFTEmbedding) -> None:
    nodes = IngestionPipeline(transformations=[model]).run(nodes=[TextNode(text="A pump.")])
    assert nodes[0].embedding == model.get_text_embedding("A pump.")


def test_llama_indexs_own_events(embedder: SentenceTransformerEmbedder) -> None:
    debug = LlamaDebugHandler(print_trace_on_end=False)
    model: BaseEmbedding = SIFTEmbedding(embedder, callback_manager=CallbackManager([debug]))
    model.get_text_embedding_batch(TEXTS)
    assert len(debug.get_event_pairs(CBEventType.EMBEDDING)) == 1


def test_any_sentence_transformers_folder_will_do(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="holds no sentence-transformers model"):
        SIFTEmbedding(tmp_path)
