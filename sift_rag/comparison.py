"""The same questions through several ways: run them, keep each row, say what differs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sift_rag.cases import Case, Reply, Row
from sift_rag.metrics import Metric

Values = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Comparison:
    """Questions, ways, and what came of each; `sift_rag.report` shows it.

    Attributes:
        cases: The questions that were asked, in their order.
        ways: The ways' names, in the order given.
        metrics: What the rows were measured by; the first one that tells quality is the main one.
        rows: One for each case and way, in the order of cases, then ways. Where a run was ended
            early, the last cases are missing as a whole.
        baseline: The way that the others are held against.
        settings: Of the run, plain data for JSON: see `runs.header`.
    """

    cases: tuple[Case, ...]
    ways: tuple[str, ...]
    metrics: tuple[Metric, ...]
    rows: tuple[Row, ...]
    baseline: str
    settings: Mapping[str, Any]

    @cached_property
    def _by_key(self) -> dict[tuple[str, str], Row]:
        return {(row.case, row.way): row for row in self.rows}

    @property
    def main(self) -> Metric | None:
        """The metric that the verdict is about: the first that tells quality, if any does."""
        return next((metric for metric in self.metrics if metric.quality), None)

    def metric(self, name: str) -> Metric:
        """The metric of that name.

        Raises:
            ValueError: There is none.
        """
        for metric in self.metrics:
            if metric.name == name:
                return metric
        names = ", ".join(metric.name for metric in self.metrics) or "none"
        raise ValueError(f"There is no metric {name!r} in this comparison; there are: {names}.")

    def row(self, case: str, way: str) -> Row | None:
        """What came of a case (its id) through a way; None where it was not run."""
        return self._by_key.get((case, way))

    def values(self, metric: str, way: str) -> Values:
        """(n,) values of a metric in the order of cases; NaN where there is none.

        A reply that failed has the metric's `failed` value.
        """
        failed = self.metric(metric).failed

        def value(row: Row) -> float | None:
            return failed if row.error else row.values.get(metric)

        return self._column(way, value)

    def seconds(self, way: str, stage: str = "total") -> Values:
        """(n,) seconds of a stage (see `cases.STAGES`); NaN where not known."""
        return self._replies(way, lambda reply: reply.seconds.get(stage))

    def tokens(self, way: str, kind: str) -> Values:
        """(n,) tokens of a kind (see `cases.TOKENS`); NaN where not known."""
        return self._replies(way, lambda reply: reply.tokens.get(kind))

    def memory(self, way: str) -> Values:
        """(n,) bytes by which the process grew; NaN where not known."""
        return self._replies(way, lambda reply: reply.memory)

    def flops(self, way: str) -> Values:
        """(n,) floating-point operations, estimated; NaN where not known."""
        return self._replies(way, lambda reply: reply.flops)

    def errors(self, way: str) -> list[Row]:
        """The rows of a way that failed."""
        return [row for row in self.rows if row.way == way and row.error]

    def _replies(self, way: str, get: Callable[[Reply], float | None]) -> Values:
        return self._column(way, lambda row: get(row.reply) if row.reply else None)

    def _column(self, way: str, get: Callable[[Row], float | None]) -> Values:
        if way not in self.ways:
            raise ValueError(
                f"There is no way {way!r} in this comparison; there are: {', '.join(self.ways)}."
            )
        rows = (self.row(case.id, way) for case in self.cases)
        found = (None if row is None else get(row) for row in rows)
        return np.array([np.nan if value is None else value for value in found], dtype=np.float64)
