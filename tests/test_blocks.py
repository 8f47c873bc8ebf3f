"""A whole corpus in blocks: the picks of `sift` on everything, without a copy of the vectors."""

import tracemalloc
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from problems import Floats, unit

from sift_rag.blocks import sift_corpus
from sift_rag.kernels import Kernel, calibrated, linear, rbf
from sift_rag.selection import Selection, sift

KERNELS: list[Kernel] = ["linear", rbf(0.15), rbf(0.07, 0.35)]
DEVICES = [None, "cpu", *(["cuda"] if torch.cuda.is_available() else [])]
Q, X = np.array([1.0, 2.0, 3.0, 4.0]), np.arange(20.0).reshape(5, 4) + 1.0


def corpus(seed: int, *, n: int = 700, d: int = 24, m: int = 1) -> tuple[Floats, NDArray[Any]]:
    """Queries (m, d) and float32 rows (n, d) in clusters, several of them near each query."""
    rng = np.random.default_rng(seed)
    common, centres = 0.6 * rng.normal(size=d), rng.normal(size=(max(m, n // 8), d))
    rows = centres[rng.integers(len(centres), size=n)] + 0.5 * rng.normal(size=(n, d)) + common
    return 0.7 * centres[:m] + 0.5 * rng.normal(size=(m, d)) + common, unit(rows).astype("f4")


def assert_same(found: Selection, expected: Selection) -> None:
    """Picks in order while they gain anything, and the curve up to the rounding of float32."""
    assert len(found) == len(expected)
    sure = expected.gains > 1e-6
    assert found.indices[sure].tolist() == expected.indices[sure].tolist()
    np.testing.assert_allclose(found.gains, expected.gains, rtol=1e-4, atol=2e-6)
    np.testing.assert_allclose(found.uncertainty, expected.uncertainty, atol=1e-5)
    assert found.initial_uncertainty == pytest.approx(expected.initial_uncertainty)


# The definition: `sift` on all rows


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kernel", KERNELS, ids=["linear", "rbf", "wide rbf"])
@pytest.mark.parametrize("block", [1, 7, 64, 333, 700, 5000])
def test_blocks_of_any_size_change_nothing(block: int, kernel: Kernel, device: str | None) -> None:
    query, rows = corpus(block)
    found = sift_corpus(query[0], rows, 12, kernel=kernel, block=block, device=device)
    assert_same(found, sift(query[0], rows, 12, kernel=kernel))


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 600),
    m=st.integers(1, 3),
    k=st.integers(1, 30),
    block=st.integers(1, 300),
    kernel=st.sampled_from(KERNELS),
    distinct=st.booleans(),
    combine=st.sampled_from(["sum", "worst"]),
    device=st.sampled_from(DEVICES),
)
def test_it_is_sift_on_everything(
    seed: int, n: int, m: int, k: int, block: int, device: str | None, **options: Any
) -> None:
    """In float64, where no two of these gains are equal up to rounding."""
    query, rows = corpus(seed, n=n, m=m)
    rows = rows.astype(np.float64)
    found = sift_corpus(query, rows, k, block=block, device=device, **options)
    expected = sift(query, rows, k, **options)
    sure = expected.gains > 1e-12
    assert found.indices[sure].tolist() == expected.indices[sure].tolist()
    np.testing.assert_allclose(found.gains, expected.gains, rtol=1e-8, atol=1e-12)


def test_the_default_kernel_is_calibrated_from_the_nearest_rows() -> None:
    query, rows = corpus(1, n=3000)
    query = query.astype("f4")
    for keep in (100, 300):
        near = np.argsort(-(rows @ query[0]), kind="stable")[:keep]
        kernel = calibrated(unit(query).astype("f4"), rows[near])
        found = sift_corpus(query[0], rows, 10, keep=keep)
        assert_same(found, sift(query[0], rows, 10, kernel=kernel))
    query, rows = corpus(2, n=80, m=3)  # fewer rows than that: nothing is left to say
    assert_same(sift_corpus(query, rows, 10), sift(query, rows, 10))


def test_the_picks_lie_far_outside_of_the_nearest_rows() -> None:
    """So that what is foreseen from the best rows is wrong at times, and read for again."""
    rng = np.random.default_rng(0)
    rows = unit(rng.normal(size=(2000, 16))).astype("f4")
    query = rows[:4].sum(axis=0)
    found = sift_corpus(query, rows, 15, kernel="linear", noise=0.01)
    assert_same(found, sift(query, rows, 15, kernel="linear", noise=0.01))
    ranks = np.argsort(np.argsort(-(rows @ query)))
    assert ranks[found.indices].max() > 300  # more than what foresight looks at


def test_a_function_is_called_block_by_block() -> None:
    sizes = set[int]()

    def cubic(a: Floats, b: Floats) -> Floats:
        sizes.update((len(a), len(b)))
        return np.asarray((0.5 + 0.5 * a @ b.T) ** 3)

    query, rows = corpus(3, n=2000, m=2)
    found = sift_corpus(query, rows, 9, kernel=cubic, block=100)
    assert max(sizes) < 400  # blocks, and the few hundred rows of foresight
    assert_same(found, sift(query, rows, 9, kernel=cubic))
    repeated = sift_corpus(query, rows, 20, kernel=cubic, distinct=False, noise=1.0)
    assert_same(repeated, sift(query, rows, 20, kernel=cubic, distinct=False, noise=1.0))


def test_repeated_picks() -> None:
    query, rows = corpus(4)
    options: dict[str, Any] = {"kernel": "linear", "distinct": False, "noise": 3.0}
    found = sift_corpus(query, rows, 40, **options)
    assert len(set(found.indices.tolist())) < 40
    assert_same(found, sift(query, rows, 40, **options))


# Ties


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kernel", ["linear", "rbf"])
def test_copies_in_other_blocks_go_to_the_lowest_index(kernel: Kernel, device: str | None) -> None:
    query, rows = corpus(5, n=150, d=389)  # products round such rows by where they stand
    copies = np.concatenate([rows] * 7)
    order = np.random.default_rng(5).permutation(len(copies))
    copies = copies[order]
    for block in (13, 64, 1024):
        found = sift_corpus(query[0], copies, 10, kernel=kernel, block=block, device=device)
        for t, pick in enumerate(found.indices):
            same = np.flatnonzero((copies == copies[pick]).all(axis=1))
            assert pick == np.setdiff1d(same, found.indices[:t])[0]


def test_rows_of_rank_one() -> None:
    row = unit(np.random.default_rng(6).normal(size=24)).astype("f4")
    rows = np.tile(row, (300, 1))
    rows[1::2] *= -1
    for kernel in KERNELS:
        found = sift_corpus(row, rows, 5, kernel=kernel, block=7)
        expected = sift(row, rows, 5, kernel=kernel)
        assert found.indices[0] == expected.indices[0] == 0
        np.testing.assert_allclose(found.gains, expected.gains, atol=1e-6)
        assert len(set(found.indices.tolist())) == 5


@pytest.mark.parametrize("n", [1, 2, 5])
def test_fewer_rows_than_picks(n: int) -> None:
    query, rows = corpus(7, n=n)
    found = sift_corpus(query, rows, 9, block=2)
    assert sorted(found.indices.tolist()) == list(range(n))
    assert_same(found, sift(query, rows, 9))
    assert len(sift_corpus(query, rows, 9, distinct=False)) == 9


# What it gives back


def test_the_context_is_the_nearest_rows_and_the_picks() -> None:
    query, rows = corpus(8, n=2000, m=2)
    found = sift_corpus(query, rows, 20, kernel="linear", noise=0.01, keep=30)
    positions = found.context.positions
    assert positions is not None
    cosines = (unit(query) @ rows.T).max(axis=0)
    nearest = np.argsort(-cosines)[:30]
    assert set(positions.tolist()) == {*nearest.tolist(), *found.indices.tolist()}
    assert len(positions) > 30
    assert (np.diff(cosines[positions]) <= 1e-6).all()
    np.testing.assert_array_equal(found.context.rows, rows[positions])
    np.testing.assert_allclose(found.context.queries, unit(query), atol=1e-6)


def test_explanations_name_positions_in_the_corpus() -> None:
    query, rows = corpus(9, n=400)
    found = sift_corpus(query, rows, 4)
    assert [pick.index for pick in found.explain().picks] == found.indices.tolist()


# What it takes


@pytest.mark.parametrize("kernel", ["linear", "rbf"])
def test_rows_are_brought_to_one_precision_and_length(kernel: Kernel) -> None:
    query, rows = corpus(10)
    lengths = np.random.default_rng(10).uniform(0.01, 90, size=(len(rows), 1))
    wide = np.zeros((len(rows), 50), np.float32)
    wide[:, ::2][:, :24] = rows
    read_only = rows.copy()
    read_only.flags.writeable = False
    for given_rows in (
        rows.astype(np.float16),
        rows.astype(np.float64) * lengths,
        (rows * lengths).astype(np.float32),
        rows * np.float32(1e-30),  # whose squares vanish
        np.rint(rows * 1000).astype(np.int64),
        np.asfortranarray(rows),
        wide[:, ::2][:, :24],
        rows[::-1],
        read_only,
        rows.tolist(),
    ):
        for device in DEVICES:
            before = np.array(given_rows)
            found = sift_corpus(query, given_rows, 8, kernel=kernel, keep=1000, device=device)
            assert_same(found, sift(query, given_rows, 8, kernel=kernel))
            np.testing.assert_array_equal(before, given_rows)


@pytest.mark.parametrize("noise", [1e-12, 1e-5])
@pytest.mark.parametrize("kernel", ["linear", "rbf", rbf(0.0001)])
def test_small_noise_and_narrow_kernels_are_exact_for_float32_too(
    noise: float, kernel: Kernel
) -> None:
    query, rows = corpus(11, n=90, d=40)
    found = sift_corpus(query, rows, 12, noise=noise, kernel=kernel, block=16)
    exact = sift(query, rows.astype(np.float64), 12, noise=noise, kernel=kernel)
    assert found.indices.tolist() == exact.indices.tolist()
    np.testing.assert_allclose(found.gains, exact.gains, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("kernel", ["linear", "rbf"])
@pytest.mark.parametrize("device", [None, "cpu"])
def test_memory_is_a_small_share_of_the_vectors(kernel: Kernel, device: str | None) -> None:
    query, rows = corpus(12, n=40_000, d=384)
    sift_corpus(query, rows[:1000], 10, kernel=kernel, device=device)  # what is imported counts not
    tracemalloc.start()
    sift_corpus(query, rows, 10, kernel=kernel, device=device)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 0.16 * rows.nbytes  # with the constant part, which a million rows make small


# Bad input


def with_row(at: int, value: float) -> Floats:
    rows = X.copy()
    rows[at] = value
    return rows


@pytest.mark.parametrize(
    ("query", "rows", "settings", "message"),
    [
        (Q, [], {}, r"candidates has shape \(0,\); it must be \(rows, d\)"),
        (Q, np.empty((0, 4)), {}, r"candidates is empty, shape \(0, 4\)"),
        (Q, np.empty((5, 0)), {}, r"candidates is empty, shape \(5, 0\)"),
        (Q, with_row(3, np.nan), {}, r"candidates has NaN or infinity in 1 of 5 .* first in row 3"),
        (Q, with_row(4, np.inf), {}, r"candidates has NaN or infinity in 1 of 5 .* first in row 4"),
        (Q, with_row(3, 0), {}, r"candidates has 1 of 5 vectors all zeros, first row 3"),
        (Q, X * [[1], [0], [1], [0], [np.nan]], {}, r"NaN or infinity in 1 of 5 .* row 4"),
        (Q * 0, X, {}, r"query has 1 of 1 vectors all zeros"),
        (Q[:3], X, {}, r"query has 3 dimensions and candidates have 4"),
        (Q, X, {"k": 0}, r"k is 0; it must be 1 or more"),
        (Q, X, {"noise": -1.0}, r"noise is -1.0; it must be a finite number above 0"),
        (Q, X, {"kernel": "cosine"}, r"kernel is 'cosine'; it must be 'linear', 'rbf'"),
        (Q, X, {"combine": "max"}, r"combine is 'max'; it must be 'sum'"),
    ],
)
def test_bad_input_has_the_messages_of_sift(
    query: Any, rows: Any, settings: dict[str, Any], message: str
) -> None:
    settings = {"k": 2} | settings
    for call in (sift, lambda *given, **more: sift_corpus(*given, block=2, **more)):
        with pytest.raises(ValueError, match=message):
            call(query, rows, **settings)


def test_bad_types_have_the_messages_of_sift() -> None:
    for call in (sift, sift_corpus):
        with pytest.raises(TypeError, match=r"candidates has dtype .*; it must hold numbers"):
            call(Q, [["a", "b"]], 2)
        with pytest.raises(TypeError, match=r"k is 2.5; it must be a whole number"):
            call(Q, X, 2.5)  # type: ignore[arg-type]


def test_bad_settings_of_its_own() -> None:
    for name in ("block", "keep"):
        with pytest.raises(ValueError, match=f"{name} is 0; it must be 1 or more"):
            sift_corpus(Q, X, 2, **{name: 0})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"device is 'cpu' and kernel .* leave device out"):
        sift_corpus(Q, X, 2, kernel=lambda a, b: linear(a, b), device="cpu")


def test_a_kernel_that_is_no_covariance_is_named() -> None:
    query, rows = corpus(13)
    for k in (1, 5):
        with pytest.raises(ValueError, match=r"is not positive definite on these candidates"):
            sift_corpus(query, rows, k, kernel=lambda a, b: -linear(a, b))
