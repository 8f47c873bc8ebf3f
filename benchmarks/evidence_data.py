"""Domains of `evidence.py`: passages held out as test, and the rest as the corpus.

A long document is split, short ones are joined until they are a passage; at most so many of one
document are taken, so that a corpus has several. Other passages of a test passage's document stay
in the corpus, as in a user's own; copies of a test passage do not, see `sift_rag.holding_out`.

    clean    the passages as they come
    copies   a third of them, each with four near copies beside it, as `retrieval_data` makes them
"""

import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from random import Random
from typing import NamedTuple

from retrieval_data import Dataset, corpus

from sift_rag.candidates import Index
from sift_rag.cases import Case
from sift_rag.documents import Document, content_hash, split
from sift_rag.embeddings import CachedEmbedder, Embedder
from sift_rag.holding_out import held_out

DATA = Path(os.environ.get("SIFT_RAG_DATA", Path(__file__).parents[2] / "shared" / "data"))
LEVELS = ("clean", "copies")
SHORTEST, LONGEST = 200, 80  # characters; tokens of four bytes
EACH = 10  # passages of one document at most
_ENDS = re.compile(r"(?<=[.!?;:])\s+|\n+")


class Task(NamedTuple):
    """What is asked of every way on one domain, at one level of redundancy."""

    domain: str
    level: str
    cases: list[Case]
    corpus: Index


def domains(data: Path = DATA) -> list[str]:
    """The names of all domains that are there."""
    found = [*(data / "domains").glob("*.jsonl"), *(data / "domains").glob("*.txt")]
    return sorted(path.stem for path in found)


def passages(domain: str, most: int, data: Path = DATA) -> list[Document]:
    """At most so many passages of a domain, the same ones each time."""
    texts = list(_documents(domain, data))
    Random(0).shuffle(texts)
    found: list[Document] = []
    for i, text in enumerate(texts):
        pieces = split([Document(text, id=f"{domain}-{i}")], max_tokens=LONGEST)
        found += [piece for piece in pieces if len(piece.text) >= SHORTEST][:EACH]
        if len(found) >= most:
            break
    return found[:most]


def tasks(
    domain: str,
    found: list[Document],
    embedder: Embedder,
    *,
    n: int,
    levels: Iterable[str] = LEVELS,
    folder: Path,
) -> Iterator[Task]:
    """The same test passages at each level; vectors are kept in the folder."""
    remembered = CachedEmbedder(embedder)
    cases, rest = held_out(_index(found, remembered, folder), n)
    for level in levels:
        index = rest
        if level == "copies":
            index = _index(copied(rest.documents[::3]), remembered, folder)
        yield Task(domain, level, cases, index)


def copied(found: Iterable[Document]) -> list[Document]:
    """Each passage and four near copies of it."""
    sources = [[s for s in _ENDS.split(one.text) if s.strip()] for one in found]
    made = corpus(Dataset("", sources, [], []), "copies 80 %").passages
    return [Document(one.text, id=str(i)) for i, one in enumerate(made)]


def _index(found: list[Document], embedder: Embedder, folder: Path) -> Index:
    path = folder / f"{content_hash(' '.join(one.id + one.text for one in found))[:16]}.index"
    if not path.exists():
        Index.build(found, embedder).save(path)
    return Index.load(path, embedder)


def _documents(domain: str, data: Path) -> Iterator[str]:
    """Texts of which each gives a passage or more."""
    path = data / "domains" / f"{domain}.jsonl"
    if path.exists():
        lines = path.read_text(encoding="utf-8").splitlines()
        texts = [json.loads(line)["text"] for line in lines]
    else:  # one text of many stories, whose ends are not marked
        texts = path.with_suffix(".txt").read_text(encoding="utf-8").split("\n\n")
    joined = ""
    for text in texts:
        joined = f"{joined}\n{text}" if joined else text
        if len(joined) >= 1.5 * SHORTEST:
            yield joined
            joined = ""
