"""Selection against its definition, its properties, its golden picks, and its peers' defects."""

import json
import pickle
import runpy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sift_rag.kernels import Kernel, linear, rbf
from sift_rag.rivals import mmr, nearest
from sift_rag.selection import Selection, sift

GOLDEN = Path(__file__).parent / "golden"
Floats = NDArray[np.float64]
SELECTORS = [sift, nearest, mmr]
seeds = st.integers(0, 2**32 - 1)


def unit(rows: Floats) -> Floats:
    return np.asarray(rows / np.linalg.norm(rows, axis=-1, keepdims=True))


def gram(a: Floats, b: Floats, kernel: str) -> Floats:
    cosines = a @ b.T
    return np.asarray(cosines if kernel == "linear" else np.exp((cosines - 1) / 0.15))


def problem(seed: int, *, n: int = 30, d: int = 12, m: int = 0) -> tuple[Floats, Floats]:
    """A query (d,), or m of them, and candidates (n, d) with a common part, as embeddings have."""
    rng = np.random.default_rng(seed)
    common = 0.6 * rng.normal(size=d)
    query = rng.normal(size=(m, d) if m else d) + common
    return query, rng.normal(size=(n, d)) + common


def oracle(
    query: Floats, candidates: Floats, k: int, *, noise: float, kernel: str, distinct: bool
) -> tuple[list[int], list[float]]:
    """The definition, slowly: the joint covariance of queries and candidates, pick by pick."""
    m, joint = len(query), unit(np.vstack([query, candidates]))
    cov, order, gains = gram(joint, joint, kernel), list[int](), list[float]()
    for _ in range(k):
        gain = (cov[:m, m:] ** 2).sum(axis=0) / (cov.diagonal()[m:] + noise)
        gain[order if distinct else []] = -1
        i = int(gain.argmax())
        order, gains = [*order, i], [*gains, float(gain[i])]
        cov = cov - np.outer(cov[:, m + i], cov[m + i]) / (cov[m + i, m + i] + noise)
    return order, gains


def left_by_conditioning(query: Floats, picks: Floats, *, noise: float, kernel: str) -> float:
    """Posterior variance of the queries, summed: the formula with an inverse in it."""
    q, x = unit(np.atleast_2d(query)), unit(picks)
    known = np.linalg.inv(gram(x, x, kernel) + noise * np.eye(len(x)))
    return float(np.trace(gram(q, q, kernel) - gram(q, x, kernel) @ known @ gram(x, q, kernel)))


# The definition


@pytest.mark.parametrize("kernel", ["linear", "rbf"])
@pytest.mark.parametrize("distinct", [True, False])
@pytest.mark.parametrize("m", [1, 3])
def test_sift_is_its_definition_on_random_problems(kernel: str, distinct: bool, m: int) -> None:
    for seed in range(125):  # times 8 = 1,000 problems
        rng = np.random.default_rng(seed)
        n, d, k = (int(rng.integers(*span)) for span in ((1, 40), (2, 24), (1, 12)))
        noise = float(10.0 ** rng.uniform(-3, 1))
        query, candidates = problem(seed, n=n, d=d, m=m)
        k = min(k, n) if distinct else k
        order, gains = oracle(query, candidates, k, noise=noise, kernel=kernel, distinct=distinct)
        options: dict[str, Any] = {"noise": noise, "kernel": kernel, "distinct": distinct}
        found = sift(query if m > 1 else query[0], candidates, k, **options)
        # Orders may part only at a tie: below the rounding of both, gains are the same number.
        np.testing.assert_allclose(found.gains, gains, rtol=1e-9, atol=1e-12, err_msg=str(seed))
        sure = np.array(gains) > 1e-12
        assert found.indices[sure].tolist() == np.array(order)[sure].tolist(), seed
        left = left_by_conditioning(query, candidates[found.indices], noise=noise, kernel=kernel)
        assert found.uncertainty[-1] == pytest.approx(left, abs=1e-12)
        assert found.initial_uncertainty == pytest.approx(m)


