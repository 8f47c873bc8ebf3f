"""Records a running query engine, so that its traffic can be compared later; shadow mode.

It listens to LlamaIndex's instrumentation: its spans tell which query a piece of work belongs to,
also among threads and tasks, and what its handlers raise never reaches the engine.
"""

from __future__ import annotations

import os
from asyncio import CancelledError
from collections.abc import AsyncGenerator, Callable, Generator
from contextvars import ContextVar
from dataclasses import replace
from functools import partial
from inspect import BoundArguments
from typing import Any
from weakref import WeakValueDictionary

from llama_index.core.base.base_query_engine import BaseQueryEngine
from llama_index.core.base.response.schema import AsyncStreamingResponse, StreamingResponse
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.events.base import BaseEvent
from llama_index.core.schema import QueryType
from typing_extensions import Self

from llama_index_sift.listening import Events, Spans
from llama_index_sift.watching import Request
from sift_rag.cases import Reply
from sift_rag.recording import MAX_BYTES, Recorded, Recorder, Redact, described
from sift_rag.shadow import Shadow, in_shadow

_shadowed: ContextVar[Request | None] = ContextVar("llama_index_sift_shadowed", default=None)


class SIFTRecorder:
    """Records what a query engine is asked and answers, a JSON line a query, to be compared later.

    It begins when it is made and ends with `close`, or with the end of a `with` block. Recorded are
    `query` and `aquery` of this one engine: question, response or error, the nodes that the
    response rests on (after the postprocessors), seconds by stage, and tokens where the model tells
    them. A stream is recorded when its last piece was taken; one that is left early is not. Nothing
    of it reaches the engine: what cannot be recorded is counted in `lost`, and the first is warned
    of.

    With a `shadow`, a share of the queries is answered by it too, in the background. Its row has
    the same name and the way "shadow".

    Args:
        path: The file; processes may share it.
        query_engine: What is recorded.
        way: Its name in the file.
        share: Of the queries that is recorded, 0 to 1.
        redact: Applied to each text before it is written. It runs within the query.
        shadow: Another query engine.
        shadow_share: Of the queries that it answers, 0 to 1, and at most `share`.
        max_bytes: Size of the file beyond which nothing is recorded.

    Attributes:
        recorder: Writes the rows.
        shadowing: Runs the shadow; None where there is none.

    Raises:
        TypeError: query_engine or shadow is none.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        query_engine: BaseQueryEngine,
        way: str = "app",
        *,
        share: float = 1.0,
        redact: Redact | None = None,
        shadow: BaseQueryEngine | None = None,
        shadow_share: float = 0.05,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self.recorder = Recorder(path, way=way, share=share, redact=redact, max_bytes=max_bytes)
        self.shadowing: Shadow | None = None
        self._engine = _checked("query_engine", query_engine)
        if shadow is not None:
            other = _checked("shadow", shadow)
            self.shadowing = Shadow(partial(self._ask, other), self.recorder, share=shadow_share)
        self._spans: WeakValueDictionary[str, Request] = WeakValueDictionary()
        self._open: dict[str, Request] = {}  # by the query's span; else nobody would hold them
        quiet = self._quiet
        spans = Spans(quiet(self._enter), quiet(self._exit), quiet(self._drop))
        self._handlers = (spans, Events(quiet(self._heard)))
        root = get_dispatcher()
        root.add_span_handler(self._handlers[0])
        root.add_event_handler(self._handlers[1])

    @property
    def lost(self) -> int:
        """Rows that could not be recorded."""
        return self.recorder.lost

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until no shadow waits or runs, at most so many seconds; whether that came about."""
        return self.shadowing is None or self.shadowing.flush(timeout)

    def close(self, timeout: float | None = 0.0) -> None:
        """Listen no more; drop shadows that wait, wait so many seconds for one that runs."""
        root, (spans, events) = get_dispatcher(), self._handlers
        root.span_handlers = [each for each in root.span_handlers if each is not spans]
        root.event_handlers = [each for each in root.event_handlers if each is not events]
        if self.shadowing is not None:
            self.shadowing.close(timeout)

    def _quiet(self, tell: Callable[..., None]) -> Callable[..., None]:
        """LlamaIndex swallows what handlers raise; here it is counted first."""

        def quiet(*args: Any) -> None:
            try:
                tell(*args)
            except Exception as error:
                self.recorder.lose(described(error))

        return quiet

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _enter(
        self, span: str, arguments: BoundArguments, instance: Any, parent: str | None
    ) -> None:
        request = self._spans.get(parent or "") or self._begun(span, arguments, instance)
        if request is not None:
            self._spans[span] = request
            request.entered(span, parent, instance)

    def _begun(self, span: str, arguments: BoundArguments, instance: Any) -> Request | None:
        """The request that begins with a span, if one does."""
        if in_shadow():
            request = _shadowed.get()
            return request if request is not None and request.owner is self else None
        method = span.partition("-")[0].rpartition(".")[2]
        if instance is not self._engine or method not in ("query", "aquery"):
            return None
        request = Request(next(iter(arguments.arguments.values())), self)
        if not self.recorder.wants(request.name):
            return None
        self._open[span] = request
        return request

    def _exit(self, span: str, result: Any) -> None:
        if (request := self._spans.get(span)) is None:
            return
        request.left(span)
        if self._open.pop(span, None) is None:
            return
        if isinstance(result, StreamingResponse) and isinstance(result.response_gen, Generator):
            result.response_gen = self._pieces(request, result, result.response_gen)
        elif isinstance(result, AsyncStreamingResponse):
            result.response_gen = self._apieces(request, result, result.response_gen)
        else:
            self._ended(request, result)

    def _drop(self, span: str, error: BaseException | None) -> None:
        if (request := self._spans.get(span)) is not None:
            request.left(span)
            if self._open.pop(span, None) is not None:
                self._ended(request, error or RuntimeError("the span was dropped"))

    def _heard(self, event: BaseEvent) -> None:
        if (request := self._spans.get(event.span_id or "")) is not None:
            request.heard(event)

    def _pieces(
        self, request: Request, response: Any, pieces: Generator[str, None, None]
    ) -> Generator[str, None, None]:
        text = ""
        try:
            for piece in pieces:
                text += piece
                yield piece
        except Exception as error:
            self._quiet(self._ended)(request, error)
            raise
        finally:
            pieces.close()
        self._quiet(self._ended)(request, response, text)

    async def _apieces(
        self, request: Request, response: Any, pieces: AsyncGenerator[str, None]
    ) -> AsyncGenerator[str, None]:
        text = ""
        try:
            async for piece in pieces:
                text += piece
                yield piece
        except (Exception, CancelledError) as error:
            self._quiet(self._ended)(request, error)
            raise
        finally:
            await pieces.aclose()
        self._quiet(self._ended)(request, response, text)

    def _ended(self, request: Request, outcome: Any, text: str | None = None) -> None:
        """With a response, of a stream also its text, or with an error."""
        row = Recorded(question=request.question, request=request.name)
        if isinstance(outcome, BaseException):
            row = replace(row, error=described(outcome))
        else:
            row = replace(row, reply=_reply(request, outcome, text))
        self.recorder.record(row)
        if self.shadowing is not None:
            self.shadowing.offer(request.name, request.question, request.query)

    def _ask(self, engine: BaseQueryEngine, query: QueryType) -> Reply:
        request = Request(query, self)
        _shadowed.set(request)  # in the shadow's own context
        response = engine.query(query)
        if isinstance(response, StreamingResponse):
            response = response.get_response()
        return _reply(request, response)


def _reply(request: Request, response: Any, text: str | None = None) -> Reply:
    if text is None:
        text = str(response) if response.response else ""
    return request.reply(text, response.source_nodes)


def _checked(what: str, engine: Any) -> BaseQueryEngine:
    if not isinstance(engine, BaseQueryEngine):
        raise TypeError(
            f"{what} must be a query engine of LlamaIndex, got {type(engine).__name__}."
        )
    return engine
