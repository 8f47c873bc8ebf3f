"""SVG as text, with every word escaped: tags, marks, scales, labels that keep apart.

Places across are percent of the drawing's width and all else is pixels, so that a drawing fits any
width with letters of one size. Colours are left to classes of the page.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

from sift_rag.explaining import shorten, visible

CHARACTERS = 26  # of a name in a drawing
MARKS = (
    "M-5,0A5,5 0 1 1 5,0A5,5 0 1 1 -5,0Z",  # disc
    "M-4.5,-4.5H4.5V4.5H-4.5Z",  # square
    "M0,-6L5.6,4.2H-5.6Z",  # triangle
    "M0,-6.2L6.2,0L0,6.2L-6.2,0Z",  # diamond
    "M0,6L5.6,-4.2H-5.6Z",  # triangle on its tip
    "M-1.9,-5.6H1.9V-1.9H5.6V1.9H1.9V5.6H-1.9V1.9H-5.6V-1.9H-1.9Z",  # cross
    "M0,-6L1.6,-2.2L5.7,-1.9L2.6,.8L3.5,4.9L0,2.7L-3.5,4.9L-2.6,.8L-5.7,-1.9L-1.6,-2.2Z",  # star
    "M-3,-5.2H3L6,0L3,5.2H-3L-6,0Z",  # hexagon
)
_WIDTH = 250  # pixels of a drawing on a phone: labels that keep apart there do so everywhere
_LETTER, _LINE = 6.4, 13  # pixels of a label's letter and of its height


def tag(name: str, *inner: str, **attributes: object) -> str:
    """One element; `inner` is SVG already, `class_` and `stroke_width` are written with care."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(str(value))}"'
        for key, value in attributes.items()
    )
    return f"<{name}{written}>{''.join(inner)}</{name}>"


def text(words: str, **attributes: object) -> str:
    """Words in a drawing."""
    return tag("text", escape(visible(words)), **attributes)


def picture(title: str, description: str, *inner: str, height: int, class_: str) -> str:
    """A whole drawing, with what it shows for those who do not see it."""
    told = tag("title", escape(visible(title))), tag("desc", escape(visible(description)))
    return tag(
        "svg", *told, *inner, role="img", class_=class_, width="100%", height=height, xmlns=_SVG
    )


_SVG = "http://www.w3.org/2000/svg"  # a name that nothing loads


def mark(number: int, x: str = "0", y: str = "0", **attributes: object) -> str:
    """The mark of the way of that number, at a place of a drawing."""
    path = tag("path", d=MARKS[number % len(MARKS)], class_=f"way{number % len(MARKS)}")
    return tag("svg", path, x=x, y=y, overflow="visible", **attributes)


def icon(number: int) -> str:
    """The same beside a way's name in the text, which says it all."""
    path = tag("path", d=MARKS[number % len(MARKS)], class_=f"way{number % len(MARKS)}")
    return tag("svg", path, viewBox="-7 -7 14 14", class_="mark", aria_hidden="true")


def name(words: str) -> str:
    """A way's name, short enough for a drawing."""
    return shorten(words, CHARACTERS)


@dataclass(frozen=True, slots=True)
class Scale:
    """From values to shares of a length, 0 to 1.

    Attributes:
        low: The value at 0.
        high: The value at 1.
        ticks: Values to be marked, all of them between.
        log: Whether equal steps are equal ratios.
    """

    low: float
    high: float
    ticks: tuple[float, ...]
    log: bool = False

    def __call__(self, value: float) -> float:
        """The share of the length at which a value stands."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def at(self, value: float) -> str:
        """The place of a value in percent."""
        return f"{100 * self(value):.2f}%"


def linear(values: Sequence[float], *, at_most: int = 5) -> Scale:
    """A scale that holds all values between two round numbers."""
    low, high = min(values), max(values)
    largest = max(abs(low), abs(high))
    if high - low <= max(1e-9 * largest, 1e-299):  # below that halves and tenths round to nothing
        around = (largest if largest > 1e-299 else 1) / 2
        low, high = low - around, high + around
    rough = (high - low) / at_most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(size * power for size in (1, 2, 2.5, 5, 10) if size * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = tuple(float(f"{number * step:.12g}") for number in range(first, last + 1))
    return Scale(ticks[0], ticks[-1], ticks)


def logarithmic(values: Sequence[float]) -> Scale:
    """The same for values above 0, where ratios matter."""
    steps = [size * 10.0**power for power in range(-9, 10) for size in (1, 2, 5)]
    low = max((step for step in steps if step <= min(values)), default=steps[0])
    high = min((step for step in steps if step >= max(values) and step > low), default=steps[-1])
    ticks = [step for step in steps if low <= step <= high]
    if len(ticks) > 6:  # whole powers of ten are enough
        ticks = [step for step in ticks if math.log10(step) % 1 < 1e-9]
    return Scale(low, high, tuple(ticks[:: math.ceil(len(ticks) / 6)]), log=True)


@dataclass(frozen=True, slots=True)
class Label:
    """Where the words at a point stand: pixels from the point, and the side they begin at."""

    x: float
    y: float
    anchor: str


_SIDES = (
    *(Label(x, 4, anchor) for x, anchor in ((10, "start"), (-10, "end"))),
    *(
        Label(x, y, anchor)
        for y in (-10, 18)
        for x, anchor in ((6, "start"), (-6, "end"), (0, "middle"))
    ),
    *(
        Label(x, 4 + y, anchor)
        for distance in range(1, 9)
        for y in (-18 * distance, 18 * distance)
        for x, anchor in ((14, "start"), (-14, "end"))
    ),
)
Box = tuple[float, float, float, float]  # left, top, right, bottom


def labels(
    points: Sequence[tuple[float, float]],
    words: Sequence[str],
    *,
    height: float,
    avoid: Sequence[Box] = (),
) -> list[Label]:
    """A place for each label where it covers no other, no point and, if it can be, no line.

    Args:
        points: Shares across and pixels down.
        words: One label for each.
        height: Pixels of the drawing.
        avoid: Boxes of what had better stay free, shares across and pixels down.
    """
    placed: list[Label] = []
    taken = [(x * _WIDTH - 6, y - 6, x * _WIDTH + 6, y + 6) for x, y in points]
    soft = [(left * _WIDTH, top, right * _WIDTH, bottom) for left, top, right, bottom in avoid]
    for number, ((x, y), said) in enumerate(zip(points, words, strict=True)):
        others = [box for i, box in enumerate(taken) if i != number]

        def cost(side: Label, x: float = x, y: float = y, said: str = said) -> float:
            box = _box(side, x * _WIDTH, y, said)
            outside = box[0] < 0 or box[2] > _WIDTH + 8 or box[1] < 0 or box[3] > height
            hits = sum(_overlap(box, other) for other in others)  # noqa: B023 - used at once
            lines = sum(_overlap(box, line) for line in soft)
            return 100 * outside + 20 * hits + 2 * lines + 0.5 * (abs(side.y - 4) > 20)

        placed.append(min(_SIDES, key=cost))
        taken.append(_box(placed[-1], x * _WIDTH, y, said))
    return placed


def _box(side: Label, x: float, y: float, words: str) -> Box:
    width = _LETTER * len(words)
    left = x + side.x - {"start": 0, "middle": width / 2, "end": width}[side.anchor]
    return left, y + side.y - _LINE + 3, left + width, y + side.y + 3


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def thinned(values: Sequence[tuple[float, float]], most: int) -> Iterator[tuple[float, float]]:
    """At most so many of the values, evenly from first to last."""
    yield from values[:: max(1, math.ceil(len(values) / most))]
