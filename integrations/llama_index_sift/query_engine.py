"""A query engine with SIFT's retriever and a synthesizer that trains, which asks for no key."""

from __future__ import annotations

from typing import Any

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.callbacks import CallbackManager
from llama_index.core.indices.base import BaseIndex
from llama_index.core.query_engine import RetrieverQueryEngine

from llama_index_sift.llm import SIFTLLM
from llama_index_sift.retriever import SIFTRetriever
from llama_index_sift.synthesizer import TTTSynthesizer
from sift_rag.engine import Engine, Mode


def sift_query_engine(
    index_or_retriever: BaseIndex[Any] | BaseRetriever,
    engine: Engine | SIFTLLM,
    *,
    k: int = 5,
    fetch_k: int = 50,
    mode: Mode = "train",
    streaming: bool = False,
    embed_model: BaseEmbedding | None = None,
    callback_manager: CallbackManager | None = None,
    **retriever_settings: Any,
) -> RetrieverQueryEngine:
    """Ask an index: SIFT selects the passages, and the model trains on them, or reads them.

    It is `RetrieverQueryEngine(SIFTRetriever(...), TTTSynthesizer(...))`, whose settings beyond
    these are to be had that way. (`RetrieverQueryEngine.from_args` would ask for a key of OpenAI.)

    Args:
        index_or_retriever: A `VectorStoreIndex`, or a retriever that yields many nodes.
        engine: An `Engine`, or a `SIFTLLM` with settings of its own: length, stop strings,
            training.
        k: How many nodes to select.
        fetch_k: How many candidates to select from.
        mode: "train", "stuff", "both" or "closed_book"; see `TTTSynthesizer`.
        streaming: Whether responses come piece by piece.
        embed_model: What the nodes were embedded with; None takes the index's.
        callback_manager: Its `SIFTCallbackHandler`s configure and watch each query. None leaves
            the index and the model theirs.
        retriever_settings: Further ones of `SIFTRetriever`.
    """
    retriever = SIFTRetriever(
        index_or_retriever,
        k,
        fetch_k,
        embed_model=embed_model,
        callback_manager=callback_manager,
        **retriever_settings,
    )
    synthesizer = TTTSynthesizer(
        engine, mode, streaming=streaming, callback_manager=callback_manager
    )
    return RetrieverQueryEngine(
        retriever, response_synthesizer=synthesizer, callback_manager=callback_manager
    )
