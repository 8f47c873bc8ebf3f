"""Handlers of LlamaIndex's instrumentation that tell functions of what they hear."""

from __future__ import annotations

from collections.abc import Callable
from inspect import BoundArguments
from typing import Any

from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events.base import BaseEvent
from llama_index.core.instrumentation.span_handlers import BaseSpanHandler
from pydantic import PrivateAttr

Tell = Callable[..., None]


class Spans(BaseSpanHandler[Any]):
    """Tells of each span: its id, and at its begin the call's arguments, the object and the span
    around it, at its end what came back or was raised."""

    _entered: Tell = PrivateAttr()
    _left: Tell = PrivateAttr()
    _dropped: Tell = PrivateAttr()

    def __init__(self, entered: Tell, left: Tell, dropped: Tell) -> None:
        super().__init__()
        self._entered, self._left, self._dropped = entered, left, dropped

    def span_enter(
        self,
        id_: str,
        bound_args: BoundArguments,
        instance: Any = None,
        parent_id: str | None = None,
        tags: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """A span began."""
        self._entered(id_, bound_args, instance, parent_id)

    def span_exit(
        self,
        id_: str,
        bound_args: BoundArguments,
        instance: Any = None,
        result: Any = None,
        **kwargs: Any,
    ) -> None:
        """A span ended."""
        self._left(id_, result)

    def span_drop(
        self,
        id_: str,
        bound_args: BoundArguments,
        instance: Any = None,
        err: BaseException | None = None,
        **kwargs: Any,
    ) -> None:
        """A span ended with an error."""
        self._dropped(id_, err)

    # What the base class keeps of spans is of no use here.

    def new_span(self, *_: Any, **kwargs: Any) -> None:
        """Nothing is kept."""

    def prepare_to_exit_span(self, *_: Any, **kwargs: Any) -> None:
        """Nothing is kept."""

    def prepare_to_drop_span(self, *_: Any, **kwargs: Any) -> None:
        """Nothing is kept."""


class Events(BaseEventHandler):
    """Tells of each event."""

    _heard: Tell = PrivateAttr()

    def __init__(self, heard: Tell) -> None:
        super().__init__()
        self._heard = heard

    @classmethod
    def class_name(cls) -> str:
        """Its name."""
        return "SIFTRecorder"

    def handle(self, event: BaseEvent, **kwargs: Any) -> None:
        """An event came."""
        self._heard(event)
