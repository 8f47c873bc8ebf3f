"""The whole flow: what is retrieved is what is used, and callbacks see and steer every stage."""

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sift_rag import (
    Callback,
    Control,
    Engine,
    Index,
    Pipeline,
    Router,
    TrainingConfig,
    mmr,
    nearest,
    sift,
)
from sift_rag.candidates import Candidates
from sift_rag.documents import as_documents, content_hash
from sift_rag.events import Event
from sift_rag.pipeline import retrieve

PASSAGES = [f"Passage {i} tells of thing {i % 7}." for i in range(20)]
QUESTION = "What is thing 3?"
SHORT_OF_ROOM = 170  # tokens of an answer, which leave a prompt room for a passage or two


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


def test_the_guard_gets_what_was_found_beside_the_picks(index: Index, engine: Engine) -> None:
    """The nearest that were not picked; no copies of what was."""
    texts = ["The crane Mib is red.", "The crane Mib is tall.", "The pump Zot is blue."]
    rows = np.array([[1, 0, 0], [0.999, 0.04, 0], [0.8, 0.6, 0], [0.6, 0, 0.8]], np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    found = Candidates(
        query=np.array([1, 0, 0], np.float32),
        documents=tuple(as_documents([*texts, "The lift is old."])),
        embeddings=rows,
        scores=rows[:, 0].astype(np.float64),
        positions=np.arange(4),
    )
    guarded = replace(engine.training, guard=1e3, beside=2)
    pipeline = Pipeline(index, engine, select=nearest, k=1, mode="train", training=guarded)
    probes = []
    calls: list[dict[str, Any]] = [{}, {"beside": []}, {"beside": ["The lift is old."]}]
    for options in calls:
        answer = pipeline.answer("Which crane?", candidates=found, **options)
        assert answer.training is not None
        probes.append(answer.training.probes.get("beside"))
    own = engine.answer(
        "Which crane?",
        texts[:1],
        mode="train",
        training=guarded,
        beside=["The pump Zot is blue.", "The lift is old."],
    )
    assert own.training is not None
    assert probes[0] == own.training.probes["beside"] != probes[2]
    assert probes[1] is None


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


# Routed


def test_what_the_router_chose_is_in_the_answer(index: Index, engine: Engine) -> None:
    pipeline = Pipeline(index, engine, k=3, mode="auto", router=Router(covered=0))
    answer = pipeline.answer(QUESTION)
    assert answer.mode == answer.route.mode == "stuff"
    assert "reading them is as good as training" in answer.route.reason
    assert answer.note == ""
    assert answer.documents == pipeline.answer(QUESTION, mode="stuff").documents
    assert answer.timings["total"] > answer.timings["route"] > 0
    assert pipeline.answer(QUESTION, mode="stuff").route is None


def test_passages_beyond_the_window_are_trained_on_where_hardly_one_fits(
    index: Index, engine: Engine
) -> None:
    pipeline = Pipeline(index, engine, k=12, router=Router(covered=0))
    answer = pipeline.answer(QUESTION, mode="auto", max_new_tokens=SHORT_OF_ROOM)
    stuffed = pipeline.answer(QUESTION, mode="stuff", max_new_tokens=SHORT_OF_ROOM)
    assert len(stuffed.left_out) > 6
    assert answer.mode == "train"
    assert answer.training is not None
    assert f"{len(stuffed.left_out)} of 12 passages do not fit" in answer.route.reason
    assert pipeline.answer(QUESTION, mode="auto").mode == "stuff"  # the best seven fit


@pytest.mark.parametrize("text", ["", "The documents do not say."])
def test_a_question_that_is_not_covered_asks_no_model(
    index: Index, engine: Engine, text: str
) -> None:
    seen = Everything()
    router = Router(covered=1, not_covered=text)
    pipeline = Pipeline(index, engine, k=2, mode="auto", router=router, callbacks=[seen])
    engine.close()  # it would raise
    answer = pipeline.answer(QUESTION)
    assert (answer.text, answer.mode, answer.finish_reason) == (text, "not_covered", "stop")
    assert set(answer.usage.values()) == {0}
    assert answer.documents == ()
    assert answer.selection is not None
    assert answer.note == answer.route.reason
    assert answer.route.reason.endswith("The model was not asked.")
    assert answer.timings["total"] > 0
    told = ["on_start", "on_selection", *(["on_token"] if text else []), "on_answer"]
    assert seen.names == told
    with pipeline.stream(QUESTION) as stream:
        assert "".join(stream) == text
    assert stream.answer.route == answer.route


def test_a_question_that_is_not_covered_may_be_answered_without(
    index: Index, engine: Engine
) -> None:
    pipeline = Pipeline(index, engine, mode="auto", router=Router(covered=1, below="closed_book"))
    answer = pipeline.answer(QUESTION)
    assert answer.mode == "closed_book"
    assert answer.documents == ()
    assert answer.text == pipeline.answer(QUESTION, mode="closed_book").text
    assert "is below 1" in answer.note


def test_the_events_say_what_was_chosen(index: Index, engine: Engine) -> None:
    seen = Everything()
    pipeline = Pipeline(index, engine, k=2, mode="auto", router=Router(covered=0))
    answer = replace(pipeline, callbacks=[seen]).answer(QUESTION)
    assert seen.names[:2] == ["on_start", "on_selection"]
    assert seen.events[0]["mode"] == "auto"
    assert seen.events[1]["route"]["mode"] == "stuff"
    assert seen.events[1]["route"]["reason"] == answer.route.reason
    assert json.loads(json.dumps(seen.events)) == seen.events


def test_a_routed_stream_is_the_answer(index: Index, engine: Engine) -> None:
    pipeline = Pipeline(index, engine, k=2, mode="auto", router=Router(covered=0))
    stream = pipeline.stream(QUESTION)
    answer = pipeline.answer(QUESTION)
    assert "".join(stream) == answer.text == stream.answer.text
    assert stream.answer.route == answer.route
    assert stream.answer.selection == answer.selection
    with pipeline.stream(QUESTION) as left:
        next(left)
    assert list(left) == []


def test_a_callback_sets_the_training_that_is_weighed(index: Index, engine: Engine) -> None:
    class Longer(Callback):
        def on_start(self, event: Event, control: Control) -> None:
            control.training = TrainingConfig(epochs=200)

    pipeline = Pipeline(index, engine, k=12, mode="auto", router=Router(covered=0, speed=1e8))
    longer = replace(pipeline, callbacks=[Longer()])
    route = longer.answer(QUESTION, max_new_tokens=SHORT_OF_ROOM).route
    assert route.mode == "stuff"
    assert "not worth" in route.reason
    assert pipeline.answer(QUESTION, max_new_tokens=SHORT_OF_ROOM).mode == "train"


def test_a_prompt_of_the_callers_own_cannot_be_routed(index: Index, engine: Engine) -> None:
    with pytest.raises(TypeError, match="leave prompt out"):
        Pipeline(index, engine, mode="auto").answer(QUESTION, prompt="Mine.")
    with pytest.raises(ValueError, match="must be one of closed_book"):
        engine.answer(QUESTION, ["A."], mode="auto")  # type: ignore[arg-type]


def test_a_routed_way_is_compared_as_any_other(index: Index, engine: Engine) -> None:
    from sift_rag import Case, compare

    routed = Pipeline(index, engine, k=2, mode="auto", router=Router(covered=0))
    refused = replace(routed, router=Router(covered=1))
    found = compare(
        [Case(QUESTION, ("Three",))], {"auto": routed, "none": refused}, engine=engine, index=index
    )
    assert found.errors("auto") == found.errors("none") == []
    assert found.settings["ways"]["auto"]["router"]["covered"] == 0
    row = found.row(found.cases[0].id, "none")
    assert row is not None
    assert row.reply is not None
    assert (row.reply.text, row.reply.flops) == ("", 0)
    assert "The model was not asked." in row.reply.note
