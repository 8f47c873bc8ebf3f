"""A selection as a picture: its gain curve, and a map of picked, dropped and rest (matplotlib).

matplotlib is loaded when a picture is drawn; its state (pyplot, settings, backend) is not touched.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from unicodedata import east_asian_width

import numpy as np
from numpy.typing import NDArray

from sift_rag.explaining import Explanation, Texts, explain, row_numbers, shorten
from sift_rag.kernels import Floats, linear

if TYPE_CHECKING:
    from matplotlib.axes import Axes as Axes
    from matplotlib.figure import Figure as Figure

    from sift_rag.selection import Context, Selection

# Okabe and Ito's colours, which the colour-blind tell apart; each also has a shape of its own.
_PICKED, _DROPPED, _REST, _QUERY = "#0072B2", "#D55E00", "#B0B0B0", "#000000"
_ON_MAP = 500  # candidates, the nearest: more would be a cloud
_LISTED = 8  # texts below each half
_CHARACTERS = 80  # of them
_APART = 15.0  # points between the centres of two markers


def plot(selection: Selection, ax: Sequence[Axes] | None, texts: Texts | None) -> Figure:
    """See `Selection.plot`, which documents it."""
    figure, curve, chart = _axes(ax)
    explanation = explain(selection, texts)
    _draw_curve(curve, explanation)
    _draw_map(chart, _map(selection.context, explanation, _points(chart)))
    if texts is not None:
        clean = _cleaner()
        picks = [f"{row.rank}:  {clean(row.text)}" for row in explanation.picks]
        dropped = [
            f"{row.redundancy:.2f} like {row.like}:  {clean(row.text)}"
            for row in explanation.dropped
        ]
        _list(curve, "Picks", picks)
        _list(chart, "Dropped", dropped)
    return figure


def _axes(ax: Sequence[Axes] | None) -> tuple[Figure, Axes, Axes]:
    try:
        from matplotlib.axes import Axes
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine
    except ImportError as error:
        raise ImportError(
            'Plotting needs matplotlib, which is not installed: pip install "sift-rag-ttt[plot]"'
        ) from error
    if ax is None:
        engine = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.08)
        figure = Figure(figsize=(12, 5.6), layout=engine)
        curve, chart = figure.subplots(1, 2)
        return figure, curve, chart
    given: list[Any] = list(np.ravel(np.asarray(ax, dtype=object)))
    if len(given) != 2 or not all(isinstance(each, Axes) for each in given):
        raise ValueError(
            f"ax is {ax!r}; it must be two matplotlib axes, as `plt.subplots(1, 2)[1]` gives them: "
            "one for the gain curve, one for the map"
        )
    return given[0].figure, given[0], given[1]


def _draw_curve(ax: Axes, explanation: Explanation) -> None:
    """Gains as bars, what is left as a line, both as shares of what there was."""
    from matplotlib.ticker import MaxNLocator

    ranks = [row.rank for row in explanation.picks]
    ax.bar(ranks, [row.share for row in explanation.picks], color=_PICKED, label="gain of the pick")
    left = [1.0, *(row.share_left for row in explanation.picks)]
    ax.plot([0, *ranks], left, color=_QUERY, marker="o", markersize=4, label="left after it")
    ax.set_title("Uncertainty about the question", pad=26)
    ax.set_xlabel("pick")
    ax.set_ylim(bottom=0)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    ax.spines[["top", "right"]].set_visible(False)
    _legend(ax)


@dataclass(frozen=True, slots=True)
class _Map:
    """Where things are: (count, 2) each, in points of the page."""

    picks: Floats
    labels: list[str]
    dropped: Floats
    twins: list[int | None]  # number of the pick that a dropped one repeats
    rest: Floats
    queries: Floats
    shown: float  # share of the candidates' variance that is in two dimensions


def _map(context: Context, explanation: Explanation, size: Floats) -> _Map:
    """Project everything, then move markers that would cover each other a little apart."""
    times = Counter(row.index for row in explanation.picks)  # a repeated pick is one marker
    first = {row.index: row.rank for row in reversed(explanation.picks)}
    indices = list(times) + [row.index for row in explanation.dropped]
    marked = row_numbers(context, np.array(indices, dtype=np.int64))
    relevance = linear(context.queries, context.rows).max(axis=0)  # (n,)
    rest = np.setdiff1d(np.argsort(-relevance, kind="stable")[:_ON_MAP], marked)
    rows = context.rows[np.concatenate([marked, rest])].astype(np.float64)
    places, shown = _projected(rows, context.queries)
    low, high = places.min(axis=0), places.max(axis=0)
    scale = float((size / np.maximum(high - low, 1e-9)).min())  # points to one unit of length
    places = (places - low) * scale
    queries, markers, others = np.split(places, [len(context.queries), len(places) - len(rest)])
    moved = _apart(np.concatenate([queries, markers]))[len(queries) :]
    numbers = {index: number for number, index in enumerate(times)}
    ranks = {row.rank: numbers[row.index] for row in explanation.picks}
    return _Map(
        picks=moved[: len(times)],
        labels=[f"{first[i]}" + f"\u00d7{count}" * (count > 1) for i, count in times.items()],
        dropped=moved[len(times) :],
        twins=[
            ranks[row.like] if row.reason == "redundant" else None for row in explanation.dropped
        ],
        rest=others,
        queries=queries,
        shown=shown,
    )


def _projected(rows: Floats, queries: NDArray[Any]) -> tuple[Floats, float]:
    """Queries, then rows, on the two directions in which the rows vary most."""
    centre = rows.mean(axis=0)
    _, lengths, axes = np.linalg.svd(rows - centre, full_matrices=False)
    axes = axes[:2] * np.where(axes[:2].sum(axis=1) < 0, -1.0, 1.0)[:, None]  # the same each time
    places: Floats = (np.concatenate([queries, rows]) - centre) @ axes.T
    places = np.pad(places, [(0, 0), (0, 2 - places.shape[1])])  # one row, or one dimension
    return places, float((lengths[:2] ** 2).sum() / max((lengths**2).sum(), 1e-30))


def _apart(places: Floats) -> Floats:
    """Push markers (count, 2) that cover each other apart, each as little as it takes."""
    places = places.copy()
    turns = 2.4 * np.arange(len(places))  # the golden angle: no two leave in one direction
    places += 1e-3 * np.stack([np.cos(turns), np.sin(turns)], axis=1)
    for _ in range(100):
        ways = places[:, None] - places[None]  # (count, count, 2)
        distances = np.linalg.norm(ways, axis=2)
        missing = np.maximum(_APART - distances, 0.0)
        np.fill_diagonal(missing, 0.0)
        if missing.max() < 0.5:
            break
        np.fill_diagonal(distances, 1.0)
        places += 0.4 * (ways * (missing / distances)[:, :, None]).sum(axis=1)
    return places


def _draw_map(ax: Axes, where: _Map) -> None:
    for place, twin in zip(where.dropped, where.twins, strict=True):
        if twin is not None:
            ax.plot(*zip(place, where.picks[twin], strict=True), color=_DROPPED, lw=1, zorder=2)
    marks: list[tuple[Floats, str, dict[str, Any]]] = [
        (where.picks, "picked", {"c": _PICKED, "s": 150, "zorder": 4}),
        (where.dropped, "dropped", {"c": _DROPPED, "s": 40, "marker": "D", "zorder": 3}),
        (where.rest, "rest", {"c": _REST, "s": 20, "zorder": 1}),
        (where.queries, "question", {"c": _QUERY, "s": 160, "marker": "*", "zorder": 5}),
    ]
    for places, label, look in marks:
        if len(places):
            ax.scatter(*places.T, label=label, linewidths=0.6, edgecolors="white", **look)
    for place, label in zip(where.picks, where.labels, strict=True):
        x, y = place.tolist()
        centred: dict[str, Any] = {"ha": "center", "va": "center", "zorder": 6}
        ax.text(x, y, label, color="white", size=7, weight="bold", **centred)
    ax.set_title(f"Candidates: two directions, {where.shown:.0%} of their variance", pad=26)
    ax.set_aspect("equal", adjustable="datalim")
    ax.margins(0.06)
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_color(_REST)
    _legend(ax)


def _legend(ax: Axes) -> None:
    """On one line between title and axes, where it covers nothing."""
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=4, frameon=False, fontsize=9)


def _points(ax: Axes) -> Floats:
    """Width and height of axes, (2,), in points: roughly, a layout may still move them."""
    return 0.85 * np.array(ax.get_window_extent().size) * 72.0 / ax.figure.dpi


def _list(ax: Axes, title: str, lines: list[str]) -> None:
    """Texts under axes; where there are none, that is said too."""
    more = [f"and {len(lines) - _LISTED} more"] if len(lines) > _LISTED else []
    text = "\n".join([title if lines else f"{title}: none", *lines[:_LISTED], *more])
    ax.set_xlabel(f"\n{text}", size=8, loc="left", parse_math=False)


def _cleaner() -> Callable[[str | None], str]:
    """A function that makes any text one short line that the font has: no boxes, no warnings."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    known = set[int]()
    for family in FontProperties().get_family():
        known.update(get_font(findfont(FontProperties(family=[family]))).get_charmap())

    def clean(text: str | None) -> str:
        text = text or ""
        wide = any(east_asian_width(c) in "WF" for c in text[:_CHARACTERS])
        line = shorten(text, _CHARACTERS // 2 if wide else _CHARACTERS)
        return "".join(c if ord(c) in known else "?" for c in line)

    return clean
