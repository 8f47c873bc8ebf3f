"""Passages held out of a corpus: how well a way predicts their second half needs no labels."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from sift_rag.candidates import NEAR_COPY, Index
from sift_rag.cases import Case
from sift_rag.choosing import approximate_tokens, at_least_one
from sift_rag.documents import MAX_TOKENS, Progress

_SHORTEST = 8  # words: half of fewer than that has little to go on, and little to predict
# Chinese and Japanese put no spaces between words: there each character may begin one.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\s\u3040-\u30ff\u3400-\u9fff]+")


def held_out(
    index: Index,
    n: int = 50,
    *,
    seed: int = 0,
    length: Callable[[str], int] = approximate_tokens,
    most: int = MAX_TOKENS // 2,
    progress: Progress | None = None,
) -> tuple[list[Case], Index]:
    """Take passages out of a corpus: their first half is the question, the second the reference.

    Copies would give the second half away. So passages in which it stands word for word leave the
    index too, and those whose vector has a cosine of 0.95 or more with that of the passage.
    Passages that overlap (`split(overlap=...)`) still share some of its words.

    Args:
        index: Stays as it is.
        n: How many passages.
        seed: Chooses them.
        length: Counts the tokens of a text.
        most: Tokens that each half has at most: of a longer passage only the beginning is taken.
            The default is half of a passage as `split` makes them.
        progress: Called with (passages taken, n) after each.

    Returns:
        The cases, n or, with a warning, fewer, of origin "held_out"; their metadata has the id of
        the passage ("passage") and how many others left the index with it ("copies"). And an index
        of all that is left.

    Raises:
        ValueError: `n` or `most` < 1, the index is too small to leave anything, or no passage has
            eight words (or `most` does not hold them).
    """
    at_least_one("n", n)
    at_least_one("most", most)
    if len(index) <= n:
        raise ValueError(
            f"The index has {len(index)} passages: {n} cannot be held out and some be left. Lower"
            " n, or use a larger corpus."
        )
    texts = [_plain(document.text) for document in index.documents]
    left = np.ones(len(index), dtype=bool)
    cases: list[Case] = []
    for i in np.random.default_rng(seed).permutation(len(index)).tolist():
        found = _halves(index.documents[i].text, length, most) if left[i] else None
        if found:
            gone = left & _copies(index, texts, i, found[1])
            left &= ~gone
            about = {"passage": index.documents[i].id, "copies": int(gone.sum()) - 1}
            cases.append(Case(found[0], (found[1],), origin="held_out", metadata=about))
            if progress:
                progress(len(cases), n)
        if len(cases) == n:
            break
    _check(len(cases), n, left=int(left.sum()))
    rows = np.flatnonzero(left)
    kept = tuple(index.documents[i] for i in rows.tolist())
    return cases, Index(kept, index.embeddings[rows], index.embedder)


def _plain(text: str) -> str:
    return " ".join(text.split())


def _halves(text: str, length: Callable[[str], int], most: int) -> tuple[str, str] | None:
    """Both halves of the longest beginning of which neither has more than `most` tokens."""
    starts = [word.start() for word in _WORD.finditer(text)]
    ends = [*starts[1:], len(text)]

    def cut(words: int) -> tuple[str, str]:
        part = text[starts[0] : ends[words - 1]].rstrip()
        # The byte in the middle, as bits per byte are what is measured.
        middle = starts[0] + len(part.encode()[: len(part.encode()) // 2].decode(errors="ignore"))
        at = min(starts[1:words], key=lambda start: abs(start - middle))
        return text[starts[0] : at].rstrip(), text[at : starts[0] + len(part)]

    low, high = _SHORTEST - 1, min(len(starts), 4 * most)  # a token is half a word, or more of it
    while low < high:
        words = (low + high + 1) // 2
        low, high = (words, high) if max(map(length, cut(words))) <= most else (low, words - 1)
    return cut(low) if low >= _SHORTEST else None


def _copies(index: Index, texts: Sequence[str], i: int, reference: str) -> NDArray[np.bool_]:
    """(n,) which passages are passage i, or tell its second half."""
    copies = np.asarray(index.embeddings @ index.embeddings[i] >= NEAR_COPY)
    wanted = _plain(reference)
    copies |= np.fromiter((wanted in text for text in texts), dtype=bool, count=len(texts))
    copies[i] = True
    return copies


def _check(taken: int, n: int, *, left: int) -> None:
    if not taken:
        raise ValueError(
            f"No passage can be held out: one needs {_SHORTEST} words, in two halves of at most"
            " `most` tokens."
        )
    if not left:
        raise ValueError(
            f"Nothing is left of the index when {taken} passages and all copies of them are held"
            " out: lower n, or use a larger corpus."
        )
    if taken < n:
        warnings.warn(
            f"Only {taken} of {n} passages were held out: the others are too short, or copies.",
            stacklevel=3,
        )