@pytest.mark.parametrize("kernel", ["linear", "rbf"])
@pytest.mark.parametrize("select", SELECTORS)
def test_a_curve_is_the_conditioning_on_its_own_picks(
    select: Callable[..., Selection], kernel: str
) -> None:
    """All selectors are measured on one scale, whichever way their numbers were computed."""
    query, candidates = problem(3, m=2)
    found = select(query, candidates, 9, kernel=kernel)
    for t in range(1, 10):
        picks = candidates[found.indices[:t]]
        left = left_by_conditioning(query, picks, noise=0.01, kernel=kernel)
        assert found.uncertainty[t - 1] == pytest.approx(left, abs=1e-12)
    before = np.append(found.initial_uncertainty, found.uncertainty[:-1])
    np.testing.assert_allclose(found.gains, before - found.uncertainty, atol=1e-12)


def test_sift_uses_a_kernel_that_is_a_function() -> None:
    def cubic(a: Floats, b: Floats) -> Floats:
        return np.asarray((0.5 + 0.5 * a @ b.T) ** 3)

    query, candidates = problem(4, n=150)  # more than one block of variances
    q, x = unit(query)[None], unit(candidates)
    found = sift(query, candidates, 1, kernel=cubic)
    gains = cubic(q, x)[0] ** 2 / (cubic(x, x).diagonal() + 0.01)
    assert found.indices.tolist() == [gains.argmax()]
    assert found.gains[0] == pytest.approx(gains.max(), rel=1e-12)
    same = sift(query, candidates, 20, kernel=lambda a, b: rbf(0.15)(a, b))
    assert same.indices.tolist() == sift(query, candidates, 20).indices.tolist()


def test_defaults_are_the_retriever_and_the_paper_is_an_argument_away() -> None:
    query, candidates = problem(5)
    assert sift(query, candidates, 8) == sift(
        query, candidates, 8, kernel=rbf(0.15), noise=0.01, distinct=True
    )
    paper = sift(query, candidates, 8, kernel="linear")
    assert paper == sift(query, candidates, 8, kernel=linear, noise=0.01)
    assert paper != sift(query, candidates, 8)


def test_golden_picks() -> None:
    generator = runpy.run_path(str(GOLDEN / "make_selection.py"))
    golden = json.loads((GOLDEN / "selection.json").read_text(encoding="utf-8"))
    found = generator["picks"](golden["queries"], golden["candidates"])
    assert found.keys() == golden["picks"].keys()
    for name, expected in golden["picks"].items():
        assert found[name]["indices"] == expected["indices"], name
        for curve in ("gains", "uncertainty"):
            np.testing.assert_allclose(found[name][curve], expected[curve], rtol=1e-9, atol=1e-13)


# Properties


