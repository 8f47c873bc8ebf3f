"""The router: its rules, what a comparison teaches it, and that it survives being kept."""

import json
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sift_rag import Document, Engine, Router, TrainingConfig, sift
from sift_rag.cases import Case, Reply, Row
from sift_rag.comparison import Comparison
from sift_rag.metrics import Metric
from sift_rag.router import Decision
from sift_rag.shrinkage import drawn, rising, split, sure
from sift_rag.situation import Situation, look

FLOPS = {"closed_book": 1e9, "stuff": 1e10, "train": 2e11, "both": 2.1e11}
EXACT = Metric(name="exact", measure=lambda case, reply: None, title="exact match", binary=True)
BITS = Metric(
    name="bits",
    measure=lambda case, reply: None,
    title="bits per byte",
    unit="bits per byte",
    higher_is_better=False,
)
SECONDS = {"closed_book": 0.01, "stuff": 0.02, "train": 0.4, "both": 0.42}
PASSAGES = tuple(Document(f"Passage {i}") for i in range(4))


def asked(coverage: float = 0.8, **changes: Any) -> Situation:
    """A question whose four passages fit into the prompt."""
    given: dict[str, Any] = {"coverage": coverage, "passages": 4, "fitting": 4, "tokens": 300}
    return Situation(**(given | {"room": 400, "missing": 0.0, "flops": FLOPS} | changes))


def beyond(coverage: float = 0.8, **changes: Any) -> Situation:
    """One whose passages do not."""
    return asked(coverage, **({"fitting": 1, "tokens": 900, "missing": 0.6} | changes))


def compared(
    values: Mapping[str, Sequence[float]],
    coverage: Sequence[float],
    *,
    fitting: Sequence[bool] | None = None,
    metric: Metric = EXACT,
    baseline: str = "stuff",
) -> Comparison:
    """A comparison of modes with these values; where passages do not fit, half are stuffed."""
    n = len(coverage)
    cases = tuple(Case(f"Question {i}?", ("x",)) for i in range(n))
    fits = [True] * n if fitting is None else fitting
    rows = []
    for i, case in enumerate(cases):
        for mode, column in values.items():
            held = PASSAGES if fits[i] or mode != "stuff" else PASSAGES[:2]
            reply = Reply(
                text="x",
                documents=() if mode == "closed_book" else held,
                seconds={"total": SECONDS[mode]},
                coverage=None if mode == "closed_book" else coverage[i],
            )
            value = {metric.name: float(column[i])}
            rows.append(Row(case=case.id, way=mode, reply=reply, values=value))
    ways = {
        mode: {"kind": "sift_rag", "mode": mode}
        | ({} if mode == "closed_book" else {"select": "sift", "k": 4})
        for mode in values
    }
    return Comparison(
        cases=cases,
        ways=tuple(values),
        metrics=(metric,),
        rows=tuple(rows),
        baseline=baseline,
        settings={"ways": ways},
    )


def shares(*parts: tuple[float, int]) -> list[float]:
    """So many questions of each part, of which a share is right, evenly spread."""
    found: list[float] = []
    for share, n in parts:
        found += [float(int((i + 1) * share + 1e-9) > int(i * share + 1e-9)) for i in range(n)]
    return found


LEVELS = np.repeat([0.1, 0.9], 24) + np.tile(np.linspace(0, 0.05, 24), 2)  # of coverage


# The rules


def test_passages_that_fit_are_stuffed() -> None:
    decision = Router().decide(asked())
    assert decision.mode == "stuff"
    assert "300 of 400 tokens" in decision.reason
    assert "about 20 times the arithmetic" in decision.reason
    assert decision.numbers["coverage"] == 0.8


def test_a_question_that_the_corpus_does_not_cover_is_not_answered() -> None:
    assert Router().decide(asked(0.19)).mode == "not_covered"
    assert Router().decide(asked(0.21)).mode == "stuff"
    assert "0.19 is below 0.2" in Router().decide(asked(0.19)).reason


