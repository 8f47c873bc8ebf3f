"""Answers a share of an app's requests a second time, in the background, and records that.

The app waits for nothing of it: it has a thread of its own, a full queue drops what comes, and what
is raised there is a row in the recording.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from contextvars import Context, ContextVar
from dataclasses import dataclass, replace
from typing import Any

from sift_rag.cases import Reply
from sift_rag.recording import Recorded, Recorder, check_share, described, sampled
from sift_rag.replies import as_reply
from sift_rag.worker import background

LAST_SECONDS = 1.0
"""How long the end of the interpreter waits for a shadow that is running."""

_inside = ContextVar("sift_rag_shadow", default=False)
_all: weakref.WeakSet[Shadow] = weakref.WeakSet()


def in_shadow() -> bool:
    """Whether this is run by a `Shadow`: then nothing more is recorded or shadowed."""
    return _inside.get()


@dataclass(frozen=True, slots=True)
class _Task:
    request: str
    question: str
    given: Any


class Shadow:
    """Answers requests in the background, one after another, and records what came of each.

    Calls of an `Engine` in it give way to all others, see `sift_rag.worker.background`.

    Args:
        answer: From what `offer` is given to an answer, as `sift_rag.replies.as_reply` reads it.
        recorder: Where the rows go.
        way: The rows' way.
        share: Of the requests that is answered, 0 to 1, and at most that of the recorder: a request
            that is not recorded has nothing to be compared with.
        waiting: Requests that may wait; what comes when there are as many is dropped.

    Attributes:
        dropped: Requests that came when too many were waiting, or after `close`, or that `close`
            found waiting.
    """

    def __init__(
        self,
        answer: Callable[[Any], Any],
        recorder: Recorder,
        *,
        way: str = "shadow",
        share: float = 0.05,
        waiting: int = 100,
    ) -> None:
        self.way = way
        self.share = check_share(share)
        self.dropped = 0
        self._answer = answer
        self._recorder = recorder
        self._limit = waiting
        self._closed = False
        self._begin()
        _all.add(self)

    def _begin(self) -> None:
        """Empty, with no thread yet: also in a forked process, where the thread is not."""
        self._tasks: deque[_Task] = deque()
        self._changed = threading.Condition()
        self._running = False
        self._thread: threading.Thread | None = None

    def wants(self, request: str) -> bool:
        """Whether a request of this name is among the share."""
        recorder = self._recorder
        return recorder.wants(request) and sampled(request, self.share, seed=recorder.seed)

    def offer(self, request: str, question: str, given: Any) -> None:
        """Answer a request in the background, if it is among the share. Never waits or raises.

        Args:
            request: The name under which the first way's row was recorded.
            question: For the row.
            given: What `answer` gets.
        """
        try:
            if not in_shadow() and self.wants(request):
                self._put(_Task(request, question, given))
        except Exception as error:  # no thread could be started, say
            self._recorder.lose(described(error))

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until nothing waits or runs, at most so many seconds; whether that came about."""
        with self._changed:
            return self._changed.wait_for(lambda: not (self._tasks or self._running), timeout)

    def close(self, timeout: float | None = 0.0) -> None:
        """Drop what waits; wait so many seconds at most for what runs. May be called again."""
        with self._changed:
            self._closed = True
            self.dropped += len(self._tasks)
            self._tasks.clear()
            self._changed.notify_all()
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout)

    def _put(self, task: _Task) -> None:
        with self._changed:
            if self._closed or len(self._tasks) >= self._limit:
                self.dropped += 1
                return
            if self._thread is None:
                thread = threading.Thread(target=self._serve, name="sift_rag.Shadow", daemon=True)
                thread.start()
                self._thread = thread
            self._tasks.append(task)
            self._changed.notify_all()

    def _serve(self) -> None:
        while (task := self._next()) is not None:
            # A context of its own: to the frameworks' tracers it is no part of the first's call.
            Context().run(self._run, task)
            del task  # else its texts would stay until the next one comes
            with self._changed:
                self._running = False
                self._changed.notify_all()

    def _next(self) -> _Task | None:
        with self._changed:
            self._changed.wait_for(lambda: self._tasks or self._closed)
            if not self._tasks:
                return None
            self._running = True
            return self._tasks.popleft()

    def _run(self, task: _Task) -> None:
        _inside.set(True)
        row = Recorded(question=task.question, request=task.request, way=self.way)
        started = time.perf_counter()
        try:
            with background():
                reply = as_reply(self._answer(task.given))
            self._recorder.record(replace(row, reply=timed(reply, time.perf_counter() - started)))
        except BaseException as error:
            if threading.main_thread().is_alive():  # else the interpreter's end is to blame
                self._recorder.record(replace(row, error=described(error)))


def timed(reply: Reply, seconds: float) -> Reply:
    """The reply with this total, where it does not tell its own."""
    return replace(reply, seconds={"total": seconds, **reply.seconds})


def _at_exit() -> None:
    until = time.monotonic() + LAST_SECONDS
    for shadow in list(_all):
        with suppress(Exception):
            shadow.close(max(0.0, until - time.monotonic()))


def _after_fork() -> None:
    for shadow in list(_all):
        shadow._begin()


atexit.register(_at_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
