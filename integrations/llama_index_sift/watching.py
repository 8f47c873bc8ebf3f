"""What a recorder gathers of one query, from the spans and events inside it."""

from __future__ import annotations

import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.instrumentation.events.base import BaseEvent
from llama_index.core.instrumentation.events.llm import (
    LLMChatEndEvent,
    LLMChatInProgressEvent,
    LLMChatStartEvent,
    LLMCompletionEndEvent,
    LLMCompletionInProgressEvent,
    LLMCompletionStartEvent,
)
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle, QueryType

from llama_index_sift.events import SIFTSelectionEvent
from sift_rag.cases import Reply
from sift_rag.recording import passage

_TOKENS = {
    "in": ("prompt_tokens", "input_tokens"),
    "out": ("completion_tokens", "output_tokens"),
    "trained": ("training_tokens",),
}


@dataclass(eq=False)
class Request:
    """One query, and what was seen of it so far.

    Attributes:
        query: What was asked.
        owner: The recorder.
        name: Of the request.
        started: By `time.perf_counter`.
        seconds: By stage.
        tokens: By kind.
        coverage: Of the last selection.
        waited: Seconds in an engine's queue, which are none of its own.
    """

    query: QueryType
    owner: object
    name: str = field(default_factory=lambda: str(uuid4()))
    started: float = field(default_factory=time.perf_counter)
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    tokens: Counter[str] = field(default_factory=Counter)
    coverage: float | None = None
    waited: float = 0.0
    _parents: dict[str, str | None] = field(default_factory=dict)
    _stages: dict[str, tuple[str, float]] = field(default_factory=dict)  # span -> stage, start
    _calls: dict[str, tuple[float, float | None]] = field(default_factory=dict)  # start, first
    _lock: Any = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.query = copy(self.query)  # a retriever writes into a bundle

    @property
    def question(self) -> str:
        """The query's text."""
        return self.query.query_str if isinstance(self.query, QueryBundle) else self.query

    def entered(self, span: str, parent: str | None, instance: Any) -> None:
        """A span inside began."""
        with self._lock:
            self._parents[span] = parent
            if self._stage(span) is None:  # what is inside a retriever counts there
                if isinstance(instance, BaseRetriever):
                    self._stages[span] = ("retrieve", time.perf_counter())
                elif isinstance(instance, BaseNodePostprocessor):
                    self._stages[span] = ("select", time.perf_counter())

    def left(self, span: str) -> None:
        """A span inside ended."""
        with self._lock:
            if span in self._stages:
                stage, started = self._stages.pop(span)
                self.seconds[stage] += time.perf_counter() - started

    def heard(self, event: BaseEvent) -> None:
        """An event inside. A model that calls another one counts once, by what is outside."""
        span = event.span_id or ""
        with self._lock:
            if isinstance(event, SIFTSelectionEvent):
                self._selected(event, self._stage(span))
            elif isinstance(event, (LLMCompletionStartEvent, LLMChatStartEvent)):
                if not any(each in self._calls for each in self._upwards(span)):
                    self._calls[span] = (time.perf_counter(), None)
            elif span in self._calls:
                started, first = self._calls[span]
                if isinstance(event, (LLMCompletionInProgressEvent, LLMChatInProgressEvent)):
                    self._calls[span] = (started, first or time.perf_counter())
                elif isinstance(event, (LLMCompletionEndEvent, LLMChatEndEvent)):
                    del self._calls[span]
                    self._wrote(event.response, started, first)

    def reply(self, text: str, nodes: Sequence[NodeWithScore]) -> Reply:
        """What is known, with this text and these sources."""
        found = [
            passage(each.node.get_content(MetadataMode.NONE), each.node.metadata, each.node_id)
            for each in nodes
        ]
        total = time.perf_counter() - self.started - self.waited
        return Reply(
            text=text,
            documents=tuple(found),
            seconds={**self.seconds, "total": total},
            tokens=dict(self.tokens),
            coverage=self.coverage,
        )

    def _upwards(self, span: str | None) -> Iterator[str]:
        while span is not None:
            yield span
            span = self._parents.get(span)

    def _stage(self, span: str) -> str | None:
        """Of the work around a span."""
        around = (self._stages[each][0] for each in self._upwards(span) if each in self._stages)
        return next(around, None)

    def _selected(self, event: SIFTSelectionEvent, stage: str | None) -> None:
        self.coverage = event.coverage
        if stage == "retrieve":  # whose time it is a part of; a postprocessor's counts as a whole
            self.seconds["select"] += event.seconds["select"]
            self.seconds["retrieve"] -= event.seconds["select"]

    def _wrote(self, response: Any, started: float, first: float | None) -> None:
        """A model ended: times, by its own account where it gives one, and tokens."""
        raw = getattr(response, "raw", None)
        about: Mapping[str, Any] = raw if isinstance(raw, Mapping) else {}
        timings = about.get("timings")
        if isinstance(timings, Mapping) and "queue" in timings:  # of a SIFTLLM
            self.seconds["train"] += timings["train"] if about.get("training") else 0.0
            self.seconds["prefill"] += timings["prompt"] + timings["prefill"]
            self.seconds["decode"] += timings["decode"]
            self.waited += timings["queue"]
        elif first is not None:
            self.seconds["prefill"] += first - started
            self.seconds["decode"] += time.perf_counter() - first
        told = (response, getattr(response, "message", None))
        extra = (getattr(each, "additional_kwargs", None) for each in told)
        usage: Any = (
            about.get("usage") or getattr(raw, "usage", None) or next(filter(None, extra), {})
        )
        for kind, names in _TOKENS.items():
            counts = (_get(usage, name) for name in names)
            count = next((each for each in counts if isinstance(each, int)), None)
            if count is not None:
                self.tokens[kind] += count


def _get(usage: Any, name: str) -> Any:
    return usage.get(name) if isinstance(usage, Mapping) else getattr(usage, name, None)
