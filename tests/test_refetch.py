"""Refetching: what is said to be exact is SIFT over everything, and the bound holds."""

import pickle
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sift_rag.kernels import Kernel, linear, rbf
from sift_rag.refetch import Fetched, Search, sift_search
from sift_rag.selection import sift

Floats = NDArray[np.float64]
Answer = tuple[Sequence[Hashable], Any]
KERNELS: list[Kernel] = ["linear", "rbf", rbf(0.3), rbf(0.1, 0.5)]
seeds = st.integers(0, 2**32 - 1)


def unit(rows: Any) -> Floats:
    return np.asarray(rows / np.linalg.norm(rows, axis=-1, keepdims=True), dtype=np.float64)


def corpus(kind: str, seed: int, *, n: int = 300, d: int = 16) -> tuple[Floats, Floats]:
    """A query (d,) and documents (n, d) with a common part, as embeddings have."""
    rng = np.random.default_rng(seed)
    common = rng.uniform(0, 1) * rng.normal(size=d)
    if kind == "random":
        rows = rng.normal(size=(n, d))
    elif kind == "clustered":
        centres = rng.normal(size=(n // 10, d))
        rows = centres[rng.integers(len(centres), size=n)] + 0.3 * rng.normal(size=(n, d))
    else:
        rows = np.tile(rng.normal(size=(n // 5, d)), (5, 1))
    return rng.normal(size=d) + common, unit(rows + common)


class Store:
    """Can only be searched; counts how often it was, and for how much."""

    def __init__(self, rows: Floats) -> None:
        self.rows = rows
        self.asked: list[int] = []

    def __call__(self, vector: NDArray[np.float32], fetch_k: int) -> Answer:
        assert vector.dtype == np.float32
        assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-6)
        self.asked.append(fetch_k)
        nearest = np.argsort(-(unit(self.rows) @ vector), kind="stable")[:fetch_k]
        return nearest.tolist(), self.rows[nearest]


def capped(rows: Floats, most: int) -> Search:
    store = Store(rows)
    return lambda vector, fetch_k: store(vector, min(fetch_k, most))


def numbers(ids: Sequence[Hashable]) -> list[int]:
    return [i for i in ids if isinstance(i, int)]


def gains_of_all(query: Floats, rows: Floats, found: Fetched, noise: float) -> list[Floats]:
    """The gain of every document of the store before each pick, by conditioning, slowly."""
    x, q = unit(rows), unit(query)[None]
    cov = found.kernel(x, x)
    cross = getattr(found.kernel, "cross", found.kernel)(q, x)[0]
    each = []
    for i in numbers(found.ids):
        spread = cov.diagonal() + noise
        each.append(cross**2 / spread)
        known = cov[i] / spread[i]
        cross, cov = cross - cross[i] * known, cov - np.outer(cov[:, i], known)
    return each


# The promise


@pytest.mark.parametrize("kernel", KERNELS, ids=str)
@pytest.mark.parametrize("kind", ["random", "clustered", "copied"])
def test_what_is_proven_is_sift_over_everything(kind: str, kernel: Kernel) -> None:
    exact = 0
    for seed in range(25):
        query, rows = corpus(kind, seed)
        store = Store(rows)
        found = sift_search(query, store, 6, fetch_k=20, kernel=kernel)
        whole = sift(query, rows, 6, kernel=found.kernel)
        assert found.searches == len(store.asked)
        picks = np.array(found.ids)
        # Copies have other ids and the same vector: which of them is taken is the store's choice.
        same = np.isclose(rows[picks], rows[whole.indices], atol=1e-9).all(axis=1)
        assert same[: found.proven].all(), seed
        assert found.exact == (found.bound < 1) == (found.proven == 6)
        exact += found.exact
    assert exact >= 20 if kernel in ("linear", "rbf") else exact > 0


@settings(max_examples=150, deadline=None)
@given(
    seeds,
    st.sampled_from(["random", "clustered", "copied"]),
    st.sampled_from(KERNELS),
    st.integers(2, 30),
    st.floats(-3, 1),
    st.integers(1, 60),
    st.booleans(),
)
def test_the_bound_holds_for_every_unseen_document(
    seed: int, kind: str, kernel: Kernel, d: int, log_noise: float, fetch_k: int, distinct: bool
) -> None:
    query, rows = corpus(kind, seed, n=200, d=d)
    noise = 10.0**log_noise
    options: dict[str, Any] = {"kernel": kernel, "noise": noise, "distinct": distinct}
    found = sift_search(query, Store(rows), 7, fetch_k=fetch_k, max_fetch=80, **options)
    unseen = np.setdiff1d(np.arange(len(rows)), numbers(found.fetched))
    if not len(unseen):
        assert found.bound < np.inf
        return
    all_gains = gains_of_all(query, rows, found, noise)
    for gains, pick in zip(all_gains, numbers(found.ids), strict=True):
        assert gains[unseen].max() <= found.bound * gains[pick]


@pytest.mark.parametrize("kernel", ["linear", "rbf"])
def test_the_selection_is_that_over_what_was_fetched(kernel: Kernel) -> None:
    query, rows = corpus("clustered", 1, n=500)
    found = sift_search(query, Store(rows), 5, fetch_k=10, kernel=kernel)
    fetched = numbers(found.fetched)
    assert len(set(fetched)) == len(fetched) < len(rows)
    np.testing.assert_allclose(found.selection.context.rows, rows[fetched])
    assert found.selection == sift(query, rows[fetched], 5, kernel=found.kernel)
    assert found.ids == tuple(fetched[i] for i in found.selection.indices)
    again = sift_search(query, Store(rows), 5, fetch_k=10, kernel=kernel)
    assert again.ids == found.ids
    assert pickle.loads(pickle.dumps(found)).ids == found.ids


def test_the_linear_kernel_finds_what_the_query_does_not() -> None:
    """The residual of the first pick points to what the nearest hundred do not have."""
    query, rows = corpus("copied", 3, n=1500)
    whole = sift(query, rows, 5, kernel="linear")
    nearest = np.argsort(-(rows @ unit(query)))[:20]
    held = sift(query, rows[nearest], 5, kernel="linear")
    found = sift_search(query, Store(rows), 5, fetch_k=20, kernel="linear")
    assert found.exact
    assert len(found.fetched) < len(rows)
    assert found.selection.uncertainty[-1] == pytest.approx(whole.uncertainty[-1])
    assert found.selection.uncertainty[-1] < 0.9 * held.uncertainty[-1]


def test_a_sharp_kernel_needs_few_documents() -> None:
    query, rows = corpus("clustered", 4, n=5000, d=48)
    store = Store(rows)
    found = sift_search(query, store, 5, kernel=rbf(0.1))
    assert found.exact
    assert len(found.fetched) <= 500


@pytest.mark.parametrize("kernel", ["linear", "rbf"])
def test_repeats_are_picked_as_sift_does(kernel: Kernel) -> None:
    query, rows = corpus("random", 5)
    found = sift_search(query, Store(rows), 12, kernel=kernel, distinct=False)
    assert found.exact
    whole = sift(query, rows, 12, kernel=found.kernel, distinct=False)
    assert list(found.ids) == whole.indices.tolist()


# Limits


@pytest.mark.parametrize("kernel", ["linear", rbf(1.0)], ids=str)
def test_a_limit_that_stops_the_proof_is_admitted(kernel: Kernel) -> None:
    query, rows = corpus("clustered", 6, n=1000, d=48)
    store = Store(rows)
    found = sift_search(query, store, 8, fetch_k=10, max_fetch=20, kernel=kernel)
    assert not found.exact
    assert found.proven < 8
    assert found.bound >= 1
    assert max(store.asked) <= 20
    assert len(found.ids) == 8
    more = sift_search(query, Store(rows), 8, fetch_k=10, max_fetch=2000, kernel=kernel)
    assert more.exact
    assert len(more.fetched) > len(found.fetched)


def test_a_store_smaller_than_the_fetch_is_known_to_be_whole() -> None:
    query, rows = corpus("random", 7, n=30)
    store = Store(rows)
    found = sift_search(query, store, 5)
    assert (found.exact, found.bound, found.searches) == (True, 0.0, 2)  # the opposite, to be sure
    assert sorted(numbers(found.fetched)) == list(range(30))
    everything = sift_search(query, Store(rows[:3]), 5)
    assert (everything.exact, everything.proven, len(everything.ids)) == (True, 3, 3)


@pytest.mark.parametrize("kernel", ["linear", "rbf"])
def test_a_store_that_gives_fewer_than_asked_is_not_taken_for_whole(kernel: Kernel) -> None:
    for seed in range(10):
        query, rows = corpus("clustered", seed, n=400)
        found = sift_search(query, capped(rows, 25), 6, kernel=kernel)
        assert found.bound > 0
        assert len(found.ids) == 6
        proven = sift(query, rows, 6, kernel=found.kernel).indices[: found.proven]
        assert list(found.ids[: found.proven]) == proven.tolist()
    few = sift_search(query, capped(rows, 2), 100, kernel=kernel)
    assert not few.exact  # there is no more to pick from, but the store has it
    assert few.proven <= len(few.ids) < 100


def test_a_similarity_threshold_of_the_store_does_no_harm() -> None:
    query, rows = corpus("random", 9)
    store = Store(rows)

    def above(vector: NDArray[np.float32], fetch_k: int) -> Answer:
        ids, vectors = store(vector, fetch_k)
        near = vectors @ vector > 0.5
        return np.array(ids)[near].tolist(), vectors[near]

    found = sift_search(query, above, 2, kernel=rbf(0.05))
    whole = sift(query, rows, 2, kernel=found.kernel)
    assert list(found.ids[: found.proven]) == whole.indices[: found.proven].tolist()
    assert found.bound > 0


# Stores as they are


def test_ids_and_lengths_and_precision_are_the_store_s_own() -> None:
    query, rows = corpus("random", 10)
    rng = np.random.default_rng(0)
    scaled = rows * rng.uniform(0.1, 10, size=(len(rows), 1))
    store = Store(scaled)
    plain = sift_search(query, Store(rows), 5)

    def search(vector: NDArray[np.float32], fetch_k: int) -> Answer:
        ids, vectors = store(vector, fetch_k)
        return tuple(f"doc {i}" for i in ids), vectors.astype(np.float32).tolist()

    found = sift_search((query * 7).tolist(), search, 5)
    assert found.ids == tuple(f"doc {i}" for i in plain.ids)
    assert found.exact
    half = sift_search(
        query, lambda v, f: (store(v, f)[0], store(v, f)[1].astype(np.float16)), 5, kernel="linear"
    )
    assert len(half.ids) == 5


def test_an_answer_that_repeats_itself_counts_once() -> None:
    query, rows = corpus("random", 11)
    store = Store(rows)

    def twice(vector: NDArray[np.float32], fetch_k: int) -> Answer:
        ids, vectors = store(vector, fetch_k // 2)
        return [i for i in ids for _ in "12"], np.repeat(vectors, 2, axis=0)

    found = sift_search(query, twice, 5)
    assert len(set(found.fetched)) == len(found.fetched)
    assert len(set(found.ids)) == 5
    assert found.exact
    assert list(found.ids) == sift(query, rows, 5, kernel=found.kernel).indices.tolist()


@pytest.mark.parametrize("kernel", ["linear", "rbf"])
def test_an_approximate_store_works_and_is_found_out(kernel: Kernel) -> None:
    """It misses one document in five, others every time; a store with fixed holes has no such."""
    caught = 0
    for seed in range(20):
        query, rows = corpus("clustered", seed, n=800)
        rng, store = np.random.default_rng(seed), Store(rows)

        def lossy(
            vector: NDArray[np.float32],
            fetch_k: int,
            store: Store = store,
            rng: np.random.Generator = rng,
        ) -> Answer:
            ids, vectors = store(vector, 2 * fetch_k)
            kept = np.flatnonzero(rng.random(len(ids)) > 0.2)[:fetch_k]
            return np.array(ids)[kept].tolist(), vectors[kept]

        found = sift_search(query, lossy, 6, kernel=kernel)
        assert len(set(found.ids)) == 6
        caught += found.bound == np.inf and not found.exact and found.proven == 0
    assert caught >= 18


def test_other_orders_than_by_cosine_prove_nothing() -> None:
    query, rows = corpus("random", 12)
    lengths = np.random.default_rng(0).uniform(0.2, 5, size=(len(rows), 1))
    scaled = rows * lengths

    def by_product(vector: NDArray[np.float32], fetch_k: int) -> Answer:
        nearest = np.argsort(-(scaled @ vector))[:fetch_k]
        return nearest.tolist(), scaled[nearest]

    assert sift_search(query, by_product, 5).bound == np.inf
    store = Store(rows)

    def backwards(vector: NDArray[np.float32], fetch_k: int) -> Answer:
        ids, vectors = store(vector, fetch_k)
        return ids[::-1], vectors[::-1]

    assert sift_search(query, backwards, 5).bound == np.inf


def test_one_id_for_several_vectors_proves_nothing() -> None:
    query, rows = corpus("random", 13)
    store = Store(rows)

    def pages(vector: NDArray[np.float32], fetch_k: int) -> Answer:
        ids, vectors = store(vector, fetch_k)
        return [i // 3 for i in numbers(ids)], vectors

    found = sift_search(query, pages, 5)
    assert found.bound == np.inf
    assert len(set(found.ids)) == 5


# Bad input

Q, X = corpus("random", 14, n=60, d=4)


def answers(ids: Any, vectors: Any) -> Any:
    return lambda vector, fetch_k: (ids, vectors)


@pytest.mark.parametrize(
    ("search", "message"),
    [
        (answers([], []), r"search gave no documents for the query; is the store empty\?"),
        (answers([1], X[:2]), r"1 ids and vectors of shape \(2, 4\).*shape \(1, 4\)"),
        (answers([1, 2], X[:2, :3]), r"shape \(2, 3\).*as many dimensions as the query"),
        (answers([1, 2], [[1.0, 2.0], [1.0]]), r"search gave 2 ids and vectors of shape"),
        (answers([1, 2], X[:2] * np.nan), r"search gave vectors .* NaN or infinity in 2 of 2"),
        (answers([1, 2], [["a"] * 4] * 2), r"search gave vectors that cannot be used: .* dtype"),
        (answers([1, 2], X[:2] * [[1], [0]]), r"search gave vectors .* all zeros, first row 1"),
    ],
)
def test_bad_answers_are_named(search: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        sift_search(Q, search, 2)


def test_bad_vectors_of_a_later_answer_are_named_too() -> None:
    store = Store(X)

    def later(vector: NDArray[np.float32], fetch_k: int) -> Answer:
        ids, vectors = store(vector, fetch_k)
        return ids, vectors * (np.nan if len(store.asked) > 1 else 1)

    with pytest.raises(ValueError, match="search gave vectors that cannot be used"):
        sift_search(Q, later, 8, fetch_k=10, kernel="linear")


def test_bad_settings_are_refused() -> None:
    store = Store(X)
    for fetch_k, max_fetch in ((0, 10), (20, 10)):
        with pytest.raises(ValueError, match=rf"fetch_k is {fetch_k} and max_fetch is {max_fetch}"):
            sift_search(Q, store, 2, fetch_k=fetch_k, max_fetch=max_fetch)
    with pytest.raises(ValueError, match=r"query has shape \(60, 4\); it must be \(d,\)"):
        sift_search(X, store, 2)
    with pytest.raises(ValueError, match=r"query has NaN"):
        sift_search(Q * np.nan, store, 2)
    with pytest.raises(ValueError, match=r"kernel is <function .* cannot be bounded"):
        sift_search(Q, store, 2, kernel=lambda a, b: linear(a, b) ** 2)
    with pytest.raises(ValueError, match=r"kernel is 'cosine'"):
        sift_search(Q, store, 2, kernel="cosine")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"noise is 0; it must be a finite number above 0"):
        sift_search(Q, store, 2, noise=0)
    with pytest.raises(ValueError, match=r"k is 0; it must be 1 or more"):
        sift_search(Q, store, 0)
    with pytest.raises(TypeError, match=r"k is '2'; it must be a whole number"):
        sift_search(Q, store, "2")  # type: ignore[arg-type]
    assert not store.asked
