"""What stands in the tables of a report, whether it becomes HTML, Markdown or a terminal's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from sift_rag.cases import STAGES, TOKENS
from sift_rag.quantities import (
    MISSING,
    amount,
    change,
    figure,
    money,
    operations,
    probability,
    seconds,
    size,
    span,
)

Summary = Mapping[str, Any]
Spread: TypeAlias = "Mapping[str, float] | None"

STANDING = {"best": "best", "level": "\u2248 best"}
"""What stands beside a mean: the best one, and those that are not shown to differ from it."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell.

    Attributes:
        text: What it says.
        small: What stands below or behind, such as an interval.
        mark: A word of judgement, see `STANDING`.
        value: What the column is sorted by; None where that is the text, or nothing.
    """

    text: str
    small: str = ""
    mark: str = ""
    value: float | None = None


@dataclass(frozen=True, slots=True)
class Table:
    """Headings, and rows of as many cells; the first cell is the row's name."""

    headings: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]

    @classmethod
    def of(cls, headings: list[str], rows: list[list[Cell]]) -> Table:
        """Without the columns in which nothing is known."""
        kept = [
            i
            for i in range(len(headings))
            if i == 0 or any(row[i].value is not None for row in rows)
        ]
        return cls(
            tuple(headings[i] for i in kept), tuple(tuple(row[i] for i in kept) for row in rows)
        )


def ways(found: Summary) -> Table:
    """Ways by metrics, those that tell quality first, and the seconds of a question."""
    metrics = sorted(found["metrics"], key=lambda metric: not metric["quality"])
    rows = [
        [
            Cell(way["name"]),
            *(_measured(way["metrics"][metric["name"]], metric, found) for metric in metrics),
            _time(way["seconds"]["total"]),
            _failed(way),
        ]
        for way in found["ways"]
    ]
    titles = [heading(metric) for metric in metrics]
    return Table.of(["way", *titles, "time a question", "failed"], rows)


def heading(metric: Mapping[str, Any]) -> str:
    """A metric's title, and its unit where that is not told by the values or the title."""
    unit = metric["unit"]
    told = unit in ("share", "", metric["title"])
    return str(metric["title"]) if told else f"{metric['title']}, {unit}"


def _measured(measured: Mapping[str, Any], metric: Mapping[str, Any], found: Summary) -> Cell:
    if measured["mean"] is None:
        return Cell(MISSING)
    unit = metric["unit"]
    interval = "" if measured["low"] is None else span(measured["low"], measured["high"], unit)
    fewer = f", n = {measured['n']}" if measured["n"] < found["asked"] else ""
    mark = STANDING.get(measured["standing"] or "", "")
    shown = amount(measured["mean"], unit if unit == "share" else "")
    return Cell(shown, interval + fewer, mark, measured["mean"])


def _time(spread: Spread) -> Cell:
    """The median, and what 95 of 100 stay below."""
    if spread is None:
        return Cell(MISSING)
    return Cell(seconds(spread["p50"]), f"p95 {seconds(spread['p95'])}", value=spread["p50"])


def _failed(way: Mapping[str, Any]) -> Cell:
    number = sum(way["failed"].values())
    return Cell(str(number), f"of {way['asked']}", value=number or None)


def stages(found: Summary) -> Table:
    """Seconds by stage, p50 and p95."""
    rows = [
        [Cell(way["name"]), *(_time(way["seconds"][stage]) for stage in STAGES)]
        for way in found["ways"]
    ]
    return Table.of(["way", *STAGES], rows)


def costs(found: Summary) -> Table:
    """Tokens by kind, arithmetic, memory, money: the mean of a question."""
    currency = (found["settings"].get("prices") or {}).get("currency", "")
    rows = []
    for way in found["ways"]:
        tokens = (_mean(way["tokens"][kind], figure) for kind in TOKENS)
        paid = _mean(way["money"], lambda value: money(1000 * value, currency))
        others = _mean(way["flops"], operations), _mean(way["memory"], size, "p95"), paid
        rows.append([Cell(way["name"]), *tokens, *others])
    kinds = ["tokens in", "written", "trained on"]
    return Table.of(["way", *kinds, "arithmetic", "memory, p95", "money, 1,000 of them"], rows)


def _mean(spread: Spread, write: Callable[[float], str], key: str = "mean") -> Cell:
    return _known(None if spread is None else spread[key], write)