def test_it_may_be_answered_without_the_passages_or_anyhow() -> None:
    assert Router(below="closed_book").decide(asked(0.1)).mode == "closed_book"
    assert Router(covered=0).decide(asked(0.0)).mode == "stuff"


def test_no_passage_covers_nothing() -> None:
    assert Router(covered=0).decide(asked(passages=0, fitting=0)).mode == "not_covered"


def test_what_does_not_fit_is_trained_on_where_it_brings_most() -> None:
    decision = Router().decide(beyond(missing=0.9))
    assert decision.mode == "train"
    assert "3 of 4 passages do not fit" in decision.reason
    assert "hold 10% of the selection's gain" in decision.reason
    assert "which is worth about" in decision.reason
    assert Router().decide(beyond(fitting=0, missing=1.0)).mode == "train"


def test_where_most_fits_it_is_read_whatever_training_costs() -> None:
    decision = Router(price=0.0).decide(beyond(missing=0.4))
    assert decision.mode == "stuff"
    assert "which is no more" in decision.reason


def test_training_that_costs_more_than_it_brings_is_left_out() -> None:
    decision = Router().decide(beyond())
    assert decision.mode == "stuff"
    assert "not worth about" in decision.reason
    assert decision.numbers["expected_gain"] == pytest.approx(0.8 * (0.5 - 0.4))
    assert decision.numbers["expected_seconds"] == pytest.approx(9.5)
    assert Router(speed=5e12).decide(beyond()).mode == "train"
    assert Router(price=1.0).decide(beyond(missing=0.9)).mode == "stuff"


# What is known of a question


def test_a_situation_counts_as_the_engine_does(engine: Engine) -> None:
    documents = [Document(f"Passage {i} tells of a thing. " * 2) for i in range(6)]
    selection = sift(np.eye(6)[0] + 0.1, np.eye(6) + 0.2, 6)
    chosen = [documents[i] for i in selection.indices]
    known = look("What is it?", chosen, selection, engine, {"max_new_tokens": 16})
    answer = engine.answer("What is it?", chosen, max_new_tokens=16)
    assert (known.passages, known.fitting) == (6, len(answer.documents))
    assert 0 < known.fitting < 6
    gains = dict(zip(chosen, selection.gains, strict=True))
    gone = sum(gains[each] for each in answer.left_out) / sum(gains.values())
    assert known.missing == pytest.approx(gone)
    assert known.room == 256 - 16
    assert not known.fits
    assert known.flops["both"] > known.flops["train"] > known.flops["stuff"]


def test_longer_training_is_expected_to_cost_more(engine: Engine) -> None:
    selection = sift(np.eye(2)[0], np.eye(2), 1)

    def cost(**settings: Any) -> float:
        options = {"training": TrainingConfig(**settings)}
        return look("What?", [Document("It is so.")], selection, engine, options).flops["train"]

    assert cost(epochs=6) > 1.5 * cost(epochs=2)
    assert cost(steps=40) > 5 * cost(steps=4)


# What a comparison teaches


def test_the_better_way_is_taken_where_it_is_better() -> None:
    """Both wins where the passages do not fit, and is no better where they do."""
    stuff, both = shares((0.9, 32), (0.2, 32)), shares((0.9, 32), (0.9, 32))
    fitting = [True] * 32 + [False] * 32
    coverage = list(np.tile(np.linspace(0.6, 0.95, 32), 2))
    router = Router.fit(compared({"stuff": stuff, "both": both}, coverage, fitting=fitting))
    assert router.decide(asked()).mode == "stuff"
    decision = router.decide(beyond())
    assert decision.mode == "both"
    assert "of 64 measured questions" in decision.reason
    assert "exact match" in decision.reason
    assert decision.numbers["value"]["both"] > decision.numbers["value"]["stuff"]
    json.dumps(dict(decision.numbers))


def test_a_difference_that_chance_explains_is_not_paid_for() -> None:
    stuff = shares((0.9, 40))
    both = [*stuff[:-1], 1.0 - stuff[-1]] if not stuff[-1] else [1.0, *stuff[1:]]
    coverage = list(np.linspace(0.6, 0.95, 40))
    fitted = Router.fit(compared({"stuff": stuff, "both": both}, coverage))
    assert fitted.decide(asked()).mode == "stuff"


