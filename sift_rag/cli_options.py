"""What the commands share: the consoles, the options, and loading what an option names."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console

from sift_rag.rivals import dpp, mmr, nearest, random, uncertainty_sampling
from sift_rag.selection import Selection, sift

if TYPE_CHECKING:
    from sift_rag.candidates import Index
    from sift_rag.embeddings import SentenceTransformerEmbedder
    from sift_rag.engine import Engine

# Heavy imports (torch, transformers) are inside the functions: `sift-rag --help` answers at once.

SELECTORS: dict[str, Callable[..., Selection]] = {
    "sift": sift,
    "nearest": nearest,
    "mmr": mmr,
    "dpp": dpp,
    "uncertainty-sampling": uncertainty_sampling,
    "random": random,
}
Select = Literal["sift", "nearest", "mmr", "dpp", "uncertainty-sampling", "random"]
Use = Literal["stuff", "train", "both", "closed-book", "auto"]

out = Console()
err = Console(stderr=True)

IndexFolder = Annotated[Path, typer.Argument(metavar="DIR", help="The index.")]
Question = Annotated[str, typer.Argument(metavar="QUESTION", help="What you want to know.")]
K = Annotated[int, typer.Option("-k", "--k", help="Passages to select.")]
FetchK = Annotated[int, typer.Option(help="Candidates that the selection sees.")]
Selector = Annotated[Select, typer.Option(help="How passages are selected.")]
EmbedderName = Annotated[
    str, typer.Option("--embedder", help="A sentence-transformers model: name or local path.")
]
Model = Annotated[str, typer.Option(help="A causal LM: Hugging Face name, local path, or tiny.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
MINILM = "minilm"


def embedder_of(name: str) -> "SentenceTransformerEmbedder":
    """The embedder of that name."""
    from sift_rag.embeddings import SentenceTransformerEmbedder, minilm

    with err.status("Loading the embedder"):
        return minilm() if name == MINILM else SentenceTransformerEmbedder(name)


def engine_of(name: str) -> "Engine":
    """An engine with the model of that name."""
    from sift_rag.engine import Engine

    with err.status("Loading the model"):
        return Engine.tiny() if name == "tiny" else Engine.from_pretrained(name)


def load_index(folder: Path, embedder: str) -> "Index":
    """The index in a folder, which is looked at before the embedder takes its seconds."""
    from sift_rag import storage
    from sift_rag.candidates import Index

    storage.check(folder)
    return Index.load(folder, embedder_of(embedder))


def print_json(data: dict[str, Any], *, indent: int | None = 2) -> None:
    """Print data for programs."""
    sys.stdout.write(json.dumps(data, ensure_ascii=False, indent=indent, default=str) + "\n")
