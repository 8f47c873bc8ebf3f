"""What is read of a comparison for a `calibration`: by its shape, as it stands in a layer above."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sift_rag.shrinkage import Floats

MODES = ("closed_book", "stuff", "train", "both")
_SELECTING = ("select", "k", "fetch_k", "noise", "stop")


class Compared(Protocol):
    """What is read of a `sift_rag.comparison.Comparison`."""

    @property
    def cases(self) -> Sequence[Any]:
        """The questions."""

    @property
    def ways(self) -> Sequence[str]:
        """The ways' names."""

    @property
    def baseline(self) -> str:
        """The way that the others are held against."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """Of the run; under "ways" what each way is."""

    @property
    def main(self) -> Any:
        """The main metric of quality, if any."""

    def metric(self, name: str) -> Any:
        """The metric of that name."""

    def values(self, metric: str, way: str) -> Floats:
        """(n,) values."""

    def seconds(self, way: str) -> Floats:
        """(n,) of the whole reply."""

    def row(self, case: str, way: str) -> Any:
        """What came of a case through a way."""

    def pairs(self, metric: str | None = None) -> Sequence[Any]:
        """Each pair of ways."""


def coverage(comparison: Compared) -> Floats:
    """(n,) of each question, as any of the ways told it."""
    found = np.full(len(comparison.cases), np.nan)
    for i, case in enumerate(comparison.cases):
        for way in comparison.ways:
            row = comparison.row(case.id, way)
            if row is not None and row.reply is not None and row.reply.coverage is not None:
                found[i] = row.reply.coverage
                break
    return found


def beyond(comparison: Compared) -> NDArray[np.bool_]:
    """(n,) whether a way held fewer passages in its prompt than one that selects alike has."""
    alike: dict[tuple[str, ...], list[str]] = {}
    for way in comparison.ways:
        about = _about(comparison, way)
        if about.get("select") and about.get("mode") in MODES:  # a routed one may hold none
            alike.setdefault(tuple(str(about.get(name)) for name in _SELECTING), []).append(way)
    found = np.zeros(len(comparison.cases), dtype=np.bool_)
    for i, case in enumerate(comparison.cases):
        for ways in alike.values():
            rows = [row for way in ways if (row := comparison.row(case.id, way)) and row.reply]
            counts = {len(set(row.reply.documents or ())) for row in rows if row.reply}
            found[i] |= len(counts) > 1
    return found


def _about(comparison: Compared, way: str) -> Mapping[str, Any]:
    return comparison.settings.get("ways", {}).get(way) or {}


def own_ways(comparison: Compared) -> dict[str, str]:
    """Of each mode our own way, of several the one that selects by SIFT.

    Raises:
        ValueError: There is none.
    """
    own: dict[str, list[str]] = {mode: [] for mode in MODES}
    for way in comparison.ways:
        about = _about(comparison, way)
        if about.get("kind") == "sift_rag" and about.get("mode") in own:
            own[about["mode"]].append(way)
    if not any(own.values()):
        raise ValueError(
            f"None of the ways ({', '.join(comparison.ways)}) is one of sift_rag's own: say which "
            'stands for which mode, such as ways={"stuff": "my chain"}.'
        )

    def other(way: str) -> bool:
        return _about(comparison, way).get("select") != "sift"

    return {mode: min(ways, key=other) for mode, ways in own.items() if ways}


def checked_ways(comparison: Compared, ways: Mapping[str, str]) -> dict[str, str]:
    """The ways given, if they are there.

    Raises:
        ValueError: They are not, or there are none.
    """
    if not ways:
        raise ValueError("ways is empty: name a way for one mode at least, or leave it out.")
    for mode, way in ways.items():
        if mode not in MODES:
            raise ValueError(f"ways has the mode {mode!r}; modes are {', '.join(MODES)}.")
        if way not in comparison.ways:
            names = ", ".join(comparison.ways)
            raise ValueError(f"There is no way {way!r} in this comparison; there are: {names}.")
    return dict(ways)


def reference(comparison: Compared, ways: Mapping[str, str]) -> str:
    """The mode that the others are held against: the baseline's, else stuffing, else the first."""
    named = [mode for mode, way in ways.items() if way == comparison.baseline]
    alike = str(_about(comparison, comparison.baseline).get("mode"))
    return next(mode for mode in [*named, alike, "stuff", *ways] if mode in ways)


def worse(comparison: Compared, metric: str, sign: float) -> set[str]:
    """The ways shown to be worse than the baseline."""
    found = set()
    for pair in comparison.pairs(metric):
        if pair.shown and comparison.baseline in (pair.a, pair.b):
            found.add(pair.a if sign * pair.difference > 0 else pair.b)
    return found - {comparison.baseline}
