"""Ways that are not ours: a LangChain runnable, a LlamaIndex query engine, any function.

They are told by their shape, as neither framework is imported.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import Any

from sift_rag.cases import Case, Reply
from sift_rag.memory import watch
from sift_rag.replies import as_reply

_USUAL = ("question", "input", "query")
"""What a chain calls the question, where it may be called anything."""


@dataclass(frozen=True, slots=True)
class InvokeWith:
    """A LangChain runnable, and where in its input the question goes.

    Attributes:
        runnable: Anything with `invoke`.
        key: The question goes in as `{key: question}`; None for the question itself, a string.
    """

    runnable: Any
    key: str | None


@dataclass(frozen=True, slots=True, eq=False)
class Foreign:
    """A way of somebody else's making; see `as_way`.

    Its time is that of the call as a whole. A `Reply` that tells its total time stays as it is.

    Attributes:
        ask: From a case to what came back, or to an awaitable of it.
        about: What it is, as plain data.
    """

    ask: Callable[[Case], Any] = field(repr=False)
    about: Mapping[str, Any]

    def __call__(self, case: Case) -> Reply:
        """The reply."""
        grown = watch()
        began = time.perf_counter()
        result = self.ask(case)
        if inspect.isawaitable(result):
            result = _awaited(result)
        if isinstance(result, Reply) and "total" in result.seconds:
            return as_reply(result)
        reply = as_reply(result)
        seconds = dict(reply.seconds) | {"total": time.perf_counter() - began}
        memory = grown() if reply.memory is None else reply.memory
        return replace(reply, seconds=seconds, memory=memory)


def as_way(given: Any) -> Foreign:
    """A way of a LangChain runnable, a LlamaIndex query engine or a callable.

    A runnable gets what its input schema asks for: the question, or a dict with the question under
    its one key. A callable gets the question, or the whole `Case` where its first parameter is
    annotated as one or it has an attribute `takes_case` that is true; it may be `async def`. For
    what may come back see `sift_rag.replies.as_reply`.

    Raises:
        TypeError: It is none of these, or takes no single argument.
        ValueError: A runnable takes several inputs.
    """
    if isinstance(given, InvokeWith):
        return _runnable(given.runnable, given.key)
    if not isinstance(given, type):
        if _has(given, "query", "aquery"):
            return Foreign(lambda case: given.query(case.question), _about("llama_index", given))
        if _has(given, "invoke"):
            return _runnable(given, *_key(given))
        if callable(given):
            return _function(given)
    raise TypeError(
        f"A way is the name of one of our own, a Pipeline, a LangChain runnable, a LlamaIndex "
        "query engine, or a callable from a question (or a Case) to an answer; got "
        f"{f'the class {given.__name__}' if isinstance(given, type) else type(given).__name__}."
    )


def _has(given: Any, *methods: str) -> bool:
    return all(callable(getattr(given, method, None)) for method in methods)


def _runnable(runnable: Any, *keys: str | None) -> Foreign:
    def ask(case: Case) -> Any:
        wrapped = {key: case.question for key in keys if key is not None}
        return runnable.invoke(wrapped or case.question)

    about = _about("langchain", runnable)
    steps = getattr(runnable, "steps", None)
    if isinstance(steps, list):
        about["steps"] = [type(step).__name__ for step in steps]
    return Foreign(ask, about | {"keys": [key for key in keys if key is not None]})


def _key(runnable: Any) -> tuple[str | None, ...]:
    """The keys under which a runnable wants the question; None for the question itself."""
    try:
        schema = runnable.get_input_jsonschema()
    except Exception:  # a schema is a courtesy: not every runnable has one
        schema = {}
    if schema.get("type") != "object":
        return (None,)
    properties = list(schema.get("properties", ()))
    needed = list(schema.get("required", ()))
    names = needed or [name for name in _USUAL if name in properties] or properties
    if len(names) > 1:
        raise ValueError(
            f"The runnable {type(runnable).__name__} takes several inputs: {', '.join(names)}. "
            "Say where the question goes with sift_rag.ways.InvokeWith(runnable, key), or pass a "
            "function that fills all of them: lambda question: runnable.invoke({...})."
        )
    return tuple(names) or _USUAL  # a dict of anything: under each of the usual names


def _function(function: Callable[..., Any]) -> Foreign:
    try:
        parameters = inspect.signature(function)
        parameters.bind(None)
    except ValueError:  # of C, which tells nothing
        parameters = inspect.Signature()
    except TypeError as error:
        raise TypeError(f"The way {function!r} must take one argument: {error}.") from None
    about = _about("callable", function)
    if _takes_case(function, parameters):
        return Foreign(function, about)
    return Foreign(lambda case: function(case.question), about)


def _takes_case(function: Callable[..., Any], parameters: inspect.Signature) -> bool:
    told = getattr(function, "takes_case", None)
    if told is not None:
        return bool(told)
    first = next(iter(parameters.parameters.values()), None)
    annotation = first.annotation if first else None
    if isinstance(annotation, str):  # where annotations are postponed
        return annotation.strip("'\"").rpartition(".")[2] == "Case"
    return annotation is Case


def _about(kind: str, given: Any) -> dict[str, Any]:
    """Where it is defined: the same in every process, so nothing of the object itself."""
    while isinstance(given, partial):
        given = given.func
    named = given if hasattr(given, "__qualname__") else type(given)
    return {"kind": kind, "module": named.__module__, "name": named.__qualname__}


def _awaited(result: Awaitable[Any]) -> Any:
    """The result of a coroutine, also where a loop is running here, as in a notebook."""

    async def wait() -> Any:
        return await result

    future = asyncio.run_coroutine_threadsafe(wait(), _loop(os.getpid()))
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise


@cache
def _loop(process: int) -> asyncio.AbstractEventLoop:
    """One loop for all questions: clients that keep connections belong to the loop of the first.

    One for each process, as a fork does not take the thread along.
    """
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="sift_rag.foreign", daemon=True).start()
    return loop
