"""One thread that works through jobs, and the ways to wait for one: block, iterate, await.

Jobs in the background wait until there are no others. When one comes they are put back, and begin
again after a quiet spell that is longer each time.

A caller never holds a lock while it consumes: the worker pushes into unbounded queues, and a
caller that goes away only sets a flag, which the job polls.
"""

import asyncio
import contextvars
import os
import queue
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from typing import Any, Generic, TypeVar

T = TypeVar("T")

_END = None  # what follows the last piece
_PATIENCE = 1.0  # seconds: the longest quiet that a job in the background waits for
_in_background = contextvars.ContextVar("sift_rag_background", default=False)


@contextmanager
def background() -> Iterator[None]:
    """Calls of an `Engine` inside give way to all others.

    They wait until nobody else does. One that is running is put back when another call comes, after
    the training step or token that is on its way (a stream is not, as its pieces are out). It
    begins again when no call came for as long as it had run, and for twice as long each time, up to
    a second: else it would begin between any two calls, end never, and slow down all of them. For
    work that nobody waits for, such as a shadow of production.
    """
    token = _in_background.set(True)
    try:
        yield
    finally:
        _in_background.reset(token)


class Cancelled(RuntimeError):
    """The call was cancelled before it was finished."""


class Job(Generic[T]):
    """A piece of work with a result, pieces of text on the way to it, and a way to give it up.

    Attributes:
        future: Of the result.
        on_piece: Told each piece; set it before the job is submitted.
        submitted: When the job was made, by `time.perf_counter`.
        in_background: Whether it gives way to others.
        restartable: Whether it may begin again from the start.
    """

    def __init__(self, work: "Callable[[Job[T]], T]", cancel: threading.Event | None = None):
        self.future: Future[T] = Future()
        self.on_piece: Callable[[str], object] = lambda piece: None
        self.submitted = time.perf_counter()
        self._work = work
        self._context = contextvars.copy_context()  # the callbacks see the caller's
        # Two flags: giving up one stream must not cancel what else shares the caller's event.
        self._given_up = threading.Event()
        self._cancel = cancel or self._given_up
        self.in_background = _in_background.get()
        self.restartable = True
        self._put_back = False

    @property
    def cancelled(self) -> bool:
        """Whether this job is to end."""
        return self._put_back or self._unwanted

    @property
    def _unwanted(self) -> bool:
        return self._given_up.is_set() or self._cancel.is_set()

    def cancel(self) -> None:
        """Ask the job to end; it does so after the step or token that is running."""
        self._given_up.set()

    def put_back(self) -> None:
        """Ask a running job to end now and begin again later, if it may."""
        self._put_back = self.restartable

    def check(self) -> None:
        """Raise `Cancelled` if the job is to end."""
        if self.cancelled:
            raise Cancelled("The call was cancelled; the model is as it was before.")

    def run(self) -> bool:
        """Do the work, on the worker's thread; whatever it raises goes to the caller.

        Returns:
            Whether the job was put back, and is to run again.
        """
        if not self.future.running() and not self.future.set_running_or_notify_cancel():
            return False
        try:
            self.check()
            result = self._context.run(self._work, self)
        except BaseException as error:
            if isinstance(error, Cancelled) and self._put_back and not self._unwanted:
                self._put_back = False
                return True
            self.future.set_exception(error)
            del self  # the traceback holds this frame: a cycle that would keep tensors alive
        else:
            self.future.set_result(result)
        return False

    def wait(self) -> T:
        """Block until the result is there; an interrupt (Ctrl-C) cancels the job."""
        try:
            return self.future.result()
        finally:
            self.cancel()  # does nothing to a job that is done

    async def wait_async(self) -> T:
        """As `wait`, without blocking the event loop; cancelling the task cancels the job."""
        try:
            return await asyncio.wrap_future(self.future)
        finally:
            self.cancel()


