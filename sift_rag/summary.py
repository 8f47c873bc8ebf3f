"""Comparison -> plain data: all that a report shows, in one dict that JSON can hold."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sift_rag.cases import STAGES, TOKENS, Case, Reply, Row

if TYPE_CHECKING:
    from sift_rag.comparison import Comparison
    from sift_rag.documents import Document
    from sift_rag.metrics import Metric

SCHEMA = 1
"""Of the dict; raised when a key changes its meaning or goes."""

_RESAMPLES = 2_000  # of a correlation's interval, whose ends are shown with two digits
_FEWEST = 5  # questions that a correlation is told of


def summary(comparison: Comparison) -> dict[str, Any]:
    """All that a report shows of a comparison, as plain data; no number in it is NaN or infinite.

    The keys: schema, verdict, main, baseline, metrics, ways, pairs, break_even, signals, failures,
    asked, unfinished, origins, questions, passages, settings. Shares are 0 to 1, times seconds,
    memory bytes. A passage that several ways used is there once, under its key.
    """
    passages = _Passages()
    asked = [
        (case, rows)
        for case in comparison.cases
        if (rows := [row for way in comparison.ways if (row := comparison.row(case.id, way))])
    ]
    pairs = {
        metric.name: _pairs(comparison, metric.name)
        for metric in comparison.metrics
        if metric.quality
    }
    measured = {metric.name: _measured(comparison, metric, pairs) for metric in comparison.metrics}
    found = {
        "schema": SCHEMA,
        "verdict": asdict(comparison.verdict()),
        "main": comparison.main and comparison.main.name,
        "baseline": comparison.baseline,
        "metrics": [_metric(metric) for metric in comparison.metrics],
        "ways": [_way(comparison, way, measured) for way in comparison.ways],
        "pairs": pairs,
        "break_even": [asdict(found) for found in comparison.break_even()],
        "signals": _signals(comparison),
        "asked": len(asked),
        "unfinished": comparison.unfinished + len(comparison.cases) - len(asked),
        "origins": _counts(case.origin for case, _ in asked),
        "questions": [_question(comparison, case, rows, passages) for case, rows in asked],
        "passages": passages.found,
        "settings": comparison.settings,
    }
    plain: dict[str, Any] = _plain(found)
    return plain


def _pairs(comparison: Comparison, metric: str) -> list[dict[str, Any]]:
    """Those with the baseline first, as another way minus the baseline; then the others."""
    baseline = comparison.baseline
    found = [pair.swapped() if pair.b == baseline else pair for pair in comparison.pairs(metric)]
    found.sort(key=lambda pair: pair.a != baseline)
    return [asdict(pair) | {"shown": pair.shown} for pair in found]


def _metric(metric: Metric) -> dict[str, Any]:
    names = ("name", "title", "unit", "binary", "higher_is_better", "quality", "about")
    return {name: getattr(metric, name) for name in names}


def _way(comparison: Comparison, way: str, measured: Mapping[str, Any]) -> dict[str, Any]:
    rows = [row for row in comparison.rows if row.way == way]
    return {
        "name": way,
        "asked": len(rows),
        "failed": _counts(row.error for row in rows if row.error),
        "unmeasured": _counts(f"{m}: {e}" for row in rows for m, e in row.unmeasured.items()),
        "metrics": {metric: ways[way] for metric, ways in measured.items()},
        "seconds": {stage: _spread(comparison.seconds(way, stage)) for stage in STAGES},
        "tokens": {kind: _spread(comparison.tokens(way, kind)) for kind in TOKENS},
        "memory": _spread(comparison.memory(way)),
        "flops": _spread(comparison.flops(way)),
        "money": _spread(comparison.money(way)),
    }


def _measured(
    comparison: Comparison, metric: Metric, pairs: Mapping[str, list[dict[str, Any]]]
) -> dict[str, dict[str, Any]]:
    """Of each way the mean, its interval, and how it stands to the best one."""
    found: dict[str, dict[str, Any]] = {}
    for way in comparison.ways:
        values = comparison.values(metric.name, way)
        known = values[np.isfinite(values)]
        low, high = comparison.interval(metric.name, way) if len(known) else (None, None)
        mean = known.mean() if len(known) else None
        found[way] = {"mean": mean, "low": low, "high": high, "n": len(known), "standing": None}
    for way, standing in _standings(found, metric, pairs.get(metric.name, [])):
        found[way]["standing"] = standing
    return found


def _standings(
    measured: Mapping[str, dict[str, Any]], metric: Metric, pairs: list[dict[str, Any]]
) -> Iterator[tuple[str, str]]:
    """The ways with the best mean ("best"), and those not shown to differ from it ("level")."""
    sign = 1 if metric.higher_is_better else -1
    known = {way: sign * one["mean"] for way, one in measured.items() if one["mean"] is not None}
    if not pairs or len(known) < 2:
        return
    best = max(known, key=lambda way: known[way])
    for way, mean in known.items():
        pair = next((pair for pair in pairs if {pair["a"], pair["b"]} == {way, best}), None)
        if mean == known[best]:
            yield way, "best"
        elif pair and pair["n"] and not pair["shown"]:
            yield way, "level"


def _spread(values: NDArray[np.float64]) -> dict[str, Any] | None:
    known = values[np.isfinite(values)]
    if not len(known):
        return None
    p50, p95 = np.percentile(known, [50, 95])
    return {"n": len(known), "mean": known.mean(), "p50": p50, "p95": p95}


def _counts(values: Iterable[str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for value in values:
        found[value] = found.get(value, 0) + 1
    return found


def _question(
    comparison: Comparison, case: Case, rows: list[Row], passages: _Passages
) -> dict[str, Any]:
    names = ("id", "question", "references", "gold", "origin", "metadata")
    failed = {metric.name: metric.failed for metric in comparison.metrics}
    return {
        **{name: getattr(case, name) for name in names},
        "replies": {row.way: _reply(row, passages, failed) for row in rows},
    }


def _reply(row: Row, passages: _Passages, failed: Mapping[str, Any]) -> dict[str, Any]:
    reply = Reply(text="") if row.reply is None else row.reply
    names = ("seconds", "tokens", "nats", "coverage", "uncertainty", "memory", "flops", "note")
    documents = reply.documents
    return {
        "text": None if row.reply is None else reply.text,
        "error": row.error,
        "unmeasured": dict(row.unmeasured),
        "values": failed if row.error else row.values,
        "passages": None if documents is None else [passages.key(each) for each in documents],
        **{name: getattr(reply, name) for name in names},
    }


class _Passages:
    """Each passage once, by a key: its id, with a number behind it where texts share an id."""

    def __init__(self) -> None:
        self.found: dict[str, dict[str, Any]] = {}

    def key(self, document: Document) -> str:
        key, number = document.id, 1
        while (there := self.found.get(key)) and there["text"] != document.text:
            number += 1
            key = f"{document.id}~{number}"
        names = ("id", "text", "metadata")
        self.found[key] = {name: getattr(document, name) for name in names}
        return key


def _signals(comparison: Comparison) -> list[dict[str, Any]]:
    """For each way: does what the selection left open tell how much the passages helped?

    The gain of the way over the closed book (else over the baseline) in the main metric, question
    by question, better being positive, against the reply's uncertainty, else its coverage. With
    Spearman's correlation and its 95 % bootstrap interval.
    """
    main = comparison.main
    if main is None:
        return []
    over = next((way for way in comparison.ways if _closed(comparison, way)), comparison.baseline)
    sign = 1 if main.higher_is_better else -1
    found = []
    for way in comparison.ways:
        gains = sign * (comparison.values(main.name, way) - comparison.values(main.name, over))
        for name in ("uncertainty", "coverage") if way != over else ():
            told = _told(comparison, way, name)
            known = np.isfinite(gains) & np.isfinite(told)
            if known.sum() >= _FEWEST and np.ptp(told[known]) > 0:
                points = np.column_stack([told[known], gains[known]])
                numbers = _correlation(*points.T)
                found.append({"way": way, "over": over, "told": name, **numbers, "points": points})
                break
    return found


def _closed(comparison: Comparison, way: str) -> bool:
    settings = comparison.settings.get("ways", {}).get(way) or {}
    return "closed_book" in (way, settings.get("mode"))


def _told(comparison: Comparison, way: str, name: str) -> NDArray[np.float64]:
    rows = [comparison.row(case.id, way) for case in comparison.cases]
    values = [getattr(row.reply, name) if row and row.reply else None for row in rows]
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def _correlation(x: NDArray[np.float64], y: NDArray[np.float64]) -> dict[str, Any]:
    """Spearman's, with equal values sharing a rank; None where nothing varies."""
    ranks = np.stack([_ranks(x), _ranks(y)])  # (2, n)
    picked = np.random.default_rng(0).integers(len(x), size=(_RESAMPLES, len(x)))
    # Where nothing varies among those that were drawn, they show no correlation.
    low, high = np.percentile([_pearson(*ranks[:, row]) or 0.0 for row in picked], [2.5, 97.5])
    return {"n": len(x), "correlation": _pearson(*ranks), "low": low, "high": high}


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((count.cumsum() - (count - 1) / 2)[place])


def _pearson(x: NDArray[np.float64], y: NDArray[np.float64]) -> float | None:
    x, y = x - x.mean(), y - y.mean()
    scale = math.sqrt(float(x @ x) * float(y @ y))
    return float(x @ y) / scale if scale else None


def _plain(value: Any) -> Any:
    """What JSON can hold: no numpy, no NaN; what is neither number, text nor container as text."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(each) for each in value]
    return str(value)
