"""What a comparison looks like: SVG drawings of the figures in a summary, nothing to load."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from sift_rag import quantities
from sift_rag.drawing import (
    MARKS,
    Box,
    Label,
    Scale,
    labels,
    linear,
    logarithmic,
    mark,
    name,
    picture,
    tag,
    text,
    thinned,
)

Summary = Mapping[str, Any]

_HEIGHT = 300
_HEAD = 24  # room over the highest point, for its name
_PANEL = 170
_CHANGES = {-1.0: "broke", 0.0: "same", 1.0: "fixed"}
_MOST = 400  # dots in a panel
_BINS = 4


def quality(summary: Summary) -> str:
    """Quality against latency: the main metric with its interval over p50, a line on to p95.

    Empty where no metric tells quality or no way has both figures.
    """
    main = next((one for one in summary["metrics"] if one["name"] == summary["main"]), None)
    found = _points(summary) if main else []
    if not main or not found:
        return ""
    x = logarithmic([end for point in found for end in (point["p50"], point["p95"])])
    y = linear([end for point in found for end in (point["low"], point["high"])])
    drawn = [_levels(y, _down, lambda value: quantities.tick(value, main["unit"])), _times(x)]
    drawn += [_cross(point, x, y) for point in found]
    drawn += [
        mark(point["number"], x.at(point["p50"]), f"{_down(y, point['mean']):.1f}")
        for point in found
    ]
    drawn += [*_names(found, x, y), _axes(main)]
    told = "; ".join(_told(point, main["unit"]) for point in found)
    title = f"{name(main['title'])} against seconds a question".capitalize()
    return picture(title, told, *drawn, height=_HEIGHT, class_="plot")


def _told(point: Mapping[str, Any], unit: str) -> str:
    mean, took = quantities.amount(point["mean"], unit), quantities.seconds(point["p50"])
    return f"{point['name']}: {mean} ({quantities.span(point['low'], point['high'], unit)}), {took}"


def _axes(metric: Mapping[str, Any]) -> str:
    better = "higher" if metric["higher_is_better"] else "lower"
    upright = text(f"{_short(metric)} ({better} is better)", x=-44, y=-4, class_="axis")
    across = text("seconds a question, p50 to p95", x="100%", y=_HEIGHT + 38, class_="axis end")
    return upright + across


def _short(metric: Mapping[str, Any]) -> str:
    unit = "%" if metric["unit"] == "share" else metric["unit"]
    return name(metric["title"]) + (f", {name(unit)}" if unit not in ("", metric["title"]) else "")


def _points(summary: Summary) -> list[dict[str, Any]]:
    """Of each way that has both: its number and name, mean, low, high, p50, p95."""
    found = []
    for number, way in enumerate(summary["ways"]):
        measured, total = way["metrics"][summary["main"]], way["seconds"]["total"]
        if measured["mean"] is not None and total and total["p50"] > 0:
            ends = {
                key: measured["mean"] if measured[key] is None else measured[key]
                for key in ("low", "high")
            }
            found.append(
                {"number": number, "name": name(way["name"]), "mean": measured["mean"]}
                | ends
                | {"p50": total["p50"], "p95": max(total["p95"], total["p50"])}
            )
    return found


def _down(y: Scale, value: float) -> float:
    return _HEAD + (_HEIGHT - _HEAD) * (1 - y(value))


def _levels(y: Scale, place: Callable[[Scale, float], float], write: Callable[[float], str]) -> str:
    """A line across at each tick, and what it stands for."""
    return "".join(
        tag("line", x1=0, x2="100%", y1=f"{down:.1f}", y2=f"{down:.1f}", class_="grid")
        + text(write(value), x=-8, y=f"{down + 4:.1f}", class_="end")
        for value, down in ((value, place(y, value)) for value in y.ticks)
    )


def _times(x: Scale) -> str:
    return "".join(
        tag("line", x1=x.at(value), x2=x.at(value), y1=0, y2=_HEIGHT, class_="grid")
        + text(quantities.seconds(value), x=x.at(value), y=_HEIGHT + 18, class_="mid")
        for value in x.ticks
    )


def _cross(point: Mapping[str, Any], x: Scale, y: Scale) -> str:
    """The interval of the mean upright, from p50 to p95 across."""
    across, middle = x.at(point["p50"]), f"{_down(y, point['mean']):.1f}"
    low, high = (f"{_down(y, point[end]):.1f}" for end in ("low", "high"))
    class_ = f"line{point['number'] % len(MARKS)}"
    upright = tag("line", x1=across, x2=across, y1=low, y2=high, class_=class_)
    late = tag("line", x1=across, x2=x.at(point["p95"]), y1=middle, y2=middle, class_=class_)
    return upright + late


def _names(points: Sequence[Mapping[str, Any]], x: Scale, y: Scale) -> list[str]:
    places = [(x(point["p50"]), _down(y, point["mean"])) for point in points]
    lines: list[Box] = []
    for point, (across, down) in zip(points, places, strict=True):
        low, high = _down(y, point["low"]), _down(y, point["high"])
        lines += [
            (across - 0.01, high, across + 0.01, low),
            (across, down - 2, x(point["p95"]), down + 2),
        ]
    words = [point["name"] for point in points]
    sides = labels(places, words, height=_HEIGHT, avoid=lines)
    return [
        _named(said, x.at(point["p50"]), place[1], side)
        for said, point, place, side in zip(words, points, places, sides, strict=True)
    ]


def _named(words: str, across: str, down: float, side: Label) -> str:
    leader = ""
    if abs(side.y - 4) > 20:  # far from its point: a line leads there
        leader = tag("line", x1=0, y1=0, x2=side.x * 0.8, y2=side.y - 4, class_="leader")
    said = text(words, x=side.x, y=side.y, text_anchor=side.anchor, class_="name")
    return tag("svg", leader, said, x=across, y=f"{down:.1f}", overflow="visible")


def gain(signal: Mapping[str, Any], number: int, metric: Mapping[str, Any]) -> str:
    """How much a way gained against what its selection left open, a dot for each question.

    Args:
        signal: One of the summary's.
        number: Of the way.
        metric: The main one.
    """
    points = [(float(across), float(gained)) for across, gained in signal["points"]]
    binary = metric["binary"]
    x = linear([across for across, _ in points], at_most=4)
    y = linear([-1.0, 1.0], at_most=2) if binary else linear([0.0, *(g for _, g in points)])
    words = _CHANGES if binary else {}
    levels = _levels(y, _low, lambda at: words.get(at) or quantities.tick(at, metric["unit"]))
    title = f"Gain of {name(signal['way'])} over {name(signal['over'])} against {signal['told']}"
    told = f"{correlation(signal)}. The line is the mean gain of each quarter of the questions."
    dots = tag("g", _dots(points, x, y, spread=binary), class_=f"dots way{number % len(MARKS)}")
    drawn = (levels, _shares(x, signal["told"]), dots, _means(points, x, y))
    return picture(title, told, *drawn, height=_PANEL, class_="plot")


def _shares(x: Scale, told: str) -> str:
    numbers = (
        text(quantities.tick(value, "share"), x=x.at(value), y=_PANEL + 22, class_="mid")
        for value in x.ticks
    )
    return "".join(numbers) + text(f"{told}, %", x="100%", y=_PANEL + 42, class_="axis end")


def _dots(points: Sequence[tuple[float, float]], x: Scale, y: Scale, *, spread: bool) -> str:
    """Of equal values, dots are spread about their level: to the same places each time."""
    return "".join(
        tag(
            "circle",
            cx=x.at(across),
            cy=f"{_low(y, gained) + spread * 24 * (i * 0.618 % 1 - 0.5):.1f}",
            r=3.5,
        )
        for i, (across, gained) in enumerate(thinned(points, _MOST))
    )


def correlation(signal: Mapping[str, Any]) -> str:
    """Spearman's correlation of a signal in words."""
    if signal["correlation"] is None:
        return f"The gain is the same for all {signal['n']} questions"
    value, low, high = (
        f"{signal[key]:.2f}".replace("-", "\u2212") for key in ("correlation", "low", "high")
    )
    return f"Rank correlation {value} (95 % interval {low} to {high}), {signal['n']} questions"


