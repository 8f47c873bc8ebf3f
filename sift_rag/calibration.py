"""What a comparison taught about each way to answer, for the `router`: quality by coverage, time.

Few questions say little, so every figure is drawn towards the mean as far as chance may have made
it differ, and a difference between two ways that one standard error explains counts as none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sift_rag import compared
from sift_rag.compared import Compared
from sift_rag.shrinkage import Floats, Group, differing, drawn, rising, split

if TYPE_CHECKING:
    from typing_extensions import Self

FEW = 8
"""Questions in a cell at least."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """Questions that are alike.

    Attributes:
        fits: Whether all of their passages fit into the prompt.
        low: Their lowest coverage; the cell reaches up to the next one's.
        questions: How many.
        quality: By mode, the expected value of the metric.
        seconds: By mode, the median time of those that fit, or do not.
    """

    fits: bool
    low: float
    questions: int
    quality: Mapping[str, float] = field(hash=False)
    seconds: Mapping[str, float] = field(hash=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """How well and how fast each mode answered.

    Attributes:
        metric: What quality is, such as "exact match".
        unit: Its unit; "share" from 0 to 1.
        higher_is_better: Its direction.
        questions: How many it rests on.
        baseline: The way that the others were held against.
        ways: By mode, the way that it was measured by.
        worse: The modes shown to be worse than the baseline: never chosen.
        mean: The best mode's mean over all questions.
        cells: By whether the passages fit, then by coverage.
    """

    metric: str
    unit: str
    higher_is_better: bool
    questions: int
    baseline: str
    ways: Mapping[str, str] = field(hash=False)
    worse: tuple[str, ...]
    mean: float
    cells: tuple[Cell, ...]

    @classmethod
    def fit(
        cls,
        comparison: Compared,
        *,
        metric: str | None = None,
        ways: Mapping[str, str] | None = None,
    ) -> Self:
        """Learn from a comparison.

        Counted are the questions on which each of the ways has a value, and whose coverage some
        way has told. Each mode is held against the baseline's on the same questions.

        Args:
            comparison: Of some of our own ways, with a metric of quality.
            metric: Its name; by default the comparison's main one.
            ways: The way that stands for each mode, such as `{"stuff": "stuff(sift)"}`; by default
                those of ours, with SIFT where there are several.

        Raises:
            ValueError: No metric, no such way, too few questions, or nothing but ways that are
                shown to be worse than the baseline.
        """
        named = comparison.main if metric is None else comparison.metric(metric)
        if named is None:
            raise ValueError(
                "The comparison has no metric that tells how good an answer is: give its questions "
                "references, or metrics=[...]."
            )
        chosen = (
            compared.checked_ways(comparison, ways)
            if ways is not None
            else compared.own_ways(comparison)
        )
        sign = 1.0 if named.higher_is_better else -1.0
        values = {mode: sign * comparison.values(named.name, way) for mode, way in chosen.items()}
        table = _Table.of(comparison, chosen, values)
        worse = compared.worse(comparison, named.name, sign)
        if worse.issuperset(chosen.values()):
            raise ValueError(
                f"Each of {', '.join(chosen.values())} is shown to be worse than the baseline "
                f"{comparison.baseline}: answer by that."
            )
        best = max(float(column.mean()) for column in table.values.values())
        return cls(
            metric=named.title,
            unit=named.unit,
            higher_is_better=named.higher_is_better,
            questions=len(table.coverage),
            baseline=comparison.baseline,
            ways=chosen,
            worse=tuple(mode for mode, way in chosen.items() if way in worse),
            mean=sign * best,
            cells=tuple(
                table.cells(
                    compared.reference(comparison, chosen), sign, share=named.unit == "share"
                )
            ),
        )

    def at(self, coverage: float, *, fits: bool) -> Cell | None:
        """The cell of a question; None where no question of its kind was measured.

        Below the lowest coverage measured it is the lowest cell's.
        """
        found = None
        for cell in self.cells:
            if cell.fits == fits and (found is None or cell.low <= coverage):
                found = cell
        return found

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """As `dataclasses.asdict` gave it, maybe through JSON.

        Raises:
            TypeError: A key is missing or unknown.
        """
        cells = tuple(Cell(**cell) for cell in data["cells"])
        return cls(**{**data, "cells": cells, "worse": tuple(data["worse"])})


@dataclass(frozen=True, slots=True)
class _Table:
    """The questions that count, (n,) each; of values, more is better."""

    coverage: Floats
    fits: NDArray[np.bool_]
    values: dict[str, Floats]
    seconds: dict[str, Floats]

    @classmethod
    def of(
        cls, comparison: Compared, ways: Mapping[str, str], values: Mapping[str, Floats]
    ) -> _Table:
        coverage = compared.coverage(comparison)
        known = ~np.isnan(np.array([coverage, *values.values()])).any(axis=0)
        return cls(
            coverage[known],
            ~compared.beyond(comparison)[known],
            {mode: column[known] for mode, column in values.items()},
            {mode: comparison.seconds(way)[known] for mode, way in ways.items()},
        )

    def cells(self, reference: str, sign: float, *, share: bool) -> list[Cell]:
        """Questions whose passages fit, by coverage; then the others."""
        found: list[Cell] = []
        for fits in (True, False):
            own = np.flatnonzero(self.fits == fits)
            if len(own) >= FEW:
                order = own[np.argsort(self.coverage[own], kind="stable")]
                groups = split(order, self.coverage, FEW)
                quality = self._quality(groups, reference, sign, share=share)
                found += [
                    Cell(
                        fits=fits,
                        low=float(self.coverage[group].min()),
                        questions=len(group),
                        quality=each,
                        seconds=self._seconds(fits=fits),
                    )
                    for group, each in zip(groups, quality, strict=True)
                ]
        if not found:
            raise ValueError(
                f"The comparison has {len(self.coverage)} questions with a coverage and a value "
                f"for each way; a calibration takes {FEW} at least whose passages all fit into the "
                "prompt, or do not: ask more, with references, of ways that retrieve."
            )
        return found

    def _quality(
        self, groups: Sequence[Group], reference: str, sign: float, *, share: bool
    ) -> list[dict[str, float]]:
        """For each group: what the reference reaches, never less with more coverage, and by how
        much the other modes differ from it."""
        least, most = (0.0, 1.0) if share else (-np.inf, np.inf)
        base = self.values[reference]
        centre = float(base[np.concatenate(groups)].mean())
        level = rising(drawn(base, groups, centre), [len(group) for group in groups])
        more = {mode: differing(column - base, groups) for mode, column in self.values.items()}
        return [
            {mode: sign * min(max(level[i] + more[mode][i], least), most) for mode in self.values}
            for i in range(len(groups))
        ]

    def _seconds(self, *, fits: bool) -> dict[str, float]:
        own = self.fits == fits
        return {mode: _median(column[own]) for mode, column in self.seconds.items()}


def _median(values: Floats) -> float:
    known = values[~np.isnan(values)]
    return float(np.median(known)) if len(known) else 0.0
