"""Explanations against their definition, in loops, and what must hold for any selector."""

import json
import pickle
from collections.abc import Callable
from dataclasses import FrozenInstanceError, asdict, replace
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sift_rag.explaining import HEADER, Explanation, shorten, visible
from sift_rag.problem import checked
from sift_rag.rivals import dpp, mmr, nearest, random, uncertainty_sampling
from sift_rag.selection import Context, Selection, account, sift

Floats = NDArray[np.float64]
SELECTORS: dict[str, Callable[..., Selection]] = {
    "sift": sift,
    "nearest": nearest,
    "mmr": mmr,
    "dpp": dpp,
    "uncertainty_sampling": uncertainty_sampling,
    "random": random,
    "paper": partial(sift, kernel="linear", noise=0.01, distinct=False),
    "budget": lambda q, c, k: sift(q, c, k, costs=np.arange(len(c)) % 5 + 1.0, budget=2.0 * k),
}
seeds = st.integers(0, 2**32 - 1)


def problem(seed: int, *, n: int = 30, d: int = 8, m: int = 1) -> tuple[Floats, Floats]:
    """Queries (m, d) and candidates (n, d), of which a third are near copies of others."""
    rng = np.random.default_rng(seed)
    common = 0.6 * rng.normal(size=d)
    rows = rng.normal(size=(n, d)) + common
    copies = rng.integers(0, n, size=n // 3)
    rows[: n // 3] = rows[copies] + 0.05 * rng.normal(size=(n // 3, d))
    return rng.normal(size=(m, d)) + common, rows


def cosine(a: Floats, b: Floats) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def slowly(queries: Floats, rows: Floats, selection: Selection) -> dict[str, list[dict[str, Any]]]:
    """What an explanation says, from its definition, one cosine at a time."""
    order = selection.indices.tolist()
    relevance = [max(cosine(q, row) for q in queries) for row in rows]
    which = [int(np.argmax([cosine(q, row) for q in queries])) for row in rows]
    picks, dropped = list[dict[str, Any]](), list[dict[str, Any]]()
    left = selection.initial_uncertainty
    for t, i in enumerate(order):
        before = [cosine(rows[i], rows[j]) for j in order[:t]]
        left -= selection.gains[t]
        picks.append(
            {
                "rank": t + 1,
                "index": i,
                "text": None,
                "relevance": relevance[i],
                "query": which[i],
                "redundancy": max(before) if before else None,
                "like": 1 + first_of_the_highest(before) if before else None,
                "gain": selection.gains[t],
                "share": selection.gains[t] / selection.initial_uncertainty,
                "left": left,
                "share_left": left / selection.initial_uncertainty,
            }
        )
    by_relevance = sorted(range(len(rows)), key=lambda i: -relevance[i])
    for place, i in enumerate(by_relevance[: len(order)], 1):
        if i in order:
            continue
        alike = [cosine(rows[i], rows[j]) for j in order]
        redundant = True
        for t, j in enumerate(order):
            if relevance[j] < relevance[i] or j in order[:t]:
                redundant &= t > 0 and max(alike[:t]) > picks[t]["redundancy"]
        dropped.append(
            {
                "index": i,
                "text": None,
                "relevance": relevance[i],
                "query": which[i],
                "nearest": place,
                "redundancy": max(alike),
                "like": 1 + first_of_the_highest(alike),
                "reason": "redundant" if redundant else "other",
            }
        )
    return {"picks": picks, "dropped": dropped}


def first_of_the_highest(values: list[float]) -> int:
    return next(t for t, value in enumerate(values) if value >= max(values) - 1e-12)


def assert_same(explanation: Explanation, expected: dict[str, list[dict[str, Any]]]) -> None:
    for name, rows in expected.items():
        got = asdict(explanation)[name]
        assert len(got) == len(rows)
        for one, other in zip(got, rows, strict=True):
            assert list(one) == list(other)
            for key in one:
                assert one[key] == pytest.approx(other[key], abs=1e-9), key


@pytest.mark.parametrize("name", SELECTORS)
@pytest.mark.parametrize("m", [1, 3])
def test_an_explanation_is_its_definition(name: str, m: int) -> None:
    for seed in range(40):
        queries, rows = problem(seed, m=m)
        selection = SELECTORS[name](queries, rows, 1 + seed % 12)
        assert_same(selection.explain(), slowly(queries, rows, selection))


@given(seed=seeds, k=st.integers(1, 25), name=st.sampled_from(sorted(SELECTORS)))
@settings(max_examples=100, deadline=None)
def test_picks_are_the_selection_and_dropped_the_rest_of_the_nearest(
    seed: int, k: int, name: str
) -> None:
    queries, rows = problem(seed, n=20)
    rows[7] = rows[3]
    rows[11:15] = rows[10]
    selection = SELECTORS[name](queries, rows.astype(np.float32), k)
    explanation = selection.explain()
    picked = [row.index for row in explanation.picks]
    assert picked == selection.indices.tolist()
    assert [row.rank for row in explanation.picks] == list(range(1, len(picked) + 1))
    assert [row.left for row in explanation.picks] == selection.uncertainty.tolist()
    dropped = [row.index for row in explanation.dropped]
    top = nearest(queries, rows.astype(np.float32), len(selection)).indices.tolist()
    assert dropped == [i for i in top if i not in picked]
    assert [top[row.nearest - 1] for row in explanation.dropped] == dropped


@given(seed=seeds, balance=st.floats(0.0, 1.0), k=st.integers(1, 12))
@settings(max_examples=100, deadline=None)
def test_mmr_drops_only_what_repeats_more(seed: int, balance: float, k: int) -> None:
    """It can prefer a less relevant passage only if that one is less like the picks before."""
    query, rows = problem(seed)
    explanation = mmr(query, rows, k, lambda_mult=balance).explain()
    assert all(row.reason == "redundant" for row in explanation.dropped)


def by_hand(query: list[float], rows: list[list[float]], order: list[int]) -> Selection:
    """A selection with any picks."""
    return account(order, checked(query, rows, len(order)))


COPIES = [[1.0, 0.1, 0.0], [1.0, 0.11, 0.0], [0.5, 0.0, 0.9], [0.1, 1.0, 0.0]]


def test_a_copy_is_dropped_for_the_pick_that_it_repeats() -> None:
    explanation = by_hand([1.0, 0.0, 0.2], COPIES, [0, 2]).explain()
    (copy,) = explanation.dropped
    assert (copy.index, copy.nearest, copy.like, copy.reason) == (1, 2, 1, "redundant")
    assert copy.redundancy > 0.9999
    assert str(copy) == "2nd nearest, 0.97: 1.00 the same as pick 1"


def test_what_repeats_nothing_is_not_called_redundant() -> None:
    explanation = by_hand([1.0, 0.0, 0.2], COPIES, [3, 2]).explain()
    assert [row.index for row in explanation.dropped] == [0, 1]
    assert {row.reason for row in explanation.dropped} == {"other"}
    assert explanation.dropped[1].why == "0.48 like pick 2, no more than one taken instead"


def test_a_repeated_pick_is_like_the_first_and_no_reason_to_drop_another() -> None:
    explanation = by_hand([1.0, 0.0, 0.2], COPIES, [0, 0]).explain()
    again = explanation.picks[1]
    assert again.redundancy == pytest.approx(1.0)
    assert again.like == 1
    assert [(row.index, row.reason) for row in explanation.dropped] == [(1, "other")]


def test_of_equal_picks_the_first_is_the_one_that_is_repeated() -> None:
    rows = np.tile(np.random.default_rng(0).normal(size=48), (6, 1)).astype(np.float32)
    explanation = sift(rows[0], rows, 4).explain()
    assert [row.like for row in explanation.picks] == [None, 1, 1, 1]
    assert explanation.dropped == ()


@pytest.mark.parametrize("name", SELECTORS)
def test_one_candidate(name: str) -> None:
    explanation = SELECTORS[name]([[1.0, 0.0]], [[1.0, 1.0]], 1).explain(["only"])
    (pick,) = explanation.picks
    assert (pick.index, pick.text, pick.redundancy, pick.like) == (0, "only", None, None)
    assert pick.relevance == pytest.approx(0.5**0.5)
    assert explanation.dropped == ()
    assert "Nothing dropped: no other passage is nearer than these 1." in str(explanation)


def test_several_queries_are_told_apart() -> None:
    explanation = nearest([[1.0, 0.0], [0.0, 1.0]], [[0.1, 1.0], [1.0, 0.2]], 2).explain()
    assert {row.index: row.query for row in explanation.picks} == {0: 1, 1: 0}
    assert explanation.picks[0].relevance == pytest.approx(1.0 / 1.04**0.5)


def test_a_prefix_is_explained_as_itself() -> None:
    query, rows = problem(3)
    whole, part = sift(query, rows, 9), sift(query, rows, 9).until(lambda selection: 4)
    assert part.explain().picks == whole.explain().picks[:4]
    assert part.explain() == sift(query, rows, 4).explain()


def test_pickling_changes_nothing() -> None:
    selection = sift(*problem(5), 6)
    explanation = selection.explain()
    assert pickle.loads(pickle.dumps(selection)).explain() == explanation
    assert pickle.loads(pickle.dumps(explanation)) == explanation
    with pytest.raises(FrozenInstanceError):
        explanation.picks[0].rank = 2  # type: ignore[misc]


def test_a_kernel_that_knows_all_beforehand_has_no_shares_to_give() -> None:
    selection = replace(sift(*problem(5), 2), initial_uncertainty=0.0, gains=np.zeros(2))
    assert [row.share for row in selection.explain().picks] == [0.0, 0.0]


# Texts


def elsewhere(selection: Selection, positions: list[int]) -> Selection:
    """The same, with rows that stand at positions of a corpus."""
    at = np.array(positions)
    context = Context(selection.context.queries, selection.context.rows, at)
    return replace(selection, indices=at[selection.indices], context=context)


def test_positions_are_the_indices() -> None:
    query, rows = problem(8, n=6)
    here, positions = sift(query, rows, 3), [40, 7, 99, 3, 0, 12]
    there = elsewhere(here, positions)
    corpus = [f"text {i}" for i in range(120)]
    same = asdict(here.explain())
    for row in (*same["picks"], *same["dropped"]):
        row["index"] = positions[row["index"]]
        row["text"] = f"text {row['index']}"
    assert asdict(there.explain(corpus)) == same
    assert there.explain({i: corpus[i] for i in positions}) == there.explain(corpus)
    with pytest.raises(ValueError, match="has 6 texts and the candidates have indices up to 99"):
        there.explain(corpus[:6])


@pytest.mark.parametrize(
    ("texts", "error", "words"),
    [
        (["a", "b"], ValueError, "texts has 2 texts for 4 candidates; give the text of every"),
        (["a"] * 5, ValueError, "5 texts for 4"),
        ({0: "a"}, ValueError, "no text for candidate 2"),
        ("abcd", TypeError, "one string"),
        ([b"a"] * 4, TypeError, "text of candidate 0 is b'a'; it must be a string"),
    ],
)
def test_texts_that_do_not_fit(texts: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        by_hand([1.0, 0.0, 0.2], COPIES, [0, 2]).explain(texts)


def test_all_is_plain_data() -> None:
    explanation = by_hand([1.0, 0.0, 0.2], COPIES, [0, 2]).explain(list("abcd"))
    assert json.loads(json.dumps(asdict(explanation)))["dropped"][0]["text"] == "b"
    rows = json.loads(json.dumps(explanation.rows()))
    assert [(row["picked"], row["text"]) for row in rows] == [
        (True, "a"),
        (True, "c"),
        (False, "b"),
    ]
    assert rows[2]["why"] == "1.00 the same as pick 1"


def test_the_text_of_an_explanation() -> None:
    explanation = by_hand([1.0, 0.0, 0.2], COPIES, [0, 2]).explain(["long " * 40, "b", "c", "d"])
    lines = str(explanation).splitlines()
    assert lines[0] == HEADER
    assert lines[1].split()[:2] == ["1", "0.98"]
    assert lines[2] == "    " + "long " * 14 + "long…"
    assert "0.48 like 1" in lines[3]
    assert lines[5:] == [
        "Dropped, though among the 2 nearest:",
        " 2nd nearest, 0.97: 1.00 the same as pick 1",
        "    b",
    ]
    bare = str(by_hand([1.0, 0.0, 0.2], COPIES, [0, 2]).explain()).splitlines()
    assert len(bare) == len(lines) - 3


def test_lines_are_no_wider_than_a_terminal() -> None:
    query, rows = problem(1, n=150)
    text = str(random(query, rows, 120).explain(["word " * 99] * 150))
    assert "120 " in text
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("two\nlines\t and  more ", "two lines and more"),
        ("\x1b[31mred\x1b[0m\x07\x9b2J", "[31mred[0m2J"),
        ("price \u202e09\u2066 \u200bx", "price 09 x"),
        ("\u0645\u06cc\u200c\u062e 👩\u200d💻", "\u0645\u06cc\u200c\u062e 👩\u200d💻"),
        ("\ud800 half", " half"),
        ("[bold]as it is[/bold]", "[bold]as it is[/bold]"),
        ("a" * 41, "a" * 39 + "…"),
    ],
)
def test_a_text_cannot_move_the_cursor(text: str, shown: str) -> None:
    assert shorten(text, 40) == shown


@pytest.mark.parametrize(
    ("rank", "words"), [(1, "nearest, "), (2, "2nd"), (3, "3rd"), (11, "11th"), (112, "112th")]
)
def test_ranks_in_words(rank: int, words: str) -> None:
    row = by_hand([1.0, 0.0, 0.2], COPIES, [0, 2]).explain().dropped[0]
    assert str(replace(row, nearest=rank)).startswith(words)


def test_what_is_visible_keeps_its_lines_and_sends_no_codes() -> None:
    assert visible("a\n\tb \N{WOMAN}\u200d\N{ROCKET} é") == "a\n\tb \N{WOMAN}\u200d\N{ROCKET} é"
    assert visible("10\u00a0kg, 3\u202fms") == "10\u00a0kg, 3\u202fms"
    assert visible("\x1b[31mred\x1b]0;title\x07\r\u202egone") == "[31mred]0;titlegone"
