"""Shadow mode for plain callables: answer one way, and run another way beside it.

`langchain_sift` and `llama_index_sift` have it in their recorders.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import time
from collections.abc import Callable, Coroutine, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from sift_rag.cases import Reply
from sift_rag.recording import Recorded, Recorder, described
from sift_rag.replies import as_reply
from sift_rag.shadow import Shadow, in_shadow, timed


@dataclass(frozen=True, slots=True)
class _Call:
    """One call of what is shadowed."""

    args: tuple[Any, ...]
    options: dict[str, Any]
    request: str = field(default_factory=lambda: str(uuid4()))
    started: float = field(default_factory=time.perf_counter)

    @property
    def question(self) -> Any:
        return self.args[0] if self.args else next(iter(self.options.values()), None)


class Shadowed:
    """What `shadowed` makes: call it as the first way is called.

    Attributes:
        recorder: Writes both ways' rows.
        shadow: Runs the other way; its `flush`, `close` and `dropped` are to be had here.
    """

    def __init__(self, first: Callable[..., Any], recorder: Recorder, shadow: Shadow) -> None:
        self.recorder = recorder
        self.shadow = shadow
        self._first = first

    def __call__(self, *args: Any, **options: Any) -> Any:
        """What the first way returns or raises."""
        call = _Call(args, options)
        with self._errors(call):
            value = self._first(*args, **options)
        if inspect.iscoroutine(value):
            return self._awaited(value, call)
        if isinstance(value, Generator):
            return self._pieces(value, call)
        self._answered(value, call)
        return value

    async def _awaited(self, value: Coroutine[Any, Any, Any], call: _Call) -> Any:
        with self._errors(call):
            answer = await value
        self._answered(answer, call)
        return answer

    def _pieces(self, pieces: Generator[Any, Any, Any], call: _Call) -> Iterator[Any]:
        text: list[Any] = []
        with self._errors(call):
            try:
                for piece in pieces:
                    text.append(piece)
                    yield piece
            finally:
                pieces.close()
        self._answered(text, call)  # not reached where the caller leaves early

    @contextmanager
    def _errors(self, call: _Call) -> Iterator[None]:
        try:
            yield
        except GeneratorExit:
            raise
        except BaseException as error:
            self._ended(call, error=described(error))
            raise

    def _answered(self, value: Any, call: _Call) -> None:
        seconds = time.perf_counter() - call.started
        try:
            if hasattr(value, "response_gen"):  # of LlamaIndex: to read it would take it away
                raise TypeError
            reply = as_reply("".join(value) if isinstance(value, list) else value)
        except Exception:  # whose message may show the answer
            kind = type(value).__name__
            self.recorder.lose(f"an answer is a {kind}, of which sift_rag.replies makes no reply")
        else:
            self._ended(call, reply=timed(reply, seconds))

    def _ended(self, call: _Call, *, reply: Reply | None = None, error: str = "") -> None:
        if in_shadow():
            return
        question = call.question
        row = Recorded(question=question, reply=reply, error=error, request=call.request)
        self.recorder.record(row)
        self.shadow.offer(call.request, question, (call.args, call.options))

    def flush(self, timeout: float | None = None) -> bool:
        """See `Shadow.flush`."""
        return self.shadow.flush(timeout)

    def close(self, timeout: float | None = 0.0) -> None:
        """See `Shadow.close`; the first way goes on answering."""
        self.shadow.close(timeout)


def shadowed(
    first: Any,
    other: Any,
    *,
    recorder: Recorder | str | os.PathLike[str],
    way: str = "shadow",
    share: float = 0.05,
    waiting: int = 100,
) -> Shadowed:
    """Answer with the first way, and a share of the requests with the other one beside it.

    Values, errors and pieces of the first way are what they were. Both are recorded, with the
    request's name in common, where `sift_rag.replies.as_reply` can read what they give. A generator
    is recorded when its last piece was taken; one that is left early is not.

    Args:
        first: A callable from a question to an answer, a coroutine function or generator function
            among them, or a `Pipeline`.
        other: Such a callable, or a `Pipeline`; it gets the same arguments.
        recorder: A `Recorder`, or the path of one's file.
        way: The other way's name; the first one's is that of the recorder, "app" by default.
        share: See `Shadow`, as for `waiting`.
        waiting: Requests that may wait.

    Raises:
        TypeError: One of the two cannot be called.
    """
    if not isinstance(recorder, Recorder):
        recorder = Recorder(recorder)
    asked = _callable(other)

    def answer(given: tuple[tuple[Any, ...], dict[str, Any]]) -> Any:
        args, options = given
        value = asked(*args, **options)
        if inspect.iscoroutine(value):
            value = asyncio.run(value)
        return "".join(value) if isinstance(value, Generator) else value

    shadow = Shadow(answer, recorder, way=way, share=share, waiting=waiting)
    return Shadowed(_callable(first), recorder, shadow)


def _callable(way: Any) -> Callable[..., Any]:
    found: Any = way if callable(way) else getattr(way, "answer", None)
    if not callable(found):
        raise TypeError(
            f"A way to answer must be a callable or a Pipeline, got {type(way).__name__}."
        )
    answer: Callable[..., Any] = found
    return answer
