"""One question of a framework's retriever: announce, select, announce; what the integrations share.

Documents stay the framework's own: here they are positions among candidates, and texts where tokens
are counted.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sift_rag.events import Callback, Control, emit
from sift_rag.selection import Selector, Stop, sift
from sift_rag.vectors import Resolved


def approximate_tokens(text: str) -> int:
    """A quarter of the characters, rounded up: what English takes with most tokenizers."""
    return -(-len(text) // 4)


def at_least_one(name: str, value: int) -> int:
    """The value, if it is 1 or more.

    Raises:
        ValueError: It is not.
    """
    if value < 1:
        raise ValueError(f"{name} is {value}; it must be at least 1.")
    return value


@dataclass(frozen=True, slots=True)
class Settings:
    """How passages are chosen.

    Attributes:
        noise: Of the selection, a variance; None leaves the selector's own.
        select: A selector of `sift_rag`, or `functools.partial` of one.
        stop: A rule of `sift_rag.stopping` that keeps the first picks only; None keeps all k.
        budget: Tokens that the selected passages may have together. It is never exceeded: where not
            even the shortest passage fits, a warning says so and none is selected.
        length_function: Counts the tokens of a text for `budget`.

    Raises:
        ValueError: Noise or budget out of range.
    """

    noise: float | None = None
    select: Selector = sift
    stop: Stop | None = None
    budget: int | None = None
    length_function: Callable[[str], int] = approximate_tokens

    def __post_init__(self) -> None:
        if self.noise is not None and not 0 < self.noise < float("inf"):
            raise ValueError(f"noise is {self.noise}; it must be a finite number above 0.")
        if self.budget is not None:
            at_least_one("budget", self.budget)


@dataclass(frozen=True, slots=True)
class Call:
    """One question on its way: who watches, and what they have set."""

    settings: Settings
    control: Control
    callbacks: Sequence[Callback]
    k: int


@dataclass(frozen=True, slots=True)
class Pick:
    """One candidate that was selected.

    Attributes:
        index: Its position among the candidates.
        gain: What it told, as a share of what was open before the first pick.
        uncertainty: What is left after it, as such a share.
    """

    index: int
    gain: float
    uncertainty: float


@dataclass(frozen=True, slots=True)
class Choice:
    """What was selected.

    Attributes:
        picks: In order of selection.
        coverage: How likely the candidates hold an answer, from 0 to 1; 0 where nothing is known.
    """

    picks: list[Pick]
    coverage: float


def begin(
    question: str, callbacks: Sequence[Callback], settings: Settings, *, k: int, fetch_k: int
) -> Call:
    """Announce the question; a callback may change k and noise."""
    control = Control(k=k, noise=settings.noise)
    event = {"question": question, "mode": "retrieve", "k": k, "fetch_k": fetch_k}
    emit(callbacks, "on_start", control, event | {"noise": settings.noise})
    chosen = at_least_one("k", k if control.k is None else control.k)
    return Call(settings, control, callbacks, chosen)


def choose(call: Call, query: ArrayLike, resolved: Resolved, texts: Iterable[str]) -> Choice:
    """Select.

    Candidates without a vector are left out, unless none has one: then the first ones are taken.

    Args:
        call: As `begin` gave it.
        query: (d,), or (m, d) for several.
        resolved: Vectors of the n candidates.
        texts: Of the candidates; looked at only where there is a budget.
    """
    budget = call.settings.budget
    costs = None if budget is None else _costs(texts, call.settings.length_function)
    known = np.flatnonzero(resolved.known)
    usable = known if known.size else np.arange(len(resolved.rows))
    if costs is not None and usable.size and costs[usable].min() > (budget or 0):
        warnings.warn(
            f"The budget is {budget} tokens and the shortest passage has"
            f" {int(costs[usable].min())}: none is selected. Give a larger budget, or split the"
            " passages smaller.",
            stacklevel=2,
        )
        return Choice([], 0.0)
    if not known.size:
        return Choice([Pick(i, 0.0, 1.0) for i in _first(call.k, usable, costs, budget)], 0.0)
    settings: dict[str, Any] = {}
    if call.control.noise is not None:
        settings["noise"] = call.control.noise
    if costs is not None:
        settings |= {"costs": costs[known], "budget": budget}
    selection = call.settings.select(query, resolved.rows[known], call.k, **settings)
    selection = selection.until(call.settings.stop)
    whole = selection.initial_uncertainty
    gains, left = (selection.gains / whole).tolist(), (selection.uncertainty / whole).tolist()
    picks = list(map(Pick, known[selection.indices].tolist(), gains, left))
    return Choice(picks, selection.coverage)


def announce(
    call: Call,
    choice: Choice,
    resolved: Resolved,
    seconds: dict[str, float],
    *,
    ids: Sequence[str | None],
    scores: Sequence[float | None],
) -> None:
    """Announce the selection.

    Args:
        call: As `begin` gave it.
        choice: What was selected.
        resolved: Where the vectors came from.
        seconds: By stage.
        ids: Of the picks.
        scores: Of the picks, the store's own.
    """
    event = {
        "id": list(ids),
        "score": list(scores),
        "gain": [pick.gain for pick in choice.picks],
        "uncertainty": [pick.uncertainty for pick in choice.picks],
        "candidates": len(resolved.rows),
        "coverage": choice.coverage,
        "seconds": seconds,
        "vectors": {"counts": resolved.counts, "seconds": resolved.seconds},
    }
    emit(call.callbacks, "on_selection", call.control, event)


def _costs(texts: Iterable[str], length: Callable[[str], int]) -> NDArray[np.int64]:
    lengths = np.array([length(text) for text in texts], dtype=np.int64)
    return np.maximum(lengths, 1)  # an empty text costs something too


def _first(
    k: int, usable: NDArray[np.int64], costs: NDArray[np.int64] | None, budget: int | None
) -> list[int]:
    """The first k, passing over what no longer fits into the budget."""
    taken: list[int] = []
    left = budget
    for i in usable.tolist():
        cost = 0 if costs is None else int(costs[i])
        if len(taken) < k and (left is None or cost <= left):
            taken.append(i)
            left = None if left is None else left - cost
    return taken
