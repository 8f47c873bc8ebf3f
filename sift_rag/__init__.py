"""sift_rag: choose the passages that leave the least uncertainty, then stuff, train, or both.

`import sift_rag` costs numpy; whatever needs torch is loaded when it is first touched.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sift_rag.adapter_cache import AdapterCache
    from sift_rag.batches import sift_batch
    from sift_rag.candidates import Candidates, Index, IndexFormatError
    from sift_rag.cases import Case, Reply
    from sift_rag.comparing import compare
    from sift_rag.comparison import Comparison
    from sift_rag.costs import Prices
    from sift_rag.documents import Document, read_folder, split
    from sift_rag.embeddings import Embedder, SentenceTransformerEmbedder
    from sift_rag.engine import Answer, Cancelled, Engine, Score
    from sift_rag.events import Callback, Control
    from sift_rag.explaining import Explanation
    from sift_rag.kernels import linear, rbf
    from sift_rag.metrics import Metric
    from sift_rag.pipeline import Pipeline
    from sift_rag.refetch import Fetched, sift_search
    from sift_rag.rivals import dpp, mmr, nearest, random, uncertainty_sampling
    from sift_rag.router import Decision, Router
    from sift_rag.selection import Selection, sift
    from sift_rag.training_config import TrainingConfig, TrainingReport

_HOME = {
    "AdapterCache": "adapter_cache",
    "Answer": "engine",
    "Callback": "events",
    "Cancelled": "engine",
    "Candidates": "candidates",
    "Case": "cases",
    "Comparison": "comparison",
    "Control": "events",
    "Decision": "router",
    "Document": "documents",
    "Embedder": "embeddings",
    "Engine": "engine",
    "Explanation": "explaining",
    "Fetched": "refetch",
    "Index": "candidates",
    "IndexFormatError": "candidates",
    "Metric": "metrics",
    "Pipeline": "pipeline",
    "Prices": "costs",
    "Reply": "cases",
    "Router": "router",
    "Score": "engine",
    "Selection": "selection",
    "SentenceTransformerEmbedder": "embeddings",
    "TrainingConfig": "training_config",
    "TrainingReport": "training_config",
    "compare": "comparing",
    "dpp": "rivals",
    "linear": "kernels",
    "mmr": "rivals",
    "nearest": "rivals",
    "random": "rivals",
    "rbf": "kernels",
    "read_folder": "documents",
    "sift": "selection",
    "sift_batch": "batches",
    "sift_search": "refetch",
    "split": "documents",
    "uncertainty_sampling": "rivals",
}

__version__ = "0.1.0"
__all__ = [
    "AdapterCache",
    "Answer",
    "Callback",
    "Cancelled",
    "Candidates",
    "Case",
    "Comparison",
    "Control",
    "Decision",
    "Document",
    "Embedder",
    "Engine",
    "Explanation",
    "Fetched",
    "Index",
    "IndexFormatError",
    "Metric",
    "Pipeline",
    "Prices",
    "Reply",
    "Router",
    "Score",
    "Selection",
    "SentenceTransformerEmbedder",
    "TrainingConfig",
    "TrainingReport",
    "compare",
    "dpp",
    "linear",
    "mmr",
    "nearest",
    "random",
    "rbf",
    "read_folder",
    "sift",
    "sift_batch",
    "sift_search",
    "split",
    "uncertainty_sampling",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