def test_a_second_has_its_price() -> None:
    values = {"stuff": shares((0.6, 60)), "both": shares((0.9, 60))}
    made = compared(values, list(np.linspace(0.6, 0.95, 60)))
    assert Router.fit(made).decide(asked()).mode == "both"
    assert Router.fit(made, price=1.0).decide(asked()).mode == "stuff"


def test_what_is_shown_worse_than_the_baseline_is_never_chosen() -> None:
    """Training is worse in all, though better where coverage is low."""
    train = shares((0.5, 24), (0.1, 24))
    values = {"stuff": shares((0.2, 24), (1.0, 24)), "train": train}
    made = compared(values, list(LEVELS))
    router = Router.fit(made)
    assert router.calibration is not None
    assert router.calibration.worse == ("train",)
    for situation in (asked(0.12), asked(0.9), beyond(missing=1.0, fitting=0)):
        assert router.decide(situation).mode != "train"
    assert "train was shown to be worse than stuff" in router.decide(asked(0.9)).reason
    assert "But train was shown to be worse" in router.decide(beyond(missing=1.0)).reason


def test_nothing_but_worse_ways_is_refused() -> None:
    values = {"stuff": [1.0] * 40, "closed_book": [0.0] * 40}
    with pytest.raises(ValueError, match="worse than the baseline stuff: answer by that"):
        Router.fit(compared(values, [0.9] * 40), ways={"closed_book": "closed_book"})


def test_where_answers_were_mostly_wrong_nothing_is_covered() -> None:
    made = compared({"stuff": shares((0.0, 24), (0.9, 24))}, list(LEVELS + 0.2))
    router = Router.fit(made, covered=0.05)
    decision = router.decide(asked(0.32))
    assert decision.mode == "not_covered"
    assert "24 of 48" in decision.reason or "of 48 measured questions" in decision.reason
    assert router.decide(asked(0.9)).mode == "stuff"


def test_a_low_coverage_that_was_answered_well_is_answered() -> None:
    """An embedder whose coverages are low throughout: the labels know better than the rule."""
    made = compared({"stuff": shares((0.9, 48))}, list(LEVELS / 6))
    router = Router.fit(made)
    assert router.decide(asked(0.1)).mode == "stuff"
    assert router.decide(asked(0.001)).mode == "not_covered"  # lower than any that was measured


def test_of_kinds_that_were_not_measured_the_rules_decide() -> None:
    values = {"stuff": shares((0.9, 24)), "both": shares((0.5, 24))}
    router = Router.fit(compared(values, list(np.linspace(0.6, 0.9, 24))))
    assert "hold 40%" in router.decide(beyond()).reason
    assert router.decide(asked(0.1)).mode == "not_covered"


def test_lower_may_be_better() -> None:
    random = np.random.default_rng(0)
    stuff = random.normal(1.2, 0.1, 40)
    values = {"stuff": list(stuff), "both": list(stuff - 0.3)}
    made = compared(values, list(np.linspace(0.3, 0.9, 40)), metric=BITS)
    decision = Router.fit(made).decide(asked())
    assert decision.mode == "both"
    assert decision.numbers["quality"]["both"] == pytest.approx(0.9, abs=0.1)


def test_of_two_ways_of_a_mode_it_is_the_one_with_sift() -> None:
    made = compared({"stuff": [1.0] * 10, "both": [1.0] * 10}, [0.9] * 10)
    ways = dict(made.settings["ways"])
    ways["both"] = {"kind": "sift_rag", "mode": "stuff", "select": "nearest"}
    fitted = Router.fit(replace(made, settings={"ways": ways})).calibration
    assert fitted is not None
    assert fitted.ways == {"stuff": "stuff"}


