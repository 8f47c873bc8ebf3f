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

TAU = 0.08  # of the typical distance of a candidate from the query, see `calibrated`
QUERY_TAU = 0.3


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


def calibrated(queries: NDArray[Any], rows: NDArray[Any]) -> Rbf:
    """The default: an rbf whose widths are shares of the candidates' typical distance.

    Embedders differ in where their cosines lie: unrelated texts have 0.0 by one and 0.7 by another.
    The distance `1 - cos` of the median candidate from the query is the yardstick: both widths are
    a fixed share of it, so that squeezing all cosines towards 1 changes no pick.
    """
    middle = np.median(linear(queries, rows))
    distance = max(1.0 - float(middle), 1e-3)  # all candidates are the question itself
    return Rbf(TAU * distance, QUERY_TAU * distance)


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
