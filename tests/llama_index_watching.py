"""Fixtures of the LlamaIndex tests: no default models, and what the instrumentation is told.

A pytest plugin: test modules name it in `pytest_plugins`.
"""

from collections.abc import Iterator
from typing import Any

import pytest
from llama_index.core import Settings
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.span_handlers import SimpleSpanHandler
from pydantic import Field

from sift_rag import vectors


@pytest.fixture
def no_defaults(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No key of OpenAI and no default models, before and after; nothing was warned of yet."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr(vectors, "_warned", set())
    for name in ("_llm", "_embed_model"):
        monkeypatch.setattr(Settings, name, None)
    yield
    assert (Settings._llm, Settings._embed_model) == (None, None)


class Seen(BaseEventHandler):
    """Keeps the events of the instrumentation."""

    events: list[Any] = Field(default_factory=list)

    @classmethod
    def class_name(cls) -> str:
        return "Seen"

    def handle(self, event: Any, **kwargs: Any) -> None:
        self.events.append(event)

    def of(self, *kinds: type) -> list[Any]:
        return [event for event in self.events if isinstance(event, kinds)]


@pytest.fixture
def seen() -> Iterator[Seen]:
    root, handler = get_dispatcher(), Seen()
    root.add_event_handler(handler)
    yield handler
    root.event_handlers.remove(handler)


@pytest.fixture
def spans() -> Iterator[dict[str, str | None]]:
    """Span id -> that of its parent."""

    class Keeper(SimpleSpanHandler):
        def new_span(self, id_: str, *args: Any, **kwargs: Any) -> Any:
            parents[id_] = kwargs.get("parent_span_id")
            return super().new_span(id_, *args, **kwargs)

    parents: dict[str, str | None] = {}
    root, handler = get_dispatcher(), Keeper()
    root.add_span_handler(handler)
    yield parents
    root.span_handlers.remove(handler)