@pytest.mark.parametrize(
    ("n", "ways", "words"),
    [
        (7, None, "has 7 questions"),
        (10, {}, "ways is empty"),
        (10, {"stuff": "mine"}, "no way 'mine'"),
        (10, {"read": "stuff"}, "the mode 'read'"),
    ],
)
def test_what_cannot_be_learnt_from_is_refused(
    n: int, ways: dict[str, str] | None, words: str
) -> None:
    made = compared({"stuff": [1.0] * n}, [0.9] * n)
    with pytest.raises(ValueError, match=words):
        Router.fit(made, ways=ways)


def test_without_labels_or_own_ways_there_is_nothing_to_learn() -> None:
    made = compared({"stuff": [1.0] * 10}, [0.9] * 10)
    with pytest.raises(ValueError, match="no metric that tells how good"):
        Router.fit(replace(made, metrics=()))
    with pytest.raises(ValueError, match="None of the ways"):
        Router.fit(replace(made, settings={}))


# Kept


def fitted() -> Router:
    values = {"stuff": shares((0.3, 24), (0.9, 24)), "both": shares((0.9, 24), (0.9, 24))}
    return Router.fit(compared(values, list(LEVELS)), not_covered="Not there.", price=0.1)


def test_it_survives_json_and_pickle(tmp_path: Path) -> None:
    for router in (Router(), fitted()):
        router.save(tmp_path / "router.json")
        again = Router.load(tmp_path / "router.json")
        assert again == router == pickle.loads(pickle.dumps(router))
        assert again.decide(asked(0.12)) == router.decide(asked(0.12))


@pytest.mark.parametrize(
    "change", [{"format": 2}, {"price": -1}, {"more": 1}, {"calibration": {"cells": []}}]
)
def test_what_is_no_router_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="This is no router"):
        Router.from_dict({**fitted().to_dict(), **change})


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"covered": 1.5}, "covered is 1.5"),
        ({"price": float("nan")}, "price is nan"),
        ({"speed": 0}, "speed is 0"),
        ({"below": "guess"}, "below is 'guess'"),
        ({"not_covered": None}, "not_covered is None"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Router(**settings)


def test_a_decision_is_plain_data() -> None:
    decision = fitted().decide(asked(0.9))
    assert isinstance(decision, Decision)
    assert json.loads(json.dumps(dict(decision.numbers))) == decision.numbers


# Few questions


def test_groups_that_differ_by_chance_are_one() -> None:
    random = np.random.default_rng(1)
    groups = [np.arange(i, i + 20) for i in range(0, 80, 20)]
    errors = []
    for _ in range(200):
        values = (random.random(80) < 0.5).astype(float)
        errors.append([np.ptp(drawn(values, groups, 0.5)), np.ptp(values.reshape(4, 20).mean(1))])
    mine, plain = np.mean(errors, axis=0)
    assert mine < 0.4 * plain


def test_groups_that_differ_are_kept_apart() -> None:
    values = np.array([0.0] * 20 + [1.0] * 20)
    low, high = drawn(values, [np.arange(20), np.arange(20, 40)], 0.5)
    assert low < 0.05
    assert high > 0.95


def test_within_a_standard_error_there_is_no_difference() -> None:
    assert sure(np.array([1.0, 0.0, 0.0, 0.0])) == 0
    assert sure(np.array([0.3])) == 0
    assert sure(np.full(10, 0.3)) == pytest.approx(0.3)
    assert sure(np.full(10, -0.3)) == pytest.approx(-0.3)


def test_what_never_falls() -> None:
    assert rising([0.1, 0.5, 0.3, 0.9], [1, 1, 1, 1]) == pytest.approx([0.1, 0.4, 0.4, 0.9])
    assert rising([], []) == []


def test_cells_are_tenths_with_some_questions_each() -> None:
    coverage = np.array([0.01, 0.02, 0.15, 0.31, 0.39, 0.71, 0.72, 0.75, 0.76, 0.91])
    parts = split(np.arange(10), coverage, 3)
    assert [part.tolist() for part in parts] == [[0, 1, 2], [3, 4, 5, 6, 7, 8, 9]]
    assert [len(part) for part in split(np.arange(10), coverage, 2)] == [2, 3, 5]
    assert [len(part) for part in split(np.arange(2), coverage, 8)] == [2]
