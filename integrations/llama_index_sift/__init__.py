"""sift_rag for LlamaIndex: a postprocessor, a retriever, and a synthesizer that trains.

`SIFTPostprocessor` and `SIFTRetriever` need numpy and llama-index-core; what needs torch is loaded
when it is first touched.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llama_index_sift.callbacks import SIFTCallbackHandler
    from llama_index_sift.embeddings import SIFTEmbedding
    from llama_index_sift.events import (
        SIFTSelectionEvent,
        TTTEndEvent,
        TTTStartEvent,
        TTTStepEvent,
    )
    from llama_index_sift.llm import SIFTLLM
    from llama_index_sift.postprocessor import SIFTPostprocessor
    from llama_index_sift.query_engine import sift_query_engine
    from llama_index_sift.recording import SIFTRecorder
    from llama_index_sift.retriever import SIFTRetriever
    from llama_index_sift.synthesizer import TTTSynthesizer

_HOME = {
    "SIFTCallbackHandler": "callbacks",
    "SIFTEmbedding": "embeddings",
    "SIFTLLM": "llm",
    "SIFTPostprocessor": "postprocessor",
    "SIFTRecorder": "recording",
    "SIFTRetriever": "retriever",
    "SIFTSelectionEvent": "events",
    "TTTEndEvent": "events",
    "TTTStartEvent": "events",
    "TTTStepEvent": "events",
    "TTTSynthesizer": "synthesizer",
    "sift_query_engine": "query_engine",
}

__all__ = [
    "SIFTLLM",
    "SIFTCallbackHandler",
    "SIFTEmbedding",
    "SIFTPostprocessor",
    "SIFTRecorder",
    "SIFTRetriever",
    "SIFTSelectionEvent",
    "TTTEndEvent",
    "TTTStartEvent",
    "TTTStepEvent",
    "TTTSynthesizer",
    "sift_query_engine",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "llama_index":
            raise
        raise ImportError(
            f'{name} needs llama-index-core: pip install "sift-rag-ttt[llama-index]"'
        ) from error
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
