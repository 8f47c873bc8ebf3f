"""The whole flow: question -> candidates -> selection -> stuff | train | both -> answer."""

import time
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any

from sift_rag.candidates import Candidates, Index
from sift_rag.documents import Document
from sift_rag.engine import Answer, Engine, Mode, Stream, check_mode
from sift_rag.events import Callback, Control, emit
from sift_rag.selection import Selection, Selector, Stop, sift
from sift_rag.training import TrainingConfig


@dataclass(frozen=True, slots=True)
class Retrieved:
    """What was found for a question.

    Attributes:
        documents: The selected passages, in order of selection.
        selection: Their positions among the candidates, gains and remaining uncertainty.
        candidates: All that were considered, nearest first.
        timings: Seconds by stage: search (embedding the question included) and select.
    """

    documents: tuple[Document, ...]
    selection: Selection
    candidates: Candidates
    timings: dict[str, float]

    def rows(self) -> list[dict[str, Any]]:
        """The selected passages as plain data, one dict each, in order of selection."""
        picks = self.selection
        return [
            {
                "rank": rank,
                "id": document.id,
                "text": document.text,
                "metadata": dict(document.metadata),
                "score": float(self.candidates.scores[index]),
                "gain": float(gain),
                "uncertainty": float(left),
            }
            for rank, (document, index, gain, left) in enumerate(
                zip(self.documents, picks.indices, picks.gains, picks.uncertainty, strict=True), 1
            )
        ]


def retrieve(
    index: Index,
    question: str | Sequence[str],
    *,
    select: Selector = sift,
    k: int = 5,
    fetch_k: int = 50,
    noise: float | None = None,
    stop: Stop | None = None,
    candidates: Candidates | None = None,
) -> Retrieved:
    """Search and select; no model answers.

    Args:
        index: Where the passages are.
        question: What is asked; sub-questions or rewrites of it as a list.
        select: Which of the candidates are taken.
        k: How many are taken.
        fetch_k: How many candidates the selection sees.
        noise: The selection's noise; None leaves the selector's default.
        stop: Cuts the selection to its first picks, see `sift_rag.stopping`; None keeps all k.
        candidates: What a search found before; then there is none, and `timings` has none.

    Raises:
        ValueError: If the question is empty, or `k` or `fetch_k` below 1.
    """
    started = time.perf_counter()
    timings = {}
    if candidates is None:
        candidates = index.search(question, fetch_k=fetch_k)
        timings["search"] = time.perf_counter() - started
    searched = time.perf_counter()
    settings = {} if noise is None else {"noise": noise}
    selection = select(candidates.query, candidates.embeddings, k, **settings).until(stop)
    return Retrieved(
        documents=tuple(candidates.documents[i] for i in selection.indices),
        selection=selection,
        candidates=candidates,
        timings=timings | {"select": time.perf_counter() - searched},
    )


@dataclass(frozen=True, slots=True)
class Pipeline:
    """An index, a selection and a model, put together.

    Attributes:
        index: Where the passages are.
        engine: The owner of the model that answers.
        select: Which of the candidates are used; pass `functools.partial(sift, kernel=...)` to
            give the selector settings of its own.
        k: How many passages are selected.
        fetch_k: How many candidates the selection sees.
        mode: How they are used: "stuff", "train", "both", or "closed_book" for not at all.
        noise: The selection's noise; None leaves the selector's default.
        stop: Cuts the selection to its first picks, see `sift_rag.stopping`; None keeps all k.
        training: Settings of test-time training; None leaves the engine's.
        callbacks: Who is told of each stage, and may change or stop it.
    """

    index: Index
    engine: Engine
    _: KW_ONLY
    select: Selector = sift
    k: int = 5
    fetch_k: int = 50
    mode: Mode = "stuff"
    noise: float | None = None
    stop: Stop | None = None
    training: TrainingConfig | None = None
    callbacks: Sequence[Callback] = ()

    def answer(
        self,
        question: str,
        *,
        mode: Mode | None = None,
        candidates: Candidates | None = None,
        **options: Any,
    ) -> Answer:
        """Find passages for a question and answer from them.

        Args:
            question: What is asked.
            mode: Another way to answer than the pipeline's own.
            candidates: What a search for the question found before, to choose from.
            options: Passed on to `Engine.answer`, such as `max_new_tokens`.

        Raises:
            ValueError: If the question is empty or the mode unknown.
        """
        retrieved, call = self._prepare(question, mode, candidates)
        answer = self.engine.answer(question, **call, **options)
        if retrieved is None:
            return answer
        timings = retrieved.timings | answer.timings
        timings["total"] += sum(retrieved.timings.values())
        return replace(answer, selection=retrieved.selection, timings=timings)

    def stream(self, question: str, *, mode: Mode | None = None, **options: Any) -> Stream:
        """As `answer`, as pieces of text; searching and training begin at the call."""
        _, call = self._prepare(question, mode)
        return self.engine.stream(question, **call, **options)

    def _prepare(
        self, question: str, mode: Mode | None, candidates: Candidates | None = None
    ) -> tuple[Retrieved | None, dict[str, Any]]:
        """Announce, retrieve, announce; what is left is the engine's call."""
        mode = check_mode(mode or self.mode)
        control = Control(k=self.k, noise=self.noise, training=self.training)
        start = {"question": question, "mode": mode, "k": self.k, "fetch_k": self.fetch_k}
        emit(self.callbacks, "on_start", control, start | {"noise": self.noise})
        call: dict[str, Any] = {"mode": mode, "callbacks": self.callbacks, "control": control}
        if mode == "closed_book":
            return None, call
        retrieved = retrieve(
            self.index,
            question,
            select=self.select,
            k=control.k or self.k,
            fetch_k=self.fetch_k,
            noise=control.noise,
            stop=self.stop,
            candidates=candidates,
        )
        emit(self.callbacks, "on_selection", control, _announced(retrieved))
        return retrieved, call | {"documents": retrieved.documents}


def _announced(retrieved: Retrieved) -> dict[str, Any]:
    rows = retrieved.rows()
    return {
        **{key: [row[key] for row in rows] for key in ("id", "score", "gain", "uncertainty")},
        "candidates": len(retrieved.candidates.documents),
        "coverage": retrieved.selection.coverage,
        "seconds": dict(retrieved.timings),
    }
