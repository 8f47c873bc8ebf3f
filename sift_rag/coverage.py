"""How much the candidates know about a question: one number in [0, 1] (numpy only).

Two signs that an answer is there: the best candidate is near the question, and it stands out from
the rest. Both are taken on the embedder's own range (`kernels.spread_of`), near copies counting
once, and weighed by a logistic regression that benchmarks/coverage.py fits: questions whose gold
passages are in the corpus against the same questions without them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sift_rag.kernels import TAU, Floats, linear, rbf, spread_of

if TYPE_CHECKING:
    from sift_rag.selection import Context

NEAREST = 50  # candidates looked at; the weights below are for as many
WEIGHTS = (10.8, 0.366)  # of the two signs
BIAS = -7.68


def coverage(context: Context) -> float:
    """Probability that the candidates hold an answer, where half of the questions have one.

    Args:
        context: Queries (m, d) and candidates (n, d), unit rows; the nearest 50 are looked at, with
            fewer than about 10 the signs say little.

    Returns:
        From 0 to 1; the mean over several queries.
    """
    logits = signs(context) @ np.array(WEIGHTS) + BIAS  # (m,)
    return float((1.0 / (1.0 + np.exp(-logits))).mean())


def signs(context: Context) -> Floats:
    """For each query, (m, 2): the cosine of the best candidate, and how far it stands out.

    The cosine is stretched to the usual range. The second is its distance from the mean of the
    other candidates in standard deviations, each weighed by how little of it another repeats.
    """
    return np.array([_signs(query, context) for query in context.queries])


def _signs(query: NDArray[Any], context: Context) -> tuple[float, float]:
    cosines, rows, known = linear(query[None], context.rows)[0], context.rows, context.alike
    if len(rows) > NEAREST:
        order = np.argsort(-cosines, kind="stable")[:NEAREST]
        cosines, rows, known = cosines[order], rows[order], None
    spread = spread_of(cosines)
    if known is not None and known[0] == TAU * spread:  # the default kernel has just had it
        alike = known[1]  # (n, n)
    else:
        alike = rbf(TAU * spread)(rows, rows)
    best = int(cosines.argmax())
    weights = (1.0 - alike[best]) / alike.sum(axis=1)  # it and its copies do not count
    weights = np.maximum(weights, 0.0)
    stretched = 1.0 - (1.0 - cosines[best]) / spread
    total = weights.sum()
    if total < 1e-6:  # one candidate, or copies of one: nothing to stand out from
        return stretched, 0.0
    mean = weights @ cosines / total
    deviation = np.sqrt(weights @ (cosines - mean) ** 2 / total)
    return stretched, float((cosines[best] - mean) / max(deviation, 0.02 * spread))
