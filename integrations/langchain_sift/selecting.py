"""What `SIFTRetriever` and `SIFTCompressor` share: their settings, and the call that selects."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from langchain_core.callbacks import BaseCallbackHandler, BaseCallbackManager
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import VectorStore
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from typing_extensions import Self

from langchain_sift.callbacks import watchers
from langchain_sift.vectors import Policy, Resolved, VectorSource
from sift_rag.events import Callback, Control, emit
from sift_rag.selection import Selection, Selector, Stop, sift


def approximate_tokens(text: str) -> int:
    """A quarter of the characters, rounded up, as langchain-core counts."""
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
class Call:
    """One question on its way: who watches, and what they have set."""

    control: Control
    callbacks: Sequence[Callback]
    k: int


@dataclass(frozen=True, slots=True)
class Found:
    """Candidates, nearest first, with the store's scores (None where it tells none)."""

    documents: Sequence[Document]
    scores: Sequence[float | None]
    query: NDArray[np.float32]  # (d,)


@dataclass(frozen=True, slots=True)
class Pick:
    """One candidate that was selected: its position, what it told, and what is left after it."""

    index: int
    gain: float
    uncertainty: float


class Selecting(BaseModel):
    """Settings of a selection."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    k: int = 4
    """How many passages to select."""

    noise: float | None = None
    """Noise of the selection, a variance. Large: nearest neighbours; small: every pick tells
    something new. None leaves the selector's own."""

    select: Selector = Field(default=sift, exclude=True)
    """Which candidates are taken: a selector of `sift_rag`, or `functools.partial` of one."""

    stop: Stop | None = Field(default=None, exclude=True)
    """A rule of `sift_rag.stopping` that keeps the first picks only. None keeps all k."""

    budget: int | None = None
    """Tokens that the selected passages may have together. None sets no limit. It is never
    exceeded: where not even the shortest passage fits, a warning says so and none is selected."""

    length_function: Callable[[str], int] = Field(default=approximate_tokens, exclude=True)
    """Counts the tokens of a text for `budget`: by default a quarter of its characters."""

    vectors: Policy = "auto"
    """Where passages' vectors may come from: "auto" for anywhere, "store" never to embed one,
    "embed" never to ask the store."""

    vector_key: str | None = None
    """Metadata key under which documents carry their vector, if they do."""

    embeddings: Embeddings | None = Field(default=None, exclude=True)
    """Those that the passages were embedded with. None takes the store's own."""

    source: VectorSource | None = Field(default=None, exclude=True, repr=False)
    """Finds the vectors and remembers embedded ones; made from the fields above. Give one
    retriever's to another to share what it remembers."""

    @field_validator("k")
    @classmethod
    def _check_k(cls, k: int) -> int:
        return at_least_one("k", k)

    @field_validator("budget")
    @classmethod
    def _check_budget(cls, budget: int | None) -> int | None:
        return None if budget is None else at_least_one("budget", budget)

    @field_validator("noise")
    @classmethod
    def _check_noise(cls, noise: float | None) -> float | None:
        if noise is not None and not 0 < noise < float("inf"):
            raise ValueError(f"noise is {noise}; it must be a finite number above 0.")
        return noise

    @model_validator(mode="after")
    def _make_source(self) -> Self:
        """A field, not a private attribute: those are lost when `configurable_fields` rebuilds."""
        settings = (self._embedder(), self._store(), self.vectors, self.vector_key)
        source = self.source or VectorSource(*settings[:2])
        self.source = source.like(*settings)
        return self

    def _embedder(self) -> Embeddings | None:
        """The embeddings given, else those of the store."""
        return self.embeddings

    def _store(self) -> VectorStore | None:
        return None

    def _needed_embedder(self) -> Embeddings:
        found = self._embedder()
        if found is None:
            raise ValueError(
                f"{type(self).__name__} has no embeddings for the question; pass those that the"
                " passages were embedded with: embeddings=..."
            )
        return found

    def _needed_source(self) -> VectorSource:
        if self.source is None:  # the validator has made it
            raise ValueError("source was set to None; leave it as it was made.")
        return self.source

    def _begin(
        self,
        question: str,
        handlers: Iterable[BaseCallbackHandler],
        child: BaseCallbackManager | None,
        *,
        k: int,
        fetch_k: int,
    ) -> Call:
        """Announce the question; a handler may change k and noise."""
        heard = child is not None and child.handlers  # dispatching to nobody costs a tenth of a ms
        callbacks = watchers(handlers, child if heard else None)
        control = Control(k=k, noise=self.noise)
        event = {"question": question, "mode": "retrieve", "k": k, "fetch_k": fetch_k}
        emit(callbacks, "on_start", control, event | {"noise": self.noise})
        chosen = at_least_one("k", k if control.k is None else control.k)
        return Call(control, callbacks, chosen)

    def _finish(
        self, call: Call, found: Found, resolved: Resolved, seconds: dict[str, float]
    ) -> list[Document]:
        """Select, announce, and give new documents."""
        started = time.perf_counter()
        picks, coverage = self._picked(call, found, resolved)
        if call.callbacks:
            seconds = {**seconds, "select": time.perf_counter() - started}
            event = _event(found, resolved, picks, coverage) | {"seconds": seconds}
            emit(call.callbacks, "on_selection", call.control, event)
        return [_marked(found, pick, rank, coverage) for rank, pick in enumerate(picks, 1)]

    def _picked(self, call: Call, found: Found, resolved: Resolved) -> tuple[list[Pick], float]:
        """The picks, and how likely the candidates hold an answer (0 where nothing is known).

        Candidates without a vector are left out, unless none has one: then the first ones are
        taken, in the store's order.
        """
        costs = None if self.budget is None else self._costs(found.documents)
        known = np.flatnonzero(resolved.known)
        usable = known if known.size else np.arange(len(found.documents))
        if costs is not None and usable.size and costs[usable].min() > (self.budget or 0):
            self._warn_of_budget(int(costs[usable].min()))
            return [], 0.0
        if not known.size:
            return [Pick(i, 0.0, 1.0) for i in _first(call.k, usable, costs, self.budget)], 0.0
        settings: dict[str, Any] = {}
        if call.control.noise is not None:
            settings["noise"] = call.control.noise
        if costs is not None:
            settings |= {"costs": costs[known], "budget": self.budget}
        selection = self.select(found.query, resolved.rows[known], call.k, **settings)
        selection = selection.until(self.stop)
        return _picks(selection, known), selection.coverage

    def _costs(self, documents: Sequence[Document]) -> NDArray[np.int64]:
        lengths = [self.length_function(each.page_content) for each in documents]
        return np.maximum(np.array(lengths, dtype=np.int64), 1)  # an empty text costs something too

    def _warn_of_budget(self, cheapest: int) -> None:
        warnings.warn(
            f"The budget is {self.budget} tokens and the shortest passage has {cheapest}: none is"
            " selected. Give a larger budget, or split the passages smaller.",
            stacklevel=2,
        )


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


