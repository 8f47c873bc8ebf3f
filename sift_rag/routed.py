"""Streams around a routed question: one that no model is asked, one with what came before it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from sift_rag.engine import Answer, Stream
from sift_rag.events import Callback, Control, emit
from sift_rag.worker import Job

_STAGES = ("queue", "train", "prompt", "prefill", "decode", "total")
_TOKENS = ("prompt_tokens", "completion_tokens", "training_tokens")


class Finished(Stream):
    """A stream whose answer is told what came before it. The pieces are the same."""

    def __init__(self, stream: Stream, finish: Callable[[Answer], Answer]) -> None:
        self._stream = stream  # whose job this one leaves alone
        self._finish = finish

    @property
    def answer(self) -> Answer:
        """The whole answer; waits for it, whether or not the pieces were read."""
        return self._finish(self._stream.answer)

    def close(self) -> None:
        """Cancel what is left of the job and end the iteration."""
        self._stream.close()

    def __next__(self) -> str:
        return next(self._stream)


def declined(
    question: str,
    text: str,
    *,
    callbacks: Sequence[Callback],
    control: Control,
    cancel: threading.Event | None = None,
) -> Stream:
    """The answer that the corpus does not cover the question; the model is not asked.

    Args:
        question: What was asked.
        text: What is said; may be empty.
        callbacks: Told as an engine tells them.
        control: Theirs.
        cancel: Set, the answer is `Cancelled`.
    """

    def answered(job: Job[Answer]) -> Answer:
        if text:
            emit(callbacks, "on_token", control, {"text": text, "index": 0})
            job.on_piece(text)
        answer = Answer(
            text=text,
            mode="not_covered",
            question=question,
            documents=(),
            left_out=(),
            timings=dict.fromkeys(_STAGES, 0.0),
            usage=dict.fromkeys(_TOKENS, 0),
            training=None,
            finish_reason="stop",
        )
        told = ("text", "mode", "timings", "usage", "finish_reason")
        emit(callbacks, "on_answer", control, {key: getattr(answer, key) for key in told})
        return answer

    job = Job(answered, cancel)
    stream = Stream(job)
    job.run()
    return stream
