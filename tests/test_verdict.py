"""The verdict: what is said of planted differences, of none, and of what went wrong."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from sift_rag.cases import Case, Origin, Reply, Row
from sift_rag.comparison import Comparison
from sift_rag.costs import Prices
from sift_rag.metrics import Metric
from sift_rag.paired import Values
from sift_rag.verdict import verdict

EXACT = Metric(name="exact", measure=lambda case, reply: None, title="exact match", binary=True)
BITS = Metric(
    name="bits",
    measure=lambda case, reply: None,
    title="bits per byte",
    unit="bits per byte",
    higher_is_better=False,
    failed=None,
)
GRADE = Metric(name="grade", measure=lambda case, reply: None, title="judge's grade", unit="points")
COVERAGE = Metric(name="cover", measure=lambda case, reply: None, title="coverage", quality=False)


def made(
    values: Mapping[str, Sequence[float] | Values],
    *,
    metric: Metric = EXACT,
    seconds: Mapping[str, float] | None = None,
    errors: Mapping[str, Sequence[str]] | None = None,
    **changes: Any,
) -> Comparison:
    """A comparison of ways with these values, the first being the baseline."""
    ways, n = tuple(values), len(next(iter(values.values())))
    cases = tuple(Case(f"Question {i}?") for i in range(n))
    rows = []
    for i, case in enumerate(cases):
        for way in ways:
            error = dict(enumerate((errors or {}).get(way, ()))).get(i, "")
            took = {"total": (seconds or {}).get(way, 0.02)}
            reply = None if error else Reply(text="x", seconds=took, tokens={"in": 100, "out": 1})
            value = None if error else float(values[way][i])
            rows.append(
                Row(case=case.id, way=way, reply=reply, values={metric.name: value}, error=error)
            )
    found = Comparison(
        cases=cases, ways=ways, metrics=(metric,), rows=tuple(rows), baseline=ways[0], settings={}
    )
    return replace(found, **changes)


def right(share: float, n: int = 300) -> list[float]:
    """So many of n are right, the first ones."""
    return [1.0] * round(share * n) + [0.0] * (n - round(share * n))


def plain(text: str) -> str:
    return text.replace("\u202f", " ").replace("\u2212", "-")


def test_a_planted_difference_is_found_and_said_with_its_uncertainty() -> None:
    comparison = made(
        {"stuff(nearest)": right(0.87), "stuff(sift)": right(0.88), "both(sift)": right(0.94)},
        seconds={"stuff(nearest)": 0.02, "stuff(sift)": 0.02, "both(sift)": 0.41},
    )
    found = verdict(comparison)
    assert (found.recommended, found.shown) == ("both(sift)", True)
    assert plain(found.sentence).startswith(
        "both(sift) answers better than stuff(nearest): 94.0 % against 87.0 % exact match, "
        "+7.0 pp (95 % interval "
    )
    assert plain(found.sentence).endswith(
        "; p < 0.001 after Holm over 3 pairs; 300 questions), at 410 ms a question against 20 ms."
    )
    assert plain(found.details[0]).startswith(
        "stuff(sift) is shown to be worse than both(sift): 88.0 % against 94.0 % exact match, "
        "-6.0 pp (95 % interval"
    )
    assert len(found.details) == 1


def test_a_planted_non_difference_is_not_found_and_that_is_said() -> None:
    rng = np.random.default_rng(3)
    ways = ("stuff(nearest)", "stuff(sift)", "both(sift)")
    same = {way: (rng.random(300) < 0.9).astype(np.float64) for way in ways}
    found = verdict(made(same))
    assert (found.recommended, found.shown) == ("stuff(nearest)", False)
    words = plain(found.sentence)
    assert words.startswith(
        "No difference shown between stuff(nearest) and any other way in exact match "
        "(300 questions; a difference of "
    )
    assert words.endswith(" pp would have been shown with 80 % probability): keep stuff(nearest).")
    assert "is not shown to differ from stuff(nearest)" in found.details[0]


def test_of_several_better_ways_the_best_is_taken_and_a_faster_one_named() -> None:
    comparison = made(
        {"closed_book": right(0.02), "stuff": right(0.94), "both": right(0.95)},
        seconds={"closed_book": 0.01, "stuff": 0.02, "both": 0.4},
    )
    found = verdict(comparison)
    assert found.recommended == "both"
    [stuff] = found.details
    assert plain(stuff).startswith("stuff is not shown to be worse than both (-1.0 pp; 95 %")
    assert "; it may be worse by up to " in stuff
    assert plain(stuff).endswith("; it takes 20 ms a question instead of 400 ms.")


def test_of_equally_good_ways_the_faster_is_taken() -> None:
    comparison = made(
        {"closed_book": right(0.1), "slow": right(0.9), "fast": right(0.9)},
        seconds={"slow": 2.0, "fast": 1.9},
    )
    found = verdict(comparison)
    assert found.recommended == "fast"
    assert plain(found.details[0]) == "slow came out the same as fast on all 300 questions."


def test_a_cheaper_way_is_named_where_there_are_prices() -> None:
    comparison = made(
        {"stuff": right(0.9), "train": right(0.91)},
        seconds={"stuff": 3600.0, "train": 360.0},
        settings={"prices": {"hour": 1.0}},
    )
    assert comparison.prices == Prices(hour=1.0)
    words = plain(verdict(comparison).details[0])
    assert "takes 6 min a question instead of 60 min" in words
    assert words.endswith("and costs 0.1 USD a question instead of 1.00 USD.")


def test_where_all_is_worse_the_baseline_is_kept_for_that() -> None:
    one = verdict(made({"stuff": right(0.95), "closed_book": right(0.02)}))
    assert plain(one.sentence).startswith(
        "stuff answers better than closed_book: 95.0 % against 2.0 % exact match, +93.0 pp ("
    )
    assert one.sentence.endswith(" Keep stuff.")
    two = verdict(made({"stuff": right(0.95), "closed_book": right(0.02), "train": right(0.8)}))
    assert plain(two.sentence).startswith(
        "stuff answers better than every other way; than the best of them, train: 95.0 % against "
    )
    assert (two.recommended, two.shown) == ("stuff", False)
    assert [words.split(" is ")[0] for words in two.details] == ["closed_book", "train"]


def test_some_worse_and_none_better() -> None:
    found = verdict(made({"stuff": right(0.95), "closed_book": right(0.02), "both": right(0.95)}))
    assert found.sentence.startswith("No way is shown to be better than stuff in exact match (300")
    assert plain(found.details[0]).startswith("closed_book is shown to be worse than stuff: 2.0 %")
    assert found.details[1] == "both came out the same as stuff on all 300 questions."


def test_what_should_be_small_is_better_where_it_is_lower() -> None:
    rng = np.random.default_rng(0)
    bits = 1.2 + 0.2 * rng.normal(size=60)
    comparison = made(
        {"stuff": bits, "train": bits - 0.15 + 0.02 * rng.normal(size=60)}, metric=BITS
    )
    found = verdict(comparison)
    assert (found.recommended, found.shown) == ("train", True)
    words = plain(found.sentence)
    assert " bits per byte, -0.1" in words
    assert "(lower is better; 95 % interval -0.1" in words
    more = made({"stuff": bits, "train": bits - 0.15, "both": bits - 0.1}, metric=BITS)
    assert verdict(more).recommended == "train"
    worse = verdict(replace(comparison, baseline="train"))
    assert plain(worse.details[0]).startswith("stuff is shown to be worse than train: 1.")
    assert ", +0.1" in worse.details[0]


def test_a_risk_is_told_in_the_direction_that_hurts() -> None:
    rng = np.random.default_rng(1)
    bits = 1.2 + 0.2 * rng.normal(size=60)
    values = {"stuff": bits, "train": bits + 0.2 * rng.normal(size=60)}
    comparison = made(values, metric=BITS, seconds={"stuff": 1.0, "train": 0.1})
    [pair] = comparison.pairs()
    words = plain(verdict(comparison).details[0])
    assert not pair.shown
    assert f"it may be worse by up to {pair.high:.3g} bits per byte; it takes 100 ms" in words


def test_a_grade_names_its_unit() -> None:
    rng = np.random.default_rng(2)
    grades = 3 + rng.normal(size=50)
    words = plain(verdict(made({"a": grades, "b": grades + 1}, metric=GRADE)).sentence)
    assert " points (judge's grade), +1 (95 % interval 1 to 1; p < 0.001; 50 questions)" in words


@pytest.mark.parametrize(("n", "ways"), [(5, 2), (8, 5)])
def test_too_few_questions_are_told_what_not_even_a_total_difference_could_show(
    n: int, ways: int
) -> None:
    values = {f"way {i}": [float(i == 0)] * n for i in range(ways)}
    found = verdict(made(values))
    needed = {2: 6, 5: 9}[ways]
    assert not found.shown
    assert "too few to show even a total difference" in found.sentence
    assert found.details[-1].endswith(f"not even a total one: that takes at least {needed}.")


def test_few_questions_are_told_how_many_must_differ() -> None:
    found = verdict(made({"a": [0.0] * 12, "b": [1.0] * 12}))
    assert found.shown
    assert found.details[-1] == (
        "12 questions are few: with 1 pair of ways, at least 6 of them must come out differently, "
        "all in one direction, to show any difference."
    )


def test_the_run_and_its_questions_are_told_of() -> None:
    comparison = made({"a": right(0.5, 100), "b": right(0.9, 100)}, unfinished=40)
    asked: list[Origin] = ["made", "given"]
    cases = [replace(case, origin=asked[i >= 60]) for i, case in enumerate(comparison.cases)]
    comparison = replace(comparison, cases=tuple(cases))
    assert verdict(comparison).details == (
        "The run was ended early: 100 of 140 questions were asked of every way.",
        "60 of 100 questions: made from the corpus, not asked by a user.",
    )


def test_failures_are_counted_by_way_and_quoted_short() -> None:
    errors = {
        "b": ["ValueError: no\n  such thing"] * 3 + ["KeyError: 'x'"],
        "c": ["RuntimeError: " + "x" * 500],
    }
    values = {way: right(0.5, 100) for way in "abc"}
    details = verdict(made(values, errors=errors)).details
    assert plain(details[-2]) == (
        "b failed on 4 of 100 questions, which count as 0.0 % exact match. "
        "Most often (3 times): ValueError: no such thing"
    )
    assert details[-1].startswith("c failed on 1 of 100 questions, which count as ")
    assert len(details[-1]) < 260
    left_out = verdict(made(values, errors=errors, metric=BITS))
    assert "questions, which are left out in bits per byte. The error: Run" in left_out.details[-1]


def test_a_failure_counts_as_wrong() -> None:
    """A way that fails where the other is right must not look as good."""
    values = {"a": right(1.0, 100), "b": right(1.0, 100)}
    found = verdict(made(values, errors={"b": ["ValueError: x"] * 20}))
    assert found.sentence.startswith("a answers better than b")


def test_without_a_metric_of_quality_time_is_all_there_is() -> None:
    comparison = made({"a": [1.0], "b": [1.0]}, metric=COVERAGE, seconds={"a": 0.01, "b": 2.0})
    found = verdict(comparison)
    assert plain(found.sentence) == (
        "No metric of quality was measured: nothing tells which way answers best. "
        "Median time of a question: a 10 ms, b 2 s."
    )
    assert (found.recommended, found.shown) == ("a", False)


def test_without_two_ways_or_common_questions_nothing_is_compared() -> None:
    alone = verdict(made({"a": [1.0]}))
    assert alone.sentence == "Only one way was asked, a: there is nothing to hold it against."
    apart = verdict(made({"a": [1.0, np.nan], "b": [np.nan, 1.0]}))
    assert apart.sentence.startswith("No question has a value of exact match from both a and ")
    empty = made({"a": [], "b": []})
    assert verdict(empty).recommended == "a"


def test_the_baseline_may_stand_anywhere() -> None:
    values = {"a": right(0.9), "b": right(0.5), "c": right(0.95)}
    found = verdict(made(values, baseline="b"))
    assert found.recommended == "c"
    assert "45.0 pp" in plain(found.sentence)
