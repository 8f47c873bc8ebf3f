"""What models write when they are asked for a question, and what of it is one."""

import pytest

from sift_rag.question_writing import written


@pytest.mark.parametrize(
    "text",
    [
        "Question: Who made it?\nAnswer: Anna Berg",
        "**Question:** Who made it?\n**Answer:** Anna Berg\n\n**Question:** And who paid?",
        "Sure! Here is one:\n\n1. Q: Who made it?\n   A: Anna Berg",
        "### Question: Who made it?\n\n- Answer: Anna Berg\nQuestion: Who paid?\nAnswer: Nobody",
        '```json\n{"question": "Who made it?", "answer": "Anna Berg"}\n```',
        "Who made it?\nAnna Berg\n",
        "<think>\nQuestion: what?\nAnswer: hm\n</think>\nQuestion: Who made it?\nAnswer: Anna Berg",
    ],
)
def test_what_models_write(text: str) -> None:
    assert written(text) == [("Who made it?", "Anna Berg")]


def test_a_negative_number_stays_one() -> None:
    assert written("Question: How cold?\nAnswer: -5 degrees") == [("How cold?", "-5 degrees")]


@pytest.mark.parametrize(
    "text",
    ["", "Oslo", "Question: Who?", "Question:\nAnswer:", '{"question": 3, "answer": 4}', "{", "}{"],
)
def test_what_holds_no_question(text: str) -> None:
    assert written(text) == []


def test_an_answer_that_was_cut_off_is_none() -> None:
    assert written("Question: Who?\nAnswer: Anna B", whole=False) == []
    assert written("Question: Who?\nAnswer: Anna Berg\nQuestion: Wh", whole=False)
