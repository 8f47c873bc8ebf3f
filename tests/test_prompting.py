"""Prompts: nothing is cut, the best is kept, and the order is the one asked for."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sift_rag.documents import Document, as_documents
from sift_rag.prompting import Prompt, PromptTemplate, closed_book, lay_out, stuffed


def words(text: str) -> int:
    return len(text.split())


def test_the_default_template_reads_as_the_bundled_model_was_trained() -> None:
    prompt = stuffed("Why?", as_documents(["One.", "Two."]), budget=99, count=words)
    assert prompt.text == "One.\n\nTwo.\n\nQuestion: Why?\nAnswer:"
    assert closed_book("Why?", budget=99, count=words).text == "Question: Why?\nAnswer:"


@pytest.mark.parametrize(
    ("order", "laid"),
    [("best_first", "12345"), ("best_last", "54321"), ("edges", "13542")],
)
def test_orders_of_an_odd_number(order: str, laid: str) -> None:
    assert "".join(lay_out(list("12345"), order)) == laid  # type: ignore[arg-type]


def test_edges_of_an_even_number_keeps_the_best_at_the_front() -> None:
    assert "".join(lay_out(list("1234"), "edges")) == "1342"


@given(st.lists(st.integers(), max_size=30))
def test_edges_falls_towards_the_middle_whatever_the_parity(values: list[int]) -> None:
    ranks = [int(text) for text in lay_out([str(i) for i in range(len(values))], "edges")]
    worst = ranks.index(max(ranks)) if ranks else 0
    assert sorted(ranks) == list(range(len(values)))
    assert ranks[:worst] == sorted(ranks[:worst])
    assert ranks[worst:] == sorted(ranks[worst:], reverse=True)


def test_an_unknown_order_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'middle'; it must be one of best_first, best_last, edg"):
        lay_out(["a"], "middle")  # type: ignore[arg-type]


def test_a_passage_that_does_not_fit_is_left_out_whole_and_named() -> None:
    long, short = "word " * 50, "short one."
    documents = as_documents(["first.", long, short])
    prompt = stuffed("Why?", documents, budget=10, count=words)
    assert [d.text for d in prompt.documents] == ["first.", short]
    assert [d.text for d in prompt.left_out] == [long]
    assert words(prompt.text) <= 10


def test_a_passage_given_twice_is_laid_out_once() -> None:
    prompt = stuffed("Why?", as_documents(["a.", "b.", "a."]), budget=99, count=words)
    assert prompt.text == "a.\n\nb.\n\nQuestion: Why?\nAnswer:"
    assert [d.text for d in prompt.documents] == ["a.", "b."]


def test_when_nothing_fits_the_prompt_is_the_closed_book_one() -> None:
    prompt = stuffed("Why?", as_documents(["word " * 50]), budget=5, count=words)
    assert prompt.text == "Question: Why?\nAnswer:"
    assert prompt.documents == ()
    assert len(prompt.left_out) == 1


def test_a_question_over_the_budget_says_both_numbers() -> None:
    with pytest.raises(ValueError, match=r"takes 102 tokens and the model leaves room for 20"):
        closed_book("word " * 100, budget=20, count=words)


texts = st.text(alphabet="ab {}", min_size=1, max_size=40)


@given(st.lists(texts, max_size=8), st.integers(min_value=4, max_value=40))
def test_the_budget_holds_and_no_passage_is_lost_or_cut(passages: list[str], budget: int) -> None:
    documents = [Document(text) for text in passages]
    prompt = stuffed("Why?", documents, budget=budget, count=words)
    assert words(prompt.text) <= budget
    told = [d.text for d in (*prompt.documents, *prompt.left_out)]
    assert sorted(told) == sorted(set(passages))
    assert all(document.text in prompt.text for document in prompt.documents)


def test_braces_in_documents_and_questions_stay_text() -> None:
    prompt = stuffed("{context}?", as_documents(["{question} {0}"]), budget=99, count=words)
    assert prompt.text == "{question} {0}\n\nQuestion: {context}?\nAnswer:"


@pytest.mark.parametrize(
    ("fields", "words_of_the_error"),
    [
        ({"closed_book": "Answer:"}, "closed_book template lacks {question}"),
        ({"stuffed": "{question}"}, "stuffed template lacks {context}"),
        ({"stuffed": "{context} {question} {name}"}, "a field that nothing fills"),
        ({"stuffed": "{context} {question} {"}, "a field that nothing fills"),
    ],
)
def test_a_template_is_checked_when_it_is_made(
    fields: dict[str, str], words_of_the_error: str
) -> None:
    with pytest.raises(ValueError, match=words_of_the_error.replace("{", r"\{")):
        PromptTemplate(**fields)


def test_a_prompt_compares_by_value() -> None:
    assert closed_book("a", budget=9, count=words) == Prompt("Question: a\nAnswer:", (), ())