def _picks(selection: Selection, known: NDArray[np.int64]) -> list[Pick]:
    """Plain numbers; gain and uncertainty as shares of what was open before the first pick."""
    whole = selection.initial_uncertainty
    rows = known[selection.indices].tolist()
    gains = (selection.gains / whole).tolist()
    return list(map(Pick, rows, gains, (selection.uncertainty / whole).tolist()))


def _event(
    found: Found, resolved: Resolved, picks: Sequence[Pick], coverage: float
) -> dict[str, Any]:
    return {
        "id": [found.documents[pick.index].id for pick in picks],
        "score": [found.scores[pick.index] for pick in picks],
        "gain": [pick.gain for pick in picks],
        "uncertainty": [pick.uncertainty for pick in picks],
        "candidates": len(found.documents),
        "coverage": coverage,
        "vectors": {"counts": resolved.counts, "seconds": resolved.seconds},
    }


def _marked(found: Found, pick: Pick, rank: int, coverage: float) -> Document:
    """A copy: the candidate may be the store's own object."""
    own, score = found.documents[pick.index], found.scores[pick.index]
    metadata = {
        **own.metadata,
        "sift_rank": rank,
        "sift_gain": pick.gain,
        "sift_uncertainty": pick.uncertainty,
        "sift_coverage": coverage,
    }
    if score is not None:
        metadata["sift_store_score"] = score
    return Document(own.page_content, id=own.id, metadata=metadata)
