"""The quality benchmark: what it counts, by hand and by the slow way, and its smallest case."""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import retrieval
import retrieval_data
import retrieval_metrics as metrics
import retrieval_report as report
from retrieval_data import LEVELS, Corpus, Dataset, Fact, Passage, Question, corpus, load
from retrieval_measures import Level, one_for_all
from retrieval_selectors import DEFAULT, MMR, NEAREST, PAPER, Selector, orders, selectors
from retrieval_tasks import Rows, Setup, Task, squeezed, task

from sift_rag import Selection, mmr, nearest, sift
from sift_rag.embeddings import Kind

ROOT = Path(__file__).parents[1]


class Words:
    """Counts of hashed words: near copies are near, and no model is needed."""

    name = "hashed words"

    def embed(self, texts: Sequence[str], *, kind: Kind = "passage") -> Rows:
        rows = np.full((len(texts), 64), 0.01, dtype=np.float32)
        for row, text in zip(rows, texts, strict=True):
            for word in re.findall(r"\w{4,}", text.lower()):
                row[sum(map(ord, word)) % 64] += 1
        return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def words(texts: Sequence[str]) -> list[int]:
    return [len(text.split()) for text in texts]


SETUP = Setup(Words(), words, fetch_k=20)


# The numbers, by hand.


def told(*rows: Sequence[Sequence[int]]) -> metrics.Flags:
    return np.array(rows, dtype=bool)


def test_found_counts_facts_once_and_those_out_of_reach() -> None:
    tells = told([[1, 0, 0], [1, 0, 0], [0, 1, 0]])  # one question, three candidates, three facts
    order = np.array([[1, 0, 2]])
    assert metrics.found(tells, np.array([3]), order) == pytest.approx(
        np.array([[1 / 3, 1 / 3, 2 / 3]])
    )
    taken = np.array([[False, True, False]])
    assert metrics.found(tells, np.array([3]), order, taken)[0, -1] == pytest.approx(1 / 3)
    padded = metrics.found(tells, np.array([2]), order)  # needs two; the third column is nobody's
    assert padded[0, -1] == 1.0


def test_found_is_what_the_slow_way_finds() -> None:
    rng = np.random.default_rng(0)
    tells = rng.random((30, 12, 4)) < 0.2
    needs = rng.integers(1, 5, size=30)
    tells &= np.arange(4) < needs[:, None, None]
    order = np.array([rng.permutation(12)[:6] for _ in range(30)])
    slow = [
        [len({f for i in picks[: t + 1] for f in range(4) if row[i, f]}) / need for t in range(6)]
        for row, need, picks in zip(tells, needs, order, strict=True)
    ]
    assert metrics.found(tells, needs, order) == pytest.approx(np.array(slow))


def test_distinct_sources() -> None:
    shares = metrics.distinct(np.array([[7, 7, 3, 7], [1, 2, 3, 4]]))
    assert shares == pytest.approx(np.array([[1, 1 / 2, 2 / 3, 2 / 4], [1, 1, 1, 1]]))


def test_near_duplicates_share_half_of_their_sentences_with_earlier_picks_of_their_source() -> None:
    picks = [
        (0, (0, 1, 2)),
        (0, (2, 3, 4)),  # one of three
        (0, (4, 5)),  # one of two
        (1, (0, 1, 2)),  # another source
        (0, (0, 3, 9)),  # two of three, from two picks
    ]
    assert metrics.near_duplicates(picks) == [False, False, True, False, True]


def test_a_budget_passes_over_what_does_not_fit() -> None:
    costs = np.array([[5.0, 7.0, 4.0, 1.0], [11.0, 11.0, 11.0, 11.0]])
    taken = metrics.within(costs, 10)
    assert taken.tolist() == [[True, False, True, True], [False] * 4]


def test_means_are_over_ks_and_over_sets() -> None:
    values = np.arange(1.0, 17.0)[None]  # the t-th pick has the value t
    assert metrics.over_ks(values) == pytest.approx([np.mean(metrics.KS)])
    assert metrics.at(values[:, :3], 16) == pytest.approx([3.0])  # a corpus of three passages
    assert metrics.mean(np.array([1.0, 1.0, 1.0, 0.0]), np.array([0, 0, 0, 1])) == 0.5


