"""The picture of `retrieval.py`, drawn from the same numbers by the same command."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from retrieval_measures import Level
from retrieval_metrics import mean
from retrieval_selectors import DEFAULT, MMR, NEAREST, PAPER

INK, GRID = "#333333", "#e4e4e4"
STYLES = {  # colours that the colour-blind tell apart (Okabe and Ito), and a marker each
    DEFAULT: ("#d55e00", "o"),
    "pyversity dpp": ("#009e73", "D"),
    MMR: ("#0072b2", "^"),
    NEAREST: ("#444444", "s"),
    PAPER: ("#cc79a7", "v"),
}
SETTINGS: Any = {  # matplotlib types the keys one by one
    # Text as paths, so that it looks the same everywhere; no dates and random names inside.
    "svg.fonttype": "path",
    "svg.hashsalt": "retrieval",
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def draw(levels: Sequence[Level], path: Path) -> None:
    """Gold found against tokens on the clean corpus and on the most redundant one, side by side."""
    with mpl.rc_context(SETTINGS):
        figure = Figure(figsize=(9.5, 4.2), facecolor="white", layout="constrained")
        left, right = figure.subplots(1, 2, sharex=True, sharey=True)
        _panel(left, levels[0], "Clean: each paragraph once")
        _panel(right, levels[-1], "80 % of all passages are near copies")
        left.set_ylabel("share of the facts needed that were found")
        left.legend(frameon=False, loc="lower right")
        path.parent.mkdir(exist_ok=True)
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def _panel(axes: Axes, level: Level, title: str) -> None:
    for family in (name for name in STYLES if any(s.family == name for s in level.selectors)):
        selector = level.best(family)
        told, tokens = level.curve(selector), level.spread(selector)[2].cumsum(axis=1)
        picks = range(told.shape[1])
        colour, marker = STYLES[family]
        bold = family == DEFAULT
        axes.plot(
            [mean(tokens[:, t], level.sets) for t in picks],
            [mean(told[:, t], level.sets) for t in picks],
            color=colour,
            marker=marker,
            markersize=5 if bold else 3.5,
            linewidth=2.8 if bold else 1.3,
            zorder=3 if bold else 2,
            label=_label(selector.family, selector.setting),
        )
    axes.set_title(title, fontsize=11)
    axes.set_xlabel("tokens of the first 1 to 16 picks")
    axes.grid(color=GRID)


def _label(family: str, setting: float | None) -> str:
    return family if setting is None else f"{family}, best setting in hindsight"
