"""Questions made from a corpus: which passages, what a maker may give, what becomes of errors."""

from collections.abc import Callable
from typing import Any

import pytest

from sift_rag.corpus_questions import ask_by, from_corpus
from sift_rag.documents import Document
from sift_rag.engine import Engine
from sift_rag.tiny import world

WORLD = [
    Document(world.passage(device, seed=i), id=device.name)
    for i, device in enumerate(world.devices(60, seed=5))
]


def numbered(count: int) -> list[Document]:
    return [Document(f"Text {i}.", id=str(i)) for i in range(count)]


def two(document: Document) -> list[tuple[str, str]]:
    return [(f"First of {document.text}?", "a"), (f"Second of {document.text}?", "b")]


def test_questions_are_marked_as_made_and_know_their_passage() -> None:
    cases = from_corpus(WORLD, 20)
    assert len({case.id for case in cases}) == len({case.gold for case in cases}) == 20
    for case in cases:
        assert case.origin == "made"
        assert case.metadata == {"maker": "ask_by_template"}
        assert case.gold[0] in case.question  # the device's name is the passage's id here
        assert len(case.references) == 1


def test_the_seed_chooses_the_passages() -> None:
    assert from_corpus(WORLD, 9, seed=1) == from_corpus(WORLD, 9, seed=1)
    assert from_corpus(WORLD, 9, seed=1) != from_corpus(WORLD, 9, seed=2)


@pytest.mark.parametrize("count", [100, 103])
def test_passages_are_spread_over_the_corpus(count: int) -> None:
    cases = from_corpus(numbered(count), 10, make=two)
    tenths = {int(case.gold[0]) * 10 // count for case in cases}
    assert len(cases) == 10
    assert len(tenths) >= 9  # parts of 103 are not tenths to the dot


def test_each_passage_is_asked_once_before_one_is_asked_twice() -> None:
    cases = from_corpus(numbered(4), 6, make=two)
    assert [case.question.split()[0] for case in cases] == ["First"] * 4 + ["Second"] * 2
    assert len({case.gold for case in cases[:4]}) == 4


def test_equal_passages_and_equal_questions_are_asked_once() -> None:
    with pytest.warns(UserWarning, match="Only 2 of 5 questions were made of 1 passages"):
        assert len(from_corpus(["Same.", "Same."], 5, make=two)) == 2
    with pytest.warns(UserWarning, match="Only 1 of 5"):
        assert len(from_corpus(numbered(9), 5, make=lambda _: [("Always?", "a")])) == 1


def test_no_more_passages_are_asked_than_needed() -> None:
    asked: list[str] = []

    def make(document: Document) -> list[tuple[str, str]]:
        asked.append(document.id)
        return two(document) if len(asked) % 2 else []

    told: list[tuple[int, int]] = []
    from_corpus(numbered(50), 3, make=make, progress=lambda *done: told.append(done))
    assert len(asked) == 5
    assert told == [(1, 3), (1, 3), (2, 3), (2, 3), (3, 3)]


def test_a_maker_that_finds_little_is_not_asked_for_ever() -> None:
    asked: list[str] = []

    def make(document: Document) -> list[tuple[str, str]]:
        asked.append(document.id)
        return []

    with pytest.raises(ValueError, match="No questions were made of 40 passages"):
        from_corpus(numbered(500), 2, make=make)
    assert len(asked) == 40


def test_a_maker_may_give_mappings_with_gold_and_metadata_of_its_own() -> None:
    def make(document: Document) -> list[dict[str, Any]]:
        return [
            {"question": "Q?", "references": ["a", 2], "gold": ["p", document.id], "level": 1},
            {"question": "R?"},
        ]

    first, second = from_corpus(["One."], 2, make=make)
    assert (first.references, first.gold[0]) == (("a", "2"), "p")
    assert first.metadata == {"level": 1, "maker": "make"}
    assert (second.references, second.gold) == ((), (Document("One.").id,))


def test_a_passage_that_fails_is_left_out_and_counted() -> None:
    def make(document: Document) -> list[tuple[str, str]]:
        if int(document.id) % 2:
            raise RuntimeError(f"no luck with {document.id}")
        return two(document)

    with pytest.warns(UserWarning, match=r"failed on \d of \d+ passages.*RuntimeError: no luck"):
        cases = from_corpus(numbered(40), 5, make=make)
    assert len(cases) == 5


def test_a_maker_that_always_fails_is_an_error_before_all_are_asked() -> None:
    asked: list[str] = []

    def make(document: Document) -> list[tuple[str, str]]:
        asked.append(document.id)
        raise RuntimeError("no key")

    with pytest.raises(ValueError, match=r"failed on 12 of 12 passages.*RuntimeError: no key") as e:
        from_corpus(numbered(400), 12, make=make)
    assert isinstance(e.value.__cause__, RuntimeError)
    assert len(asked) == 12


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("a text", "gave str, wanted a list of pairs"),
        (None, "gave NoneType, wanted a list"),
        (["ab"], r"gave 'ab', wanted a pair \(question, reference\)"),
        ([("a", "b", "c")], "wanted a pair"),
        ([3], "TypeError"),
        ([("", "b")], "empty question"),
        ([{"frage": "a"}], "'frage'"),
    ],
)
def test_what_a_maker_must_not_give(given: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_corpus(["One."], 1, make=lambda _: given)


def test_bad_calls() -> None:
    with pytest.raises(ValueError, match="n is 0; it must be at least 1"):
        from_corpus(WORLD, 0)
    with pytest.raises(ValueError, match="the corpus is empty"):
        from_corpus([])
    with pytest.raises(ValueError, match=r"the maker found none in them.*ask_by\(engine\)"):
        from_corpus(["no sentences here", "x = 1"])


# --- a model as the maker ---------------------------------------------------------------------


def test_the_model_that_comes_along_writes_answers_and_no_questions() -> None:
    with Engine.tiny() as engine:
        make: Callable[[Document], Any] = ask_by(engine)
        assert make(WORLD[0]) == []
        with pytest.raises(ValueError, match="the maker found none"):
            from_corpus(WORLD[:2], 1, make=make)


def test_a_passage_that_does_not_fit_is_not_asked_about(engine: Engine) -> None:
    with pytest.raises(ValueError, match=r"The maker failed on 1 of 1.*ValueError: .*context"):
        from_corpus(["Too long. " * 100], 1, make=ask_by(engine))
    with Engine.tiny() as tiny, pytest.raises(ValueError, match="does not fit the model's context"):
        list(ask_by(tiny)(Document("The pump is red. " * 300)))