@settings(max_examples=60, deadline=None)
@given(seeds, st.sampled_from(["linear", "rbf"]), st.integers(1, 3), st.booleans())
def test_order_rotation_and_scale_of_the_input_change_nothing(
    seed: int, kernel: Kernel, m: int, distinct: bool
) -> None:
    query, candidates = problem(seed, m=m)
    rng = np.random.default_rng(seed)
    first = sift(query, candidates, 10, kernel=kernel, distinct=distinct)

    shuffle = rng.permutation(len(candidates))
    moved = sift(query, candidates[shuffle], 10, kernel=kernel, distinct=distinct)
    assert shuffle[moved.indices].tolist() == first.indices.tolist()

    rotation = np.linalg.qr(rng.normal(size=(12, 12)))[0]
    turned = sift(query @ rotation, candidates @ rotation, 10, kernel=kernel, distinct=distinct)
    scaled = sift(query * 7.3, candidates * 0.02, 10, kernel=kernel, distinct=distinct)
    for other in (turned, scaled):
        assert other.indices.tolist() == first.indices.tolist()
        np.testing.assert_allclose(other.uncertainty, first.uncertainty, atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(
    seeds,
    st.sampled_from(SELECTORS),
    st.sampled_from(["linear", "rbf"]),
    st.booleans(),
    st.floats(1e-9, 1e3),
)
def test_uncertainty_never_rises_and_never_falls_below_zero(
    seed: int, select: Callable[..., Selection], kernel: Kernel, distinct: bool, noise: float
) -> None:
    query, candidates = problem(seed, d=5)  # rank 5: little is left after a few picks
    found = select(query, candidates, 30, kernel=kernel, distinct=distinct, noise=noise)
    curve = np.append(found.initial_uncertainty, found.uncertainty)
    assert (np.diff(curve) <= 0).all()
    assert curve.min() >= 0
    assert (found.gains >= 0).all()


@pytest.mark.parametrize("kernel", ["linear", "rbf"])
@pytest.mark.parametrize(("dtype", "noise"), [(np.float32, 1e-4), (np.float64, 1e-12)])
def test_rounding_is_harmless_at_the_least_noise(
    kernel: Kernel, dtype: type[Any], noise: float
) -> None:
    for seed in range(10):
        query, candidates = problem(seed, n=300, d=8)
        copies = np.vstack([candidates] * 2).astype(dtype)
        found = sift(query, copies, 100, kernel=kernel, noise=noise)
        assert np.isfinite(found.gains).all()
        given_order = nearest(query, copies[found.indices], 100, kernel=kernel, noise=noise)
        assert found.uncertainty[-1] == pytest.approx(given_order.uncertainty[-1], abs=2e-4)


@settings(max_examples=60, deadline=None)
@given(seeds)
def test_the_first_pick_is_the_nearest(seed: int) -> None:
    query, candidates = problem(seed)
    cosines = unit(candidates) @ unit(query)
    assert sift(query, candidates, 1, kernel="linear").indices[0] == abs(cosines).argmax()
    for select in SELECTORS:
        assert select(query, candidates, 1).indices[0] == cosines.argmax()


@settings(max_examples=60, deadline=None)
@given(seeds, st.sampled_from(["linear", "rbf"]))
def test_large_noise_leaves_only_nearness(seed: int, kernel: Kernel) -> None:
    query, candidates = problem(seed)
    cosines = unit(candidates) @ unit(query)
    ranking = np.argsort(-(abs(cosines) if kernel == "linear" else cosines))
    found = sift(query, candidates, 8, kernel=kernel, noise=1e9)
    assert found.indices.tolist() == ranking[:8].tolist()
    repeated = sift(query, candidates, 8, kernel=kernel, noise=1e9, distinct=False)
    assert repeated.indices.tolist() == [ranking[0]] * 8


@settings(max_examples=60, deadline=None)
@given(seeds, st.sampled_from(["linear", "rbf"]), st.integers(0, 29))
def test_a_copy_of_a_candidate_changes_no_uncertainty(seed: int, kernel: Kernel, i: int) -> None:
    query, candidates = problem(seed)
    alone = sift(query, candidates, 10, kernel=kernel, distinct=False)
    more = np.vstack([candidates, candidates[i]])
    with_copy = sift(query, more, 10, kernel=kernel, distinct=False)
    np.testing.assert_allclose(with_copy.uncertainty, alone.uncertainty, atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(seeds, st.sampled_from(SELECTORS))
def test_float32_picks_as_float64_does(seed: int, select: Callable[..., Selection]) -> None:
    query, candidates = problem(seed, n=60, d=48)
    half = query.astype(np.float32), candidates.astype(np.float32)
    same = half[0].astype(np.float64), half[1].astype(np.float64)
    found, exact = select(*half, 10), select(*same, 10)
    assert found.indices.tolist() == exact.indices.tolist()
    assert found.gains.dtype == np.float64
    np.testing.assert_allclose(found.uncertainty, exact.uncertainty, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(seeds, st.sampled_from(SELECTORS), st.sampled_from([np.float32, np.float64]))
def test_ties_go_to_the_lowest_index(
    seed: int, select: Callable[..., Selection], dtype: type[Any]
) -> None:
    """Copies are equal wherever BLAS meets them: the last rows of a product round differently."""
    query, few = problem(seed, n=17, d=37)
    candidates = np.tile(few, (3, 1)).astype(dtype)
    found = select(query, candidates, 6, distinct=False)
    assert found.indices.max() < 17
    first = select(query, candidates, 6)
    for t, i in enumerate(first.indices):
        earlier = first.indices[:t].tolist()
        assert all(copy in earlier for copy in range(i % 17, i, 17))


def test_when_nothing_is_left_to_learn_picks_go_on_by_index() -> None:
    basis = np.eye(5)
    assert sift(basis[0], basis, 5, kernel="linear").indices.tolist() == [0, 1, 2, 3, 4]
    apart = sift(basis[4], basis[:4], 4, kernel="linear")
    assert apart.indices.tolist() == [0, 1, 2, 3]
    assert apart.uncertainty.tolist() == [1.0] * 4


def test_one_query_is_several_queries_of_one() -> None:
    query, candidates = problem(6)
    assert sift(query, candidates, 5) == sift(query[None], candidates, 5)
    twice = sift(np.stack([query, query]), candidates, 5)
    assert twice.indices.tolist() == sift(query, candidates, 5).indices.tolist()
    assert twice.initial_uncertainty == 2.0


# The baselines


def test_nearest_ranks_by_cosine() -> None:
    query, candidates = problem(7)
    cosines = unit(candidates) @ unit(query)
    found = nearest(query, candidates, 30)
    assert found.indices.tolist() == np.argsort(-cosines).tolist()
    several, candidates = problem(7, m=3)
    mean = (unit(candidates) @ unit(several).T).mean(axis=1)
    assert nearest(several, candidates, 5).indices.tolist() == np.argsort(-mean)[:5].tolist()


@pytest.mark.parametrize("lambda_mult", [0.0, 0.3, 0.5, 0.8, 1.0])
def test_mmr_is_its_definition(lambda_mult: float) -> None:
    for seed in range(20):
        query, candidates = problem(seed)
        x = unit(candidates)
        relevance = x @ unit(query)
        order = [int(relevance.argmax())]
        while len(order) < 12:
            rest = [i for i in range(30) if i not in order]
            score = {
                i: lambda_mult * relevance[i] - (1 - lambda_mult) * max(x[order] @ x[i])
                for i in rest
            }
            order.append(max(rest, key=lambda i: score[i]))
        assert mmr(query, candidates, 12, lambda_mult=lambda_mult).indices.tolist() == order


def test_sift_leaves_less_uncertainty_than_the_baselines() -> None:
    query, few = problem(8, n=10)
    candidates = np.repeat(few, 4, axis=0) + 0.05 * np.random.default_rng(8).normal(size=(40, 12))
    left = {s.__name__: s(query, candidates, 6, kernel="linear").uncertainty for s in SELECTORS}
    assert left["sift"][-1] < min(left["nearest"][-1], left["mmr"][-1])


# The result


@pytest.mark.parametrize("select", SELECTORS)
def test_a_selection_is_a_plain_value(select: Callable[..., Selection]) -> None:
    query, candidates = problem(9)
    found = select(query, candidates, 4)
    assert found.indices.dtype == np.int64
    assert found.gains.dtype == found.uncertainty.dtype == np.float64
    assert len(found) == len(found.indices) == len(found.gains) == len(found.uncertainty) == 4
    again = pickle.loads(pickle.dumps(found))
    assert again == found
    assert hash(again) == hash(found)
    assert found != select(query, candidates, 3)
    assert found != "a selection"
    for value in (found, again):
        with pytest.raises(ValueError, match="read-only"):
            value.indices[0] = 1
    with pytest.raises(FrozenInstanceError):
        found.gains = found.gains  # type: ignore[misc]
    assert pickle.loads(pickle.dumps(rbf(0.2))) == rbf(0.2)


# What the peers get wrong


def test_calls_share_nothing_so_threads_get_what_one_would() -> None:
    """In activeft, threads share the target, and `fast` reuses the queue of the first query."""
    problems = [problem(seed, n=80, d=32) for seed in range(40)]

    def select(i: int) -> Selection:
        query, candidates = problems[i]
        return sift(query, candidates, 10)

    alone = [select(i) for i in range(40)]
    assert [select(i) for i in reversed(range(40))] == alone[::-1]
    with ThreadPoolExecutor(8) as pool:
        at_once = list(pool.map(select, [*range(40)] * 4))
        same = list(pool.map(select, [0] * 80))
    assert at_once == alone * 4
    assert same == [alone[0]] * 80


@pytest.mark.parametrize("select", SELECTORS)
def test_k_above_n_is_n(select: Callable[..., Selection]) -> None:
    """activeft answers with repeats, or with FAISS's -1 as a document."""
    query, candidates = problem(10, n=7)
    found = select(query, candidates, 50)
    assert sorted(found.indices.tolist()) == list(range(7))
    assert len(select(query, candidates, 50, distinct=False)) == 50


def test_more_than_a_thousand_candidates_are_not_a_tournament() -> None:
    query, candidates = problem(11, n=1500)
    cosines = unit(candidates) @ unit(query)
    assert sift(query, candidates, 1).indices[0] == cosines.argmax()
    assert sift(query, candidates, 20) == sift(query, candidates, 20)


def test_mmr_keeps_away_from_every_pick() -> None:
    """llama-index penalises only the last pick, and comes back to the copies of the first."""
    query = np.array([1.0, 0.2, 0.2])
    candidates = np.array([[1, 0, 0], [1, 0.01, 0], [0.2, 1, 0], [0.2, 0, 1.0]])
    assert mmr(query, candidates, 3, lambda_mult=0.5).indices.tolist()[0] in (0, 1)
    assert set(mmr(query, candidates, 3, lambda_mult=0.3).indices.tolist()) >= {2, 3}


@pytest.mark.parametrize("select", SELECTORS)
def test_input_is_left_as_it_was(select: Callable[..., Selection]) -> None:
    query, candidates = problem(12)
    for q, x in [(query, candidates), (unit(query), unit(candidates))]:
        copies = q.copy(), x.copy()
        q.flags.writeable = x.flags.writeable = False
        select(q, x, 5)
        assert np.array_equal(q, copies[0])
        assert np.array_equal(x, copies[1])


def test_any_array_of_numbers_will_do() -> None:
    query, candidates = problem(13)
    expected = sift(query, candidates, 5).indices.tolist()
    strided = np.repeat(candidates, 2, axis=1)[:, ::2]
    for x in (candidates.tolist(), np.asfortranarray(candidates), strided):
        assert sift(query.tolist(), x, 5).indices.tolist() == expected
    whole = np.rint(candidates * 100).astype(np.int32)
    expected = sift(query, whole.astype(float), 5).indices.tolist()
    assert sift(query, whole, 5).indices.tolist() == expected
    half = sift(query.astype(np.float16), candidates.astype(np.float16), 5)
    assert len(set(half.indices.tolist())) == 5


@pytest.mark.parametrize(
    ("dtype", "size"), [(np.float32, 1e30), (np.float32, 1e-30), (float, 1e300)]
)
def test_lengths_far_from_one_do_no_harm(dtype: type[Any], size: float) -> None:
    query, candidates = problem(14)
    far = (candidates * size).astype(dtype)
    found = sift(query.astype(dtype), far, 5)
    assert found.indices.tolist() == sift(query, candidates, 5).indices.tolist()


@pytest.mark.parametrize("noise", [1e-12, 1e-5, 1e-4])
def test_small_noise_is_exact_for_float32_too(noise: float) -> None:
    query, candidates = problem(15, n=20, d=30)
    x = np.vstack([candidates, candidates]).astype(np.float32)
    found = sift(query.astype(np.float32), x, 15, noise=noise)
    exact = sift(query.astype(np.float32), x.astype(np.float64), 15, noise=noise)
    assert found.indices.tolist() == exact.indices.tolist()
    assert len(set(found.indices % 20)) == 15  # copies last


# Bad input

Q, X = problem(0, n=5, d=4)


def holed(value: float) -> Floats:
    rows = X.copy()
    rows[3, 1] = value
    return rows


@pytest.mark.parametrize(
    ("query", "candidates", "message"),
    [
        (Q, [], r"candidates has shape \(0,\); it must be \(rows, d\)"),
        (Q, np.empty((0, 4)), r"candidates is empty, shape \(0, 4\)"),
        (Q, np.empty((5, 0)), r"candidates is empty, shape \(5, 0\)"),
        (np.empty((0, 4)), X, r"query is empty, shape \(0, 4\)"),
        (Q, holed(np.nan), r"candidates has NaN or infinity in 1 of 5 vectors, first in row 3"),
        (Q, holed(np.inf), r"candidates has NaN or infinity in 1 of 5 vectors, first in row 3"),
        (Q * np.nan, X, r"query has NaN or infinity in 1 of 1 vectors, first in row 0"),
        (Q, X * [[1], [1], [0], [0], [1]], r"2 of 5 vectors all zeros, first row 2.*leave it out"),
        (Q * 0, X, r"query has 1 of 1 vectors all zeros"),
        (Q[:3], X, r"query has 3 dimensions and candidates have 4.*by the same embedder\?"),
        (np.stack([X, X]), X, r"query has shape \(2, 5, 4\); it must be \(d,\) or \(rows, d\)"),
        (1.0, X, r"query has shape \(\)"),
        (Q, X[0], r"candidates has shape \(4,\); it must be \(rows, d\), a vector a row"),
        (Q, [[1.0, 2.0], [1.0]], r"candidates is ragged"),
    ],
)
@pytest.mark.parametrize("select", SELECTORS)
def test_bad_vectors_are_named(
    select: Callable[..., Selection], query: Any, candidates: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        select(query, candidates, 2)


@pytest.mark.parametrize("values", [["a", "b"], [[True, False]], [[1j, 2j]], [[None, 1.0]]])
@pytest.mark.parametrize("select", SELECTORS)
def test_vectors_that_are_no_numbers_are_refused(
    select: Callable[..., Selection], values: Any
) -> None:
    with pytest.raises(TypeError, match=r"candidates has dtype .*; it must hold numbers"):
        select(Q, values, 2)


@pytest.mark.parametrize("select", SELECTORS)
def test_bad_settings_are_refused(select: Callable[..., Selection]) -> None:
    for k in (0, -1):
        with pytest.raises(ValueError, match=f"k is {k}; it must be 1 or more"):
            select(Q, X, k)
    for wrong in (2.0, True, np.True_, "2", None):
        with pytest.raises(TypeError, match=r"k is .*; it must be a whole number"):
            select(Q, X, wrong)
    assert len(select(Q, X, np.int32(2))) == 2
    for noise in (0, -0.1, np.inf, np.nan):
        with pytest.raises(ValueError, match=r"noise is .*; it must be a finite number above 0"):
            select(Q, X, 2, noise=noise)
    with pytest.raises(ValueError, match=r"noise is 1e-13; it must be 1e-12 or more"):
        select(Q, X, 2, noise=1e-13)
    for bad in ("0.1", None, True):
        with pytest.raises(TypeError, match=r"noise is .*; it must be a number above 0"):
            select(Q, X, 2, noise=bad)
    with pytest.raises(ValueError, match=r"kernel is 'cosine'; it must be 'linear', 'rbf'"):
        select(Q, X, 2, kernel="cosine")
    with pytest.raises(ValueError, match=r"kernel is 3; it must be 'linear', 'rbf'"):
        select(Q, X, 2, kernel=3)
    too_many: list[Any] = [Q, X, 2, 0.01]
    with pytest.raises(TypeError, match="positional"):
        select(*too_many)


@pytest.mark.parametrize("select", SELECTORS)
def test_faulty_kernels_are_refused(select: Callable[..., Selection]) -> None:
    with pytest.raises(ValueError, match=r"gave shape \(\d,\) .* it must give \(\d, \d\)"):
        select(Q, X, 2, kernel=lambda a, b: (a @ b.T)[0])
    with pytest.raises(ValueError, match=r"kernel .* gave NaN or infinity"):
        select(Q, X, 2, kernel=lambda a, b: np.full((len(a), len(b)), np.nan))


@pytest.mark.parametrize("select", SELECTORS)
def test_a_kernel_that_is_no_covariance_is_refused(select: Callable[..., Selection]) -> None:
    with pytest.raises(ValueError, match="is not positive definite"):
        select(Q, X, 3, kernel=lambda a, b: -(a @ b.T))
    with pytest.raises(ValueError, match="is not positive definite"):
        select(Q, X, 5, kernel=lambda a, b: 1 - 3 * (1 - a @ b.T) ** 2)


@pytest.mark.parametrize("tau", [0, -1, np.nan, np.inf])
def test_bad_tau_is_refused(tau: float) -> None:
    with pytest.raises(ValueError, match=r"tau is .*; it must be a finite number above 0"):
        rbf(tau)


@pytest.mark.parametrize("lambda_mult", [-0.1, 1.1, np.nan])
def test_bad_lambda_mult_is_refused(lambda_mult: float) -> None:
    with pytest.raises(ValueError, match=r"lambda_mult is .*; it must be between 0 and 1"):
        mmr(Q, X, 2, lambda_mult=lambda_mult)


# The reference library


@pytest.mark.parametrize("d", [384, 1024])
def test_picks_are_those_of_activeft(d: int) -> None:
    reason = "activeft, the paper's library, is not installed (benchmarks/selection.py compares)"
    activeft = pytest.importorskip("activeft", reason=reason)
    vtl = pytest.importorskip("activeft.acquisition_functions.vtl", reason=reason).VTL
    torch = pytest.importorskip("torch")
    query, candidates = problem(16, n=200, d=d)
    query, candidates = unit(query).astype(np.float32), unit(candidates).astype(np.float32)
    q, x = torch.tensor(query[None]), torch.tensor(candidates)
    exact = vtl(target=q, num_workers=0, noise_std=0.1)
    picks, _ = activeft.ActiveDataLoader(x, batch_size=50, acquisition_function=exact).next()
    found = sift(query, candidates, 50, kernel="linear", distinct=False)
    assert found.indices.tolist() == list(picks)
