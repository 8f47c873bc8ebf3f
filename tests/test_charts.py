"""Drawings: scales hold their values, labels keep apart, words are escaped, nothing leaves."""

import math
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sift_rag import charts, drawing, quantities

FINITE = st.floats(-1e6, 1e6)
METRIC = {
    "name": "m",
    "title": "exact match",
    "unit": "share",
    "binary": True,
    "higher_is_better": True,
    "quality": True,
}


def parsed(svg: str) -> ElementTree.Element:
    """Well-formed, an image, and told of in words."""
    root = ElementTree.fromstring(svg)
    assert root.tag.endswith("svg")
    assert root.get("role") == "img"
    assert [child.tag.rpartition("}")[2] for child in root][:2] == ["title", "desc"]
    assert all(child.text for child in root[:2])
    return root


def summary(ways: list[tuple[str, float, float]]) -> dict[str, Any]:
    """Of names, means and median seconds."""
    return {
        "main": "m",
        "metrics": [METRIC],
        "ways": [
            {
                "name": name,
                "metrics": {
                    "m": {"mean": mean, "low": max(0, mean - 0.1), "high": min(1, mean + 0.1)}
                },
                "seconds": {"total": {"p50": seconds, "p95": 1.5 * seconds}},
            }
            for name, mean, seconds in ways
        ],
    }


@given(st.lists(FINITE, min_size=1, max_size=9))
@example([5e-324])
@example([0.0, 5e-324])
def test_a_scale_holds_its_values_between_round_ends(values: list[float]) -> None:
    scale = drawing.linear(values)
    slack = 1e-6 * (scale.high - scale.low)
    assert scale.low - slack <= min(values) <= max(values) <= scale.high + slack
    assert 2 <= len(scale.ticks) <= 8
    assert [scale(scale.low), scale(scale.high)] == [0, 1]


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=9))
def test_a_logarithmic_scale_does_so_too(values: list[float]) -> None:
    scale = drawing.logarithmic(values)
    assert scale.low <= min(values) <= max(values) <= scale.high * (1 + 1e-9)
    assert 1 <= len(scale.ticks) <= 6
    assert scale(scale.low) == 0
    assert scale(math.sqrt(scale.low * scale.high)) == pytest.approx(0.5)
    assert scale.at(scale.high) == "100.00%"


@pytest.mark.parametrize("n", range(1, 9))
def test_names_of_up_to_eight_ways_keep_apart_where_they_crowd(n: int) -> None:
    """The worst case: all at nearly one place, in the middle or at an edge."""
    words = [f"way number {number}" for number in range(n)]
    for x, y in ((0.5, 150.0), (0.02, 40.0), (0.98, 150.0)):
        points = [(x + 0.004 * number, y + 3 * number) for number in range(n)]
        sides = drawing.labels(points, words, height=300)
        boxes = [
            drawing._box(side, across * drawing._WIDTH, down, said)
            for side, (across, down), said in zip(sides, points, words, strict=True)
        ]
        for i, a in enumerate(boxes):
            assert a[0] >= 0
            assert a[2] <= drawing._WIDTH + 8
            assert not any(drawing._overlap(a, b) for b in boxes[:i])


def test_quality_against_time_has_a_mark_and_a_name_for_each_way() -> None:
    ways = [(f"way {i}", i / 8, 0.01 * 2**i) for i in range(8)]
    root = parsed(charts.quality(summary(ways)))
    texts = [each.text for each in root.iter() if each.tag.endswith("text")]
    assert [text for text in texts if text and text.startswith("way")] == [w[0] for w in ways]
    classes = {each.get("class") for each in root.iter() if each.tag.endswith("path")}
    assert classes == {f"way{i}" for i in range(8)}
    told = root[1].text or ""
    assert "way 7: 87.5\u202f% (77.5 to 97.5), 1.28\u202fs" in told


def test_more_ways_than_marks_are_drawn_too() -> None:
    names = [f"way {i}" for i in range(20)]
    drawn = "".join(parsed(charts.quality(summary([(n, 0.5, 0.1) for n in names]))).itertext())
    assert all(name in drawn for name in names)


def test_without_a_metric_or_times_there_is_nothing_to_draw() -> None:
    assert charts.quality(summary([("a", 0.5, 0.1)]) | {"main": None}) == ""
    assert charts.quality(summary([("a", 0.5, 0.0)])) == ""
    assert charts.forest([]) is None


