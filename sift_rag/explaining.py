"""Why these passages and not those: what a selection picked and dropped, in numbers (numpy only).

Everything is said in cosines, from the vectors that a selection was made from, so that it is true
of any selector and any kernel. A passage counts as dropped when it is among the k nearest of the
question, k being the number of picks, and was not picked: top-k would have taken it.

The letters are those of `problem`: m query vectors, n candidates, k picks, d dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias
from unicodedata import category

import numpy as np
from numpy.typing import NDArray

from sift_rag.kernels import Floats, linear
from sift_rag.problem import TIE

if TYPE_CHECKING:
    from sift_rag.selection import Context, Selection

Texts: TypeAlias = Sequence[str] | Mapping[int, str]
"""The candidates' texts by index: one for each of them, or a mapping that has those it needs."""
Reason: TypeAlias = Literal["redundant", "other"]

HEADER = " #  relevance   redundancy    gain    left"
_KEPT = "\n\t\u200c\u200d"  # the last two join: part of how words and emoji are written
_THE_SAME = 0.95


@dataclass(frozen=True, slots=True)
class Pick:
    """A passage that was picked; `str` is its line under `HEADER`.

    Attributes:
        rank: 1 for the first pick.
        index: Its index in the selection.
        text: Its text; None where no texts were given.
        relevance: Its cosine with the query, the highest of several.
        query: Which of the queries that is, from 0.
        redundancy: Its highest cosine with an earlier pick; None for the first.
        like: Rank of that earlier pick; None for the first.
        gain: Variance that it removed.
        share: The same as a share of the variance before the first pick, 0 to 1.
        left: Variance left after it.
        share_left: The same as a share of the variance before the first pick.
    """

    rank: int
    index: int
    text: str | None
    relevance: float
    query: int
    redundancy: float | None
    like: int | None
    gain: float
    share: float
    left: float
    share_left: float

    def __str__(self) -> str:
        like = "" if self.redundancy is None else f"{self.redundancy:.2f} like {self.like}"
        return (
            f"{self.rank:2}  {self.relevance:9.2f}  {like:>11}  {self.share:6.1%}  "
            f"{self.share_left:6.1%}"
        )


@dataclass(frozen=True, slots=True)
class Dropped:
    """A passage among the k nearest that was not picked; `str` says why.

    Attributes:
        index: Its index, as a pick has one.
        text: Its text; None where no texts were given.
        relevance: Its cosine with the query, the highest of several.
        query: Which of the queries that is, from 0.
        nearest: Its rank by relevance, 1 for the nearest of all candidates.
        redundancy: Its highest cosine with a pick.
        like: Rank of that pick.
        reason: "redundant" if it was always passed over for something that repeats less: whenever
            a less relevant passage was picked, that one was less like the picks before it than
            this one was. That is the trade that selectors make, and the only one that MMR can
            make; no threshold is in it, which would be another one for each embedder. "other" if
            it was not so: a budget, chance, a repeated pick, the other queries, or what several
            picks say together.
    """

    index: int
    text: str | None
    relevance: float
    query: int
    nearest: int
    redundancy: float
    like: int
    reason: Reason

    def __str__(self) -> str:
        place = "nearest" if self.nearest == 1 else f"{_ordinal(self.nearest)} nearest"
        return f"{place}, {self.relevance:.2f}: {self.why}"

    @property
    def why(self) -> str:
        """The reason in words, short."""
        words = "the same as" if self.redundancy >= _THE_SAME else "like"
        why = f"{self.redundancy:.2f} {words} pick {self.like}"
        return why if self.reason == "redundant" else f"{why}, no more than one taken instead"


@dataclass(frozen=True, slots=True)
class Explanation:
    """What `Selection.explain` gives; `str` is a text of lines up to 80 wide, to read.

    Attributes:
        picks: In order of selection.
        dropped: Nearest first. Empty if the picks are the k nearest.
    """

    picks: tuple[Pick, ...]
    dropped: tuple[Dropped, ...]

    def rows(self) -> list[dict[str, Any]]:
        """Picks, then dropped, as plain data for JSON or a table: a dict each, with "picked"."""
        picks = [{"picked": True} | asdict(pick) for pick in self.picks]
        return picks + [{"picked": False} | asdict(row) | {"why": row.why} for row in self.dropped]

    def title(self) -> str:
        """What stands above the dropped passages, or that there are none."""
        k = len(self.picks)
        if self.dropped:
            return f"Dropped, though among the {k} nearest:"
        return f"Nothing dropped: no other passage is nearer than these {k}."

    def __str__(self) -> str:
        picks = [line for row in self.picks for line in _lines(str(row), row.text)]
        dropped = [line for row in self.dropped for line in _lines(f" {row}", row.text)]
        return "\n".join([HEADER, *picks, self.title(), *dropped])


def explain(selection: Selection, texts: Texts | None = None) -> Explanation:
    """See `Selection.explain`, which documents it."""
    seen = _Seen(selection, texts)
    picks = tuple(_picks(selection, seen))
    return Explanation(picks, tuple(_dropped(picks, seen)))


