"""What a recorder gathers of one request, and where question and answer lie in what chains take."""

from __future__ import annotations

import json
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal
from uuid import UUID

from langchain_core.documents import Document
from langchain_core.messages import BaseMessage
from langchain_core.outputs import LLMResult
from langchain_core.prompt_values import PromptValue
from pydantic import BaseModel

from sift_rag.cases import Reply
from sift_rag.recording import passage

Kind = Literal["chain", "llm", "retriever", "tool"]

_ASKED = ("input", "question", "query", "user_input", "prompt", "text", "messages")
_ANSWERED = ("answer", "result", "output", "output_text", "response", "text", "messages")
_PASSAGES = ("context", "documents", "docs", "source_documents")


@dataclass(slots=True)
class Request:
    """What was seen of one request so far.

    Attributes:
        name: The id of its outermost run.
        inputs: What it was given.
        started: By `time.perf_counter`.
        runs: Those of its runs that have not ended.
        seconds: By stage.
        tokens: By kind.
        found: The passages of the run nearest to the outermost one, with that run's depth.
        given: Passages among the inputs of a run.
        coverage: Of the last selection.
        waited: Seconds in an engine's queue, which are none of its own.
    """

    name: str
    inputs: Any
    started: float = field(default_factory=time.perf_counter)
    runs: set[UUID] = field(default_factory=set)
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    tokens: Counter[str] = field(default_factory=Counter)
    found: tuple[int, Sequence[Document]] | None = None
    given: Sequence[Document] | None = None
    coverage: float | None = None
    waited: float = 0.0

    def add(self, timings: Mapping[str, float], training: Mapping[str, Any]) -> None:
        """What a `ChatSIFT` tells, as `sift_rag.replies.of_answer` has it."""
        self.seconds["train"] += timings["train"] if training else 0.0
        self.seconds["prefill"] += timings["prompt"] + timings["prefill"]
        self.seconds["decode"] += timings["decode"]
        self.waited += timings["queue"]
        self.tokens["trained"] += training.get("tokens", 0)

    def reply(self, text: str, outputs: Any = None) -> Reply:
        """What is known, with this text."""
        total = time.perf_counter() - self.started - self.waited
        documents = self.found[1] if self.found else self.given or documents_in(outputs)
        if documents is None:
            documents = documents_in(self.inputs)
        return Reply(
            text=text,
            documents=None
            if documents is None
            else tuple(passage(each.page_content, each.metadata, each.id) for each in documents),
            seconds={**self.seconds, "total": total},
            tokens=dict(self.tokens),
            coverage=self.coverage,
        )


@dataclass(slots=True)
class Run:
    """One run of a request; of one that is not recorded, the request is None."""

    request: Request | None
    kind: Kind
    depth: int = 0
    retrieves: bool = False  # it or one around it is a retriever
    started: float = field(default_factory=time.perf_counter)
    first: float | None = None  # when the first token came

    def took_in(self, inputs: Any) -> None:
        """Its inputs."""
        if self.request and (documents := documents_in(inputs)) is not None:
            self.request.given = documents

    def gave(self, outputs: Any) -> None:
        """Its outputs. Passages nearer to the outermost run count more, then later ones: those of a
        reranker more than those of its retriever."""
        if self.request is None:
            return
        documents = outputs if self.kind == "retriever" else _named(outputs)
        found = self.request.found
        if documents is not None and (found is None or self.depth <= found[0]):
            self.request.found = (self.depth, documents)

    def began_to_write(self) -> None:
        """A token came; the first one tells how long the prompt took."""
        if self.first is None:
            self.first = time.perf_counter()

    def retrieved(self, within: bool) -> None:
        """It ended, and is a retriever; within another one it counts there."""
        if self.request and not within:
            self.request.seconds["retrieve"] += time.perf_counter() - self.started

    def selected(self, event: Mapping[str, Any]) -> None:
        """SIFT selected in it."""
        if self.request:
            seconds = event["seconds"]["select"]
            self.request.seconds["select"] += seconds
            self.request.coverage = event["coverage"]
            if self.retrieves:  # whose time it is a part of
                self.request.seconds["retrieve"] -= seconds

    def wrote(self, response: LLMResult) -> None:
        """It ended, and is a model: times, by its own account where it gives one, and tokens."""
        if self.request is None:
            return
        message = getattr(response.generations[0][0], "message", None)
        about = getattr(message, "response_metadata", None) or {}
        timings = about.get("timings")
        if isinstance(timings, dict) and "queue" in timings:  # of a ChatSIFT
            self.request.add(timings, about.get("training") or {})
        elif self.first is not None:
            self.request.seconds["prefill"] += self.first - self.started
            self.request.seconds["decode"] += time.perf_counter() - self.first
        self.request.tokens.update(_usage(message, response.llm_output or {}))


