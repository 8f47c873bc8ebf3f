"""The whole flow: what is retrieved is what is used, and callbacks see and steer every stage."""

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from sift_rag import Callback, Control, Engine, Index, Pipeline, TrainingConfig, mmr, nearest, sift
from sift_rag.documents import content_hash
from sift_rag.events import Event
from sift_rag.pipeline import retrieve

PASSAGES = [f"Passage {i} tells of thing {i % 7}." for i in range(20)]
QUESTION = "What is thing 3?"


class LetterEmbedder:
    """Counts of letter pairs, hashed into 64 places: equal texts are near, and no model is run."""

    name = "letters"

    def embed(self, texts: Sequence[str], *, kind: str = "passage") -> NDArray[np.float32]:
        rows = np.zeros((len(texts), 64), dtype=np.float32)
        for row, text in zip(rows, texts, strict=True):
            for pair in pairwise(text):
                row[int(content_hash("".join(pair)), 16) % 64] += 1
        return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), dtype=np.float32)


class Everything(Callback):
    """Keeps every event."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        for hook in (name for name in dir(Callback) if name.startswith("on_")):
            setattr(self, hook, lambda event, control: self.events.append(event))

    @property
    def names(self) -> list[str]:
        seen = [event["event"] for event in self.events]
        return [name for i, name in enumerate(seen) if i == 0 or seen[i - 1] != name]


@pytest.fixture(scope="module")
def index() -> Index:
    return Index.build(PASSAGES, LetterEmbedder())


def test_what_is_selected_is_what_the_model_gets(index: Index, engine: Engine) -> None:
    pipeline = Pipeline(index, engine, k=3, fetch_k=8)
    found = retrieve(index, QUESTION, k=3, fetch_k=8)
    answer = pipeline.answer(QUESTION)
    assert (*answer.documents, *answer.left_out) == found.documents
    assert answer.selection == found.selection
    assert len(found.documents) == 3
    assert len(found.candidates.documents) == 8


@pytest.mark.parametrize("mode", ["closed_book", "stuff", "train", "both"])
def test_modes_are_one_argument_apart(index: Index, engine: Engine, mode: str) -> None:
    answer = Pipeline(index, engine, k=2).answer(QUESTION, mode=mode)  # type: ignore[arg-type]
    assert answer.mode == mode
    assert (answer.selection is None) == (mode == "closed_book")
    assert (answer.training is not None) == (mode in ("train", "both"))
    assert ("search" in answer.timings) == (mode != "closed_book")


def test_a_stream_is_the_answer(index: Index, engine: Engine) -> None:
    pipeline = Pipeline(index, engine, k=2, mode="both")
    stream = pipeline.stream(QUESTION)
    assert "".join(stream) == pipeline.answer(QUESTION).text == stream.answer.text


@pytest.mark.parametrize("select", [sift, nearest, mmr, partial(sift, kernel="linear")])
def test_any_selector_will_do(index: Index, select: object) -> None:
    found = retrieve(index, QUESTION, select=select, k=4)  # type: ignore[arg-type]
    assert len(set(found.selection.indices.tolist())) == 4


def test_events_come_in_order_and_are_plain_data(index: Index, engine: Engine) -> None:
    seen = Everything()
    Pipeline(index, engine, k=2, mode="both", callbacks=[seen]).answer(QUESTION)
    assert seen.names == [
        "on_start",
        "on_selection",
        "on_train_start",
        "on_train_step",
        "on_train_end",
        "on_token",
        "on_answer",
    ]
    assert json.loads(json.dumps(seen.events)) == seen.events
    assert all(event["schema"] == 1 for event in seen.events)
    assert not any(text in json.dumps(seen.events) for text in PASSAGES)


def test_a_callback_may_change_the_work_before_it_starts(index: Index, engine: Engine) -> None:
    class Steers(Callback):
        def on_start(self, event: Event, control: Control) -> None:
            control.k, control.noise = 4, 100.0
            control.training = TrainingConfig(rank=4, alpha=8, steps=3)

    pipeline = Pipeline(index, engine, k=2, mode="train", callbacks=[Steers()])
    answer = pipeline.answer(QUESTION)
    found = retrieve(index, QUESTION, k=4, noise=100.0)
    assert answer.documents == found.documents
    assert answer.training is not None
    assert answer.training.steps == 3


def test_a_callback_may_stop_training(index: Index, engine: Engine) -> None:
    class Stops(Callback):
        def on_train_step(self, event: Event, control: Control) -> None:
            if event["step"] == 2:
                control.stop()

    pipeline = Pipeline(index, engine, k=5, mode="train", callbacks=[Stops()])
    report = pipeline.answer(QUESTION).training
    assert report is not None
    assert (report.steps, report.stopped, report.adapter_used) == (2, "callback", True)


@pytest.mark.parametrize("hook", ["on_start", "on_selection", "on_train_step", "on_token"])
def test_an_error_in_a_callback_ends_the_call_and_nothing_else(
    index: Index, engine: Engine, hook: str
) -> None:
    class Raises(Callback):
        pass

    def fail(self: Callback, event: Event, control: Control) -> None:
        raise LookupError(f"not in {hook}")

    setattr(Raises, hook, fail)
    pipeline = Pipeline(index, engine, k=2, mode="train")
    before = pipeline.answer(QUESTION)
    with pytest.raises(LookupError, match=hook):
        replace(pipeline, callbacks=[Raises()]).answer(QUESTION)
    assert pipeline.answer(QUESTION).text == before.text


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"mode": "read"}, "must be one of closed_book, stuff"), ({"k": 0}, "1 or more")],
)
def test_bad_settings_are_named(
    index: Index, engine: Engine, settings: dict[str, object], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        Pipeline(index, engine, **settings).answer(QUESTION)  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ["stuff", "closed_book"])
def test_an_empty_question_is_refused(index: Index, engine: Engine, mode: str) -> None:
    with pytest.raises(ValueError, match="question is empty"):
        Pipeline(index, engine).answer(" ", mode=mode)  # type: ignore[arg-type]


def test_candidates_that_were_found_before_are_not_searched_again(
    index: Index, engine: Engine
) -> None:
    found = index.search(QUESTION, fetch_k=8)
    nowhere = replace(index, embedder=None)  # type: ignore[arg-type]
    answer = Pipeline(nowhere, engine, k=3).answer(QUESTION, candidates=found)
    assert answer.documents == Pipeline(index, engine, k=3, fetch_k=8).answer(QUESTION).documents
    assert "search" not in answer.timings
    assert answer.timings["select"] > 0
