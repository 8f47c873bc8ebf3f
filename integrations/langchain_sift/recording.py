"""Records a running chain, so that its traffic can be compared later; shadow mode."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from copy import copy
from dataclasses import replace
from functools import partial, wraps
from typing import Any
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.runnables import Runnable

from langchain_sift.watching import Kind, Request, Run, answer_in, question_in
from sift_rag.cases import Reply
from sift_rag.recording import MAX_BYTES, Recorded, Recorder, Redact, described
from sift_rag.shadow import Shadow, in_shadow

_MANY = 10_000  # runs that are open at once; what is beyond was never ended


def _quietly(hook: Callable[..., None]) -> Callable[..., None]:
    """What a hook raises does not reach the chain, nor LangChain's log at every call."""

    @wraps(hook)
    def quiet(self: _Watch, *args: Any, **kwargs: Any) -> None:
        try:
            hook(self, *args, **kwargs)
        except Exception as error:
            self._lost(described(error))

    return quiet


class _Watch(BaseCallbackHandler):
    """Follows each request from its outermost run down. Threads and tasks may share one."""

    run_inline = True  # in the order of events, and with no hop to a thread for each token

    def __init__(self) -> None:
        self._runs: dict[UUID, Run] = {}
        self._lock = threading.Lock()

    def _began(self, name: str, inputs: Any) -> Request | None:
        """A request began; None leaves it alone."""
        raise NotImplementedError

    def _ended(self, request: Request, outputs: Any, error: BaseException | None) -> None:
        raise NotImplementedError

    def _lost(self, why: str) -> None:
        raise NotImplementedError

    def _start(self, kind: Kind, inputs: Any, run_id: UUID, parent_run_id: UUID | None) -> None:
        parent = self._runs.get(parent_run_id) if parent_run_id else None
        if parent is None:
            asks = kind in ("chain", "llm")  # a retriever by itself answers nothing
            run = Run(self._began(str(run_id), inputs) if asks else None, kind)
        else:
            run = Run(parent.request, kind, parent.depth + 1, parent.retrieves)
        run.retrieves |= kind == "retriever"
        with self._lock:
            if run.request:
                run.request.runs.add(run_id)
            if kind == "chain":
                run.took_in(inputs)
            self._runs[run_id] = run
            if len(self._runs) > _MANY:
                del self._runs[next(iter(self._runs))]

    def _end(
        self, run_id: UUID, outputs: Any = None, error: BaseException | None = None, **kwargs: Any
    ) -> None:
        with self._lock:
            run = self._runs.pop(run_id, None)
            if run is None or run.request is None:
                return
            request = run.request
            request.runs.discard(run_id)
            if kwargs.get("inputs") is not None and run.depth == 0:  # of a stream, known at its end
                request.inputs = kwargs["inputs"]
            if error is None:
                self._note(run, outputs, kwargs.get("parent_run_id"))
            if run.depth == 0:
                for left in request.runs:
                    self._runs.pop(left, None)
        if run.depth == 0 and not isinstance(error, GeneratorExit):  # that one left early
            self._ended(request, outputs, error)

    def _note(self, run: Run, outputs: Any, parent: UUID | None) -> None:
        if run.kind == "retriever":
            run.retrieved(within=parent in self._runs and self._runs[parent].retrieves)
        if run.kind == "llm":
            run.wrote(outputs)
        elif run.depth:
            run.gave(outputs)

    # LangChain's hooks.

    @_quietly
    def on_chain_start(self, _: Any, inputs: Any, *, run_id: UUID, **kwargs: Any) -> None:
        """A chain began."""
        self._start("chain", inputs, run_id, kwargs.get("parent_run_id"))

    @_quietly
    def on_chat_model_start(self, _: Any, messages: Any, *, run_id: UUID, **kwargs: Any) -> None:
        """A chat model began."""
        self._start("llm", messages[0], run_id, kwargs.get("parent_run_id"))

    @_quietly
    def on_llm_start(self, _: Any, prompts: Any, *, run_id: UUID, **kwargs: Any) -> None:
        """A model began."""
        self._start("llm", prompts[0], run_id, kwargs.get("parent_run_id"))

    @_quietly
    def on_retriever_start(self, _: Any, query: str, *, run_id: UUID, **kwargs: Any) -> None:
        """A retriever began."""
        self._start("retriever", query, run_id, kwargs.get("parent_run_id"))

    @_quietly
    def on_tool_start(self, _: Any, input_str: str, *, run_id: UUID, **kwargs: Any) -> None:
        """A tool began."""
        self._start("tool", input_str, run_id, kwargs.get("parent_run_id"))

    @_quietly
    def on_llm_new_token(self, *_: Any, run_id: UUID, **kwargs: Any) -> None:
        """A token came."""
        run = self._runs.get(run_id)
        if run is not None:
            run.began_to_write()

    @_quietly
    def on_custom_event(self, name: str, data: Any, *, run_id: UUID, **kwargs: Any) -> None:
        """SIFT selected."""
        run = self._runs.get(run_id)
        if name == "sift_selection" and run is not None:
            with self._lock:
                run.selected(data)

    @_quietly
    def _on_end(self, outputs: Any, *, run_id: UUID, **kwargs: Any) -> None:
        self._end(run_id, outputs, **kwargs)

    @_quietly
    def _on_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        self._end(run_id, None, error, **kwargs)

    on_chain_end = on_retriever_end = on_tool_end = on_llm_end = _on_end
    on_chain_error = on_retriever_error = on_tool_error = on_llm_error = _on_error