def test_the_interval_is_that_of_the_normal_approximation_on_many_questions() -> None:
    rng = np.random.default_rng(1)
    sets = np.repeat([0, 1], [400, 100])
    values = rng.normal(size=500)
    spread = np.sqrt(values[:400].var() / 400 + values[400:].var() / 100) / 2
    found = metrics.bootstrap(values, sets)
    assert found.difference == pytest.approx(metrics.mean(values, sets))
    assert found.low == pytest.approx(found.difference - 1.96 * spread, abs=0.2 * spread)
    assert found.high == pytest.approx(found.difference + 1.96 * spread, abs=0.2 * spread)
    assert metrics.bootstrap(values, sets) == found  # seeded


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(2)
    sets = np.repeat([0, 1, 2], [40, 60, 80])
    intervals = [metrics.bootstrap(rng.normal(0.3, 1, 180), sets, 400) for _ in range(200)]
    covered = np.mean([each.low <= 0.3 <= each.high for each in intervals])
    assert 0.88 <= covered <= 0.99


def test_equal_selectors_have_no_interval() -> None:
    assert metrics.bootstrap(np.zeros(9), np.repeat([0, 1, 2], 3)) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("low", "high", "target", "word"),
    [
        (0.0, 0.1, 0.0, "yes"),
        (-0.1, 0.1, 0.0, "tie"),
        (-0.2, -0.1, 0.0, "no"),
        (-0.009, -0.001, -0.01, "yes"),
        (-0.02, -0.001, -0.01, "tie"),
        (-0.02, -0.011, -0.01, "no"),
    ],
)
def test_a_target_is_reached_when_the_whole_interval_is(
    low: float, high: float, target: float, word: str
) -> None:
    assert metrics.Interval((low + high) / 2, low, high).reaches(target) == word


def test_squeezed_cosines() -> None:
    rows = Words().embed(["some words here", "other words there", "nothing alike"])
    near = squeezed(rows, 0.7)
    assert near @ near.T == pytest.approx(0.7 + 0.3 * (rows @ rows.T), abs=1e-6)
    assert squeezed(rows, 0.0) is rows


# The page.


def test_prose_between_the_markers_is_kept(tmp_path: Path) -> None:
    page = tmp_path / "RETRIEVAL.md"
    retrieval.write(page, ["| old |"])
    assert report.TO_WRITE in page.read_text()
    written = page.read_text().replace(report.TO_WRITE, "When it helps.\n\nWhat to set.")
    page.write_text(written)
    retrieval.write(page, ["| new |"])
    assert page.read_text() == written.replace("| old |", "| new |")


@pytest.mark.parametrize("text", ["nothing", report.OPEN, report.CLOSE + report.OPEN])
def test_a_page_with_broken_markers_is_not_overwritten(tmp_path: Path, text: str) -> None:
    page = tmp_path / "RETRIEVAL.md"
    page.write_text(text)
    with pytest.raises(ValueError, match="mend the markers"):
        retrieval.write(page, ["| new |"])
    assert page.read_text() == text


@pytest.mark.parametrize("arguments", [["--questions", "5"], ["--squeeze", "0.7"]])
def test_only_the_whole_benchmark_is_written(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["retrieval.py", "--write", *arguments])
    with pytest.raises(SystemExit):
        retrieval.arguments()
    assert "takes no other argument" in capsys.readouterr().err


def test_missing_data_ends_it_with_a_sentence(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "retrieval.py")],
        env=os.environ | {"SIFT_RAG_DATA": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1
    assert "set SIFT_RAG_DATA to the folder of the open data" in done.stderr
    assert "Traceback" not in done.stderr


# The smallest case.


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrieval_data, "CACHE", tmp_path / "cache")


@pytest.fixture(scope="module")
def small(data: Path) -> Dataset:
    """The first 24 paragraphs of XQuAD, with a few of their questions."""
    whole = load("xquad", data)
    inside = [q for q in whole.single if all(fact.source < 24 for fact in q.facts)][:12]
    pairs = [q for q in whole.pairs if all(fact.source < 24 for fact in q.facts)][:6]
    assert len(inside) == 12
    assert len(pairs) == 6
    return Dataset("small", whole.sources[:24], inside, pairs)