def pairs(pairs: Sequence[Mapping[str, Any]], metric: Mapping[str, Any]) -> Table:
    """Pairs of ways in a metric: what differs, how sure that is, and what could be seen."""
    unit = metric["unit"] if metric["unit"] == "share" else ""
    rows = [
        [
            Cell(f"{pair['b']} \u2212 {pair['a']}"),
            *(_difference(pair, unit) if pair["n"] else [Cell(MISSING)] * 4),
            Cell(reading(pair, metric), value=float(pair["shown"])),
        ]
        for pair in pairs
    ]
    heads = ["pair", "difference", "p (Holm)", "better:worse", "could have shown", "reading"]
    return Table(tuple(heads), tuple(map(tuple, rows)))


def against(found: Sequence[Mapping[str, Any]], metric: Mapping[str, Any]) -> Table:
    """Pairs that have their first way in common, in fewer words."""
    table = pairs(found, metric)
    rows = [
        (Cell(pair["b"]), *row[1:-1], Cell(_outcome(pair, metric)))
        for pair, row in zip(found, table.rows, strict=True)
    ]
    return Table(("way", *table.headings[1:-1], "it is"), tuple(rows))


def _outcome(pair: Mapping[str, Any], metric: Mapping[str, Any]) -> str:
    if not pair["shown"]:
        return "not shown" if pair["n"] else MISSING
    return "better" if (pair["difference"] > 0) == metric["higher_is_better"] else "worse"


def replies(found: Summary, question: Mapping[str, Any]) -> Table:
    """All that is known of the replies to one question."""
    metrics = found["metrics"]
    kinds = [f"tokens {kind}" for kind in TOKENS]
    rows = [[Cell(way), *_figures(reply, metrics)] for way, reply in question["replies"].items()]
    return Table.of(["way", *map(heading, metrics), "uncertainty left", *STAGES, *kinds], rows)


def _figures(reply: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]]) -> Iterator[Cell]:
    for metric in metrics:
        value, share = reply["values"].get(metric["name"]), metric["unit"] == "share"
        yield _known(value, _percent if share else figure)
    yield _known(reply["uncertainty"], _percent)
    yield from (_known(reply["seconds"].get(stage), seconds) for stage in STAGES)
    yield from (_known(reply["tokens"].get(kind), "{:,}".format) for kind in TOKENS)


def _percent(value: float) -> str:
    return amount(value, "share")


def _known(value: float | None, write: Callable[[float], str]) -> Cell:
    return Cell(MISSING) if value is None else Cell(write(value), value=value)


def _difference(pair: Mapping[str, Any], unit: str) -> Iterator[Cell]:
    interval = span(pair["low"], pair["high"], unit)
    yield Cell(change(pair["difference"], unit), interval, value=pair["difference"])
    yield Cell(probability(pair["p_holm"]), value=pair["p_holm"])
    yield Cell(f"{pair['better']}:{pair['worse']}", value=pair["better"] - pair["worse"])
    yield Cell(change(pair["smallest"], unit).lstrip("+"), value=pair["smallest"])


def reading(pair: Mapping[str, Any], metric: Mapping[str, Any]) -> str:
    """A pair in words."""
    if not pair["n"]:
        return "no question in common"
    if not pair["shown"]:
        return "no difference shown"
    risen = pair["difference"] > 0
    return f"{pair['b' if risen == metric['higher_is_better'] else 'a']} is better"


def settings(found: Summary) -> Iterator[tuple[str, str]]:
    """What is known of the run beside ways, machine, versions and command: name and value."""
    own = {"ways", "machine", "versions", "command", "warnings", "origins"}
    for key, value in found["settings"].items():
        if key == "size" and value:
            parameters, layers, width = value
            yield "model", f"{parameters:,} parameters, {layers} layers, {width:,} wide"
        elif key not in own and value not in (None, "", [], {}):
            yield key.replace("_", " "), told(value)


def told(value: Any) -> str:
    """Plain data in a line: "rank 16, alpha 32"."""
    if isinstance(value, Mapping):
        known = ((key.replace("_", " "), one) for key, one in value.items() if one is not None)
        return ", ".join(f"{key} {told(one)}" for key, one in known)
    if isinstance(value, list):
        return ", ".join(told(one) for one in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)