class _Seen:
    """Cosines of queries, candidates and picks, and what is said of any passage."""

    def __init__(self, selection: Selection, texts: Texts | None) -> None:
        context = selection.context
        self.rows, self.tie = context.rows, TIE[context.rows.dtype]
        self.picked = row_numbers(context, selection.indices)  # (k,)
        self._cosines = _cosines(context.queries, self.rows)  # (m, n)
        self.relevance: Floats = self._cosines.max(axis=0)  # (n,)
        self._positions = context.positions
        self._text = _reader(texts, context)

    def about(self, i: int) -> dict[str, Any]:
        """Of row i: what picked and dropped passages have in common."""
        index = i if self._positions is None else int(self._positions[i])
        return {
            "index": index,
            "text": self._text(index),
            "relevance": self.relevance.item(i),
            "query": _highest(self._cosines[:, i], self.tie)[1],
        }

    def with_picks(self, i: int) -> Floats:
        """Cosines of row i with the picks, (k,)."""
        return _cosines(self.rows[i : i + 1], self.rows[self.picked]).ravel()


def _picks(selection: Selection, seen: _Seen) -> Iterator[Pick]:
    initial = selection.initial_uncertainty or 1.0  # 0 where a kernel knows all beforehand
    for t, i in enumerate(seen.picked.tolist()):
        redundancy, like = _highest(seen.with_picks(i)[:t], seen.tie) if t else (None, -1)
        gain, left = selection.gains.item(t), selection.uncertainty.item(t)
        yield Pick(
            rank=t + 1,
            **seen.about(i),
            redundancy=redundancy,
            like=like + 1 or None,
            gain=gain,
            share=gain / initial,
            left=left,
            share_left=left / initial,
        )


def _dropped(picks: Sequence[Pick], seen: _Seen) -> Iterator[Dropped]:
    taken = set(seen.picked.tolist())
    for nearest, i in enumerate(_nearest(seen.relevance, len(picks), seen.tie), 1):
        if i in taken:
            continue
        alike = seen.with_picks(i)
        redundancy, like = _highest(alike, seen.tie)
        redundant = _always_repeats_more(seen.relevance.item(i), alike, picks)
        yield Dropped(
            **seen.about(i),
            nearest=nearest,
            redundancy=redundancy,
            like=like + 1,
            reason="redundant" if redundant else "other",
        )


def _always_repeats_more(relevance: float, alike: Floats, picks: Sequence[Pick]) -> bool:
    """Whether all that were picked in its place repeat less: see `Dropped.reason`."""
    seen = set[int]()
    for t, pick in enumerate(picks):
        in_its_place = pick.relevance < relevance or pick.index in seen  # a repeated pick, too
        if in_its_place and (pick.redundancy is None or alike[:t].max() <= pick.redundancy):
            return False
        seen.add(pick.index)
    return True


def _nearest(relevance: Floats, k: int, tie: float) -> list[int]:
    """The k most relevant rows (all of them if fewer), as the selector `nearest` orders them."""
    left, order = relevance.copy(), list[int]()
    for _ in range(min(k, len(left))):
        order.append(_highest(left, tie)[1])
        left[order[-1]] = -np.inf
    return order


def _highest(values: Floats, tie: float) -> tuple[float, int]:
    """The highest value, and the first place that has it but for rounding."""
    best = values.max()
    return float(best), int((values >= best - tie).argmax())


def _cosines(a: NDArray[Any], b: NDArray[Any]) -> Floats:
    return np.asarray(np.clip(linear(a, b), -1.0, 1.0))


def row_numbers(context: Context, indices: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where indices stand among the rows of the context."""
    if context.positions is None:
        return indices
    order = context.positions.argsort()
    return np.asarray(order[np.searchsorted(context.positions, indices, sorter=order)])


def _reader(texts: Texts | None, context: Context) -> Callable[[int], str | None]:
    """A function from index to text, once it is sure that there is one for every candidate."""
    if texts is None:
        return lambda index: None
    if isinstance(texts, str):
        raise TypeError("texts is one string; give a list of them, one for each candidate")
    n, positions = len(context.rows), context.positions
    if isinstance(texts, Mapping):
        return lambda index: _text(texts, index)
    if positions is None and len(texts) != n:
        raise ValueError(
            f"texts has {len(texts)} texts for {n} candidates; give the text of every candidate, "
            "in the same order, or a mapping from index to text"
        )
    if positions is not None and len(texts) <= positions.max():
        raise ValueError(
            f"texts has {len(texts)} texts and the candidates have indices up to "
            f"{positions.max()}; give the texts of the whole corpus, in its order, or a mapping "
            "from index to text"
        )
    return lambda index: _text(texts, index)


def _text(texts: Texts, index: int) -> str:
    try:
        text = texts[index]
    except KeyError:
        raise ValueError(
            f"texts has no text for candidate {index}; give one for each candidate"
        ) from None
    if not isinstance(text, str):
        raise TypeError(f"the text of candidate {index} is {text!r}; it must be a string")
    return text


def shorten(text: str, characters: int) -> str:
    """A text on one line, with an ellipsis where it was cut and nothing that moves a cursor."""
    line = visible(" ".join(text.split()))
    return line if len(line) <= characters else line[: characters - 1].rstrip() + "…"


def visible(text: str) -> str:
    """A text without what cannot be seen, but for line breaks, tabs and the spaces of typesetters.

    A document, or a model that read it, is no one to send a terminal control codes, or to turn the
    direction of what stands beside it.
    """
    return "".join(c for c in text if c.isprintable() or c in _KEPT or category(c) == "Zs")


def _lines(line: str, text: str | None) -> list[str]:
    return [line] if text is None else [line, f"    {shorten(text, 76)}"]


def _ordinal(number: int) -> str:
    ending = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10)
    return f"{number}{ending or 'th'}"
