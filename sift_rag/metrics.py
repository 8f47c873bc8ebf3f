"""How good a reply is: one function of case and reply for each metric."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from sift_rag.cases import Case, Reply

Measure: TypeAlias = Callable[[Case, Reply], "float | bool | None"]
"""A value, or None where there is nothing to say, such as without a reference."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One measure of a reply, and how it is read.

    Attributes:
        name: Its key, such as "exact_match".
        measure: From case and reply to a value; a judge of the user's own may stand here. It may
            be slow: each value is computed once and kept.
        title: For people, such as "exact match".
        binary: Whether its values are 0 and 1: then McNemar's test is taken, else permutation.
        higher_is_better: False for what should be small.
        unit: "share" (0 to 1, shown in percent) or the unit's name, such as "bits per byte".
        failed: The value of a reply that failed; None leaves its pair out, as no value is fair.
        quality: Whether it says how good an answer is; else it only describes (coverage, copies).
        about: What it is, in a sentence.
    """

    name: str
    measure: Measure
    title: str
    binary: bool = False
    higher_is_better: bool = True
    unit: str = "share"
    failed: float | None = 0.0
    quality: bool = True
    about: str = ""
