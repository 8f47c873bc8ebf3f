"""What is compared: a question with what is known about its answer, and the reply of one way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, Literal

from sift_rag.documents import Document, content_hash

Origin = Literal["given", "made", "held_out", "recorded"]
"""Who asks: the user, questions made from the corpus, a passage's own first half, production."""

STAGES = ("retrieve", "select", "train", "prefill", "decode", "total")
"""Of a reply's time, in their order; the last is the whole, whatever else went into it."""

TOKENS = ("in", "out", "trained")
"""Of a reply: read in the prompt, written, gone through in training (each epoch counts)."""


@dataclass(frozen=True, slots=True)
class Case:
    """One question of a comparison.

    Attributes:
        question: What is asked; of a held-out passage its first half.
        references: Right answers, any of which counts; none where no answer is known.
        gold: Ids or texts of the passages that hold the answer; none where they are not known.
        origin: Who asks.
        metadata: What else came with it; shown, never looked at.
        id: Its name in a comparison, by default a hash of question, references and gold.

    Raises:
        TypeError: Of something that is no string.
        ValueError: The question is empty.
    """

    question: str
    references: tuple[str, ...] = ()
    gold: tuple[str, ...] = ()
    _: KW_ONLY
    origin: Origin = "given"
    metadata: Mapping[str, Any] = field(default_factory=dict, hash=False)
    id: str = ""

    def __post_init__(self) -> None:
        for text in (self.question, self.id, *self.references, *self.gold):
            if not isinstance(text, str):
                raise TypeError(
                    f"A case's question, references, gold and id are strings, got {text!r}."
                )
        if not self.question.strip():
            raise ValueError("A case has an empty question: write one, or leave the case out.")
        if not self.id:
            parts = "\0".join([self.question, "", *self.references, "", *self.gold])
            object.__setattr__(self, "id", content_hash(parts)[:12])


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What one way made of one question. What a way cannot know stays None or is left out.

    A callable that is compared may return one, to tell more than its text.

    Attributes:
        text: The answer.
        documents: The passages that it rests on, best first; None where that is not known.
        seconds: By stage, see `STAGES`; the stages that are known.
        tokens: By kind, see `TOKENS`; the kinds that are known.
        nats: Negative log likelihood of the first reference as the answer.
        coverage: How likely the candidates hold an answer, 0 to 1.
        uncertainty: What the selection left open, as a share of what was open before it, 0 to 1.
        memory: Bytes by which the process grew at its highest while this was made.
        flops: Floating-point operations of the model, an estimate.
        note: What went another way than asked for.
    """

    text: str
    documents: tuple[Document, ...] | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    tokens: Mapping[str, int] = field(default_factory=dict)
    nats: float | None = None
    coverage: float | None = None
    uncertainty: float | None = None
    memory: int | None = None
    flops: float | None = None
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One case through one way.

    Attributes:
        case: The case's id.
        way: The way's name.
        reply: What came back; None where it failed.
        values: By metric; None where it says nothing of this case.
        error: What was raised, as "Type: message"; empty where nothing was.
        unmeasured: By metric, what its function raised.
    """

    case: str
    way: str
    reply: Reply | None
    values: Mapping[str, float | None]
    error: str = ""
    unmeasured: Mapping[str, str] = field(default_factory=dict)
