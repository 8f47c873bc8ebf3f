"""Paired statistics: the same questions through two ways, what the difference is and can be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Test = Literal["exact McNemar", "sign-flip permutation"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Paired:
    """How way `b` differs from way `a` in one metric, over the questions that both have.

    Attributes:
        metric: The metric's name.
        a: Name of the first way.
        b: Name of the second way.
        n: Questions that count: both have a value.
        mean_a: Mean of the first over these.
        mean_b: Mean of the second over these.
        difference: mean_b - mean_a.
        low: Lower end of the 95 % interval of the difference, by the bootstrap over questions.
        high: Upper end.
        better: Questions on which b is better than a (by the metric's own direction).
        worse: Questions on which it is worse.
        p: Of the test, two-sided; 1 where no question differs.
        p_holm: The same after Holm's correction over all pairs of ways in this metric.
        test: Which test it is.
        smallest: The smallest difference that so many questions would have shown with 80 %
            probability at the level left by a correction for all pairs; None with fewer than two
            questions.
        level: The level at which `p_holm` counts as shown, 0.05.
    """

    metric: str
    a: str
    b: str
    n: int
    mean_a: float
    mean_b: float
    difference: float
    low: float
    high: float
    better: int
    worse: int
    p: float
    p_holm: float
    test: Test
    smallest: float | None
    level: float = 0.05

    @property
    def shown(self) -> bool:
        """Whether a difference is shown: p after Holm's correction is below the level."""
        return self.p_holm < self.level
