"""Watch and configure calls through LlamaIndex's `CallbackManager`; events by instrumentation too.

Handlers of the instrumentation cannot steer: what they raise is swallowed. So what a call selects
and how it trains is set by a `SIFTCallbackHandler`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llama_index.core.callbacks import CallbackManager
from llama_index.core.callbacks.base_handler import BaseCallbackHandler
from llama_index.core.callbacks.schema import CBEventType
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.events.base import BaseEvent
from llama_index.core.instrumentation.span import active_span_id

from llama_index_sift.events import SIFTSelectionEvent, TTTEndEvent, TTTStartEvent, TTTStepEvent
from sift_rag.events import Callback, Configure, Control, Event

_dispatcher = get_dispatcher(__name__)


class SIFTCallbackHandler(BaseCallbackHandler, Configure):
    """Sets what calls select and how they train, and is told of each stage.

    Give it to the `CallbackManager` of a query engine or a component. It takes what
    `sift_rag.events.Configure` takes: k, noise, training, stop_when. To watch, override the hooks
    of `sift_rag.Callback`: `on_selection`, `on_train_step`, ... Each gets the event (plain data)
    and the call's `Control`. A hook that raises ends the call with its error, and the model is left
    as it was.
    """

    def __init__(self, **settings: Any) -> None:
        BaseCallbackHandler.__init__(self, event_starts_to_ignore=[], event_ends_to_ignore=[])
        Configure.__init__(self, **settings)

    # LlamaIndex's own events are of no concern to it.

    def on_event_start(
        self,
        event_type: CBEventType,
        payload: dict[str, Any] | None = None,
        event_id: str = "",
        parent_id: str = "",
        **kwargs: Any,
    ) -> str:
        """Nothing."""
        return event_id

    def on_event_end(
        self,
        event_type: CBEventType,
        payload: dict[str, Any] | None = None,
        event_id: str = "",
        **kwargs: Any,
    ) -> None:
        """Nothing."""

    def start_trace(self, trace_id: str | None = None) -> None:
        """Nothing."""

    def end_trace(
        self, trace_id: str | None = None, trace_map: dict[str, list[str]] | None = None
    ) -> None:
        """Nothing."""


def watchers(manager: CallbackManager | None, extra: Sequence[Callback] = ()) -> list[Callback]:
    """The core's callbacks for one call of LlamaIndex.

    Args:
        manager: The `SIFTCallbackHandler`s in it are told first, each once.
        extra: Told next.

    Returns:
        Those, and last the one that sends instrumentation events.
    """
    own: list[Callback] = []
    for each in [*(manager.handlers if manager else ()), *extra]:
        if isinstance(each, Callback) and each not in own:
            own.append(each)
    if not any(isinstance(each, _Instrumentation) for each in own):
        own.append(_Instrumentation())
    return own


class _Instrumentation(Callback):
    """Sends events to LlamaIndex's instrumentation. They belong to the span in which it was made:
    the one of a model's stream is over when the stream is there, long before the training is."""

    def __init__(self) -> None:
        self._span = active_span_id.get()

    def _send(self, kind: type[BaseEvent], **data: Any) -> None:
        _dispatcher.event(kind(span_id=self._span, **data))

    def on_selection(self, event: Event, control: Control) -> None:
        data = _data(event)
        self._send(SIFTSelectionEvent, ids=data.pop("id"), scores=data.pop("score"), **data)

    def on_train_start(self, event: Event, control: Control) -> None:
        self._send(TTTStartEvent, **_data(event))

    def on_train_step(self, event: Event, control: Control) -> None:
        self._send(TTTStepEvent, **_data(event))

    def on_train_end(self, event: Event, control: Control) -> None:
        self._send(TTTEndEvent, report=_data(event))


def _data(event: Event) -> dict[str, Any]:
    return {key: value for key, value in event.items() if key not in ("schema", "event")}
