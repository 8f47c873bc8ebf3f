"""Random problems and the definition written out slowly, for the tests of the selectors."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sift_rag import kernels
from sift_rag.kernels import Kernel, rbf
from sift_rag.rivals import dpp, mmr, nearest, random, uncertainty_sampling
from sift_rag.selection import Selection, sift

Floats = NDArray[np.float64]
SELECTORS: list[Callable[..., Selection]] = [sift, nearest, mmr, dpp, uncertainty_sampling, random]
KERNELS: dict[str, Kernel] = {"linear": "linear", "rbf(0.15)": rbf(0.15), "default": "rbf"}
FIXED = ["linear", "rbf(0.15)"]  # the default is calibrated: every candidate has a say in it


def unit(rows: Any) -> Floats:
    return np.asarray(rows / np.linalg.norm(rows, axis=-1, keepdims=True))


def problem(seed: int, *, n: int = 30, d: int = 12, m: int = 0) -> tuple[Floats, Floats]:
    """A query (d,), or m of them, and candidates (n, d) with a common part, as embeddings have."""
    rng = np.random.default_rng(seed)
    common = 0.6 * rng.normal(size=d)
    query = rng.normal(size=(m, d) if m else d) + common
    return query, rng.normal(size=(n, d)) + common


def squeezed(query: Floats, candidates: Floats, share: float) -> tuple[Floats, Floats]:
    """The same directions with one in common: every cosine becomes share + (1 - share) cos."""
    return tuple(  # type: ignore[return-value]
        np.concatenate(
            [np.sqrt(1 - share) * unit(rows), np.full((*rows.shape[:-1], 1), np.sqrt(share))], -1
        )
        for rows in (query, candidates)
    )


def widths(cosines: Floats) -> tuple[float, float]:
    """Of the default kernel, between passages and towards the queries."""
    distance = 1 - np.median(cosines)
    spread = min(1.0, max(distance / kernels._USUAL, 0.01))
    return kernels.TAU * spread, kernels.QUERY_TAU * spread


def covariances(
    query: Floats, candidates: Floats, *, kernel: str, noise: float
) -> tuple[Floats, Floats, Floats]:
    """By definition: between queries (m,) prior, with candidates (m, n), of candidates (n, n)."""
    q, x = unit(np.atleast_2d(query)), unit(candidates)
    if kernel == "linear":
        return np.ones(len(q)), q @ x.T, x @ x.T
    if kernel == "rbf(0.15)":
        return np.ones(len(q)), np.exp((q @ x.T - 1) / 0.15), np.exp((x @ x.T - 1) / 0.15)
    tau, query_tau = widths(q @ x.T)
    cross, cov = np.exp((q @ x.T - 1) / query_tau), np.exp((x @ x.T - 1) / tau)
    np.fill_diagonal(cov, 1.0)  # to the last bit
    for one in cross:  # so that the 128 nearest together would leave nothing of 1
        near = np.argsort(-one, kind="stable")[:128]
        known = np.linalg.inv(cov[np.ix_(near, near)] + noise * np.eye(len(near)))
        one /= np.sqrt(one[near] @ known @ one[near])
    return np.ones(len(q)), cross, cov


def oracle(
    query: Floats,
    candidates: Floats,
    k: int,
    *,
    noise: float,
    kernel: str,
    distinct: bool,
    combine: str = "sum",
) -> tuple[list[int], list[float]]:
    """The definition, slowly: all covariances, conditioned pick by pick."""
    left, cross, cov = covariances(query, candidates, kernel=kernel, noise=noise)
    order, gains = list[int](), list[float]()
    for _ in range(k):
        each = cross**2 / (cov.diagonal() + noise)  # (m, n)
        gain = each.sum(axis=0) if combine == "sum" else each[left.argmax()].copy()
        gain[order if distinct else []] = -1
        i = int(gain.argmax())
        order, gains, left = [*order, i], [*gains, float(each[:, i].sum())], left - each[:, i]
        known = cov[i] / (cov[i, i] + noise)
        cross, cov = cross - np.outer(cross[:, i], known), cov - np.outer(cov[:, i], known)
    return order, gains


def left_each(
    query: Floats, candidates: Floats, picks: list[int], *, noise: float, kernel: str
) -> Floats:
    """Posterior variance of each query (m,): the formula with an inverse in it."""
    prior, cross, cov = covariances(query, candidates, kernel=kernel, noise=noise)
    known = np.linalg.inv(cov[np.ix_(picks, picks)] + noise * np.eye(len(picks)))
    return np.asarray(prior - np.einsum("mi,ij,mj->m", cross[:, picks], known, cross[:, picks]))
