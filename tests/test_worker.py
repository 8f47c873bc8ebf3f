"""The worker: one job at a time, and every way to wait for one, leave it, or break it."""

import asyncio
import contextvars
import gc
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from sift_rag.worker import AsyncStream, Cancelled, Job, Stream, Worker, background

SOON = 10.0  # seconds that nothing here needs


@pytest.fixture
def worker() -> Iterator[Worker]:
    made = Worker("test")
    yield made
    made.close(SOON)


def do(worker: Worker, work: Callable[[Job[Any]], Any], **more: Any) -> Any:
    job = Job(work, **more)
    worker.submit(job)
    return job.wait()


class Endless:
    """Work that emits until it is cancelled; `began` and `ended` tell where it is."""

    def __init__(self) -> None:
        self.began, self.ended = threading.Event(), threading.Event()

    def __call__(self, job: Job[str]) -> str:
        try:
            while True:
                job.on_piece("x")
                self.began.set()
                time.sleep(0.001)
                job.check()
        finally:
            self.ended.set()


def test_jobs_are_done_in_order_on_one_thread(worker: Worker) -> None:
    seen: list[tuple[int, threading.Thread]] = []

    def work(number: int) -> Callable[[Job[int]], int]:
        def append(job: Job[int]) -> int:
            seen.append((number, threading.current_thread()))
            return number

        return append

    jobs = [Job(work(number)) for number in range(20)]
    for job in jobs:
        worker.submit(job)
    assert [job.wait() for job in jobs] == list(range(20))
    assert [number for number, _ in seen] == list(range(20))
    assert len({thread for _, thread in seen}) == 1
    assert threading.current_thread() not in {thread for _, thread in seen}


def test_the_caller_gets_the_very_error_and_the_worker_goes_on(worker: Worker) -> None:
    error = SystemExit("not only an Exception")

    def fail(job: Job[None]) -> None:
        raise error

    with pytest.raises(SystemExit) as caught:
        do(worker, fail)
    assert caught.value is error
    assert do(worker, lambda job: 5) == 5


def test_a_job_sees_the_callers_context(worker: Worker) -> None:
    variable = contextvars.ContextVar("variable", default="nothing")
    variable.set("the caller's")
    assert do(worker, lambda job: variable.get()) == "the caller's"


def test_a_job_that_was_cancelled_while_it_waited_never_begins(worker: Worker) -> None:
    running, ran = Endless(), threading.Event()
    first, second = Job(running), Job(lambda job: ran.set())
    worker.submit(first)
    worker.submit(second)
    second.cancel()
    first.cancel()
    with pytest.raises(Cancelled):
        second.wait()
    assert not ran.is_set()


def test_a_callers_event_cancels_but_is_not_set_by_leaving(worker: Worker) -> None:
    event, work = threading.Event(), Endless()
    stream = Stream(job := Job(work, event))
    worker.submit(job)
    assert next(stream) == "x"
    stream.close()
    assert work.ended.wait(SOON)
    assert not event.is_set()
    threading.Timer(0.05, event.set).start()
    with pytest.raises(Cancelled):
        do(worker, Endless(), cancel=event)


def test_a_closed_worker_cancels_everything_and_takes_no_more(worker: Worker) -> None:
    running, waiting = Job(work := Endless()), Job(lambda job: 1)
    worker.submit(running)
    worker.submit(waiting)
    assert work.began.wait(SOON)
    worker.close()
    worker.close()
    for job in (running, waiting):
        with pytest.raises(Cancelled):
            job.wait()
    with pytest.raises(RuntimeError, match="closed: make a new one"):
        worker.submit(Job(lambda job: 1))


def test_a_job_may_close_the_worker_but_not_ask_it(worker: Worker) -> None:
    with pytest.raises(RuntimeError, match="wait for itself forever"):
        do(worker, lambda job: worker.submit(job))
    assert do(worker, lambda job: worker.close()) is None


