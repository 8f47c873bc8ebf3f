"""Kernels against their formulas, and functions that are no kernels."""

import pickle
from collections.abc import Callable

import numpy as np
import pytest
from problems import SELECTORS, problem, squeezed, unit, widths

from sift_rag.kernels import Rbf, calibrated, linear, rbf, resolve
from sift_rag.selection import Selection

Q, X = problem(0, n=5, d=4)


def test_kernels_are_their_formulas() -> None:
    x = unit(X)
    cosines = x @ x.T
    np.testing.assert_allclose(linear(x, x), cosines, atol=1e-15)
    np.testing.assert_allclose(rbf(0.2)(x, x), np.exp((cosines - 1) / 0.2), rtol=1e-12)
    wide = rbf(0.2, 0.5)
    assert isinstance(wide, Rbf)
    np.testing.assert_allclose(wide.cross(x, x), np.exp((cosines - 1) / 0.5), rtol=1e-12)
    np.testing.assert_allclose(wide(x, x), rbf(0.2)(x, x), rtol=1e-12)
    assert linear(x.astype(np.float32), x.astype(np.float32)).dtype == np.float64


def test_kernels_are_values() -> None:
    assert rbf(0.2) == rbf(0.2, 0.2)
    assert rbf(0.2) != rbf(0.2, 0.3)
    assert pickle.loads(pickle.dumps(rbf(0.2))) == rbf(0.2)


@pytest.mark.parametrize("m", [1, 3])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.9, 1.0])
def test_calibrated_widths_follow_the_median_distance(m: int, share: float) -> None:
    for seed in range(20):
        queries, rows = map(unit, squeezed(*problem(seed, m=m), share))
        found = calibrated(queries, rows)
        assert (found.tau, found.query_tau) == pytest.approx(widths(queries @ rows.T), rel=1e-6)
        assert 0 < found.tau < found.query_tau


def test_names_mean_kernels() -> None:
    queries, rows = unit(Q)[None], unit(X)
    assert resolve("linear", queries, rows) is linear
    assert resolve(linear, queries, rows) is linear
    assert resolve("rbf", queries, rows) == calibrated(queries, rows)
    assert resolve(rbf(0.3), queries, rows) == rbf(0.3)


@pytest.mark.parametrize("tau", [0, -1, np.nan, np.inf])
def test_bad_widths_are_refused(tau: float) -> None:
    with pytest.raises(ValueError, match=r"^tau is .*; it must be a finite number above 0"):
        rbf(tau)
    with pytest.raises(ValueError, match=r"query_tau is .*; it must be a finite number above 0"):
        rbf(0.1, tau)
    with pytest.raises(TypeError, match=r"^tau is 'wide'; it must be a number above 0"):
        rbf("wide")  # type: ignore[arg-type]


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