class Worker:
    """A daemon thread and its queues of jobs. It does not keep the interpreter from ending."""

    def __init__(self, name: str) -> None:
        self._jobs: deque[Job[Any]] = deque()
        self._background: deque[Job[Any]] = deque()
        self._running: Job[Any] | None = None
        self._patience = 0.0  # seconds of quiet before a job in the background begins
        self._changed = threading.Condition()
        self._closed = False
        self._process = os.getpid()
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self._thread.start()

    def submit(self, job: Job[Any]) -> None:
        """Put a job into its queue.

        Raises:
            RuntimeError: If the worker is closed, belongs to another process, or asks itself.
        """
        if os.getpid() != self._process:
            raise RuntimeError(
                "This Engine was made in another process, and its thread did not come along in the "
                "fork: make an Engine in each process."
            )
        if threading.current_thread() is self._thread:
            raise RuntimeError(
                "A callback asked the Engine that is calling it, which would wait for itself "
                "forever: ask it after the answer, or ask another Engine."
            )
        with self._changed:
            if self._closed:
                raise RuntimeError("This Engine is closed: make a new one.")
            (self._background if job.in_background else self._jobs).append(job)
            if not job.in_background and self._running and self._running.in_background:
                self._running.put_back()
            self._changed.notify()

    def close(self, timeout: float | None = None) -> None:
        """Cancel all jobs and end the thread. May be called again, and from a callback."""
        with self._changed:
            running = [self._running] if self._running else []
            for job in [*running, *self._jobs, *self._background]:
                job.cancel()
            self._closed = True
            self._changed.notify()
        if threading.current_thread() is not self._thread and os.getpid() == self._process:
            self._thread.join(timeout)

    def _serve(self) -> None:
        while job := self._next():
            began = time.perf_counter()
            again = job.run()
            ran = time.perf_counter() - began
            with self._changed:
                self._running = None
                if again:
                    self._patience = min(max(ran, 2 * self._patience), _PATIENCE)
                    self._background.appendleft(job)
                    if self._closed:
                        job.cancel()
                elif job.in_background:
                    self._patience = 0.0
            del job  # else the last job's texts would stay until the next one comes

    def _next(self) -> Job[Any] | None:
        """The next job; None once there will be none."""
        with self._changed:
            self._changed.wait_for(lambda: self._jobs or self._background or self._closed)
            self._changed.wait_for(lambda: self._jobs or self._closed, timeout=self._patience)
            waiting = self._jobs or self._background
            self._running = waiting.popleft() if waiting else None
            return self._running


class Stream(Iterator[str], Generic[T]):
    """The pieces of an answer as they come. The work began when this was made.

    Leave it early by `close`, at the end of a `with` block, or by dropping it: the job ends after
    the step or token that is running.
    """

    def __init__(self, job: Job[T]) -> None:
        self._job = job
        self._over = False
        self._pieces = pieces = queue.SimpleQueue[str | None]()
        job.on_piece = pieces.put
        job.restartable = False  # what is read cannot be taken back
        job.future.add_done_callback(lambda _: pieces.put(_END))

    @property
    def answer(self) -> T:
        """The whole answer; waits for it, whether or not the pieces were read."""
        return self._job.wait()

    def close(self) -> None:
        """Cancel what is left of the job and end the iteration."""
        self._over = True
        self._job.cancel()

    def __next__(self) -> str:
        if self._over:
            raise StopIteration
        try:
            piece = self._pieces.get()
        except BaseException:  # Ctrl-C while waiting
            self.close()
            raise
        if piece is _END:
            self._over = True
            self._job.future.result()  # raises what the job raised
            raise StopIteration
        return piece

    def __enter__(self) -> "Stream[T]":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


class AsyncStream(AsyncIterator[str], Generic[T]):
    """As `Stream`, for `async for`: waiting does not block the event loop."""

    def __init__(self, job: Job[T]) -> None:
        self._job = job
        self._over = False
        self._pieces = pieces = asyncio.Queue[str | None]()
        loop = asyncio.get_running_loop()

        def push(piece: str | None) -> None:
            loop.call_soon_threadsafe(pieces.put_nowait, piece)  # an error if the loop is closed

        def end(_: Future[T]) -> None:
            with suppress(RuntimeError):
                push(_END)

        job.on_piece = push
        job.restartable = False
        job.future.add_done_callback(end)

    async def answer(self) -> T:
        """The whole answer; waits for it, whether or not the pieces were read."""
        return await self._job.wait_async()

    async def aclose(self) -> None:
        """Cancel what is left of the job and end the iteration."""
        self._close()

    async def __anext__(self) -> str:
        if self._over:
            raise StopAsyncIteration
        try:
            piece = await self._pieces.get()
        except BaseException:  # the task was cancelled
            self._close()
            raise
        if piece is _END:
            self._over = True
            self._job.future.result()  # raises what the job raised
            raise StopAsyncIteration
        return piece

    async def __aenter__(self) -> "AsyncStream[T]":
        return self

    async def __aexit__(self, *_: object) -> None:
        self._close()

    def __del__(self) -> None:
        self._close()

    def _close(self) -> None:
        self._over = True
        self._job.cancel()
