"""The whole flow: question -> candidates -> selection -> stuff | train | both -> answer."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, asdict, dataclass, field, replace
from typing import Any, Literal, cast, get_args

import numpy as np

from sift_rag.candidates import NEAR_COPY, Candidates, Index
from sift_rag.documents import Document
from sift_rag.engine import Answer, Engine, Mode, Stream
from sift_rag.events import Callback, Control, emit
from sift_rag.routed import Finished, declined
from sift_rag.router import Decision, Router
from sift_rag.selection import Selection, Selector, Stop, sift
from sift_rag.situation import look
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
class _Asked:
    """A question on its way: the engine's call, what was found, what was chosen."""

    question: str
    call: dict[str, Any]
    found: Retrieved | None = None
    route: Decision | None = None

    @property
    def declined(self) -> bool:
        """Whether the engine is not asked."""
        return self.route is not None and self.route.mode == "not_covered"

    def finished(self, answer: Answer) -> Answer:
        """The engine's answer, with what came before it."""
        if self.found is None:
            return answer
        timings = self.found.timings | answer.timings
        timings["total"] += sum(self.found.timings.values())
        answer = replace(answer, selection=self.found.selection, timings=timings)
        if self.route is None:
            return answer
        unused = self.route.reason if self.route.mode in ("not_covered", "closed_book") else ""
        note = " ".join(filter(None, (unused, answer.note)))
        return replace(answer, route=self.route, note=note)


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
        mode: How they are used: "stuff", "train", "both", "closed_book" for not at all, or "auto":
            the router chooses for each question, and `Answer.route` says what and why.
        noise: The selection's noise; None leaves the selector's default. Where prose is trained on,
            1 did better (benchmarks/EVIDENCE.md).
        stop: Cuts the selection to its first picks, see `sift_rag.stopping`; None keeps all k.
        training: Settings of test-time training; None leaves the engine's.
        router: Chooses where the mode is "auto".
        callbacks: Who is told of each stage, and may change or stop it.
    """

    index: Index
    engine: Engine
    _: KW_ONLY
    select: Selector = sift
    k: int = 5
    fetch_k: int = 50
    mode: Mode | Literal["auto"] = "stuff"
    noise: float | None = None
    stop: Stop | None = None
    training: TrainingConfig | None = None
    router: Router = field(default_factory=Router)
    callbacks: Sequence[Callback] = ()

    def answer(
        self,
        question: str,
        *,
        mode: Mode | Literal["auto"] | None = None,
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
            TypeError: If the mode is "auto" and a `prompt` is given, whose passages the router
                cannot see.
        """
        asked = self._prepare(question, mode, options, candidates)
        if asked.declined:
            return asked.finished(self._declined(asked, options).answer)
        return asked.finished(self.engine.answer(question, **asked.call, **options))

    def stream(
        self, question: str, *, mode: Mode | Literal["auto"] | None = None, **options: Any
    ) -> Stream:
        """As `answer`, as pieces of text; searching and training begin at the call."""
        asked = self._prepare(question, mode, options)
        if asked.declined:
            stream = self._declined(asked, options)
        else:
            stream = self.engine.stream(question, **asked.call, **options)
        return Finished(stream, asked.finished)

    def _prepare(
        self,
        question: str,
        mode: Mode | Literal["auto"] | None,
        options: Mapping[str, Any],
        candidates: Candidates | None = None,
    ) -> _Asked:
        """Announce, retrieve, maybe route, announce; what is left is the engine's call."""
        mode = _checked(mode or self.mode, options)
        control = Control(k=self.k, noise=self.noise, training=self.training)
        start = {"question": question, "mode": mode, "k": self.k, "fetch_k": self.fetch_k}
        emit(self.callbacks, "on_start", control, start | {"noise": self.noise})
        call: dict[str, Any] = {"mode": mode, "callbacks": self.callbacks, "control": control}
        if mode == "closed_book":
            return _Asked(question, call)
        found = retrieve(
            self.index,
            question,
            select=self.select,
            k=control.k or self.k,
            fetch_k=self.fetch_k,
            noise=control.noise,
            stop=self.stop,
            candidates=candidates,
        )
        route = None
        if mode == "auto":
            found, route = self._routed(question, found, control, options)
            call["mode"] = route.mode
        emit(self.callbacks, "on_selection", control, _announced(found, route))
        call["documents"] = found.documents
        if call["mode"] in ("train", "both") and "beside" not in options:
            training = options.get("training") or control.training or self.engine.training
            n = training.beside if isinstance(training, TrainingConfig) else 0  # told by the engine
            call["beside"] = _beside(found, n)
        return _Asked(question, call, found, route)

    def _routed(
        self, question: str, found: Retrieved, control: Control, options: Mapping[str, Any]
    ) -> tuple[Retrieved, Decision]:
        """What the router chooses, and what was found with the time of that."""
        began = time.perf_counter()
        training = options.get("training") or control.training
        known = {**options, "training": training if isinstance(training, TrainingConfig) else None}
        situation = look(question, found.documents, found.selection, self.engine, known)
        route = self.router.decide(situation)
        timings = found.timings | {"route": time.perf_counter() - began}
        return replace(found, timings=timings), route

    def _declined(self, asked: _Asked, options: Mapping[str, Any]) -> Stream:
        return declined(
            asked.question,
            self.router.not_covered,
            callbacks=self.callbacks,
            control=asked.call["control"],
            cancel=options.get("cancel"),
        )


def _beside(found: Retrieved, n: int) -> list[Document]:
    """The nearest n candidates that were not picked and are no copies of what was."""
    if not n:
        return []
    rows = np.asarray(found.candidates.embeddings)  # (n, d)
    picked = rows[np.unique(found.selection.indices)]  # (at most k, d)
    if not len(picked):
        return []
    others = np.flatnonzero((rows @ picked.T).max(axis=1) < NEAR_COPY)
    return [found.candidates.documents[i] for i in others[:n]]


def _checked(mode: str, options: Mapping[str, Any]) -> Mode | Literal["auto"]:
    modes = (*get_args(Mode), "auto")
    if mode not in modes:
        raise ValueError(f"mode is {mode!r}; it must be one of {', '.join(modes)}.")
    if mode == "auto" and options.get("prompt") is not None:
        raise TypeError(
            'mode="auto" lays the passages out itself and cannot see those in a prompt of yours: '
            "leave prompt out, or name a mode."
        )
    return cast("Mode | Literal['auto']", mode)


def _announced(found: Retrieved, route: Decision | None) -> dict[str, Any]:
    rows = found.rows()
    return {
        **{key: [row[key] for row in rows] for key in ("id", "score", "gain", "uncertainty")},
        "candidates": len(found.candidates.documents),
        "coverage": found.selection.coverage,
        "seconds": dict(found.timings),
        **({"route": asdict(route)} if route else {}),
    }
