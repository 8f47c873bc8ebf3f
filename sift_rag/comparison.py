"""What came of the same questions through several ways, and what can be said of it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sift_rag import metrics as measures
from sift_rag import runs
from sift_rag.break_even import BreakEven, break_even
from sift_rag.cases import Case, Reply, Row
from sift_rag.costs import Prices
from sift_rag.metrics import Metric
from sift_rag.paired import Paired, compare_pairs, interval
from sift_rag.sizes import ModelSize
from sift_rag.verdict import Verdict, verdict

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
        settings: Of the run, plain data for JSON: ways, seed, versions, machine, command, ...
        unfinished: Questions that were not asked of every way, as the run was ended before.
    """

    cases: tuple[Case, ...]
    ways: tuple[str, ...]
    metrics: tuple[Metric, ...]
    rows: tuple[Row, ...]
    baseline: str
    settings: Mapping[str, Any]
    unfinished: int = 0

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Comparison:
        """Read a run file, whether or not the run was ended early.

        Raises:
            RunFileError: It is no run file, or damaged.
            OSError: It cannot be read.
        """
        return cls.of(runs.read(path))

    @classmethod
    def of(cls, log: runs.Log) -> Comparison:
        """Of the questions that every way was asked."""
        settings = dict(log.header["settings"])
        ways = tuple(settings["ways"])
        asked = [
            case for case in log.cases.values() if all((case.id, way) in log.rows for way in ways)
        ]
        return cls(
            cases=tuple(asked),
            ways=ways,
            metrics=tuple(measures.described(record) for record in log.metrics),
            rows=tuple(log.rows[case.id, way] for case in asked for way in ways),
            baseline=log.header["baseline"],
            settings=settings,
            unfinished=log.header["cases"] - len(asked),
        )

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

    @property
    def size(self) -> ModelSize | None:
        """The size of the model that answered, where it is known."""
        size = self.settings.get("size")
        return ModelSize(*size) if size else None

    @property
    def prices(self) -> Prices | None:
        """What tokens and time cost, where that was said."""
        prices = self.settings.get("prices")
        return Prices(**prices) if prices else None

    def money(self, way: str) -> Values:
        """(n,) money by the price table; NaN where there is none, or nothing to count."""
        prices = self.prices
        return self._replies(way, lambda reply: prices.of(reply) if prices else None)

    def interval(self, metric: str, way: str) -> tuple[float, float]:
        """95 % interval of the mean of a metric."""
        found = self.metric(metric)
        return interval(self.values(metric, way), binary=found.binary, seed=self._seed)

    def pairs(self, metric: str | None = None) -> tuple[Paired, ...]:
        """Each pair of ways in a metric, by default in the main one; without one, none."""
        name = metric or (self.main.name if self.main else None)
        if name is None:
            return ()
        if name not in self._pairs:
            values = {way: self.values(name, way) for way in self.ways}
            self._pairs[name] = compare_pairs(self.metric(name), values, seed=self._seed)
        return self._pairs[name]

    def verdict(self) -> Verdict:
        """What the numbers say, in words."""
        return verdict(self)

    def break_even(self) -> tuple[BreakEven, ...]:
        """From where on training takes less time than stuffing, for each pair of such ways."""
        return break_even(self, size=self.size)

    @cached_property
    def _pairs(self) -> dict[str, tuple[Paired, ...]]:
        return {}

    @property
    def _seed(self) -> int:
        return int(self.settings.get("seed", 0))

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
