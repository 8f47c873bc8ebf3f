"""sift_rag for LangChain: a retriever, a compressor, and a chain that trains instead of stuffing.

`SIFTRetriever` and `SIFTCompressor` need numpy and langchain-core; what needs torch is loaded when
it is first touched.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from langchain_sift.callbacks import SIFTCallbackHandler
    from langchain_sift.chain import create_ttt_documents_chain
    from langchain_sift.chat import ChatSIFT
    from langchain_sift.compressor import SIFTCompressor
    from langchain_sift.embeddings import SIFTEmbeddings
    from langchain_sift.recording import SIFTRecorder
    from langchain_sift.retriever import SIFTRetriever

_HOME = {
    "ChatSIFT": "chat",
    "SIFTCallbackHandler": "callbacks",
    "SIFTCompressor": "compressor",
    "SIFTEmbeddings": "embeddings",
    "SIFTRecorder": "recording",
    "SIFTRetriever": "retriever",
    "create_ttt_documents_chain": "chain",
}

__all__ = [
    "ChatSIFT",
    "SIFTCallbackHandler",
    "SIFTCompressor",
    "SIFTEmbeddings",
    "SIFTRecorder",
    "SIFTRetriever",
    "create_ttt_documents_chain",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "langchain_core":
            raise
        raise ImportError(
            f'{name} needs langchain-core: pip install "sift-rag-ttt[langchain]"'
        ) from error
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
