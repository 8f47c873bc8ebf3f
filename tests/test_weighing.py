"""Weights of tokens: where tokens lie in a text, and which of them say something."""

from typing import Any

import pytest
from conftest import byte_tokenizer
from hypothesis import given
from hypothesis import strategies as st

from sift_rag import tiny
from sift_rag.loading import load
from sift_rag.weighing import Token, informative, located


def told(text: str) -> list[str]:
    """The words that count, each a token."""
    tokens, at = [Token(0, 0, 0)], 0
    for word in text.split():
        start = text.index(word, at)
        tokens.append(Token(1, start, at := start + len(word)))
    weighed = zip(tokens, informative(text, tokens), strict=True)
    return [text[token.start : token.end] for token, weight in weighed if weight]


def test_names_numbers_and_words_of_their_own_count() -> None:
    text = "The Korvane pump was built in 1987 , and it weighs 3.5 kg ."
    assert told(text) == ["Korvane", "pump", "built", "1987", "weighs", "3.5", "kg"]


def test_another_language_counts_whole() -> None:
    assert told("Die Pumpe wiegt 31 kg") == ["Die", "Pumpe", "wiegt", "31", "kg"]
    assert told("北京 是 首都") == ["北京", "是", "首都"]


def test_where_nothing_is_left_everything_counts() -> None:
    assert informative("It is.", [Token(0, 0, 0), Token(1, 0, 2), Token(2, 3, 5)]) == [1.0] * 3
    assert informative("", [Token(0, 0, 0)]) == [1.0]


class Slow:
    """A tokenizer that does not tell where tokens lie."""

    is_fast = False

    def __init__(self, fast: Any) -> None:
        self.fast = fast

    def __call__(self, text: str, **options: Any) -> Any:
        return self.fast(text, **options)

    def decode(self, ids: list[int]) -> str:
        return str(self.fast.decode(ids, clean_up_tokenization_spaces=False))


@given(st.text("Tha Oslo19,.", max_size=40))
def test_a_slow_tokenizer_tells_the_same(text: str) -> None:
    fast = byte_tokenizer()
    assert located(Slow(fast), text) == located(fast, text)


@pytest.mark.parametrize("text", ["The Korvane pump weighs 31 kg.", "naïve 北京 🎉 x", "", " \x00"])
def test_tokens_lie_where_they_say(text: str) -> None:
    _, tokenizer = load(tiny.FOLDER)
    found = located(tokenizer, text)
    assert [t.id for t in found] == tokenizer(text, add_special_tokens=False)["input_ids"]
    assert all(0 <= t.start <= t.end <= len(text) for t in found)
    assert {c for t in found for c in text[t.start : t.end]} >= set(text) - {" "}
