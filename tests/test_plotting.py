"""The picture: its numbers are the explanation's, it draws headless, and nothing global moves."""

import subprocess
import sys
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from numpy.typing import NDArray

from sift_rag import plotting
from sift_rag.rivals import mmr, random
from sift_rag.selection import Context, Selection, sift

Floats = NDArray[np.float64]


def problem(seed: int, *, n: int = 50, d: int = 16, m: int = 1) -> tuple[Floats, Floats]:
    rng = np.random.default_rng(seed)
    rows = np.repeat(rng.normal(size=(n // 2 + 1, d)) + 0.7, 2, axis=0)[:n]
    return rng.normal(size=(m, d)) + 0.7, rows + 0.02 * rng.normal(size=(n, d))


def drawn(figure: Figure) -> bytes:
    png = BytesIO()
    figure.savefig(png, format="png", dpi=50)
    return png.getvalue()


def places(figure: Figure, label: str) -> Floats:
    for collection in figure.axes[1].collections:
        if collection.get_label() == label:
            return np.asarray(collection.get_offsets())
    return np.empty((0, 2))


def numbers(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.axes[1].texts]


@pytest.mark.parametrize("select", [sift, mmr, random])
@pytest.mark.parametrize("m", [1, 3])
def test_the_picture_shows_the_explanation(select: Any, m: int) -> None:
    selection = select(*problem(0, m=m), 8)
    explanation, figure = selection.explain(), selection.plot()
    curve = figure.axes[0]
    heights = [bar.get_height() for bar in curve.patches]
    assert heights == pytest.approx([row.share for row in explanation.picks])
    left = [row.share_left for row in explanation.picks]
    assert np.asarray(curve.lines[0].get_ydata()).tolist() == pytest.approx([1.0, *left])
    dropped = len(explanation.dropped)
    assert numbers(figure) == [str(row.rank) for row in explanation.picks]
    assert len(places(figure, "picked")) == 8
    assert len(places(figure, "dropped")) == dropped
    assert len(places(figure, "rest")) == 50 - 8 - dropped
    assert len(places(figure, "question")) == m
    assert drawn(figure).startswith(b"\x89PNG")


def test_a_line_leads_from_a_dropped_one_to_the_pick_that_it_repeats() -> None:
    selection = mmr(*problem(1), 8)
    redundant = [row for row in selection.explain().dropped if row.reason == "redundant"]
    figure = selection.plot()
    assert len(figure.axes[1].lines) == len(redundant) > 0
    picks = places(figure, "picked")
    for line, row in zip(figure.axes[1].lines, redundant, strict=True):
        assert np.asarray(line.get_xydata())[1] == pytest.approx(picks[row.like - 1])


def test_a_passage_that_was_dropped_for_another_reason_has_no_line() -> None:
    selection = random(*problem(1), 3)
    assert {row.reason for row in selection.explain().dropped} == {"other"}
    assert len(selection.plot().axes[1].lines) == 0


def test_of_two_dimensions_the_map_loses_nothing() -> None:
    rng = np.random.default_rng(0)
    selection = sift(rng.normal(size=2), rng.normal(size=(9, 2)), 1)
    figure, rows = selection.plot(), selection.context.rows
    rest = places(figure, "rest")
    others = np.delete(rows, selection.indices, axis=0)
    distances = np.linalg.norm(others[:, None] - others, axis=2)
    on_map = np.linalg.norm(rest[:, None] - rest, axis=2)
    assert on_map / on_map.max() == pytest.approx(distances / distances.max(), abs=1e-9)
    assert "100% of their variance" in figure.axes[1].get_title()


def test_markers_do_not_cover_each_other() -> None:
    for count in (2, 20, 80):
        moved = plotting._apart(np.zeros((count, 2)))
        distances = np.linalg.norm(moved[:, None] - moved, axis=2) + 99 * np.eye(count)
        assert distances.min() > 0.6 * plotting._APART
    apart = np.array([[0.0, 0.0], [0.0, 40.0]])
    assert plotting._apart(apart) == pytest.approx(apart, abs=0.01)


@pytest.mark.parametrize(
    ("query", "rows", "k"),
    [
        ([1.0, 0.0], [[1.0, 1.0]], 1),
        ([1.0], [[1.0], [-2.0], [3.0]], 2),
        ([1.0, 0.0], [[1.0, 0.5]] * 5, 3),
        ([[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, 1.0]], 2),
    ],
    ids=["one candidate", "one dimension", "all the same", "as many queries as candidates"],
)
def test_little_to_show_is_shown(query: Any, rows: Any, k: int) -> None:
    assert drawn(sift(query, rows, k).plot(texts=["a"] * len(rows)))


def test_a_repeated_pick_is_one_marker() -> None:
    selection = sift([1.0, 0.1], [[1.0, 0.0], [0.0, 1.0]], 4, kernel="linear", distinct=False)
    figure = selection.plot()
    assert "1\u00d7" in "".join(numbers(figure))
    assert len(places(figure, "picked")) == len(set(selection.indices.tolist()))


def test_positions_do_not_move_the_map() -> None:
    selection = sift(*problem(2), 5)
    at = np.random.default_rng(0).permutation(900)[:50]
    context = Context(selection.context.queries, selection.context.rows, at)
    there = Selection(
        at[selection.indices],
        selection.gains,
        selection.uncertainty,
        selection.initial_uncertainty,
        context,
    )
    assert drawn(there.plot()) == drawn(selection.plot())


def test_a_large_corpus_is_cut_to_the_nearest() -> None:
    rng = np.random.default_rng(0)
    figure = sift(rng.normal(size=8), rng.normal(size=(3000, 8)), 4).plot()
    assert 490 <= len(places(figure, "rest")) <= 500


@pytest.mark.parametrize(
    "text",
    ["costs $5 or $6", "$\\frac{", "\x1b[31mred\nline", "日本語のテキスト" * 20, "\ud800", "% {}"],
)
def test_any_text_can_be_listed(text: str) -> None:
    """Warnings are errors here: of missing glyphs, too."""
    figure = mmr(*problem(4), 12).plot(texts=[text] * 50)
    assert drawn(figure)
    label = figure.axes[0].get_xlabel()
    assert "and 4 more" in label
    assert "\x1b" not in label
    assert max(map(len, label.splitlines())) <= 90


def test_without_dropped_ones_the_list_says_so() -> None:
    figure = sift([1.0, 0.0], [[1.0, 0.1]], 1).plot(texts=["only"])
    assert "1:  only" in figure.axes[0].get_xlabel()
    assert "Dropped: none" in figure.axes[1].get_xlabel()


def test_axes_may_be_given() -> None:
    figure = Figure()
    axes = figure.subplots(2, 1)
    assert sift(*problem(0), 4).plot(ax=axes) is figure
    assert len(axes[0].patches) == 4
    assert drawn(figure)


@pytest.mark.parametrize("ax", [Figure().subplots(), [1, 2], Figure().subplots(1, 3)])
def test_other_axes_are_refused(ax: Any) -> None:
    with pytest.raises(ValueError, match="it must be two matplotlib axes"):
        sift(*problem(0), 4).plot(ax=ax)


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.axes", None)
    with pytest.raises(ImportError, match=r'pip install "sift-rag-ttt\[plot\]"'):
        sift(*problem(0), 4).plot()


def test_nothing_global_is_touched() -> None:
    """In a fresh interpreter: matplotlib comes with the picture, pyplot not at all."""
    code = (
        "import sys, io, numpy as np\n"
        "from sift_rag import sift\n"
        "selection = sift(np.eye(3)[0], np.eye(3) + 0.1, 2)\n"
        "selection.explain()\n"
        "assert 'matplotlib' not in sys.modules\n"
        "selection.plot(texts=list('abc')).savefig(io.BytesIO())\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
