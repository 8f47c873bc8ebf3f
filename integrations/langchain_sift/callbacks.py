"""Watch and configure one call through LangChain's callbacks; the events as custom events too.

A `SIFTCallbackHandler` reaches whatever runs below the call that it was given to, as any handler of
LangChain does: a retriever deep in a chain, both arms of a `RunnableParallel`.
"""

from __future__ import annotations

from collections.abc import Iterable

from langchain_core.callbacks import (
    BaseCallbackHandler,
    BaseCallbackManager,
    dispatch_custom_event,
)

from sift_rag.events import Callback, Configure, Control, Event


class SIFTCallbackHandler(BaseCallbackHandler, Configure):
    """Sets what a call selects and how it trains, and is told of each stage.

    Give it to a call, `chain.invoke(question, config={"callbacks": [handler]})`, or to a
    constructor. It takes what `sift_rag.events.Configure` takes: k, noise, training, stop_when. To
    watch, override the hooks of `sift_rag.Callback`: `on_selection`, `on_train_step`, ... Each gets
    the event (plain data) and the call's `Control`. A hook that raises ends the call with its
    error, and the model is left as it was.
    """

    raise_error = True


def watchers(
    handlers: Iterable[BaseCallbackHandler], child: BaseCallbackManager | None
) -> list[Callback]:
    """The core's callbacks for one call of LangChain.

    Args:
        handlers: Those of the run; the `SIFTCallbackHandler`s among them are told first, each once.
        child: `run_manager.get_child()` of the run that custom events are to belong to. Where it
            belongs to no run, none are sent.
    """
    own: list[Callback] = []
    for handler in handlers:
        if isinstance(handler, SIFTCallbackHandler) and handler not in own:
            own.append(handler)
    if child is not None and child.parent_run_id is not None:
        own.append(_CustomEvents(child))
    return own


class _CustomEvents(Callback):
    """Sends events as "sift_start", "sift_selection", ..., from whatever thread they happen on."""

    def __init__(self, child: BaseCallbackManager) -> None:
        self._child = child

    def _send(self, event: Event, control: Control) -> None:
        name = "sift_" + event["event"].removeprefix("on_")
        dispatch_custom_event(name, event, config={"callbacks": self._child})

    # Not on_token: LangChain has its own events for tokens.
    on_start = on_selection = on_train_start = on_train_step = on_train_end = on_answer = _send