@pytest.mark.parametrize("level", LEVELS)
def test_gold_passages_tell_their_sentence_and_others_do_not(small: Dataset, level: str) -> None:
    texts = corpus(small, level)
    for question in small.single + small.pairs:
        for fact, gold in zip(question.facts, texts.gold(question), strict=True):
            assert fact.sentence is not None
            sentence = small.sources[fact.source][fact.sentence]
            assert gold
            telling = [i for i, p in enumerate(texts.passages) if sentence in p.text]
            assert set(telling) == gold


@pytest.mark.parametrize(("level", "share"), [("copies 25 %", 0.25), ("copies 80 %", 0.8)])
def test_the_share_of_copies_is_as_said(small: Dataset, level: str, share: float) -> None:
    count = len(corpus(small, level).passages)
    assert (count - len(small.sources)) / count == pytest.approx(share)


def by_hand(texts: Corpus, question: Question, picks: Sequence[int]) -> float:
    """Gold found by reading the passages."""
    taken = [texts.passages[i] for i in picks]
    return float(np.mean([any(_tells(p, fact) for p in taken) for fact in question.facts]))


def _tells(passage: Passage, fact: Fact) -> bool:
    return passage.source == fact.source and fact.sentence in passage.sentences


@pytest.fixture
def few() -> list[Selector]:
    return [s for s in selectors() if s.family in (NEAREST, MMR, DEFAULT, PAPER, "pyversity dpp")]


def chosen(few: Sequence[Selector], family: str, setting: float | None = None) -> Selector:
    (one,) = (s for s in few if (s.family, s.setting) == (family, setting))
    return one


@pytest.mark.parametrize("level", LEVELS)
def test_scores_are_those_of_reading_the_picks(
    small: Dataset, level: str, few: list[Selector]
) -> None:
    texts, made = corpus(small, level), task(small, level, SETUP)
    measured = Level(level, [made], few)
    for family, setting in [(NEAREST, None), (MMR, 0.7), (DEFAULT, None), (PAPER, None)]:
        selector = chosen(few, family, setting)
        order = orders(made, selector, 16)
        expected = [
            np.mean([by_hand(texts, question, mine[picks[:k]]) for k in metrics.KS])
            for question, mine, picks in zip(
                small.single + small.pairs, made.candidates, order, strict=True
            )
        ]
        assert measured.values(selector) == pytest.approx(np.array(expected))
        assert measured.score(selector) == pytest.approx(np.mean(expected))


def test_orders_are_the_librarys_own_and_read_again_from_disk(
    small: Dataset, few: list[Selector]
) -> None:
    made = task(small, "windows", SETUP)
    wanted: dict[tuple[str, float | None], Callable[[Rows, Rows], Selection]] = {
        (NEAREST, None): lambda q, x: nearest(q, x, 16),
        (MMR, 0.7): lambda q, x: mmr(q, x, 16, lambda_mult=0.7),
        (DEFAULT, None): lambda q, x: sift(q, x, 16),
        (PAPER, None): lambda q, x: sift(q, x, 16, kernel="linear", noise=0.01),
    }
    for (family, setting), select in wanted.items():
        found = orders(made, chosen(few, family, setting), 16)
        for query, mine, order in zip(made.queries, made.candidates, found, strict=True):
            assert select(query, made.rows[mine]).indices.tolist() == order.tolist()
        unable = chosen(few, family, setting)._replace(order=_never)
        assert np.array_equal(orders(made, unable, 16), found)


def _never(*_: object) -> object:
    raise AssertionError("this order was on disk")


def test_another_version_of_a_selector_is_asked_anew(small: Dataset, few: list[Selector]) -> None:
    made, selector = task(small, "clean", SETUP), chosen(few, NEAREST)
    orders(made, selector, 16)
    with pytest.raises(AssertionError, match="on disk"):
        orders(made, selector._replace(version="another", order=_never), 16)