def test_ctrl_c_in_a_waiting_caller_cancels_the_job(worker: Worker) -> None:
    work, caller = Endless(), threading.main_thread().ident
    assert caller is not None

    def interrupt() -> None:
        work.began.wait(SOON)
        time.sleep(0.05)
        signal.pthread_kill(caller, signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        do(worker, work)
    assert work.ended.wait(SOON)


def three(job: Job[str]) -> str:
    for piece in ("a", "b", "c"):
        job.on_piece(piece)
    return "abc"


def test_a_stream_gives_the_pieces_and_the_answer(worker: Worker) -> None:
    stream = Stream(job := Job(three))
    worker.submit(job)
    assert stream.answer == "abc"
    assert list(stream) == ["a", "b", "c"]
    assert list(stream) == []
    assert stream.answer == "abc"


def test_a_stream_raises_what_the_job_raised_after_its_pieces(worker: Worker) -> None:
    def fail(job: Job[str]) -> str:
        job.on_piece("a")
        raise KeyError("b")

    stream = Stream(job := Job(fail))
    worker.submit(job)
    assert next(stream) == "a"
    with pytest.raises(KeyError, match="b"):
        next(stream)
    assert list(stream) == []


@pytest.mark.parametrize("leave", ["drop", "close", "with", "break"])
def test_leaving_a_stream_ends_the_job(worker: Worker, leave: str) -> None:
    stream = Stream(job := Job(work := Endless()))
    worker.submit(job)
    assert work.began.wait(SOON)
    if leave == "with":
        with stream:
            next(stream)
    elif leave == "break":
        for _ in stream:
            break
    elif leave == "close":
        stream.close()
        assert list(stream) == []
    del stream
    assert work.ended.wait(SOON)
    with pytest.raises(Cancelled):
        job.wait()
    assert do(worker, lambda job: 1) == 1


def test_awaiting_does_not_block_the_loop(worker: Worker) -> None:
    async def main() -> tuple[str, int]:
        beats = 0

        async def heart() -> None:
            nonlocal beats
            while True:
                await asyncio.sleep(0.005)
                beats += 1

        def slow(job: Job[str]) -> str:
            time.sleep(0.2)
            return "done"

        beating = asyncio.create_task(heart())
        job = Job(slow)
        worker.submit(job)
        result = await job.wait_async()
        beating.cancel()
        return result, beats

    result, beats = asyncio.run(main())
    assert result == "done"
    assert beats > 10


@pytest.mark.parametrize("waiting_in_line", [False, True])
def test_cancelling_a_task_cancels_its_job(worker: Worker, waiting_in_line: bool) -> None:
    first, work = Endless(), Endless()

    async def main() -> None:
        before = Job(first)
        if waiting_in_line:
            worker.submit(before)
        job = Job(work)
        worker.submit(job)
        task = asyncio.create_task(job.wait_async())
        while not (first if waiting_in_line else work).began.is_set():
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        before.cancel()

    asyncio.run(main())
    assert do(worker, lambda job: 1) == 1
    assert work.began.is_set() != waiting_in_line


def test_an_async_stream_gives_the_pieces_and_the_answer(worker: Worker) -> None:
    async def main() -> tuple[list[str], str, list[str]]:
        stream = AsyncStream(job := Job(three))
        worker.submit(job)
        return [piece async for piece in stream], await stream.answer(), [p async for p in stream]

    assert asyncio.run(main()) == (["a", "b", "c"], "abc", [])


@pytest.mark.parametrize("leave", ["drop", "close", "with", "cancel", "loop"])
def test_leaving_an_async_stream_ends_the_job(worker: Worker, leave: str) -> None:
    work = Endless()

    async def consume(stream: AsyncStream[str]) -> None:
        async for _ in stream:
            await asyncio.sleep(0)

    async def main() -> None:
        stream = AsyncStream(job := Job(work))
        worker.submit(job)
        assert await anext(stream) == "x"
        if leave == "close":
            await stream.aclose()
            assert [piece async for piece in stream] == []
        elif leave == "with":
            async with stream:
                pass
        elif leave == "cancel":
            task = asyncio.create_task(consume(stream))
            await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        elif leave == "loop":
            job.stream = stream  # type: ignore[attr-defined]  # outlives the loop

    asyncio.run(main())
    assert work.ended.wait(SOON)
    assert do(worker, lambda job: 1) == 1


def test_an_async_stream_raises_what_the_job_raised(worker: Worker) -> None:
    def fail(job: Job[str]) -> str:
        raise KeyError("b")

    async def main() -> None:
        stream = AsyncStream(job := Job(fail))
        worker.submit(job)
        with pytest.raises(KeyError, match="b"):
            await anext(stream)

    asyncio.run(main())


def test_an_async_stream_needs_a_loop() -> None:
    with pytest.raises(RuntimeError, match="no running event loop"):
        AsyncStream(Job(three))
    gc.collect()


def in_background(work: Callable[[Job[Any]], Any], **more: Any) -> Job[Any]:
    with background():
        return Job(work, **more)


def test_a_background_job_waits_until_nobody_else_does(worker: Worker) -> None:
    order: list[str] = []
    gate = threading.Event()
    first = Job(lambda job: gate.wait(SOON))
    shadow = in_background(lambda job: order.append("shadow"))
    asked: list[Job[Any]] = [Job(lambda job: order.append("asked")) for _ in range(3)]
    for job in (first, shadow, *asked):
        worker.submit(job)
    gate.set()
    for job in (shadow, *asked):
        job.wait()
    assert order == ["asked", "asked", "asked", "shadow"]


def test_a_running_background_job_is_put_back_and_begins_again(worker: Worker) -> None:
    runs: list[str] = []
    began = threading.Event()

    def work(job: Job[Any]) -> str:
        runs.append("began")
        began.set()
        while len(runs) == 1:  # the first time it only ends when asked to
            time.sleep(0.001)
            job.check()
        return "done"

    shadow = in_background(work)
    worker.submit(shadow)
    assert began.wait(SOON)
    assert do(worker, lambda job: len(runs)) == 1
    assert shadow.wait() == "done"
    assert len(runs) == 2


def test_what_is_put_back_again_and_again_waits_for_a_longer_quiet(worker: Worker) -> None:
    begun = []
    gate = threading.Event()

    def work(job: Job[Any]) -> str:
        begun.append(job)
        while not gate.wait(0.001):
            job.check()
        return "done"

    shadow = in_background(work)
    worker.submit(shadow)
    for _ in range(60):  # there is a quiet spell after each, but a short one
        time.sleep(0.005)
        do(worker, lambda job: None)
    assert 1 <= len(begun) <= 20  # it may double from 20 microseconds to the most in 16
    gate.set()
    assert shadow.wait() == "done"


def test_a_background_job_that_is_left_is_not_begun_again(worker: Worker) -> None:
    endless = Endless()
    shadow = in_background(endless)
    worker.submit(shadow)
    assert endless.began.wait(SOON)
    shadow.cancel()
    assert do(worker, lambda job: "next") == "next"
    with pytest.raises(Cancelled):
        shadow.wait()


def test_a_background_stream_is_not_put_back(worker: Worker) -> None:
    began, gate = threading.Event(), threading.Event()

    def work(job: Job[str]) -> str:
        job.on_piece("once")
        began.set()
        gate.wait(SOON)
        job.check()
        return "once"

    job = in_background(work)
    stream = Stream(job)
    worker.submit(job)
    assert began.wait(SOON)
    other = Job(lambda job: "other")
    worker.submit(other)
    gate.set()
    assert list(stream) == ["once"]
    assert other.wait() == "other"


def test_closing_cancels_what_was_put_back(worker: Worker) -> None:
    endless = Endless()
    shadow = in_background(endless)
    worker.submit(shadow)
    assert endless.began.wait(SOON)
    gate = threading.Event()
    blocking = Job(lambda job: gate.wait(SOON))
    worker.submit(blocking)
    assert endless.ended.wait(SOON)
    gate.set()
    worker.close(SOON)
    with pytest.raises(Cancelled):
        shadow.wait()


def test_what_a_job_held_is_freed_when_it_is_done(worker: Worker) -> None:
    class Heavy:
        pass

    def failing(heavy: Heavy) -> Callable[[Job[None]], None]:
        def fail(job: Job[None]) -> None:
            raise KeyError(heavy)

        return fail

    heavy = Heavy()
    gone = weakref.ref(heavy)
    job = Job(failing(heavy))
    worker.submit(job)
    with pytest.raises(KeyError):
        job.wait()
    do(worker, lambda job: None)
    del job, heavy
    gc.collect()
    assert gone() is None


def script(code: str) -> "subprocess.CompletedProcess[str]":
    head = "import os, threading, time\nfrom sift_rag.worker import Job, Worker\n"
    return subprocess.run(
        [sys.executable, "-c", head + code], capture_output=True, text=True, timeout=60, check=False
    )


def test_a_running_job_does_not_keep_the_interpreter_alive() -> None:
    done = script(
        "worker = Worker('w'); began = threading.Event()\n"
        "worker.submit(Job(lambda job: (began.set(), time.sleep(600))))\n"
        "began.wait(); print('end')"
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "end\n", "")


@pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="there is no fork here")
def test_a_fork_is_told_to_make_its_own() -> None:
    done = script(
        "import warnings; warnings.simplefilter('ignore')\n"
        "worker = Worker('w')\n"
        "if os.fork() == 0:\n"
        "    try: worker.submit(Job(lambda job: 1))\n"
        "    except RuntimeError as error: print(error, flush=True)\n"
        "    worker.close()\n"
        "    os._exit(0)\n"
        "os.wait()"
    )
    assert "make an Engine in each process" in done.stdout
    assert done.returncode == 0
