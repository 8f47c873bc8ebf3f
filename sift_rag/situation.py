"""What is known of a question before the model is asked: coverage, tokens, expected arithmetic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from sift_rag.prompting import PromptTemplate, stuffed
from sift_rag.sizes import flops

if TYPE_CHECKING:
    from sift_rag.documents import Document
    from sift_rag.engine import Engine
    from sift_rag.selection import Selection
    from sift_rag.training import TrainingConfig

# Tokens around a prompt, which `Engine.token_ids` does not count: a BOS; the roles of a chat. Where
# that is too few, the engine leaves a passage out, and the answer's `left_out` says so.
_BOS, _CHAT = 1, 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """What is known of a question before the model is asked.

    Attributes:
        coverage: How likely the candidates hold an answer, 0 to 1.
        passages: How many were selected.
        fitting: How many of these fit into the prompt.
        tokens: Of the prompt that holds all of them.
        room: Tokens that the prompt may have: the context less the answer's.
        missing: What those that do not fit bring, as a share of the selection's gain, 0 to 1.
        flops: By mode, the operations of reading and training, an estimate.
    """

    coverage: float
    passages: int
    fitting: int
    tokens: int
    room: int
    missing: float
    flops: Mapping[str, float] = field(hash=False)

    @property
    def fits(self) -> bool:
        """Whether all passages fit into the prompt."""
        return self.fitting == self.passages


def look(
    question: str,
    documents: Sequence[Document],
    selection: Selection,
    engine: Engine,
    options: Mapping[str, Any],
) -> Situation:
    """See how things stand. The model is not asked, its tokenizer is.

    Args:
        question: What is asked.
        documents: The selected passages, in order of selection.
        selection: Their gains and coverage.
        engine: Of the model that is to answer.
        options: Those of its call that matter: `max_new_tokens`, `template`, `training`.

    Raises:
        ValueError: The question alone leaves no room for an answer.
    """
    template: PromptTemplate = options.get("template") or engine.template
    limit = options.get("max_new_tokens")
    room = engine.context - (engine.max_new_tokens if limit is None else limit)

    def count(text: str) -> int:
        return (_CHAT if engine.chat else _BOS) + _tokens(engine, text)

    prompt = stuffed(question, documents, budget=room, count=count, template=template)
    each = list(dict.fromkeys(documents))
    bare, held = count(template.render(question)), count(prompt.text)
    lengths = [_tokens(engine, document.text) for document in each]
    config: TrainingConfig = options.get("training") or engine.training
    trained = _trained(lengths, config)
    window = max(min(config.window, int(np.mean(lengths or [1]))), 1)  # tokens of a step, about

    def cost(read: int, trained: int) -> float:
        return flops(engine.size, prompt=read, written=0, trained=trained, window=window)

    return Situation(
        coverage=selection.coverage,
        passages=len(each),
        fitting=len(prompt.documents),
        tokens=bare + sum(lengths),
        room=room,
        missing=_missing(documents, selection, prompt.left_out),
        flops={
            "closed_book": cost(bare, 0),
            "stuff": cost(held, 0),
            "train": cost(bare, trained),
            "both": cost(held, trained),
        },
    )


def _tokens(engine: Engine, text: str) -> int:
    # No token has 128 characters on average: a text of megabytes is not worth tokenising.
    huge = len(text) > 128 * engine.context
    return len(text) if huge else len(engine.token_ids(text))


def _trained(lengths: Sequence[int], config: TrainingConfig) -> int:
    """Tokens of the training: so many passes, or so many steps of about a passage each."""
    if config.steps is None:
        return config.epochs * sum(lengths)
    return config.steps * min(config.window, int(np.mean(lengths or [0])))


def _missing(
    documents: Sequence[Document], selection: Selection, left_out: Sequence[Document]
) -> float:
    gone = np.isin(np.arange(len(documents)), [documents.index(each) for each in left_out])
    gains = np.asarray(selection.gains)
    total = float(gains.sum())
    return float(gains[gone].sum()) / total if total > 0 else float(gone.mean())
