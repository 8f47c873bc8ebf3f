"""Batches are what single calls give, by position; the search is exact."""

import pickle
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sift_rag.batches import sift_batch
from sift_rag.candidates import Index
from sift_rag.embeddings import Kind
from sift_rag.kernels import rbf
from sift_rag.selection import Selection, sift

Rows = NDArray[Any]
KERNELS: list[Any] = ["rbf", "linear", rbf(0.1), rbf(0.1, 0.3)]
seeds = st.integers(0, 2**32 - 1)


def vectors(rng: np.random.Generator, *shape: int, dtype: Any = np.float64) -> Rows:
    """Vectors with a common part, as embeddings have; of any length."""
    common = 0.5 * np.ones(shape[-1])
    return np.asarray(rng.normal(size=shape) + common, dtype=dtype)


def ragged(seed: int, *, count: int = 9, d: int = 20, dtype: Any = np.float64) -> tuple[Any, Any]:
    """Queries of 1 to 3 vectors, and 1 to 160 candidates of their own for each."""
    rng = np.random.default_rng(seed)
    queries = [vectors(rng, int(rng.integers(1, 4)), d, dtype=dtype) for _ in range(count)]
    sets = [vectors(rng, int(rng.integers(1, 161)), d, dtype=dtype) for _ in range(count)]
    return queries, sets


def assert_equal(found: Selection, alone: Selection, where: Any = "") -> None:
    """The same picks, and gains as close as `sift_batch` says."""
    single = alone.context.rows.dtype == np.float32
    rtol, atol = (1e-3, 1e-5) if single else (1e-9, 1e-12)
    assert found.indices.tolist() == alone.indices.tolist(), where
    np.testing.assert_allclose(found.gains, alone.gains, rtol=rtol, atol=atol, err_msg=str(where))
    # What is left has the errors of all gains before it, and no more.
    np.testing.assert_allclose(
        found.uncertainty, alone.uncertainty, atol=len(alone) * atol + rtol * alone.gains.sum()
    )
    assert found.initial_uncertainty == pytest.approx(alone.initial_uncertainty)
    for mine, its in (
        (found.indices, alone.indices),
        (found.gains, alone.gains),
        (found.uncertainty, alone.uncertainty),
        (found.context.queries, alone.context.queries),
        (found.context.rows, alone.context.rows),
    ):
        assert mine.dtype == its.dtype
        assert mine.shape == its.shape


# Equal to single calls


