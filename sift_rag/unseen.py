"""What documents that nobody has seen could still gain: bounds for `refetch` (numpy only).

Of an unseen document x (a unit vector) all that is known is the largest inner product that it can
have with any vector, `most`. With the picks p_1, p_2, ... of a selection let

    F_s(x) = cov_s(p_s, x) / sqrt(var_s(p_s) + noise)    what x shares with pick s
    g_t(x) = cov_t(q, x) / sqrt(var_t(x) + noise)        the signed root of its gain at pick t

with cov_s and var_s given the picks before s. Then var_t(x) = 1 - F_1(x)^2 - ... - F_{t-1}(x)^2.

For the linear kernel, cov_t(q, x) and F_s(x) are inner products of x with vectors that are known:
the residual r_t = q - sum over s < t of g_s(p_s) f_s, and f_s. For an rbf, k(p_s, x) is between 0
and the kernel at the largest cosine with p_s, the F_s follow from

    cov_t(p_t, x) = k(p_t, x) - sum over s < t of F_s(p_t) F_s(x)

and, with rho = F_t(x) / sqrt(var_t(x) + noise), the gain at the next pick from

    g_{t+1}(x) = (g_t(x) - rho g_t(p_t)) / sqrt(1 - rho^2)

by interval arithmetic. Where 0 <= g_t(x) <= g_t(p_t) and rho >= 0, g_{t+1}(x) <= g_t(x): a pick can
only lower what is like it. This is why a sharp kernel needs few documents.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeAlias

import numpy as np

from sift_rag.kernels import Floats, KernelFunction, Rbf, linear

Most: TypeAlias = Callable[[Floats], float]
"""The largest inner product that an unseen unit vector can have with this vector (d,)."""

_SURE = 0.999  # of a pick's gain: what rounding to float32 does not reach
_WORTH = 0.03  # of a variance of 1: what it takes at most is not worth a search


class Doubt(NamedTuple):
    """What an unseen document could have gained at one pick.

    Attributes:
        share: Of what the pick gained, at most; the pick is proven below 1.
        finds: Directions (d,) in which a better document must lie, if there is one.
        proofs: These, and others that would narrow the bound.
    """

    share: float
    finds: list[Floats]
    proofs: list[Floats]


def doubts(
    query: Floats, picks: Floats, kernel: KernelFunction, noise: float, most: Most
) -> Iterator[Doubt]:
    """One for each pick: query (d,) and picks (k, d) are unit vectors, the kernel linear or rbf."""
    if isinstance(kernel, Rbf):
        return _rbf(query, picks, kernel, noise, most)
    return _linear(query, picks, noise, most)


def _linear(query: Floats, picks: Floats, noise: float, most: Most) -> Iterator[Doubt]:
    """Directions count in both signs, as a covariance counts by its square."""
    root = _root(linear(picks, picks), noise)
    gains = np.linalg.solve(root, picks @ query)  # g_t(p_t)
    shared = np.linalg.solve(root, picks)  # (k, d), the f_s
    residual, left = query, 1.0  # r_t, var_t(q)
    least = 1.0  # of var_t(x)
    narrow: list[Floats] = []
    for f, g in zip(shared, gains.tolist(), strict=True):
        covariances = [(most(side), side) for side in (residual, -residual)]
        square = max(0.0, *(largest for largest, _ in covariances)) ** 2
        # cov_t(q, x)^2 <= var_t(q) var_t(x): a covariance is not had without a variance.
        spread = noise + max(least, square / max(left, 1e-6))
        enough = math.sqrt(_SURE * spread) * abs(g)
        finds = [side for largest, side in covariances if largest >= enough]
        hopeful = square < _SURE * g * g * (1.0 + noise)  # a larger variance would do
        yield Doubt(_share(square / spread, g), finds, finds + narrow if hopeful else finds)
        sides = [(max(most(side), 0.0) ** 2, side) for side in (f, -f)]
        narrow += [side for size, side in sides if size > _WORTH]
        least = max(0.0, least - max(size for size, _ in sides))
        residual, left = residual - g * f, left - g * g


def _rbf(query: Floats, picks: Floats, kernel: Rbf, noise: float, most: Most) -> Iterator[Doubt]:
    """All from the largest cosines with the query and with each pick."""
    root = _root(kernel(picks, picks), noise)
    gains = np.linalg.solve(root, kernel.cross(query[None], picks)[0]).tolist()  # g_t(p_t)
    first = math.exp((most(query) - 1.0) / kernel.query_tau) / math.sqrt(1.0 + noise)
    low, high = 0.0, first  # of g_t(x)
    least, spread = 1.0 + noise, 1.0 + noise  # the range of var_t(x) + noise
    lows, highs = np.zeros(len(picks)), np.zeros(len(picks))  # of F_s(x)
    narrow: list[tuple[float, int]] = []  # covariance with a pick at most, and which
    for t, (pick, g) in enumerate(zip(picks, gains, strict=True)):
        hopeful = first * first < _SURE * g * g  # as good as it was before any pick, it would lose
        nearby = [picks[s] for _, s in sorted(narrow, reverse=True)] if hopeful else []
        yield Doubt(_share(max(high, -low) ** 2, g), [], [*nearby, query])
        covariance = math.exp((most(pick) - 1.0) / kernel.tau)
        if covariance > _WORTH:
            narrow.append((covariance, t))
        ends = root[t, :t] * np.stack([lows[:t], highs[:t]])
        widest = math.sqrt(spread)
        lows[t] = max(-ends.max(axis=0).sum() / root[t, t], -widest)
        highs[t] = min((covariance - ends.min(axis=0).sum()) / root[t, t], widest)
        low, high = _after(low, high, g, _correlation(lows[t], highs[t], least, spread, noise))
        squares = sorted([lows.item(t) ** 2, highs.item(t) ** 2])
        least = max(least - squares[1], noise)
        spread -= squares[0] if lows[t] > 0 or highs[t] < 0 else 0.0


def _root(covariances: Floats, noise: float) -> Floats:
    """F_s(p_t) of the picks, (t, s)."""
    return np.asarray(np.linalg.cholesky(covariances + noise * np.eye(len(covariances))))


def _correlation(
    low: float, high: float, least: float, spread: float, noise: float
) -> tuple[float, float]:
    """The range of rho, from that of F_t(x) and of var_t(x) + noise."""
    limit = 1.0 / math.sqrt(1.0 + noise)  # as no variance falls below 0
    return (
        max(-limit, low / math.sqrt(least if low < 0 else spread)),
        min(limit, high / math.sqrt(least if high > 0 else spread)),
    )


def _after(low: float, high: float, g: float, rho: tuple[float, float]) -> tuple[float, float]:
    """The range of g_{t+1}(x), widened to hold 0.

    Over rho, (g_t(x) - rho g) / sqrt(1 - rho^2) changes with the sign of rho g_t(x) - g: it has one
    extreme inside, the least where g_t(x) > 0 and the largest where g_t(x) < 0. So the largest for
    the high end, and the least for the low one, are at the ends.
    """
    ends = [
        [(each - r * g) / math.sqrt(1.0 - r * r) for r in rho]
        for each in (min(low, 0), max(high, 0))
    ]
    return min(0.0, *ends[0]), max(0.0, *ends[1])


def _share(most: float, g: float) -> float:
    gain = _SURE * g * g
    return float(most / gain) if gain > 1e-300 else math.inf
