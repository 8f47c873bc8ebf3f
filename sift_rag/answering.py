"""How one question is answered: adapt, prompt, generate, gone. Runs on the engine's thread."""

import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any, Literal

from sift_rag.adapter_cache import AdapterCache
from sift_rag.adapting import Adapting
from sift_rag.documents import Document
from sift_rag.events import Callback, Control, emit
from sift_rag.generation import (
    FinishReason,
    LanguageModel,
    Message,
    evaluating,
    generate,
    score,
)
from sift_rag.prompting import Order, Prompt, PromptTemplate, closed_book, stuffed
from sift_rag.training_config import BROKEN, Fallback, TrainingConfig, TrainingReport
from sift_rag.worker import Job

Mode = Literal["closed_book", "stuff", "train", "both"]
"""How documents are used: not at all, in the prompt, in the weights, or in both."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An answer and how it came about.

    Attributes:
        text: The answer.
        mode: The mode that was asked for; of a router's, what it chose, which may be "not_covered".
        question: The question.
        documents: The passages that the answer rests on, in order of selection.
        left_out: The passages that did not fit into the prompt, in order of selection.
        timings: Seconds by stage: queue (waiting for the model), train, prompt (writing it),
            prefill (until the first token), decode, total.
        usage: Tokens: prompt_tokens, completion_tokens, training_tokens.
        training: What happened in training; None where nothing was to be trained.
        finish_reason: "stop" (the model ended it) or "length" (`max_new_tokens` did).
        note: What went another way than asked for, as a sentence; mostly empty.
        score: How well the reference is predicted; None where there is none, or no room for it.
        selection: The selection that gave the documents, where a `Pipeline` made one.
        route: What the router of a `Pipeline` chose and why, where its mode was "auto".
    """

    text: str
    mode: Mode | Literal["not_covered"]
    question: str
    documents: tuple[Document, ...]
    left_out: tuple[Document, ...]
    timings: dict[str, float]
    usage: dict[str, int]
    training: TrainingReport | None
    finish_reason: FinishReason
    note: str = ""
    score: "Score | None" = None
    route: Any = None  # not Decision: the router stands above
    selection: Any = None  # not Selection: what trains must not see what selects


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """How well a reference is predicted.

    Attributes:
        nats: Negative log likelihood of the whole reference, given the prompt.
        tokens: Tokens of the reference.
        bytes: UTF-8 bytes of the reference.
        training: What happened in training; None where nothing was to be trained.
    """

    nats: float
    tokens: int
    bytes: int
    training: TrainingReport | None

    @property
    def bits_per_byte(self) -> float:
        """Bits a byte of the reference: comparable between tokenizers. Lower is better."""
        return self.nats / math.log(2) / self.bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One call, checked, with every default filled in. See `sift_rag.engine.Options`."""

    question: str
    documents: tuple[Document, ...]
    mode: Mode
    training: TrainingConfig
    max_new_tokens: int
    callbacks: Sequence[Callback] = ()
    control: Control = field(default_factory=Control)
    order: Order = "best_first"
    prompt: str | Sequence[Message] | None = None
    fallback_prompt: str | Sequence[Message] | None = None
    stop: tuple[str, ...] = ()
    template: PromptTemplate | None = None
    reference: str | None = None
    tenant: str = ""
    export: str | os.PathLike[str] | None = None
    beside: tuple[Document, ...] = ()

    def tell(self, hook: str, **payload: Any) -> None:
        """Announce something to the callbacks."""
        emit(self.callbacks, hook, self.control, payload)


class Answerer:
    """A model, its adapters and its words: answers requests one at a time."""

    def __init__(
        self, lm: LanguageModel, template: PromptTemplate, cache: AdapterCache | None = None
    ) -> None:
        self.lm = lm
        self.template = template
        self._adapt = Adapting(lm, template, cache)

    def answer(self, request: Request, job: Job[Answer]) -> Answer:
        """Adapt, prompt, generate."""
        given, request = request, self._plain(request)
        timings = {"queue": time.perf_counter() - job.submitted}
        with self._adapted(request, job, timings) as report:
            with _timed(timings, "prompt"):
                ids, prompt = self._prompt(request, report, request.max_new_tokens)
            generated = generate(
                self.lm,
                ids,
                max_new_tokens=request.max_new_tokens,
                on_text=_announcer(request, job),
                cancelled=lambda: job.cancelled,
                stop=request.stop,
            )
            timings |= {"prefill": generated.prefill, "decode": generated.decode}
            timings["total"] = time.perf_counter() - job.submitted
            if generated.finish_reason == "cancelled":
                job.check()
            score, unscored = self._score_beside(request, report)
        learnt = report is not None and report.adapter_used
        trained = (report.note if report else "", _note(report, _fallback(request)))
        notes = (_broken_up(given, request), *trained, unscored)
        as_given = dict(zip(request.documents, given.documents, strict=True)).__getitem__
        answer = Answer(
            text=generated.text,
            mode=request.mode,
            question=given.question,
            documents=given.documents if learnt else tuple(map(as_given, prompt.documents)),
            left_out=tuple(map(as_given, prompt.left_out)),
            timings=timings,
            usage={
                "prompt_tokens": len(ids),
                "completion_tokens": generated.tokens,
                "training_tokens": report.tokens if report else 0,
            },
            training=report,
            finish_reason=generated.finish_reason,
            note=" ".join(filter(None, notes)),
            score=score,
        )
        told = ("text", "mode", "timings", "usage", "finish_reason")
        request.tell("on_answer", **{key: getattr(answer, key) for key in told})
        return answer

    def score(self, request: Request, reference: str, job: Job[Score]) -> Score:
        """Adapt, prompt, and see how well the reference is predicted."""
        request = self._plain(request)
        self._reference(reference)  # an error before the training, not after it
        with self._adapted(request, job, {}) as report:
            return self._score(request, reference, report)

    def _plain(self, request: Request) -> Request:
        """The request without special tokens of the model in what it has from elsewhere."""

        def plain(documents: tuple[Document, ...]) -> tuple[Document, ...]:
            texts = [self.lm.plain(document.text) for document in documents]
            pairs = zip(documents, texts, strict=True)
            return tuple(d if d.text == text else replace(d, text=text) for d, text in pairs)

        return replace(
            request,
            question=self.lm.plain(request.question),
            documents=plain(request.documents),
            beside=plain(request.beside),
        )

    def _score_beside(
        self, request: Request, report: TrainingReport | None
    ) -> tuple[Score | None, str]:
        """The score of an answer's reference, or why there is none: the answer stands anyhow."""
        if request.reference is None:
            return None, ""
        try:
            return self._score(request, request.reference, report), ""
        except ValueError as error:
            return None, f"The reference was not scored: {error}"

    def _score(self, request: Request, reference: str, report: TrainingReport | None) -> Score:
        ids = self._reference(reference)
        before, _ = self._prompt(request, report, len(ids))
        nats = score(self.lm, before, ids)
        return Score(nats=nats, tokens=len(ids), bytes=len(reference.encode()), training=report)

    def _reference(self, reference: str) -> list[int]:
        ids = self.lm.continuation(reference)
        if len(ids) >= self.lm.context:
            raise ValueError(
                f"The reference has {len(ids)} tokens and the model's context is "
                f"{self.lm.context}: score it in parts."
            )
        return ids

    @contextmanager
    def _adapted(
        self, request: Request, job: Job[Any], timings: dict[str, float]
    ) -> Iterator[TrainingReport | None]:
        """The model as the mode wants it: with an adapter trained on the documents, or bare."""
        with evaluating(self.lm.model), ExitStack() as adapter:
            report = None
            with _timed(timings, "train"):
                if request.mode in ("train", "both"):
                    report = self._adapt(request, job, adapter)
            job.check()
            yield report

    def _prompt(
        self, request: Request, report: TrainingReport | None, room: int
    ) -> tuple[list[int], Prompt]:
        """The prompt's tokens and the prompt, leaving room for so many more tokens."""
        taken = report.length if report is not None and report.adapter_used else 0
        budget = self.lm.context - taken - room
        if request.prompt is not None:
            return self._given(request, request.prompt, report, budget)
        prompt = self._worded(request, report, budget)
        return self.lm.prompt(prompt.text), prompt

    def _given(
        self,
        request: Request,
        prompt: str | Sequence[Message],
        report: TrainingReport | None,
        budget: int,
    ) -> tuple[list[int], Prompt]:
        """The caller's own words; it has laid the documents out in them, or not."""
        stuffing = _failed(report) and _fallback(request) == "stuff"
        fallback = request.fallback_prompt if stuffing else None
        ids = self.lm.prompt(prompt if fallback is None else fallback)
        if len(ids) > budget:
            raise ValueError(
                f"The prompt takes {len(ids)} tokens and the model leaves room for {budget}: put "
                "fewer or shorter passages into it, lower max_new_tokens, or use a model with a "
                "longer context."
            )
        inside = request.mode in ("stuff", "both") or fallback is not None
        return ids, Prompt("", request.documents if inside else (), ())

    def _worded(self, request: Request, report: TrainingReport | None, budget: int) -> Prompt:
        """The template's words; where training failed, with the passages as is the fallback."""

        def length(text: str) -> int:
            # No token has 128 characters on average: a text of megabytes is not worth tokenising.
            huge = len(text) > 128 * self.lm.context
            return len(text) if huge else len(self.lm.prompt(text))

        template = request.template or self.template
        used = _fallback(request) if _failed(report) else request.mode
        if used in ("closed_book", "train"):
            return closed_book(request.question, budget=budget, count=length, template=template)
        return stuffed(
            request.question,
            request.documents,
            budget=budget,
            count=length,
            order=request.order,
            template=template,
        )


