"""From where on training pays: planted times give the planted answers, noise gives none."""

import itertools
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from sift_rag.break_even import BreakEven, break_even
from sift_rag.cases import Case, Reply, Row
from sift_rag.comparison import Comparison
from sift_rag.documents import Document
from sift_rag.sizes import ModelSize, reading, training

SIZE = ModelSize(parameters=500_000_000, layers=24, width=896)
READING = 2e-12  # seconds of one operation
TRAINING = 4e-12
EPOCHS = 3
BARE = 30  # tokens of a question
WAYS = ("closed_book", "stuff", "train", "both")


def measured(
    *,
    n: int = 60,
    noise: float = 0.0,
    ways: tuple[str, ...] = WAYS,
    decode: Mapping[str, float] | None = None,
    settings: Mapping[str, Any] | None = None,
    pace: float = TRAINING,
) -> Comparison:
    """A machine that keeps to the model: reading and training by their operations, and noise."""
    rng = np.random.default_rng(7)
    passages = rng.integers(500, 3_000, size=n)
    cases = tuple(Case(f"Question {i}?") for i in range(n))
    rows = []
    for (case, tokens), way in itertools.product(zip(cases, passages, strict=True), ways):
        stuffs, trains = way in ("stuff", "both"), way in ("train", "both")
        prompt = BARE + int(tokens) * stuffs
        seconds = {
            "retrieve": 0.01 * (way != "closed_book"),
            "train": pace * training(SIZE, EPOCHS * int(tokens), 1024) * trains,
            "prefill": 0.005 + READING * reading(SIZE, prompt),
            "decode": (decode or {}).get(way, 0.2),
        }
        seconds = {stage: took * rng.lognormal(0.0, noise) for stage, took in seconds.items()}
        reply = Reply(
            text="x",
            documents=() if way == "closed_book" else (Document("p"),),
            seconds=seconds | {"total": sum(seconds.values())},
            tokens={"in": prompt, "out": 5, "trained": EPOCHS * int(tokens) * trains},
        )
        rows.append(Row(case=case.id, way=way, reply=reply, values={}))
    return Comparison(
        cases=cases,
        ways=ways,
        metrics=(),
        rows=tuple(rows),
        baseline=ways[0],
        settings=settings
        if settings is not None
        else {"ways": {way: {"mode": way} for way in ways}},
    )


def held(comparison: Comparison, size: ModelSize | None = SIZE) -> dict[str, BreakEven]:
    """By the way that trains, against the one that stuffs."""
    found = break_even(comparison, size=size)
    assert all(one.stuff == "stuff" for one in found)
    return {one.train: one for one in found}


def plain(text: str) -> str:
    return text.replace("\u202f", " ").replace("\u2212", "-")