@pytest.mark.parametrize("combine", ["sum", "worst"])
@pytest.mark.parametrize("distinct", [True, False])
@pytest.mark.parametrize("kernel", KERNELS, ids=["default", "linear", "rbf", "asymmetric"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_batch_is_its_single_calls(
    dtype: type[Any], kernel: Any, distinct: bool, combine: Any
) -> None:
    options: dict[str, Any] = {"kernel": kernel, "distinct": distinct, "combine": combine}
    for seed in range(4):
        queries, sets = ragged(seed, dtype=dtype)
        for position, found in enumerate(sift_batch(queries, sets, 12, **options)):
            alone = sift(queries[position], sets[position], 12, **options)
            assert_equal(found, alone, (seed, position))


@pytest.mark.parametrize("n", [40, 128, 129, 300])
@pytest.mark.parametrize("kernel", KERNELS, ids=["default", "linear", "rbf", "asymmetric"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_shared_set_is_given_to_every_query(dtype: type[Any], kernel: Any, n: int) -> None:
    rng = np.random.default_rng(n)
    queries, rows = vectors(rng, 7, 20, dtype=dtype), vectors(rng, n, 20, dtype=dtype)
    for distinct in (True, False):
        options: dict[str, Any] = {"kernel": kernel, "distinct": distinct}
        batch = sift_batch(queries, rows, 12, **options)
        for query, found in zip(queries, batch, strict=True):
            assert_equal(found, sift(query, rows, 12, **options), distinct)


@settings(max_examples=80, deadline=None)
@given(
    seeds,
    st.sampled_from(KERNELS),
    st.floats(-5, 2),
    st.integers(1, 40),
    st.booleans(),
    st.sampled_from([np.float32, np.float64]),
)
def test_any_noise_and_k_give_the_gains_of_single_calls(
    seed: int, kernel: Any, power: float, k: int, distinct: bool, dtype: type[Any]
) -> None:
    """Gains only: where little is left, orders may part at a tie of the rounding."""
    queries, sets = ragged(seed, count=5, dtype=dtype)
    options: dict[str, Any] = {"kernel": kernel, "noise": 10.0**power, "distinct": distinct}
    for position, found in enumerate(sift_batch(queries, sets, k, **options)):
        alone = sift(queries[position], sets[position], k, **options)
        assert len(found) == len(alone)
        exact = alone.context.rows.dtype == np.float64
        np.testing.assert_allclose(
            found.uncertainty, alone.uncertainty, atol=1e-7 if exact else 2e-3
        )


def test_many_picks_and_many_candidates_are_no_other_path() -> None:
    """Where all products are made at once, or row by row, or in several stacks."""
    rng = np.random.default_rng(5)
    for n, k in ((60, 40), (300, 5), (2500, 3), (2500, 80)):
        queries, rows = vectors(rng, 4, 16), vectors(rng, n, 16)
        sets = vectors(rng, 4, n, 16)
        for kernel in KERNELS:
            options: dict[str, Any] = {"kernel": kernel, "noise": 0.1}
            together = sift_batch(queries, rows, k, **options)
            apart = sift_batch(queries, sets, k, **options)
            for position, query in enumerate(queries):
                assert_equal(together[position], sift(query, rows, k, **options), (n, k))
                assert_equal(apart[position], sift(query, sets[position], k, **options), (n, k))


def test_every_form_of_the_same_batch_gives_the_same() -> None:
    rng = np.random.default_rng(1)
    queries, sets = vectors(rng, 5, 12), vectors(rng, 5, 30, 12)
    expected = sift_batch(queries, sets, 6)
    forms: list[tuple[Any, Any]] = [
        (list(queries), list(sets)),
        (queries[:, None], sets),
        (queries.tolist(), sets.tolist()),
        (tuple(queries), np.asfortranarray(sets)),
    ]
    for some, others in forms:
        assert sift_batch(some, others, 6) == expected
    shared = sift_batch(queries, sets[0], 6)
    assert sift_batch(queries.tolist(), sets[0].tolist(), 6) == shared
    for found, alone in zip(sift_batch(queries, [sets[0]] * 5, 6), shared, strict=True):
        assert_equal(found, alone)


def test_each_query_has_the_kernel_of_its_own_candidates() -> None:
    """Squeezed cosines narrow the default kernel; the neighbour in the batch must not."""
    rng = np.random.default_rng(2)
    wide, narrow = vectors(rng, 50, 16), vectors(rng, 50, 16) + 20.0
    queries = vectors(rng, 2, 16) + np.array([[0.0], [20.0]])
    found = sift_batch(queries, [wide, narrow], 8)
    other = sift_batch(queries[::-1], [narrow, wide], 8)[::-1]
    for position, rows in enumerate((wide, narrow)):
        assert_equal(found[position], sift(queries[position], rows, 8))
        assert_equal(other[position], sift(queries[position], rows, 8))


def test_mixed_precision_and_dimensions_may_stand_in_one_batch() -> None:
    rng = np.random.default_rng(3)
    queries = [vectors(rng, 8), vectors(rng, 8, dtype=np.float32), vectors(rng, 2, 5)]
    sets = [vectors(rng, 30, 8), vectors(rng, 30, 8, dtype=np.float32), vectors(rng, 30, 5)]
    for found, query, rows in zip(sift_batch(queries, sets, 5), queries, sets, strict=True):
        assert_equal(found, sift(query, rows, 5))


# Ties, duplicates, k


@settings(max_examples=40, deadline=None)
@given(seeds, st.sampled_from(KERNELS), st.sampled_from([np.float32, np.float64]), st.booleans())
def test_ties_go_to_the_lowest_index(
    seed: int, kernel: Any, dtype: type[Any], shared: bool
) -> None:
    rng = np.random.default_rng(seed)
    few = vectors(rng, 4, 17, 37, dtype=dtype)
    queries = vectors(rng, 4, 37, dtype=dtype)
    copies = np.concatenate([few, few, few], axis=1)
    given_sets: Any = copies[0] if shared else copies
    for distinct in (True, False):
        batch = sift_batch(queries, given_sets, 10, kernel=kernel, distinct=distinct)
        for position, found in enumerate(batch):
            rows = copies[0 if shared else position]
            alone = sift(queries[position], rows, 10, kernel=kernel, distinct=distinct)
            assert_equal(found, alone, position)
            seen = set[int]()
            for pick in found.indices.tolist():
                # Of copies, the first one that has not been taken.
                wanted = pick % 17 if not distinct else pick
                earlier = [i for i in range(pick % 17, pick, 17) if i not in seen]
                assert pick == wanted
                assert not (distinct and earlier)
                seen.add(pick)


def test_k_above_n_takes_all_that_each_has() -> None:
    queries, sets = ragged(7, count=12)
    batch = sift_batch(queries, sets, 1000)
    assert [len(found) for found in batch] == [len(rows) for rows in sets]
    for found in batch:
        assert sorted(found.indices.tolist()) == list(range(len(found)))
    repeated = sift_batch(queries, sets, 50, distinct=False)
    assert [len(found) for found in repeated] == [50] * 12


def test_one_candidate_each_and_rank_one() -> None:
    rng = np.random.default_rng(8)
    queries = vectors(rng, 3, 6)
    for kernel in KERNELS:
        for sets in (vectors(rng, 3, 1, 6), np.repeat(vectors(rng, 3, 1, 6), 5, axis=1)):
            for found, query, rows in zip(
                sift_batch(queries, sets, 4, kernel=kernel), queries, sets, strict=True
            ):
                assert_equal(found, sift(query, rows, 4, kernel=kernel))
                assert found.indices.tolist() == list(range(min(4, len(rows))))


def test_no_queries_are_no_selections() -> None:
    assert sift_batch([], [], 3) == []
    assert sift_batch(np.empty((0, 4)), np.ones((3, 4)), 3) == []
    assert sift_batch([], np.ones((3, 4)), 3, fetch_k=2) == []


# What is passed through


def test_costs_and_a_users_kernel_are_single_calls() -> None:
    def cubic(a: Rows, b: Rows) -> Rows:
        return np.asarray((0.5 + 0.5 * a @ b.T) ** 3)

    rng = np.random.default_rng(9)
    queries, sets = vectors(rng, 4, 10), vectors(rng, 4, 30, 10)
    costs = rng.integers(1, 20, size=(4, 30))
    apart = sift_batch(queries, sets, costs=costs, budget=60)
    together = sift_batch(queries, sets[0], costs=costs[0], budget=60)
    own = sift_batch(queries, sets, 5, kernel=cubic)
    fetched = sift_batch(queries, sets[0], costs=costs[0], budget=60, fetch_k=8)
    for position, (query, rows) in enumerate(zip(queries, sets, strict=True)):
        assert apart[position] == sift(query, rows, costs=costs[position], budget=60)
        assert together[position] == sift(query, sets[0], costs=costs[0], budget=60)
        assert own[position] == sift(query, rows, 5, kernel=cubic)
        assert costs[0][fetched[position].indices].sum() <= 60


# With the search


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kernel", ["rbf", "linear"])
def test_fetch_k_is_the_search_and_then_the_selection(kernel: Any, dtype: type[Any]) -> None:
    rng = np.random.default_rng(10)
    corpus = vectors(rng, 500, 24, dtype=dtype)
    queries = [vectors(rng, m, 24, dtype=dtype) for m in (1, 3, 1, 2)]
    unit = corpus / np.linalg.norm(corpus.astype(np.float64), axis=1, keepdims=True)
    for query, found in zip(
        queries, sift_batch(queries, corpus, 6, fetch_k=40, kernel=kernel), strict=True
    ):
        directions = query / np.linalg.norm(query.astype(np.float64), axis=1, keepdims=True)
        near = np.argsort(-(unit @ directions.T).max(axis=1), kind="stable")[:40]
        alone = sift(query, corpus[near], 6, kernel=kernel)
        assert found.indices.tolist() == near[alone.indices].tolist()
        np.testing.assert_allclose(found.gains, alone.gains, rtol=1e-3, atol=1e-5)
        assert found.context.positions is not None
        assert found.context.positions.tolist() == near.tolist()
        picked = found.context.rows[alone.indices]
        np.testing.assert_allclose(picked, unit[found.indices], atol=1e-6)


def test_fetching_everything_or_more_is_the_whole_corpus() -> None:
    rng = np.random.default_rng(11)
    corpus, queries = vectors(rng, 60, 12), vectors(rng, 3, 12)
    for fetch_k in (60, 1000):
        batch = sift_batch(queries, corpus, 8, fetch_k=fetch_k)
        for query, found in zip(queries, batch, strict=True):
            alone = sift(query, corpus, 8)
            assert found.indices.tolist() == alone.indices.tolist()
            np.testing.assert_allclose(found.gains, alone.gains, rtol=1e-9)
    assert [len(found) for found in sift_batch(queries, corpus, 8, fetch_k=5)] == [5] * 3


class Letters:
    """Counts of letters: an embedder in three lines."""

    name = "letters"

    def embed(self, texts: Sequence[str], *, kind: Kind = "passage") -> NDArray[np.float32]:
        counts = [[1.0 + text.count(chr(97 + i)) for i in range(26)] for text in texts]
        return np.array(counts, dtype=np.float32)


@pytest.fixture
def index() -> Index:
    rng = np.random.default_rng(14)
    texts = ["".join(rng.choice(list("abcdefgh"), size=12)) for _ in range(60)]
    return Index.build([*texts, *texts[:10]], Letters())  # with copies


def test_an_index_searches_for_many_questions(index: Index) -> None:
    questions = [document.text for document in index.documents][:7]
    batch = index.search_batch(questions, fetch_k=5)
    assert len(batch) == len(questions)
    for question, found in zip(questions, batch, strict=True):
        alone = index.search(question, fetch_k=5)
        assert found.documents == alone.documents
        for name in ("query", "embeddings", "scores", "positions"):
            np.testing.assert_array_equal(getattr(found, name), getattr(alone, name))
    selections = sift_batch([one.query for one in batch], [one.embeddings for one in batch], 2)
    for one, selection in zip(batch, selections, strict=True):
        assert_equal(selection, sift(one.query, one.embeddings, 2))
    assert index.search_batch([]) == []


@pytest.mark.parametrize(
    ("questions", "fetch_k", "words"),
    [("one string", 5, "give a list"), (["a", " "], 5, "empty"), (["a"], 0, "at least 1, got 0")],
)
def test_bad_questions(index: Index, questions: Any, fetch_k: int, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        index.search_batch(questions, fetch_k=fetch_k)


# Results, state, errors


def test_results_are_the_users_own() -> None:
    queries, sets = ragged(12)
    before = [rows.copy() for rows in sets]
    first, again = sift_batch(queries, sets, 5), sift_batch(queries, sets, 5)
    assert first == again
    for rows, copy in zip(sets, before, strict=True):
        np.testing.assert_array_equal(rows, copy)
    for found in first:
        assert not found.indices.flags.writeable
        assert pickle.loads(pickle.dumps(found)) == found


def test_read_only_float16_and_strided_input() -> None:
    rng = np.random.default_rng(13)
    queries = vectors(rng, 3, 8, dtype=np.float16)
    sets = vectors(rng, 3, 20, 16, dtype=np.float16)[:, :, ::2]
    queries.flags.writeable = sets.flags.writeable = False
    for found, query, rows in zip(sift_batch(queries, sets, 4), queries, sets, strict=True):
        assert_equal(found, sift(query, rows, 4))


def spoiled(rows: Rows, at: Any, value: float) -> Rows:
    rows = rows.copy()
    rows[at] = value
    return rows


Q, X = np.eye(4)[:, :3] + 1.0, np.ones((4, 5, 3)) + np.arange(5)[:, None]


@pytest.mark.parametrize(
    ("queries", "candidates", "options", "words"),
    [
        (spoiled(Q, 3, np.nan), X, {}, "^query 3: query has NaN"),
        (spoiled(Q, 2, 0), X, {}, "^query 2: query has 1 of 1 vectors all zeros"),
        (Q, spoiled(X, (1, 4), np.inf), {}, "^query 1: candidates has NaN or infinity.*row 4"),
        (Q, [*X[:3], np.empty((0, 3))], {}, "^query 3: candidates is empty"),
        ([*Q[:2], np.ones(2), Q[3]], X, {}, "^query 2: query has 2 dimensions"),
        ([*Q[:2], np.ones((2, 2, 2)), Q[3]], X, {}, "^query 2: query has shape"),
        (spoiled(Q, 3, np.nan), X[0], {}, "^query 3: query has NaN"),
        (spoiled(Q, 3, np.nan), X[0], {"fetch_k": 2}, "^query 3: query has NaN"),
        ([*Q[:1], np.ones(2)], X[0], {"fetch_k": 2}, "^query 1: query has 2 dimensions"),
        (Q, spoiled(X[0], 2, np.nan), {}, "^candidates has NaN"),
        (Q, np.empty((0, 3)), {}, "^candidates is empty"),
        (Q, X[0], {"noise": -1.0}, "^noise is -1"),
        (Q, X[0], {"kernel": "cosine"}, "^kernel is 'cosine'"),
        (Q, X[:3], {}, "4 queries and 3 sets of candidates"),
        (Q, [], {}, "4 queries and 0 sets of candidates"),
        (Q[0], X, {}, "for one query, use sift"),
        (Q, Q[0], {}, "one array \\(n, d\\) for all"),
        (Q, X, {"fetch_k": 3}, "fetch_k is 3; .* corpus"),
        (Q, X[0], {"fetch_k": 0}, "fetch_k is 0; it must be 1 or more"),
        (Q, X, {"costs": np.ones((3, 5)), "budget": 2}, "4 queries and 3 costs"),
        (Q, X, {"costs": spoiled(np.ones((4, 5)), 2, 0), "budget": 2}, "^query 2: costs has"),
        (Q, X[0], {"costs": np.zeros(5), "budget": 2}, "^costs has"),
    ],
)
def test_errors_say_which_query(
    queries: Any, candidates: Any, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        sift_batch(queries, candidates, 2, **options)


def test_wrong_types_say_which_query_too() -> None:
    with pytest.raises(TypeError, match=r"^query 1: query has dtype <U1"):
        sift_batch([[1.0, 2.0], ["a", "b"]], np.ones((3, 2)), 2)
    with pytest.raises(TypeError, match=r"^k is None"):
        sift_batch(Q, X[0])