def test_candidates_are_the_nearest(small: Dataset) -> None:
    made = task(small, "copies 80 %", SETUP)
    cosines = made.queries @ made.rows.T
    assert made.candidates.shape == (18, 20)
    assert (np.diff(made.scores, axis=1) <= 0).all()
    assert made.scores[:, -1] == pytest.approx(np.sort(cosines, axis=1)[:, -20])


def test_a_budget_is_kept_and_more_of_it_finds_no_less(small: Dataset, few: list[Selector]) -> None:
    measured = Level("windows", [task(small, "windows", SETUP)], few)
    for selector in (chosen(few, NEAREST), chosen(few, DEFAULT)):
        found = [measured.at_budget(selector, budget) for budget in (1, 200, 100_000)]
        assert found[0] == 0.0
        assert found == sorted(found)
        everything = measured.tasks[0].tells.any(axis=1).sum(axis=1) / measured.tasks[0].needs
        assert found[-1] == pytest.approx(everything.mean())
        assert measured.with_costs(100_000) == pytest.approx(found[-1])
    assert measured.with_costs(1) == 0.0


def test_the_whole_page_of_the_smallest_case(
    small: Dataset, few: list[Selector], tmp_path: Path
) -> None:
    levels = retrieval.study([small], SETUP, few)
    lines = [*retrieval.head(), *retrieval.page(levels), *report.settings(levels)]
    text = "\n".join(lines)
    for name in (NEAREST, "MMR 0.5", "MMR 0.9", DEFAULT, PAPER, report.COSTS):
        assert f"| {name} |" in text or f"| **{name}** |" in text
    scores = [f"{level.score(level.only(DEFAULT)):.3f}" for level in levels]
    assert f"| {DEFAULT} | {' | '.join(scores)} |" in text
    assert "nan" not in text
    rows = [line for line in lines if line.startswith("|")]
    assert len(rows) > 60
    best = one_for_all(levels, MMR)
    assert sum(level.score(best) for level in levels) >= max(
        sum(level.score(each) for level in levels) for each in few if each.family == MMR
    )
    retrieval.write(tmp_path / "RETRIEVAL.md", lines)
    assert (tmp_path / "RETRIEVAL.md").read_text().count(report.OPEN) == 1


def test_cells_of_the_verdict_say_what_the_numbers_say(small: Dataset, few: list[Selector]) -> None:
    levels = retrieval.study([small], SETUP, few)
    for level in levels:
        cell = report.cell(level, NEAREST)
        mine, theirs = (level.score(level.only(name)) for name in (DEFAULT, NEAREST))
        assert cell.interval.difference == pytest.approx(mine - theirs)
        assert cell.target == (-0.01 if level.name == "clean" else 0.0)
        assert cell.below == (mine - theirs < cell.target)
        assert report.cell(level, PAPER).word == ""
    assert report.cell(levels[0], MMR).word == ""


def test_the_picture_is_drawn_from_the_levels(
    small: Dataset, few: list[Selector], tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib", reason="the picture needs matplotlib")
    from retrieval_picture import draw

    levels = retrieval.study([small], SETUP, few)
    draw(levels, tmp_path / "one.svg")
    draw(levels, tmp_path / "two.svg")
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()
    text = (tmp_path / "one.svg").read_text()
    assert "fill: #ffffff" in text  # readable on a dark page
    assert "<text" not in text


def test_fewer_questions_are_a_part_of_them(small: Dataset) -> None:
    whole, part = task(small, "clean", SETUP), task(small, "clean", SETUP._replace(questions=5))
    assert len(part) == 5
    rows = {query.tobytes(): found for query, found in zip(whole.queries, whole.tells, strict=True)}
    for query, found in zip(part.queries, part.tells, strict=True):
        seen = rows[query.tobytes()]
        assert np.array_equal(seen[:, : found.shape[1]], found)


def test_pairs_need_the_facts_of_both(small: Dataset) -> None:
    made: Task = task(small, "clean", SETUP)
    assert made.pairs.sum() == len(small.pairs)
    assert made.needs[made.pairs].tolist() == [2] * len(small.pairs)