def _low(y: Scale, value: float) -> float:
    return _PANEL * (1 - y(value))


def _means(points: Sequence[tuple[float, float]], x: Scale, y: Scale) -> str:
    quarters = np.array_split(np.array(sorted(points)), _BINS)
    means = [quarter.mean(axis=0) for quarter in quarters if len(quarter)]
    lines = "".join(
        tag(
            "line",
            x1=x.at(a[0]),
            x2=x.at(b[0]),
            y1=f"{_low(y, a[1]):.1f}",
            y2=f"{_low(y, b[1]):.1f}",
            class_="mean",
        )
        for a, b in pairwise(means)
    )
    return lines + "".join(
        tag("circle", cx=x.at(a), cy=f"{_low(y, b):.1f}", r=4, class_="mean") for a, b in means
    )


def bar(title: str, parts: Mapping[str, float], full: float, *, late: float | None = None) -> str:
    """One bar of parts that add up, beside others with the same `full` length.

    Args:
        title: What and of which way.
        parts: By kind, in their order; the kinds are classes of the page, "part-" before them.
        full: What the whole width stands for.
        late: Where a whisker ends, such as p95.
    """
    drawn, start = [], 0.0
    for kind, value in parts.items():
        share = value / full if full else 0.0
        drawn.append(
            tag(
                "rect",
                x=f"{100 * start:.2f}%",
                y=4,
                width=f"{100 * share:.2f}%",
                height=18,
                class_=f"part-{kind}",
            )
        )
        start += share
    if late is not None and full:
        end = f"{100 * late / full:.2f}%"
        drawn.append(tag("line", x1=f"{100 * start:.2f}%", x2=end, y1=13, y2=13, class_="late"))
        drawn.append(tag("line", x1=end, x2=end, y1=7, y2=19, class_="late"))
    told = ", ".join(f"{kind} {quantities.figure(value)}" for kind, value in parts.items())
    return picture(title, told or "not known", *drawn, height=26, class_="bar")


