"""Covariances of unit vectors: how much one text tells about another (numpy only).

A kernel is symmetric between passages. Between a question and a passage it may be wider (`cross`):
a question and the passage that answers it are no near copies. As a Gaussian process, the question
is a blurred look at where its answer lies, and the covariance with a blurred point is the kernel
averaged over the blur: again of the same form, and wider.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]
KernelFunction: TypeAlias = Callable[[NDArray[Any], NDArray[Any]], NDArray[Any]]
"""Unit rows (a, d) and (b, d) to their covariances (a, b), float64: symmetric, positive."""
Kernel: TypeAlias = Literal["linear", "rbf"] | KernelFunction

# Chosen by benchmarks/retrieval.py, see `calibrated`.
TAU, QUERY_TAU = 0.07, 0.35
_ASYMMETRY = 1e-4  # of the largest covariance: more than rounding in float32
_USUAL = 0.55  # 1 - cos of the median candidate is at least this where cosines use their range


def linear(a: NDArray[Any], b: NDArray[Any]) -> Floats:
    """The paper's kernel: inner products of unit rows (a, d) and (b, d), so cosines (a, b)."""
    return np.asarray(a @ b.T, dtype=np.float64)


@dataclass(frozen=True, slots=True)
class Rbf:
    """See `rbf`."""

    tau: float
    query_tau: float

    def __call__(self, a: NDArray[Any], b: NDArray[Any]) -> Floats:
        """Between passages, (a, b)."""
        return _rbf(a, b, self.tau)

    def cross(self, queries: NDArray[Any], rows: NDArray[Any]) -> Floats:
        """Between questions and passages, (m, n)."""
        return _rbf(queries, rows, self.query_tau)


@dataclass(frozen=True, slots=True)
class Checked:
    """A kernel that is not ours, and must not be believed."""

    function: KernelFunction

    def __call__(self, a: NDArray[Any], b: NDArray[Any]) -> Floats:
        """Between any rows, (a, b)."""
        result = np.array(self.function(a, b), dtype=np.float64)  # a copy: it is written to
        if result.shape != (len(a), len(b)):
            raise ValueError(
                f"kernel {self.function!r} gave shape {result.shape} for rows {a.shape} and "
                f"{b.shape}; it must give {(len(a), len(b))}, the covariance of every pair"
            )
        if not np.isfinite(result).all():
            raise ValueError(
                f"kernel {self.function!r} gave NaN or infinity; covariances must be finite"
            )
        if a is b and np.abs(result - result.T).max() > _ASYMMETRY * np.abs(result).max():
            raise ValueError(
                f"kernel {self.function!r} is not symmetric: k(a, b) differs from k(b, a) by up to "
                f"{np.abs(result - result.T).max():.3g}; a covariance is the same both ways"
            )
        return result


def rbf(tau: float, query_tau: float | None = None) -> KernelFunction:
    """The kernel `exp((cos - 1) / tau)` of unit rows: a Gaussian on the sphere.

    Args:
        tau: Width between passages. At 0.1 a cosine of 0.95 counts 0.61 and one of 0.7 counts 0.05:
            only near-duplicates share what they tell.
        query_tau: Width between a question and a passage; the same by default.

    Raises:
        ValueError: A width is not a positive finite number.
    """
    tau = positive("tau", tau)
    return Rbf(tau, tau if query_tau is None else positive("query_tau", query_tau))


def spread_of(cosines: Floats) -> float:
    """The share of the usual range that an embedder's cosines use, from 0.01 to 1.

    Unrelated texts have a cosine near 0 by one embedder and near 0.7 by another. The median
    candidate's distance from the query shows it. Where that is usual, 1: within that range a corpus
    on one topic has nearer candidates too, and measured best with unchanged widths.

    Args:
        cosines: Of queries and candidates, (m, n).
    """
    ordered = np.sort(cosines, axis=None)  # np.median does the same, ten times slower
    middle = float(ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2.0
    return min(1.0, max(1.0 - middle, 0.01 * _USUAL) / _USUAL)


def calibrated(queries: NDArray[Any], rows: NDArray[Any]) -> Rbf:
    """The default: an rbf with the widths 0.07 between passages and 0.35 towards the question.

    So near copies share what they tell (a cosine of 0.95 counts 0.49) and passages on one topic do
    not (0.7 counts 0.01). For an embedder that squeezes all cosines towards 1, the widths are
    squeezed alike (`spread_of`). The figures are those with which SIFT finds most, on clean and on
    repetitive corpora at once: benchmarks/RETRIEVAL.md.
    """
    return calibrated_to(linear(queries, rows))


def calibrated_to(cosines: Floats) -> Rbf:
    """`calibrated`, from the cosines of queries and candidates (m, n)."""
    spread = spread_of(cosines)
    return Rbf(TAU * spread, QUERY_TAU * spread)


def resolve(kernel: Kernel, queries: NDArray[Any], rows: NDArray[Any]) -> KernelFunction:
    """The kernel that an argument means for these unit rows."""
    if callable(kernel):
        return kernel if kernel is linear or isinstance(kernel, Rbf) else Checked(kernel)
    if kernel == "linear":
        return linear
    if kernel == "rbf":
        return calibrated(queries, rows)
    raise ValueError(
        f"kernel is {kernel!r}; it must be 'linear', 'rbf', rbf(tau), or a function of unit "
        "rows (a, d), (b, d) to their covariances (a, b)"
    )


def positive(name: str, value: float) -> float:
    """A number above 0, or an error that says what was got."""
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"{name} is {value!r}; it must be a number above 0")
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} is {value!r}; it must be a finite number above 0")
    return float(value)


def _rbf(a: NDArray[Any], b: NDArray[Any], tau: float) -> Floats:
    exponent = a @ b.T
    exponent -= 1.0
    exponent /= tau
    return np.asarray(np.exp(exponent, out=exponent), dtype=np.float64)
