"""How much each token of a text counts in training: a hook, and one that is there."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, TypeAlias


class Token(NamedTuple):
    """A token and where it lies: `text[start:end]`. BOS and EOS lie at the ends and are empty."""

    id: int
    start: int
    end: int


Weigh: TypeAlias = Callable[[str, Sequence[Token]], Sequence[float]]
"""From a text and its tokens to one weight for each token, 0 or more."""

# Words that English, whatever it is about, is full of: articles, prepositions, pronouns, auxiliary
# verbs, conjunctions. In another language they hardly occur, and all words count.
_COMMON = frozenset(
    "a about above after again against all also am an and any are as at be because been before"
    " being below between both but by can could did do does doing down during each few for from"
    " further had has have having he her here hers him his how i if in into is it its itself just"
    " may me might more most must my no nor not now of off on once only or other our out over own"
    " same shall she should so some such than that the their them then there these they this those"
    " through to too under until up upon us very was we were what when where which while who whom"
    " whose why will with within without would you your".split()
)
_WORD = re.compile(r"[^\W_]+(?:['\u2019.,-][^\W_]+)*")


def informative(text: str, tokens: Sequence[Token]) -> list[float]:
    """1 for the tokens of names, numbers and words with a meaning of their own; 0 for the rest.

    The rest is English function words, punctuation, and the text's end. It goes by the words alone
    and asks no model. Where nothing is left, everything counts.
    """
    told = bytearray(len(text))
    for word in _WORD.finditer(text):
        if word[0].lower() not in _COMMON:
            told[word.start() : word.end()] = b"\1" * len(word[0])
    weights = [float(any(told[token.start : token.end])) for token in tokens]
    return weights if any(weights[1:]) else [1.0] * len(tokens)


def located(tokenizer: Any, text: str) -> list[Token]:
    """The tokens of a text by itself, without BOS and EOS, and where they lie.

    Exact with a fast tokenizer; of another one the tokens are decoded, more and more of them, and
    the lengths compared.
    """
    if getattr(tokenizer, "is_fast", False):
        found = tokenizer(
            text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        spans = zip(found["input_ids"], found["offset_mapping"], strict=True)
        return [Token(token, start, end) for token, (start, end) in spans]
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    ends = [0, *(len(tokenizer.decode(ids[: n + 1])) for n in range(len(ids)))]
    return [Token(i, *span) for i, span in zip(ids, pairwise(ends), strict=True)]