def _announcer(request: Request, job: Job[Any]) -> Callable[[str], None]:
    numbers = count()

    def announce(text: str) -> None:
        request.tell("on_token", text=text, index=next(numbers))
        job.on_piece(text)

    return announce


def _failed(report: TrainingReport | None) -> bool:
    return report is not None and report.stopped in BROKEN


def _broken_up(given: Request, plain: Request) -> str:
    pairs = zip(given.documents, plain.documents, strict=True)
    if not (changed := sum(a.text != b.text for a, b in pairs)):
        return ""
    held = "1 passage holds" if changed == 1 else f"{changed} passages hold"
    return f"{held} special tokens of the model, which were read as plain text."


def _fallback(request: Request) -> Fallback:
    return (request.control.training or request.training).fallback  # a callback's, if it set one


def _note(report: TrainingReport | None, fallback: Fallback) -> str:
    if report is None or report.adapter_used:
        return ""
    if not _failed(report):
        return "Training was stopped before its first step: the answer comes without it."
    why = {
        "non_finite": "a loss or gradient was NaN or infinite",
        "diverged": "a passage was predicted far worse than before training",
        "out_of_memory": "memory ran out, however short the texts",
        "worse": f"what was not trained on was predicted worse than before ({_probed(report)})",
    }[report.stopped]
    source = "the passages in the prompt" if fallback == "stuff" else "the model alone"
    return (
        f"Training was undone after step {report.steps}, as {why}: the answer comes from {source}. "
        "Lower learning_rate."
    )


def _probed(report: TrainingReport) -> str:
    """The losses of the probes that got worse: "question 2.31, was 2.10 nats a token"."""
    return "; ".join(
        f"{name.replace('_', '-')} {after:.2f}, was {before:.2f} nats a token"
        for name, (before, after) in report.probes.items()
        if after is not None and not after <= before
    )


@contextmanager
def _timed(timings: dict[str, float], stage: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    timings[stage] = time.perf_counter() - began