def test_questions_are_counted_from_what_training_took_and_what_a_follow_up_saves() -> None:
    comparison = measured(noise=0.02)
    one = held(comparison)["train"]
    once = np.median(comparison.seconds("train", "train"))
    later = comparison.seconds("train") - comparison.seconds("train", "train")
    saved = np.median(comparison.seconds("stuff") - later)
    assert one.questions == int(once // saved) + 1
    assert one.questions * (saved) > once >= (one.questions - 1) * saved
    assert one.low is not None
    assert one.high is not None
    assert one.low <= one.questions <= one.high
    words = plain(one.sentence)
    assert words.startswith("train against stuff: training takes ")
    assert f", so after {one.questions} of them ({one.low} to {one.high}) it has cost" in words


def test_the_interval_of_questions_holds_the_truth_in_most_runs() -> None:
    truth = held(measured(n=400))["train"].questions
    assert truth is not None
    rng = np.random.default_rng(0)
    whole = measured(n=400, noise=0.1)
    hits = 0
    for _ in range(40):
        some = rng.choice(400, size=60, replace=False)
        part = replace(whole, cases=tuple(whole.cases[i] for i in some))
        one = held(part)["train"]
        hits += (one.low or 0) - 1 <= truth <= (one.high or 0) + 1
    assert hits >= 32  # of 40 at 95 %, fewer are a chance of 1e-4


def test_where_a_follow_up_takes_longer_training_never_pays() -> None:
    one = held(measured(noise=0.02, decode={"train": 8.0}))["train"]
    assert (one.questions, one.low, one.high) == (None, None, None)
    assert "training never pays, as each question on the same adapter then takes" in one.sentence
    assert " longer than a stuffed one (median; 95 % interval " in plain(one.sentence)


def test_a_saving_within_the_noise_is_not_shown() -> None:
    """Both ways take the same but for noise: the passages are short beside the writing."""
    rng = np.random.default_rng(1)
    comparison = measured(noise=0.02)
    rows = []
    for row in comparison.rows:
        assert row.reply is not None
        train = row.reply.seconds["train"]
        total = {"total": train + 5.0 + rng.normal(), "train": train, "prefill": 0.1}
        rows.append(replace(row, reply=replace(row.reply, seconds=total)))
    one = held(replace(comparison, rows=tuple(rows)))["train"]
    assert one.questions is None
    assert "that it ever pays is not shown, as each question on the same adapter" in one.sentence
    assert "differs by " in one.sentence
    assert "95 % interval -" in plain(one.sentence)


def test_stuffing_and_training_both_is_never_faster_for_one_question() -> None:
    one = held(measured(noise=0.02))["both"]
    assert one.tokens is None
    assert (
        "For one question alone it never is faster: it reads the passages as well" in one.sentence
    )


@pytest.mark.parametrize("noise", [0.0, 0.03])
def test_the_context_beyond_which_one_question_is_faster_trained(noise: float) -> None:
    comparison = measured(noise=noise, decode={"stuff": 0.2, "train": 0.2})
    one = held(comparison)["train"]
    tokens = np.arange(1_000, 3_000_000, 500)
    trained = TRAINING * training(SIZE, EPOCHS * tokens.astype(float), 1024)
    gap = trained - READING * (reading(SIZE, BARE + tokens.astype(float)) - reading(SIZE, BARE))
    truth = tokens[np.flatnonzero(gap >= 0)[-1] + 1]
    assert one.tokens == pytest.approx(truth, rel=0.02 if noise == 0.0 else 0.25)
    longest = (comparison.tokens("stuff", "in") - BARE).max()
    assert one.measured == longest < one.tokens
    assert f"(extrapolated far, as the longest had {longest:,.0f})." in one.sentence


def test_a_context_that_was_measured_is_not_called_extrapolated() -> None:
    """A way that trains fast, and writes longer: it is ahead from some length on."""
    one = held(measured(pace=READING / 20, decode={"train": 3.2}))["train"]
    assert one.tokens is not None
    assert 1 < one.tokens <= one.measured
    assert f"tokens of passages (the longest had {one.measured:,})" in one.sentence


def test_training_that_takes_next_to_nothing_is_faster_at_any_length() -> None:
    one = held(measured(pace=READING / 20))["train"]
    assert one.tokens == 1
    assert one.sentence.endswith("For one question alone it is faster however few the passages.")


def test_training_that_is_far_slower_never_gets_faster() -> None:
    one = held(measured(pace=10_000 * TRAINING))["train"]
    assert one.tokens is None
    assert "never is faster, up to 10,000,000 tokens of passages" in one.sentence


def test_without_the_models_size_times_are_lines_in_tokens() -> None:
    slow = held(measured(noise=0.02), size=None)["train"]
    assert slow.tokens is None
    assert slow.questions == held(measured(noise=0.02))["train"].questions
    assert "never is faster" in slow.sentence
    assert held(measured(pace=READING / 20), size=None)["train"].tokens is not None


def test_prompts_that_take_no_measurable_time_say_nothing_of_longer_ones() -> None:
    comparison = measured()
    rng = np.random.default_rng(0)
    rows = []
    for row in comparison.rows:
        assert row.reply is not None
        seconds = {**row.reply.seconds, "prefill": float(rng.lognormal(-4, 1))}
        rows.append(replace(row, reply=replace(row.reply, seconds=seconds)))
    one = held(replace(comparison, rows=tuple(rows)))["train"]
    assert one.tokens is None
    assert "nothing is known: longer prompts took no longer" in one.sentence


def test_too_few_questions_say_nothing() -> None:
    one = held(measured(n=4))["train"]
    assert (one.questions, one.low, one.high, one.tokens) == (None, None, None, None)
    assert "too few questions (4) to say when training pays" in one.sentence


def test_what_neither_trains_nor_stuffs_is_in_no_pair() -> None:
    assert break_even(measured(ways=("closed_book", "stuff")), size=SIZE) == ()
    assert break_even(measured(ways=("closed_book", "train", "both")), size=SIZE) == ()
    pairs = break_even(measured(ways=WAYS), size=SIZE)
    assert [(one.stuff, one.train) for one in pairs] == [("stuff", "train"), ("stuff", "both")]


def test_without_a_closed_book_and_settings_the_passages_are_still_told_from_the_question() -> None:
    by_mode = measured(ways=("stuff", "train", "both"))
    by_reply = measured(settings={})
    whole = held(measured())["train"]
    assert held(by_mode)["train"].measured == held(by_reply)["train"].measured == whole.measured
    blind = held(measured(ways=("stuff", "train"), settings={}))["train"]
    assert blind.measured == whole.measured + BARE  # nothing tells how long the question is


def test_failed_questions_and_unknown_times_are_left_out() -> None:
    comparison = measured(n=20)
    rows = [
        replace(row, reply=None, error="ValueError: x") if i % 8 == 2 else row
        for i, row in enumerate(comparison.rows)
    ]
    assert held(replace(comparison, rows=tuple(rows)))["train"].questions is not None
    nothing = [
        replace(row, reply=row.reply and replace(row.reply, seconds={})) for row in comparison.rows
    ]
    assert break_even(replace(comparison, rows=tuple(nothing)), size=SIZE) == ()


def test_the_same_seed_gives_the_same_result() -> None:
    comparison = measured(noise=0.1)
    assert break_even(comparison, size=SIZE) == break_even(comparison, size=SIZE)
    assert comparison.break_even() == break_even(comparison, size=None)
