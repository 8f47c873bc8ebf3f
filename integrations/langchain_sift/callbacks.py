"""Watch and configure one call through LangChain's callbacks; the events as custom events too.

A `SIFTCallbackHandler` reaches whatever runs below the call that it was given to, as any handler of
LangChain does: a retriever deep in a chain, both arms of a `RunnableParallel`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from langchain_core.callbacks import (
    BaseCallbackHandler,
    BaseCallbackManager,
    dispatch_custom_event,
)

from sift_rag.events import Callback, Control, Event

if TYPE_CHECKING:
    from sift_rag.training import TrainingConfig


class SIFTCallbackHandler(BaseCallbackHandler, Callback):
    """Sets what a call selects and how it trains, and is told of each stage.

    Give it to a call, `chain.invoke(question, config={"callbacks": [handler]})`, or to a
    constructor. To watch, override the hooks of `sift_rag.Callback`: `on_selection`,
    `on_train_step`, ... Each gets the event (plain data) and the call's `Control`. A hook that
    raises ends the call with its error, and the model is left as it was. One handler may serve many
    calls at once: it keeps nothing.

    Args:
        k: Passages to select. None leaves what the call says.
        noise: Of the selection. None leaves what the call says.
        training: How to train. None leaves what the chain or engine says.
        stop_when: Asked after each training step, with its event (step, steps, loss, ...); True
            ends the training there, and what was learnt is used.

    Raises:
        ValueError: k below 1, or noise that is not above 0.
    """

    raise_error = True

    def __init__(
        self,
        *,
        k: int | None = None,
        noise: float | None = None,
        training: TrainingConfig | None = None,
        stop_when: Callable[[Event], bool] | None = None,
    ) -> None:
        if k is not None and k < 1:
            raise ValueError(f"k is {k}; it must be at least 1.")
        if noise is not None and not noise > 0:
            raise ValueError(f"noise is {noise}; it must be above 0.")
        self.k = k
        self.noise = noise
        self.training = training
        self.stop_when = stop_when

    def on_start(self, event: Event, control: Control) -> None:
        """Set what was given to the constructor; call it where you override this hook."""
        control.k = control.k if self.k is None else self.k
        control.noise = control.noise if self.noise is None else self.noise
        control.training = self.training or control.training

    def on_train_start(self, event: Event, control: Control) -> None:
        """Set the training; call it where you override this hook."""
        control.training = self.training or control.training

    def on_train_step(self, event: Event, control: Control) -> None:
        """Ask `stop_when`; call it where you override this hook."""
        if self.stop_when and self.stop_when(event):
            control.stop()


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
