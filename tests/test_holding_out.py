"""Passages held out: where they are cut, and that nothing that gives them away is left."""

from collections.abc import Sequence
from hashlib import sha256

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from sift_rag.candidates import NEAR_COPY, Index
from sift_rag.choosing import approximate_tokens
from sift_rag.documents import Document
from sift_rag.embeddings import Kind
from sift_rag.holding_out import held_out

WORDS = "one two three four five six seven eight nine ten eleven twelve".split()


class Words:
    """Embeds a text as the bag of its words, in 256 hashed dimensions."""

    def embed(self, texts: Sequence[str], *, kind: Kind = "passage") -> NDArray[np.float32]:
        rows = np.full((len(texts), 256), 1e-3, np.float32)
        for row, text in zip(rows, texts, strict=True):
            for word in text.split():
                row[sha256(word.encode()).digest()[0]] += 1
        return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


def build(*texts: str) -> Index:
    return Index.build([Document(text, id=f"d{i}") for i, text in enumerate(texts)], Words())


def passages(count: int, words: int = 20) -> list[str]:
    return [" ".join(f"w{i}x{j}" for j in range(words)) for i in range(count)]


def halves(text: str, most: int = 64) -> tuple[str, str]:
    """Of a passage that is the only one long enough."""
    (case,), _ = held_out(build(text, "short"), 1, most=most)
    return case.question, case.references[0]


def test_a_passage_is_cut_at_the_word_nearest_to_its_middle() -> None:
    assert halves("aa bb cc dd ee ff gg hh") == ("aa bb cc dd", "ee ff gg hh")
    assert halves("  aa bb cc dd \n\n ee ff gg hh\n") == ("aa bb cc dd", "ee ff gg hh")
    question, reference = halves("a b c d e f g " + "long" * 20)
    assert (question, reference) == ("a b c d e f g", "long" * 20)


def test_the_middle_is_that_of_the_bytes() -> None:
    assert halves("a a a a a a a a ééééééééé éé") == ("a a a a a a a a", "ééééééééé éé")


def test_text_without_spaces_between_words_is_cut_too() -> None:
    assert halves("我们今天去公园散步了") == ("我们今天去", "公园散步了")


@given(st.lists(st.text("abcé ", min_size=1).filter(str.strip), min_size=8, max_size=60))
def test_a_cut_loses_nothing_but_white_space(words: list[str]) -> None:
    text = " ".join(words)
    question, reference = halves(text, most=10_000)
    assert f"{question} {reference}".split() == text.split()
    off = abs(len(question.encode()) - len(reference.encode()))
    assert off <= 2 * max(len(word.encode()) for word in text.split()) + text.count("  ") + 2


@pytest.mark.parametrize("most", [6, 10, 30])
@pytest.mark.parametrize("length", [approximate_tokens, lambda text: len(text.split())])
def test_each_half_keeps_to_its_tokens_and_nearly_fills_them(most: int, length: object) -> None:
    assert callable(length)
    text = " ".join(WORDS * 50)
    cases, _ = held_out(build(text, "short"), 1, length=length, most=most)
    question, reference = cases[0].question, cases[0].references[0]
    assert text.startswith(f"{question} {reference}")
    assert max(length(question), length(reference)) <= most
    assert max(length(question), length(reference)) >= most - 2


def test_cases_and_what_is_left() -> None:
    index = build(*passages(30))
    told: list[tuple[int, int]] = []
    cases, left = held_out(index, 10, seed=3, progress=lambda *done: told.append(done))
    taken = {case.metadata["passage"] for case in cases}
    assert len(taken) == len({case.id for case in cases}) == 10
    assert {case.origin for case in cases} == {"held_out"}
    assert not any(case.gold or case.metadata["copies"] for case in cases)
    assert len(index) == 30
    kept = [document for document in index.documents if document.id not in taken]
    assert list(left.documents) == kept
    assert np.array_equal(left.embeddings, Words().embed([document.text for document in kept]))
    assert left.embedder is index.embedder
    assert told == [(i, 10) for i in range(1, 11)]
    assert held_out(index, 10, seed=3)[0] == cases != held_out(index, 10, seed=4)[0]


def test_equal_texts_and_what_holds_the_second_half_leave_too() -> None:
    text = " ".join(WORDS)
    far = "something else that is quite long " + " ".join(WORDS[5:]) + " and then goes on and on"
    index = build(text, "\n".join(WORDS), far, *passages(3, words=7))
    assert (index.embeddings @ index.embeddings[0])[2] < NEAR_COPY  # its words give it away
    found = [held_out(index, 1, seed=seed) for seed in range(20)]
    (case, left) = next((c[0], left) for c, left in found if c[0].metadata["passage"] == "d0")
    assert [document.id for document in left.documents] == ["d3", "d4", "d5"]
    assert case.metadata["copies"] == 2


def test_near_copies_are_found_by_their_vectors() -> None:
    long = passages(1, words=60)[0].split()
    near = " ".join([long[0], "inserted", *long[1:40], "other", *long[41:]])
    index = build(" ".join(long), near, *passages(4, words=7)[1:])
    (case,), left = held_out(index, 1)
    assert case.metadata["copies"] == 1
    assert len(left) == 3


def test_short_passages_are_not_taken() -> None:
    index = build(*passages(5, words=7), *passages(3, words=8))
    with pytest.warns(UserWarning, match="Only 3 of 4 passages were held out"):
        cases, left = held_out(index, 4)
    assert len(cases) == 3
    assert len(left) == 5


@pytest.mark.parametrize(
    ("texts", "n", "most", "message"),
    [
        (passages(5), 0, 64, "n is 0"),
        (passages(5), 1, 0, "most is 0"),
        (passages(5), 5, 64, "The index has 5 passages: 5 cannot be held out"),
        (passages(5, words=7), 1, 64, "one needs 8 words"),
        (passages(5), 1, 2, "two halves of at most"),
        (["a b c d e f g h", "a b  c d e f g h"], 1, 64, "Nothing is left"),
    ],
)
def test_what_cannot_be_held_out(texts: list[str], n: int, most: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        held_out(build(*texts), n, most=most)
