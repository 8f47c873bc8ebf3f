"""Corpora and questions of `retrieval.py`: four open sets, each at four levels of redundancy.

A source is a paragraph, known by its sentences; a passage is a piece of one: an ordered choice of
its sentences. A question needs some facts, and each fact can be had from some of the passages. So
what counts as found does not depend on how a corpus was cut or copied, and a copy that lost the
sentence with the answer is no gold.

    clean    a passage a source
    windows  every three neighbouring sentences
    copies   of each source 0 or more near copies beside it, 25 % or 80 % of all passages: up to a
             quarter of the sentences dropped (one at least), then two neighbours swapped; a source
             of a single sentence is mirrored as it is

Single questions are the sets' own; pairs are two of them, about different sources, asked in one
text. PubMedQA's questions need all sections of an abstract, so there they have several golds as
they come.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from random import Random
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sift_rag.embeddings import Embedder, Kind, embedder_name, unit_rows

CACHE = Path(__file__).parent / "cache"
LEVELS = ("clean", "windows", "copies 25 %", "copies 80 %")
SETS = ("xquad", "clapnq", "pubmedqa", "covidqa")
WINDOW = 3  # sentences
COVID_PAPERS, ABSTRACTS = 30, 400  # of 98 and 1,000: what two cores embed in minutes
CHUNK = 700  # characters a paragraph of a long paper, about 150 tokens
_ENDS = re.compile(r"(?<=[.!?])[\s]+(?=[\"'(]?[A-Z0-9])")


class Fact(NamedTuple):
    """What a question needs: this sentence of this source, or any of it (None)."""

    source: int
    sentence: int | None


class Question(NamedTuple):
    text: str
    facts: tuple[Fact, ...]


class Passage(NamedTuple):
    source: int
    sentences: tuple[int, ...]
    text: str


class Dataset(NamedTuple):
    """Sources as sentences, and the questions about them."""

    name: str
    sources: list[list[str]]
    single: list[Question]
    pairs: list[Question]


class Corpus(NamedTuple):
    """A data set at one level of redundancy."""

    passages: list[Passage]
    holders: dict[Fact, frozenset[int]]

    def gold(self, question: Question) -> list[frozenset[int]]:
        """For each fact of a question, the passages that tell it."""
        return [self.holders[fact] for fact in question.facts]


def load(name: str, folder: Path) -> Dataset:
    """One of `SETS`, from the folder of open data."""
    sources, single, groups = _READERS[name](folder / "qa")
    return Dataset(name, sources, single, _pairs(single, groups, Random(0)))


def corpus(data: Dataset, level: str) -> Corpus:
    """The passages of a data set at one of `LEVELS`, and who tells what."""
    passages = [p for s, source in enumerate(data.sources) for p in _passages(s, source, level)]
    by_source: dict[int, list[int]] = {}
    for position, passage in enumerate(passages):
        by_source.setdefault(passage.source, []).append(position)
    facts = {fact for question in data.single + data.pairs for fact in question.facts}
    holders = {
        fact: frozenset(
            p
            for p in by_source[fact.source]
            if fact.sentence is None or fact.sentence in passages[p].sentences
        )
        for fact in facts
    }
    return Corpus(passages, holders)


def vectors(texts: Sequence[str], embedder: Embedder, kind: Kind) -> NDArray[np.float32]:
    """Unit rows (n, d), embedded once and then read from `CACHE`."""
    key = hashlib.sha256("\x00".join([embedder_name(embedder), kind, *texts]).encode())
    path = CACHE / f"{key.hexdigest()[:32]}.npy"
    if not path.exists():
        CACHE.mkdir(exist_ok=True)
        part = path.with_suffix(".part.npy")
        np.save(part, unit_rows(embedder, texts, kind=kind))
        part.replace(path)
    rows: NDArray[np.float32] = np.load(path, allow_pickle=False)
    return rows


def _passages(s: int, source: list[str], level: str) -> Iterable[Passage]:
    whole = tuple(range(len(source)))
    if level == "windows":
        starts = range(max(1, len(source) - WINDOW + 1))
        pieces = [whole[start : start + WINDOW] for start in starts]
    else:
        copies = {"clean": 0, "copies 80 %": 4}.get(level)
        if copies is None:  # 25 % of all passages: one beside every third source
            copies = int(s % 3 == 0)
        random = Random(s)
        pieces = [whole, *(_near_copy(whole, random) for _ in range(copies))]
    return [Passage(s, piece, " ".join(source[i] for i in piece)) for piece in pieces]


def _near_copy(sentences: tuple[int, ...], random: Random) -> tuple[int, ...]:
    kept = list(sentences)
    for _ in range(max(1, len(kept) // 4) if len(kept) > 1 else 0):
        kept.pop(random.randrange(len(kept)))
    if len(kept) > 1:
        i = random.randrange(len(kept) - 1)
        kept[i], kept[i + 1] = kept[i + 1], kept[i]
    return tuple(kept)


def _pairs(single: list[Question], groups: list[int], random: Random) -> list[Question]:
    """Two questions of one group about different sources, each question used once at most."""
    found, waiting = [], dict[int, list[Question]]()
    order = list(range(len(single)))
    random.shuffle(order)
    for i in order:
        others = waiting.setdefault(groups[i], [])
        mine = {fact.source for fact in single[i].facts}
        fitting = [o for o in others if mine.isdisjoint(fact.source for fact in o.facts)]
        if fitting:
            others.remove(fitting[0])
            text = f"{fitting[0].text.strip()} {single[i].text.strip()}"
            found.append(Question(text, fitting[0].facts + single[i].facts))
        else:
            others.append(single[i])
    return found


Read = tuple[list[list[str]], list[Question], list[int]]  # sources, questions, their groups


class _Text:
    """A paragraph, cut into sentences that know where they begin."""

    def __init__(self, text: str) -> None:
        self.text = text

    @cached_property
    def spans(self) -> list[tuple[int, int]]:
        starts = [0, *(found.end() for found in _ENDS.finditer(self.text))]
        ends = [*starts[1:], len(self.text)]
        spans = zip(starts, ends, strict=True)
        return [(start, end) for start, end in spans if self.text[start:end].strip()]

    def sentence(self, start: int, end: int) -> int:
        """The sentence that holds most of a span of characters."""
        shares = [min(end, stop) - max(start, begin) for begin, stop in self.spans]
        return int(np.argmax(shares))

    def sentences(self) -> list[str]:
        return [self.text[start:end].strip() for start, end in self.spans]


def _xquad(folder: Path) -> Read:
    sources: list[list[str]] = []
    questions: list[Question] = []
    groups: list[int] = []
    articles = json.loads((folder / "xquad.en.json").read_text(encoding="utf-8"))["data"]
    for a, article in enumerate(articles):
        for paragraph in article["paragraphs"]:
            text = _Text(paragraph["context"])
            for asked in paragraph["qas"]:
                span = asked["answers"][0]
                start = span["answer_start"]
                fact = Fact(len(sources), text.sentence(start, start + len(span["text"])))
                questions.append(Question(asked["question"], (fact,)))
                groups.append(a)
            sources.append(text.sentences())
    return sources, questions, groups


def _clapnq(folder: Path) -> Read:
    sources: list[list[str]] = []
    questions: list[Question] = []
    seen: dict[str, int] = {}
    for name in ("clapnq_dev_answerable.jsonl", "clapnq_dev_unanswerable.jsonl"):
        for line in (folder / name).read_text(encoding="utf-8").splitlines():
            item = json.loads(line)
            passage = item["passages"][0]
            source = seen.setdefault(passage["text"], len(sources))
            if source == len(sources):
                sources.append(passage["sentences"])
            answers = [o["selected_sentences"] for o in item["output"] if o["answer"]]
            chosen: list[str] = answers[0] if answers else []
            places = sorted({sources[source].index(sentence) for sentence in chosen})
            if places:
                facts = tuple(Fact(source, place) for place in places)
                questions.append(Question(item["input"], facts))
    return sources, questions, [0] * len(questions)


def _pubmedqa(folder: Path) -> Read:
    sources: list[list[str]] = []
    questions: list[Question] = []
    items = json.loads((folder / "pubmedqa_ori_pqal.json").read_text(encoding="utf-8"))
    for item in list(items.values())[:ABSTRACTS]:
        sections = [_Text(text).sentences() for text in item["CONTEXTS"]]
        facts = tuple(Fact(len(sources) + i, None) for i in range(len(sections)))
        questions.append(Question(item["QUESTION"], facts))
        sources += sections
    return sources, questions, [0] * len(questions)


def _covidqa(folder: Path) -> Read:
    sources: list[list[str]] = []
    questions: list[Question] = []
    groups: list[int] = []
    papers = json.loads((folder / "covidqa_200423.json").read_text(encoding="utf-8"))["data"]
    for number, paper in enumerate(papers[:COVID_PAPERS]):
        (paragraph,) = paper["paragraphs"]
        text = _Text(paragraph["context"])
        place: list[Fact] = []  # of each sentence
        for sentence in text.sentences():
            room = CHUNK - sum(map(len, sources[-1])) if place else 0
            if room < len(sentence):
                sources.append([])
            place.append(Fact(len(sources) - 1, len(sources[-1])))
            sources[-1].append(sentence)
        for asked in paragraph["qas"]:
            span = asked["answers"][0]
            start = span["answer_start"]
            fact = place[text.sentence(start, start + len(span["text"]))]
            questions.append(Question(asked["question"], (fact,)))
            groups.append(number)
    return sources, questions, groups


_READERS = {"xquad": _xquad, "clapnq": _clapnq, "pubmedqa": _pubmedqa, "covidqa": _covidqa}
