"""What is announced through LlamaIndex's instrumentation, inside the query's span."""

from __future__ import annotations

from typing import Any

from llama_index.core.instrumentation.events.base import BaseEvent


class SIFTSelectionEvent(BaseEvent):
    """Passages were selected.

    Attributes:
        ids: Of the nodes, in order of selection.
        scores: The retriever's own, in that order.
        gain: What each told, as a share of what was open before the first.
        uncertainty: What was left after each, as such a share.
        candidates: How many there were to choose from.
        coverage: How likely they hold an answer, from 0 to 1.
        seconds: By stage.
        vectors: Where the candidates' vectors came from: counts and seconds.
    """

    ids: list[str | None]
    scores: list[float | None]
    gain: list[float]
    uncertainty: list[float]
    candidates: int
    coverage: float
    seconds: dict[str, float]
    vectors: dict[str, Any]

    @classmethod
    def class_name(cls) -> str:
        """Its name in traces."""
        return "SIFTSelectionEvent"


class TTTStartEvent(BaseEvent):
    """Training is about to begin.

    Attributes:
        config: The `TrainingConfig` as a dict.
        texts: How many texts it trains on.
    """

    config: dict[str, Any]
    texts: int

    @classmethod
    def class_name(cls) -> str:
        """Its name in traces."""
        return "TTTStartEvent"


class TTTStepEvent(BaseEvent):
    """One gradient step was taken.

    Attributes:
        step: From 1.
        steps: Planned.
        loss: Nats a token, before the step.
        tokens: That went through the model.
        seconds: That the step took.
    """

    step: int
    steps: int
    loss: float
    tokens: int
    seconds: float

    @classmethod
    def class_name(cls) -> str:
        """Its name in traces."""
        return "TTTStepEvent"


class TTTEndEvent(BaseEvent):
    """Training ended.

    Attributes:
        report: The `TrainingReport` as a dict.
    """

    report: dict[str, Any]

    @classmethod
    def class_name(cls) -> str:
        """Its name in traces."""
        return "TTTEndEvent"
