"""How many picks to keep: rules that look at a selection and cut it to a prefix.

A greedy selection of 10 begins with the selection of 5, so stopping is cutting: `sift(...,
k).until(rule)`. A rule is a function `Selection -> number of picks to keep`, at least 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sift_rag.kernels import positive

if TYPE_CHECKING:
    from sift_rag.selection import Selection


@dataclass(frozen=True, slots=True)
class GainShare:
    """See `gain_share`."""

    share: float

    def __call__(self, selection: Selection) -> int:
        """How many picks to keep."""
        told = selection.gains.cumsum()
        return _first(told >= self.share * told[-1])


def gain_share(share: float = 0.9) -> GainShare:
    """For retrieval: keep the first picks that bring this share of the gain of all k.

    Where one passage answers, the first gains are most of it and the rest is cut; where the picks
    tell much the same amount each, nearly all are kept. Figures: benchmarks/results/stopping.md.

    Args:
        share: 0.9 keeps nearly everything that k picks find, 0.75 what as many nearest
            neighbours find on a corpus that repeats itself.

    Raises:
        ValueError: share is not above 0 and at most 1.
    """
    share = positive("share", share)
    if share > 1.0:
        raise ValueError(f"share is {share}; it must be at most 1, which keeps every pick")
    return GainShare(share)


@dataclass(frozen=True, slots=True)
class AlphaRule:
    """See `alpha_rule`."""

    alpha: float

    def __call__(self, selection: Selection) -> int:
        """How many picks to keep."""
        variance = selection.uncertainty / selection.initial_uncertainty  # (k,)
        counts = np.arange(1, len(selection) + 1)
        return _first(np.sqrt(variance) > 1.0 / (self.alpha * counts))


def alpha_rule(alpha: float = 0.3) -> AlphaRule:
    """The paper's adaptive stop, for training: at the first n with `sigma_n > 1 / (alpha n)`.

    sigma_n is the posterior standard deviation of the query after n picks, with a prior of 1 (arXiv
    2410.08020). It wants the paper's setting, `kernel="linear", noise=0.01,
    distinct=False`: steps go on while they still take something away.

    Args:
        alpha: 0.15 to 0.5 in the paper; the smaller, the more steps.

    Raises:
        ValueError: alpha is not a positive finite number.
    """
    return AlphaRule(positive("alpha", alpha))


def _first(stops: NDArray[np.bool_]) -> int:
    """Picks up to and including the first that stops; all where none does."""
    return int(stops.argmax()) + 1 if stops.any() else len(stops)
