"""Questions with answers made of a passage, for training: by whom, checked, kept for the next time.

What a template, a model or the user's function made of a text is kept by the text: a passage that
is selected for many questions is asked about once.
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Mapping
from itertools import islice
from typing import Any, Generic, TypeAlias, TypeVar

from sift_rag.documents import Document, content_hash

T = TypeVar("T")
Pair = tuple[str, str]
Maker: TypeAlias = Callable[[Document], Iterable["tuple[str, Any] | Mapping[str, Any]"]]
"""From a passage to (question, answer), or mappings with "question" and "reference" or "answer"."""

MOST = 32
"""Pairs taken of one passage: a function may go on for ever."""

_KEPT = 4096  # results: of some hundred bytes each


class Recent(Generic[T]):
    """The latest results, by key; threads may share it. Errors are not kept."""

    def __init__(self, size: int = _KEPT) -> None:
        self._size = size
        self._kept: OrderedDict[Hashable, T] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """What is kept, or what `make` gives; two threads may make the same one at once."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        made = make()
        with self._lock:
            self._kept[key] = made
            self._kept.move_to_end(key)
            while len(self._kept) > self._size:
                self._kept.popitem(last=False)
        return made


_PAIRS: Recent[tuple[Pair, ...]] = Recent()
_TEXTS: Recent[tuple[str, ...]] = Recent()


def pairs_of(text: str, make: Maker, *, by: object = None, of: Hashable = None) -> tuple[Pair, ...]:
    """The questions and answers that `make` makes of a passage: at most MOST, the best first.

    Args:
        text: The passage. `make` gets it as a `Document` whose id is the hash of the text.
        make: Who makes them.
        by: Whose results they are, for the cache, if not of `make`: a model.
        of: What else the result depends on, for the cache.

    Raises:
        TypeError, ValueError: What it gave is no list of pairs.
    """

    def made() -> tuple[Pair, ...]:
        found = make(Document(text))
        if isinstance(found, (str, Mapping)) or not isinstance(found, Iterable):
            raise TypeError(f"it gave {type(found).__name__}, wanted a list of pairs")
        return tuple(filter(None, map(_pair, islice(found, MOST))))

    return _remembered(_PAIRS, by or make, text, of, made)


def texts_of(
    text: str,
    restate: Callable[[str], Iterable[str]],
    *,
    by: object = None,
    of: Hashable = None,
) -> tuple[str, ...]:
    """The other tellings of a passage that `restate` makes, without empty ones.

    Raises:
        TypeError: What it gave is no list of strings.
    """

    def made() -> tuple[str, ...]:
        found = restate(text)
        told = () if isinstance(found, str) or not isinstance(found, Iterable) else found
        texts = list(islice(told, MOST))
        if told is not found or not all(isinstance(one, str) for one in texts):
            raise TypeError(f"it gave {found!r:.100}, wanted a list of strings")
        return tuple(one for one in texts if one.strip() and one != text)

    return _remembered(_TEXTS, by or restate, text, of, made)


def _pair(given: Any) -> Pair | None:
    """The pair, or None where question or answer is empty."""
    if isinstance(given, Mapping):
        references = given.get("references") or [None]
        answer = given.get("reference", given.get("answer", references[0]))
        given = (given.get("question"), answer)
    if isinstance(given, str) or not isinstance(given, (tuple, list)) or len(given) != 2:
        raise ValueError(f"it gave {given!r:.100}, wanted a pair (question, answer)")
    question, answer = ("" if part is None else str(part).strip() for part in given)
    return (question, answer) if question and answer else None


def _remembered(kept: Recent[T], by: object, text: str, of: Hashable, make: Callable[[], T]) -> T:
    try:
        # Weak: a function may hold a model. Two references to dead ones are never equal.
        key = (weakref.ref(by), content_hash(text), of)
        hash(key)
    except TypeError:  # of an object that cannot be hashed or referred to
        return make()
    return kept.get(key, make)
