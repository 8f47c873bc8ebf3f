"""The input of all selectors: what they take, and what they refuse and how they say it."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from problems import KERNELS, SELECTORS, Floats, problem, unit

from sift_rag.problem import checked
from sift_rag.selection import Selection, sift

# What is taken

Q, X = problem(0, n=5, d=4)


@pytest.mark.parametrize("select", SELECTORS)
@pytest.mark.parametrize("kernel", KERNELS)
def test_one_candidate_is_taken(select: Callable[..., Selection], kernel: str) -> None:
    for candidate in (X[:1], Q[None], -Q[None]):
        found = select(Q, candidate, 3, kernel=KERNELS[kernel])
        assert found.indices.tolist() == [0]
        assert 0 <= found.uncertainty[0] < 1
        steps = select(Q, candidate, 3, kernel=KERNELS[kernel], distinct=False)
        assert steps.indices.tolist() == [0, 0, 0]
    by_default = select(Q, X[:1], 1)
    assert by_default.uncertainty[0] == pytest.approx(0.0, abs=1e-12)  # all that can be known


@pytest.mark.parametrize("select", SELECTORS)
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_copies_and_rank_one_are_candidates_like_any(
    select: Callable[..., Selection], kernel: str, dtype: type[Any]
) -> None:
    copies = np.tile(X[0], (6, 1)).astype(dtype)
    signs = (X[0] * [[1.0], [-2.0], [3.0], [0.5], [-1.0], [1.5]]).astype(dtype)
    for candidates in (copies, signs, np.ones((6, 1)) * [[1], [2], [3], [4], [-5], [6]]):
        query = Q if candidates.shape[1] == len(Q) else Q[:1]
        found = select(query.astype(dtype), candidates, 9, kernel=KERNELS[kernel])
        assert sorted(found.indices.tolist()) == [*range(6)]
        assert np.isfinite(found.gains).all()
        assert (found.gains >= 0).all()


def test_precision_is_raised_where_the_kernel_needs_it() -> None:
    single = Q.astype(np.float32), X.astype(np.float32)
    assert checked(*single, 1).rows.dtype == np.float32
    assert checked(*single, 1, noise=1e-5).rows.dtype == np.float64
    assert checked(*single, 1, kernel=KERNELS["rbf(0.15)"], noise=1e-4).rows.dtype == np.float64
    same = X.astype(np.float32)[:1].repeat(3, 0)
    exact = checked(single[0], same, 1, noise=1e-4)
    np.testing.assert_allclose(np.linalg.norm(exact.rows, axis=1), 1.0, rtol=1e-15)


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
    expected = expected_first = sift(query, candidates, 5).indices.tolist()
    strided = np.repeat(candidates, 2, axis=1)[:, ::2]
    for x in (candidates.tolist(), np.asfortranarray(candidates), strided):
        assert sift(query.tolist(), x, 5).indices.tolist() == expected
    whole = np.rint(candidates * 100).astype(np.int32)
    expected = sift(query, whole.astype(float), 5).indices.tolist()
    assert sift(query, whole, 5).indices.tolist() == expected
    half = query.astype(np.float16), candidates.astype(np.float16)
    single = half[0].astype(np.float32), half[1].astype(np.float32)
    assert sift(*half, 5) == sift(*single, 5)
    backwards = candidates[::-1, ::-1]
    assert sift(query[::-1], backwards, 5).indices.tolist() == [29 - i for i in expected_first]


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
    for combine in ("max", None, 1):
        with pytest.raises(ValueError, match=r"combine is .*; it must be 'sum'.* or 'worst'"):
            select(Q, X, 2, combine=combine)
    with pytest.raises(TypeError, match="nosie"):
        select(Q, X, 2, nosie=0.1)
    too_many: list[Any] = [Q, X, 2, 0.01]
    with pytest.raises(TypeError, match="positional"):
        select(*too_many)
