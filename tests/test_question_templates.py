"""Questions made by rules: which sentences are asked, what is asked, what is left alone."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sift_rag.documents import Document, split
from sift_rag.question_templates import ask_by_template
from sift_rag.tiny import world


def ask(text: str) -> list[tuple[str, str]]:
    return ask_by_template(Document(text))


@pytest.mark.parametrize(
    ("sentence", "question", "answer"),
    [
        ("The Korvane pump was built in 1987.", "When was the Korvane pump built?", "1987"),
        (
            "Anna Berg was first elected on 3 May 1901, and won twice.",
            "When was Anna Berg first elected?",
            "3 May 1901",
        ),
        ("The Korvane pump is located in Oslo.", "Where is the Korvane pump located?", "Oslo"),
        (
            "The Eiffel Tower was designed by Gustave Eiffel.",
            "Who was the Eiffel Tower designed by?",
            "Gustave Eiffel",
        ),
        ("The Korvane pump is made of steel.", "What is the Korvane pump made of?", "steel"),
        (
            "Sarcopenia (SP) is a loss of muscle that comes with age.",
            "What is Sarcopenia?",
            "a loss of muscle",
        ),
    ],
)
def test_plain_grammar_becomes_a_question(sentence: str, question: str, answer: str) -> None:
    assert ask(sentence) == [(question, answer)]


@pytest.mark.parametrize(
    ("sentence", "answer"),
    [
        ("The Korvane pump tips the scales at 340 kg.", "340 kg"),
        ("German New Guinea surrendered on 17 September 1914.", "17 September 1914"),
        ("The Church of Scientology has been present in Germany since 1970.", "1970"),
        ("Rotten Tomatoes listed Die Another Day with a 58% rating.", "58%"),
        ("Route 29 follows the Black River and ends in Howard City.", "Howard City"),
        ("Dr. Weber led the Institute of Tides for 12 years.", "12 years"),
    ],
)
def test_another_sentence_gets_a_gap(sentence: str, answer: str) -> None:
    (made,) = ask(sentence)
    assert made == (f"What fills the gap? {sentence.replace(answer, '____')}", answer)


@pytest.mark.parametrize(
    "text",
    [
        "It was built in 1987 by the people of Oslo.",  # what was?
        "The roof was put in place in October 2001.",  # which roof?
        "This study by the University of Oslo was begun in 1999.",
        "He moved to Oslo in 1999 and stayed with Anna Berg.",
        "In 1999, it was moved to Oslo by Anna Berg.",
        "Biochemical Analysis of the Checkpoint in Oslo.",  # a heading: no verb
        "Was the Korvane pump built in 1987?",
        "We propose that Anna Berg was born in 1987.",
        "x = f(1987); print(x) # The Korvane pump was built in 1987.",
        "| Korvane | 1987 | Oslo |",
        "Die Korvane-Pumpe wurde 1987 gebaut und steht seither auf dem Hof.",
        "Oslo was visited by Oslo.",  # the question would give its answer away
        "",
        "...",
    ],
)
def test_what_cannot_be_asked_by_itself_is_left_alone(text: str) -> None:
    assert ask(text) == []


def test_the_plain_questions_come_first_and_one_of_each_sentence() -> None:
    text = (
        "The Korvane pump tips the scales at 340 kg. Its colour is red. The Korvane pump was built"
        " in 1987. It was moved in 1999. The Norfex lift is inspected by Walsh."
    )
    assert [answer for _, answer in ask(text)] == ["1987", "Walsh", "340 kg"]


def test_headings_and_wrapped_lines() -> None:
    long = "The Korvane pump was built in 1987. " + "Nobody knows who paid for all that. " * 4
    assert ask(f"Pumps of Oslo\n{long}")[0][0] == "When was the Korvane pump built?"
    assert ask("The Korvane\npump was built\nin 1987.")[0][0] == "When was the Korvane pump built?"


@given(st.text(st.sampled_from("The Korvane Pump was is of in 19 87. \n,()A a°é")))
def test_an_answer_stands_in_the_passage_and_not_in_the_question(text: str) -> None:
    for question, answer in ask(text):
        assert answer in " ".join(text.split())
        assert answer not in question.removeprefix("What fills the gap?")


@pytest.mark.parametrize("unit", ["A", "A. ", "The Aa Bb ", "a ", "\n ", "It was a. ", "Aa Bb, "])
def test_time_does_not_run_away_on_strange_texts(unit: str) -> None:
    ask(unit * 30_000)  # quadratic time would run into the suite's time limit


def test_nearly_every_passage_of_the_invented_world_has_a_right_question() -> None:
    devices = world.devices(200, seed=3)
    made = [(device, ask(world.passage(device, seed=i))) for i, device in enumerate(devices)]
    assert sum(bool(pairs) for _, pairs in made) > 190
    for device, pairs in made:
        for question, answer in pairs:
            assert device.name in question
            assert answer in device.facts.values()


def test_real_prose_gives_enough(data: Path) -> None:
    """The questions themselves were read by eye; this keeps their number from falling."""
    for name, share in (("wikipedia", 0.06), ("nih_abstracts", 0.04)):
        path = data / "domains" / f"{name}.jsonl"
        if not path.is_file():
            pytest.skip(f"needs {path}")
        with path.open(encoding="utf-8") as file:
            texts = [json.loads(line)["text"] for line, _ in zip(file, range(40), strict=False)]
        passages = split([Document(text[:20_000]) for text in texts])
        assert sum(bool(ask_by_template(p)) for p in passages) > share * len(passages)
