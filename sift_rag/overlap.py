"""How far texts say the same: answers and references, passages and gold ones, passages and copies.

Strings only. What the metrics of these names mean is here.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise

from sift_rag.documents import Document


def normalised(answer: str) -> str:
    """An answer as SQuAD compares it: lower case, no ASCII punctuation, no articles, one space.

    As `normalize_answer` of the official evaluate-v1.1.py and evaluate-v2.0.py (Rajpurkar et al.,
    EMNLP 2016 and ACL 2018): punctuation goes before the articles a, an, the.
    """
    text = "".join(c for c in answer.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def exact_match(answer: str, references: Iterable[str]) -> bool | None:
    """Whether an answer is one of the references, normalised; None without a reference."""
    right = _right(references)
    return normalised(answer) in right if right else None


def token_f1(answer: str, references: Iterable[str]) -> float | None:
    """F1 of the words of an answer and of the nearest reference; None without a reference."""
    words = normalised(answer).split()
    return max((_f1(words, reference.split()) for reference in _right(references)), default=None)


def _right(references: Iterable[str]) -> list[str]:
    """The references, normalised.

    As in evaluate-v2.0.py, one that normalises to nothing counts only where all do: then the
    question has no answer, and only an empty one is right.
    """
    found = [normalised(reference) for reference in references]
    return [text for text in found if text] or found[:1]


def _f1(told: Sequence[str], right: Sequence[str]) -> float:
    if not told or not right:
        return float(told == right)
    common = (Counter(told) & Counter(right)).total()
    return 2 * common / (len(told) + len(right))


def gold_recall(gold: Sequence[str], passages: Iterable[Document]) -> float:
    """Share of the gold passages that are there: by id, by text, or as a part of a passage.

    White space does not count in texts. A single word is no part of a passage: it is an id, which
    may stand in a text by chance.
    """
    there = list(passages)
    ids = {passage.id for passage in there}
    texts = [_spaced(passage.text) for passage in there]

    def found(wanted: str) -> bool:
        text = _spaced(wanted)
        inside = " " in text and any(text in each for each in texts)
        return wanted in ids or text in texts or inside

    return sum(map(found, gold)) / len(gold)


def near_duplicates(passages: Sequence[Document]) -> float:
    """Share of the passages that repeat one before them: at least half of their words and pairs of
    neighbouring words are in it.

    Half, as in benchmarks/RETRIEVAL.md; words and pairs rather than longer runs, so that a
    reworded copy counts. Of passages of real text that overlap by half this finds 96 in 100, of
    copies in which every third word was replaced 7 in 10, and none of neighbouring passages.
    """
    each = [_pieces(passage.text) for passage in passages]
    repeats = (
        any(2 * len(new & earlier) >= len(new) > 0 for earlier in each[:i])
        for i, new in enumerate(each)
    )
    return sum(repeats) / len(each)


def _pieces(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    return {(word,) for word in words} | set(pairwise(words))


def _spaced(text: str) -> str:
    return " ".join(text.split())