def question_in(inputs: Any) -> str | None:
    """The question in what a chain was given; None where there is none to be seen."""
    if isinstance(inputs, (list, tuple)) and inputs and isinstance(inputs[0], BaseMessage):
        asked = [message for message in inputs if message.type == "human"] or inputs
        return str(asked[-1].text)
    if isinstance(inputs, Mapping):
        found = _first(inputs, _ASKED, question_in)
        texts = [value for value in inputs.values() if isinstance(value, str)]
        return texts[0] if found is None and len(texts) == 1 else found
    return _text(inputs)


def answer_in(outputs: Any) -> str:
    """The answer in what a chain gave; what is no text as JSON."""
    found = _answer(outputs)
    if found is not None:
        return found
    if isinstance(outputs, BaseModel):
        return outputs.model_dump_json()
    return json.dumps(outputs, ensure_ascii=False, default=str)


def documents_in(value: Any) -> Sequence[Document] | None:
    """Passages: a list of them, or one in a dict."""
    if (named := _named(value)) is None and isinstance(value, Mapping):
        return next((each for each in value.values() if _are_documents(each)), None)
    return named


def _named(value: Any) -> Sequence[Document] | None:
    """Passages: a list of them, or one in a dict under a usual name."""
    if isinstance(value, Mapping):
        value = next((value[key] for key in _PASSAGES if _are_documents(value.get(key))), None)
    return value if _are_documents(value) else None


def _answer(outputs: Any) -> str | None:
    if isinstance(outputs, (list, tuple)) and outputs and isinstance(outputs[-1], BaseMessage):
        return _text(outputs[-1])
    if isinstance(outputs, LLMResult):
        return outputs.generations[0][0].text
    if isinstance(outputs, Mapping):
        return _first(outputs, _ANSWERED, _answer)
    return _text(outputs)


def _text(value: Any) -> str | None:
    if isinstance(value, BaseMessage):
        return str(value.text)
    if isinstance(value, PromptValue):
        return value.to_string()
    return value if isinstance(value, str) else None


def _first(found: Mapping[str, Any], keys: Sequence[str], read: Any) -> str | None:
    texts = (read(found[key]) for key in keys if key in found)
    return next((text for text in texts if text is not None), None)


def _are_documents(value: Any) -> bool:
    if not isinstance(value, (list, tuple)) or not value:
        return False
    return all(isinstance(each, Document) for each in value)


def _usage(message: Any, output: Mapping[str, Any]) -> dict[str, int]:
    """Tokens as LangChain's messages tell them, or as providers told them before."""
    usage = getattr(message, "usage_metadata", None)
    usage = usage or output.get("token_usage") or output.get("usage") or {}
    names = {"in": ("input_tokens", "prompt_tokens"), "out": ("output_tokens", "completion_tokens")}
    return {
        ours: usage[theirs]
        for ours, either in names.items()
        for theirs in either
        if isinstance(usage.get(theirs), int)
    }
