"""Coverage: a probability that follows relevance, and real answerable questions."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.feature_extraction.text import TfidfVectorizer

from sift_rag.coverage import coverage
from sift_rag.rivals import nearest
from sift_rag.selection import Context, sift

Floats = NDArray[np.float64]


def unit(rows: Floats) -> Floats:
    return np.asarray(rows / np.linalg.norm(rows, axis=-1, keepdims=True))


def corpus(cosine: float, n: int = 60, d: int = 64, seed: int = 0) -> tuple[Floats, Floats]:
    """A query, a passage with this cosine to it, and n - 1 strangers."""
    rng = np.random.default_rng(seed)
    query = unit(rng.normal(size=d))
    strangers = unit(rng.normal(size=(n - 1, d)) + 0.4 * query)
    across = strangers[0] - (strangers[0] @ query) * query
    best = cosine * query + np.sqrt(1 - cosine**2) * unit(across)
    return query, np.vstack([best, strangers])


def test_coverage_rises_with_the_relevance_of_the_best_candidate() -> None:
    found = [sift(*corpus(cosine), 5).coverage for cosine in (0.3, 0.5, 0.7, 0.9)]
    assert found == sorted(found)
    assert found[0] < 0.25
    assert found[-1] > 0.9


def test_coverage_belongs_to_the_candidates_not_to_the_picks() -> None:
    query, rows = corpus(0.6)
    found = sift(query, rows, 5)
    assert found.coverage == sift(query, rows, 1).coverage == nearest(query, rows, 3).coverage
    assert pickle.loads(pickle.dumps(found)).coverage == found.coverage


@pytest.mark.parametrize("copies", [2, 5])
def test_copies_of_the_best_candidate_change_little(copies: int) -> None:
    query, rows = corpus(0.7, n=40)
    more = np.vstack([np.repeat(rows[:1], copies, axis=0), rows])
    assert sift(query, more, 3).coverage == pytest.approx(sift(query, rows, 3).coverage, abs=0.02)


def test_more_strangers_far_away_change_nothing() -> None:
    query, rows = corpus(0.6)
    away = unit(np.random.default_rng(1).normal(size=(60, 64)) - 20 * query)
    assert sift(query, np.vstack([rows, away]), 3).coverage == pytest.approx(
        sift(query, rows, 3).coverage
    )


def test_squeezed_cosines_change_little() -> None:
    """cos' = a + (1 - a) cos, as embedders of one narrow cone have them."""
    for cosine in (0.3, 0.8):
        query, rows = corpus(cosine)
        narrow = [np.append(np.sqrt(0.3) * unit(row), np.sqrt(0.7)) for row in (query, *rows)]
        found = sift(narrow[0], np.array(narrow[1:]), 5).coverage
        assert (found > 0.5) == (cosine > 0.5)


@pytest.mark.parametrize("rows", [[[1.0, 0.0]], [[1.0, 0.0]] * 4, [[-1.0, 0.0]], [[0.0, 1.0]] * 3])
def test_one_candidate_or_copies_of_one_still_give_a_probability(rows: list[list[float]]) -> None:
    found = sift(np.array([1.0, 0.0]), np.array(rows), 2).coverage
    assert 0.0 <= found <= 1.0
    assert (found > 0.5) == (rows[0][0] > 0.9)


def test_several_queries_count_by_their_mean() -> None:
    query, rows = corpus(0.8)
    other = unit(np.random.default_rng(1).normal(size=64))
    alone = [coverage(Context(q[None], rows)) for q in (query, other)]
    both = coverage(Context(np.stack([query, other]), rows))
    assert both == pytest.approx(np.mean(alone))


def test_coverage_knows_real_questions_that_have_an_answer(data: Path) -> None:
    """XQuAD's paragraphs with rare words as vectors: no model, real language."""
    articles = json.loads((data / "qa" / "xquad.en.json").read_text(encoding="utf-8"))["data"]
    paragraphs = [paragraph for article in articles for paragraph in article["paragraphs"]]
    vectorizer = TfidfVectorizer(sublinear_tf=True, min_df=2).fit(p["context"] for p in paragraphs)
    rows = vectorizer.transform([p["context"] for p in paragraphs]).toarray()
    queries = vectorizer.transform([p["qas"][0]["question"] for p in paragraphs]).toarray()
    asked = [i for i in range(len(rows)) if queries[i].any()]
    there = [sift(queries[i], rows, 3).coverage for i in asked]
    gone = [sift(queries[i], np.delete(rows, i, axis=0), 3).coverage for i in asked]
    assert np.mean(np.array(there)[:, None] > gone) > 0.75