class SIFTRecorder(_Watch):
    """Records what a chain is asked and answers, a JSON line a request, to be compared later.

    Give it to a call, `chain.invoke(question, config={"callbacks": [recorder]})`, or to the chain,
    `chain.with_config(callbacks=[recorder])`. A request is the outermost run that it is told of,
    and that run's id its name in the file. Recorded are question, answer or error, the passages
    that a retriever gave (of several the one nearest to the outermost run, then the last), seconds
    by stage, and tokens where the model tells them. Nothing of it reaches the chain: what cannot be
    recorded is counted in `lost`, and the first is warned of.

    With a `shadow`, a share of the requests is answered by it too, in the background, with the same
    input. Its row has the same name and the way "shadow".

    Where question or answer lie in unusual places, override `question` or `answer`.

    Args:
        path: The file; processes may share it.
        way: The chain's name in the file.
        share: Of the requests that is recorded, 0 to 1.
        redact: Applied to each text before it is written. It runs within the request.
        shadow: Another chain.
        shadow_share: Of the requests that it answers, 0 to 1, and at most `share`.
        max_bytes: Size of the file beyond which nothing is recorded.

    Attributes:
        recorder: Writes the rows.
        shadowing: Runs the shadow; None where there is none.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        way: str = "app",
        *,
        share: float = 1.0,
        redact: Redact | None = None,
        shadow: Runnable[Any, Any] | None = None,
        shadow_share: float = 0.05,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        super().__init__()
        self.recorder = Recorder(path, way=way, share=share, redact=redact, max_bytes=max_bytes)
        self.shadowing: Shadow | None = None
        if shadow is not None:
            if not isinstance(shadow, Runnable):
                raise TypeError(
                    f"shadow must be a Runnable of LangChain, got {type(shadow).__name__}: "
                    "RunnableLambda(function) makes one of a function."
                )
            ask = partial(self._ask, shadow)
            self.shadowing = Shadow(ask, self.recorder, share=shadow_share)

    @property
    def lost(self) -> int:
        """Rows that could not be recorded."""
        return self.recorder.lost

    def question(self, inputs: Any) -> str | None:
        """The question in what the chain was given: the text, the last human message, or what a
        dict holds under "input", "question", "query", ... None where there is none."""
        return question_in(inputs)

    def answer(self, outputs: Any) -> str:
        """The answer in what the chain gave: the text, the last message, or what a dict holds under
        "answer", "result", "output", ...; of anything else its JSON."""
        return answer_in(outputs)

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until no shadow waits or runs, at most so many seconds; whether that came about."""
        return self.shadowing is None or self.shadowing.flush(timeout)

    def close(self, timeout: float | None = 0.0) -> None:
        """End the shadow: drop what waits, wait so many seconds at most for what runs."""
        if self.shadowing is not None:
            self.shadowing.close(timeout)

    def _began(self, name: str, inputs: Any) -> Request | None:
        if in_shadow() or not self.recorder.wants(name):
            return None
        # A copy: the shadow gets it after the chain had it.
        return Request(name, copy(inputs) if isinstance(inputs, (dict, list)) else inputs)

    def _ended(self, request: Request, outputs: Any, error: BaseException | None) -> None:
        question = self.question(request.inputs)
        if question is None:
            kind = type(request.inputs).__name__
            self._lost(f"no question was found in a {kind}; override SIFTRecorder.question")
            return
        row = Recorded(question=question, request=request.name)
        if error is None:
            row = replace(row, reply=request.reply(self.answer(outputs), outputs))
        else:
            row = replace(row, error=described(error))
        self.recorder.record(row)
        if self.shadowing is not None:
            self.shadowing.offer(request.name, question, request.inputs)

    def _lost(self, why: str) -> None:
        self.recorder.lose(why)

    def _ask(self, shadow: Runnable[Any, Any], inputs: Any) -> Reply:
        watch = _Once(self._lost)
        outputs = shadow.invoke(inputs, {"callbacks": [watch]})
        request = watch.request or Request("", inputs)
        return request.reply(self.answer(outputs), outputs)


class _Once(_Watch):
    """Watches the one call of a shadow."""

    def __init__(self, lost: Callable[[str], None]) -> None:
        super().__init__()
        self.request: Request | None = None
        self._tell = lost

    def _began(self, name: str, inputs: Any) -> Request | None:
        self.request = self.request or Request(name, inputs)
        return self.request

    def _ended(self, request: Request, outputs: Any, error: BaseException | None) -> None:
        pass

    def _lost(self, why: str) -> None:
        self._tell(why)