def forest(pairs: Sequence[Mapping[str, Any]]) -> Scale | None:
    """The scale that holds the intervals of all pairs, and no difference."""
    ends = [pair[key] for pair in pairs for key in ("low", "high", "difference")]
    known = [end for end in ends if end is not None]
    return linear([*known, 0.0], at_most=4) if known else None


def difference(pair: Mapping[str, Any], scale: Scale, unit: str) -> str:
    """One row of a forest plot: the difference and its interval; hollow where none is shown."""
    lines = "".join(
        tag("line", x1=scale.at(value), x2=scale.at(value), y1=0, y2="100%", class_=kind)
        for value in scale.ticks
        for kind in (("zero",) if value == 0 else ("grid",))
    )
    if pair["difference"] is None:
        return picture("No pair", "No question has both values.", lines, height=36, class_="forest")
    low, high = (pair["difference"] if pair[key] is None else pair[key] for key in ("low", "high"))
    kind = "shown" if pair["shown"] else "open"
    drawn = tag("line", x1=scale.at(low), x2=scale.at(high), y1="50%", y2="50%", class_=kind)
    drawn += tag("circle", cx=scale.at(pair["difference"]), cy="50%", r=5, class_=kind)
    title = f"{name(pair['b'])} minus {name(pair['a'])}"
    told = (
        f"{quantities.change(pair['difference'], unit)}, 95 % interval "
        f"{quantities.span(low, high, unit)}"
    )
    return picture(title, told, lines, drawn, height=36, class_="forest")


def axis(scale: Scale, unit: str) -> str:
    """The numbers over the rows of a forest plot."""
    numbers = "".join(
        text(quantities.tick(value, unit), x=scale.at(value), y=14, class_="mid")
        for value in scale.ticks
    )
    told = f"From {quantities.tick(scale.low, unit)} to {quantities.tick(scale.high, unit)}"
    return picture("Scale of the differences", told, numbers, height=18, class_="forest")
