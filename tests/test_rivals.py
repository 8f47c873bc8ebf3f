"""The rivals of SIFT against their definitions."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import FIXED, KERNELS, Floats, covariances, problem, unit

from sift_rag.rivals import dpp, mmr, nearest, random, uncertainty_sampling
from sift_rag.selection import Selection, sift

seeds = st.integers(0, 2**32 - 1)
Q, X = problem(0, n=5, d=4)
RIVALS = [nearest, mmr, dpp, uncertainty_sampling, random]


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


def test_mmr_keeps_away_from_every_pick() -> None:
    """llama-index penalises only the last pick, and comes back to the copies of the first."""
    query = np.array([1.0, 0.2, 0.2])
    candidates = np.array([[1, 0, 0], [1, 0.01, 0], [0.2, 1, 0], [0.2, 0, 1.0]])
    assert mmr(query, candidates, 3, lambda_mult=0.5).indices.tolist()[0] in (0, 1)
    assert set(mmr(query, candidates, 3, lambda_mult=0.3).indices.tolist()) >= {2, 3}


@pytest.mark.parametrize("lambda_mult", [-0.1, 1.1, np.nan])
def test_bad_lambda_mult_is_refused(lambda_mult: float) -> None:
    with pytest.raises(ValueError, match=r"lambda_mult is .*; it must be between 0 and 1"):
        mmr(Q, X, 2, lambda_mult=lambda_mult)


# Determinants


def by_determinants(query: Floats, candidates: Floats, k: int, weight: float) -> list[int]:
    """Each pick makes the logarithm of the determinant largest, by numpy."""
    x = unit(candidates)
    relevance = (x @ unit(np.atleast_2d(query)).T).mean(axis=1)
    w = np.exp(weight * (relevance - relevance.mean()) / relevance.std())
    matrix, order = w[:, None] * (x @ x.T) * w, list[int]()
    for _ in range(k):
        rest = [i for i in range(len(x)) if i not in order]
        value = {
            i: np.linalg.slogdet(matrix[np.ix_([*order, i], [*order, i])])[1].round(11)
            for i in rest
        }
        order.append(max(rest, key=lambda i: value[i]))
    return order


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0, 4.0])
@pytest.mark.parametrize("m", [0, 3])
def test_dpp_is_its_definition(weight: float, m: int) -> None:
    for seed in range(30):
        query, candidates = problem(seed, m=m)
        found = dpp(query, candidates, 11, relevance_weight=weight)  # of 12 dimensions
        assert found.indices.tolist() == by_determinants(query, candidates, 11, weight), seed


def test_dpp_goes_on_by_relevance_where_no_variance_is_left() -> None:
    for seed in range(20):
        query, few = problem(seed, n=10, d=4)
        candidates = np.vstack([few, few])  # rank 4
        relevance = unit(candidates) @ unit(query)
        found = dpp(query, candidates, 20).indices.tolist()
        assert found[:4] == by_determinants(query, few, 4, 0.5)
        rest = [i for i in np.argsort(-relevance.round(12), kind="stable") if i not in found[:4]]
        assert found[4:] == rest
        repeated = dpp(query, candidates, 8, distinct=False).indices.tolist()
        assert repeated == found[:4] + [int(relevance[:10].argmax())] * 4


def test_a_heavy_relevance_weight_is_nearest() -> None:
    query, candidates = problem(1)
    found = dpp(query, candidates, 12, relevance_weight=1e4)
    assert found == nearest(query, candidates, 12)


def test_dpp_of_equal_relevance_is_diversity_alone() -> None:
    """A deviation of the last bits is none: nothing may be divided by it."""
    candidates = np.vstack([np.eye(6), np.eye(6)])
    assert dpp(np.ones(6), candidates, 12).indices.tolist() == [*range(12)]


@pytest.mark.parametrize("weight", [-0.1, np.nan, np.inf])
def test_bad_relevance_weight_is_refused(weight: float) -> None:
    with pytest.raises(ValueError, match=r"relevance_weight is .*; it must be a finite number"):
        dpp(Q, X, 2, relevance_weight=weight)


def test_dpp_picks_as_pyversity_does() -> None:
    reason = "pyversity, the rival library, is not installed"
    theirs = pytest.importorskip("pyversity", reason=reason)
    for seed in range(50):
        query, candidates = problem(seed, n=60, d=48)
        x = unit(candidates)
        scores = x @ unit(query)
        for diversity in (0.2, 0.5, 0.9):
            strategy = theirs.Strategy.DPP
            expected = theirs.diversify(x, scores, 20, strategy=strategy, diversity=diversity)
            found = dpp(query, candidates, 20, relevance_weight=1 - diversity)
            assert found.indices.tolist() == expected.indices.tolist()


# Uncertainty sampling


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("distinct", [True, False])
def test_uncertainty_sampling_is_its_definition(kernel: str, distinct: bool) -> None:
    for seed in range(20):
        query, candidates = problem(seed, d=200)  # none so far that rounding decides
        noise = float(10.0 ** np.random.default_rng(seed).uniform(-2, 0))
        cov, order = covariances(query, candidates, kernel=kernel, noise=noise)[2], list[int]()
        for _ in range(14):
            left = cov.diagonal().copy()
            left[order if distinct else []] = -1
            i = int((left >= left.max() - 1e-14).argmax())  # at first all are equal
            order.append(i)
            cov = cov - np.outer(cov[:, i], cov[i]) / (cov[i, i] + noise)
        options: dict[str, Any] = {"kernel": KERNELS[kernel], "noise": noise, "distinct": distinct}
        found = uncertainty_sampling(query, candidates, 14, **options)
        assert found.indices.tolist() == order, seed


def test_uncertainty_sampling_does_not_look_at_the_query() -> None:
    query, candidates = problem(2)
    for kernel in FIXED:
        first = uncertainty_sampling(query, candidates, 10, kernel=KERNELS[kernel])
        other = uncertainty_sampling(-query, candidates, 10, kernel=KERNELS[kernel])
        assert other.indices.tolist() == first.indices.tolist()
        assert first.indices[0] == 0  # all variances are equal
        farthest = (unit(candidates) @ unit(candidates[0])) ** 2
        assert first.indices[1] == farthest.argmin() or kernel != "linear"


# Chance


def test_random_is_uniform_and_repeatable() -> None:
    query, candidates = problem(3, n=6)
    picks = [random(query, candidates, 2, seed=seed).indices.tolist() for seed in range(600)]
    assert all(a != b for a, b in picks)
    counts = np.bincount(np.ravel(picks), minlength=6)
    assert abs(counts - 200).max() < 60  # 5 standard deviations
    assert random(query, candidates, 4) == random(query, candidates, 4, seed=0)
    assert random(query, candidates, 4) != random(query, candidates, 4, seed=1)
    again = random(query, candidates, 600, distinct=False).indices
    assert abs(np.bincount(again, minlength=6) - 100).max() < 50


# What all share


@settings(max_examples=40, deadline=None)
@given(seeds, st.sampled_from([nearest, mmr, dpp]))
def test_the_order_of_the_candidates_does_not_matter(
    seed: int, select: Callable[..., Selection]
) -> None:
    query, candidates = problem(seed)
    shuffle = np.random.default_rng(seed).permutation(30)
    moved = select(query, candidates[shuffle], 11)
    assert shuffle[moved.indices].tolist() == select(query, candidates, 11).indices.tolist()


@settings(max_examples=30, deadline=None)
@given(seeds, st.sampled_from(FIXED))
def test_of_uncertainty_sampling_only_the_first_pick_is_by_order(seed: int, name: str) -> None:
    query, candidates = problem(seed)
    shuffle = np.append(0, 1 + np.random.default_rng(seed).permutation(29))
    moved = uncertainty_sampling(query, candidates[shuffle], 11, kernel=KERNELS[name])
    expected = uncertainty_sampling(query, candidates, 11, kernel=KERNELS[name])
    assert shuffle[moved.indices].tolist() == expected.indices.tolist()


@pytest.mark.parametrize("select", RIVALS)
def test_swapping_one_name_compares(select: Callable[..., Selection]) -> None:
    query, candidates = problem(4, m=2)
    ours, theirs = sift(query, candidates, 6), select(query, candidates, 6)
    assert theirs.initial_uncertainty == ours.initial_uncertainty == 2.0
    assert len(theirs) == 6
    assert theirs.uncertainty[0] >= ours.uncertainty[0] - 1e-12


@pytest.mark.parametrize("select", [mmr, dpp, uncertainty_sampling])
def test_copies_come_late(select: Callable[..., Selection]) -> None:
    query, few = problem(5, n=6)
    found = select(query, np.repeat(few, 5, axis=0), 6)
    assert len(set((found.indices // 5).tolist())) == 6 or select is mmr
