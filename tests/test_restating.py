"""Texts in another order: what may move, what stays together, what is left alone."""

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sift_rag.documents import split
from sift_rag.question_templates import sentences
from sift_rag.restating import shuffled
from sift_rag.tiny import world


def test_two_sentences_change_places() -> None:
    assert shuffled("Ada is tall. Bob is small.") == ["Bob is small. Ada is tall."]


def test_a_sentence_that_leans_on_another_stays_behind_it() -> None:
    (again,) = shuffled("The pump is red. It weighs 3 kg. However, it leaks. The oven is blue.")
    assert again == "The oven is blue. The pump is red. It weighs 3 kg. However, it leaks."


@pytest.mark.parametrize(
    "text",
    [
        "",
        "One sentence.",
        "The pump is red. It weighs 3 kg.",
        "Same here. Same here.",
        "a = 1; b = 2",
        "- apples\n- pears",
        "for x in y:\n    print(x)\n\nfor z in y:\n    print(z)",
    ],
)
def test_what_cannot_be_told_another_way(text: str) -> None:
    assert shuffled(text) == []


@given(st.integers(0, 500))
def test_it_keeps_the_sentences_and_is_the_same_each_time(seed: int) -> None:
    text = world.passage(world.devices(1, seed=seed)[0], seed=seed)
    for again in shuffled(text):
        assert again != text
        assert Counter(sentences(again)) == Counter(sentences(text))
        assert shuffled(text) == [again]


def test_open_data(data: Path) -> None:
    """Of real prose most passages can be told another way."""
    texts = [path.read_text(encoding="utf-8") for path in sorted(data.rglob("*.txt"))[:5]]
    passages = [passage.text for passage in split(texts, max_tokens=128)][:200]
    assert sum(bool(shuffled(p)) for p in passages) > 0.3 * len(passages)