@pytest.mark.parametrize(
    "evil", ["<script>", '"><a href="http://x">', "&amp;", "a\x00\x1b[0m\u202eb", "w" * 10_000]
)
def test_words_in_a_drawing_are_words(evil: str) -> None:
    svg = charts.quality(summary([(evil, 0.5, 0.1), ("b", 0.7, 1.0)]))
    root = parsed(svg)
    assert {each.tag.rpartition("}")[2] for each in root.iter()} == {
        *("svg", "title", "desc", "line", "text", "path")
    }
    words = [each.text or "" for each in root.iter() if each.tag.endswith("text")]
    assert all(len(word) <= 60 and "\u202e" not in word for word in words)


def test_bars_are_shares_of_one_length() -> None:
    root = parsed(charts.bar("of a", {"train": 3.0, "decode": 1.0}, 8.0, late=6.0))
    bars = [each for each in root if each.tag.endswith("rect")]
    places = [(bar.get("class"), bar.get("x"), bar.get("width")) for bar in bars]
    assert places == [("part-train", "0.00%", "37.50%"), ("part-decode", "37.50%", "12.50%")]
    assert {each.get("x2") for each in root if each.tag.endswith("line")} == {"75.00%"}
    parsed(charts.bar("of nothing", {}, 0.0))


def test_a_difference_that_is_not_shown_is_hollow() -> None:
    pair = {"a": "a", "b": "b", "difference": 0.25, "low": -0.25, "high": 0.5, "shown": False}
    scale = charts.forest([pair])
    assert scale is not None
    assert (scale.low, scale.high) == (-0.4, 0.6)
    for shown, kind in ((False, "open"), (True, "shown")):
        root = parsed(charts.difference(pair | {"shown": shown}, scale, "share"))
        (dot,) = (each for each in root if each.tag.endswith("circle"))
        assert dot.get("class") == kind
        assert dot.get("cx") == "65.00%"
    numbers = [each.text for each in parsed(charts.axis(scale, "share")) if each.get("x")]
    assert numbers == ["\u221240", "\u221220", "0", "20", "40", "60"]


@pytest.mark.parametrize("binary", [True, False])
def test_the_gain_is_drawn_for_each_question_up_to_a_number(binary: bool) -> None:
    points = [[i / 1000, float(i % 3 - 1)] for i in range(1000)]
    signal: dict[str, Any] = {"way": "a", "over": "b", "told": "uncertainty", "points": points}
    signal |= {"n": 1000, "correlation": -0.126, "low": -0.2, "high": 0.0}
    root = parsed(charts.gain(signal, 1, METRIC | {"binary": binary}))
    dots = [each for each in root.iter() if each.get("r") == "3.5"]
    assert 300 < len(dots) <= 400
    words = [each.text for each in root.iter() if each.tag.endswith("text")]
    assert ("fixed" in words) == binary
    assert "\u22120.13 (95 % interval \u22120.20 to 0.00), 1000 questions" in (root[1].text or "")


@pytest.mark.parametrize(
    ("written", "wanted"),
    [
        (quantities.figure(1234.5), "1,230"),
        (quantities.figure(999.9), "1,000"),
        (quantities.figure(0.01234), "0.0123"),
        (quantities.figure(-2.0), "\u22122"),
        (quantities.figure(None), "n/a"),
        (quantities.figure(math.nan), "n/a"),
        (quantities.amount(0.9501, "share"), "95.0\u202f%"),
        (quantities.amount(1.5, "bits per byte"), "1.5\u202fbits per byte"),
        (quantities.amount(1.5, ""), "1.5"),
        (quantities.change(0.117, "share"), "+11.7\u202fpp"),
        (quantities.change(-0.00001, "share"), "0.0\u202fpp"),
        (quantities.change(-0.5, "points"), "\u22120.5\u202fpoints"),
        (quantities.span(-0.05, 0.1, "share"), "\u22125.0 to 10.0"),
        (quantities.tick(0.5, "share"), "50"),
        (quantities.seconds(0.000_42), "0.42\u202fms"),
        (quantities.seconds(0.3501), "350\u202fms"),
        (quantities.seconds(90), "90\u202fs"),
        (quantities.seconds(600), "10\u202fmin"),
        (quantities.seconds(86_400), "24\u202fh"),
        (quantities.size(512), "512\u202fB"),
        (quantities.size(3_210_000), "3.21\u202fMB"),
        (quantities.operations(1.8e9), "1.8\u202fGFLOP"),
        (quantities.money(0.00123, "USD"), "0.0012\u202fUSD"),
        (quantities.money(1234.5, "EUR"), "1,234.50\u202fEUR"),
        (quantities.probability(0.0001), "< 0.001"),
        (quantities.probability(0.0321), "0.032"),
        (quantities.probability(1.0), "1.00"),
    ],
)
def test_numbers_are_written_for_people(written: str, wanted: str) -> None:
    assert written == wanted
