"""What there is to learn for one question, and how examples are made of it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeAlias

from sift_rag.documents import Document
from sift_rag.lessons import Example
from sift_rag.prompting import PromptTemplate, stuffed
from sift_rag.weighing import Token, Weigh, located

if TYPE_CHECKING:
    from sift_rag.generation import LanguageModel


@dataclass(frozen=True)
class Lesson:
    """What there is to learn for one question, and what helps to make examples of it.

    Attributes:
        question: What is asked.
        passages: The selected texts, in order of selection; a repeat is to be learnt again.
        lm: The model and its tokenizer. It is the base: nothing is trained yet.
        template: The words around question and passages.
        window: Tokens of one training step at most; longer examples are cut later, save taught
            ones.
        write: From a question and passages to what the base answers with these in its context.
        weigh: How much each token of a text counts; None for all the same.
        notes: Sentences for the report; an objective may add some.
        written_by: What, beside model and template, `write` depends on; what it wrote is kept.
    """

    question: str
    passages: tuple[str, ...]
    lm: LanguageModel
    template: PromptTemplate
    window: int
    write: Callable[[str, Sequence[str]], str]
    weigh: Weigh | None = None
    notes: list[str] = field(default_factory=list, compare=False, repr=False)
    written_by: Hashable = None

    def text(self, text: str) -> Example:
        """Learn to predict a text and its end, weighed by `weigh`.

        Raises:
            ValueError: If the text has nothing to predict, or `weigh` gives other than one weight
                for each token, 0 or more and not all 0.
        """
        ids = tuple(self.lm.text(text))
        return Example(ids, 1, self._weights(text, ids, 1))

    def texts(self, passages: Sequence[str]) -> list[Example]:
        """Learn to predict each of them that has something to predict."""
        return [self.text(one) for one in passages if len(self.lm.text(one)) > 1]

    def pair(self, question: str, answer: str) -> Example:
        """Learn to answer a question with nothing but the question in the prompt."""
        before = self.lm.prompt(self.template.render(question))
        return Example((*before, *self._answer(answer)), len(before))

    def taught(self, question: str, answer: str, passages: Sequence[str] | None = None) -> Example:
        """Learn to predict an answer, without the passages, as the base does with them before it.

        An answer that does not fit the window with its question is cut; the passages are laid out
        in what the answer leaves of the context, as many as fit.

        Args:
            question: What is asked.
            answer: The answer whose tokens are predicted.
            passages: What the teacher reads; by default all.

        Raises:
            ValueError: If no passage fits, or there is no room for an answer.
        """
        before = self.lm.prompt(self.template.render(question))
        room = min(self.window, self.lm.context) - len(before)
        answered = self._answer(answer)[: max(0, room)]
        given = self.passages if passages is None else passages
        prompt = stuffed(
            question,
            [Document(passage) for passage in given],
            budget=self.lm.context - len(answered),
            count=self._length,
            template=self.template,
        )
        if not prompt.documents:
            raise ValueError(
                f"No passage fits the context of {self.lm.context} tokens together with the answer."
            )
        return Example((*before, *answered), len(before), None, tuple(self.lm.prompt(prompt.text)))

    def after(self, before: Sequence[str], text: str) -> Example:
        """Learn to predict a text and its end where other texts stand before it, unlearnt."""
        read = self.template.separator.join([*before, ""])
        ids = tuple(self.lm.text(read + text))
        alone = self.lm.text(read, end=False)
        # Both are tokenised whole: at the seam a token may reach over it, and then it is learnt.
        start = next((n for n, (a, b) in enumerate(zip(ids, alone, strict=False)) if a != b), None)
        start = max(1, len(alone) if start is None else start)
        return Example(ids, start, self._weights(read + text, ids, start))

    def _length(self, text: str) -> int:
        huge = len(text) > 128 * self.lm.context  # not worth tokenising
        return len(text) if huge else len(self.lm.prompt(text))

    def _answer(self, answer: str) -> tuple[int, ...]:
        return (*self.lm.continuation(answer.strip()), *self._end)

    @cached_property
    def _end(self) -> tuple[int, ...]:
        """The token that ends an answer: of several, the one that the chat template writes."""
        tokenizer, eos = self.lm.tokenizer, self.lm.eos
        if len(eos) > 1 and self.lm.chat and tokenizer.chat_template:
            turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
            ids: Any = tokenizer.apply_chat_template(turns, return_dict=False)
            eos = tuple(token for token in reversed(ids) if token in eos) or eos
        return eos[:1]

    def _weights(self, text: str, ids: Sequence[int], start: int) -> tuple[float, ...] | None:
        if self.weigh is None:
            return None
        inside = located(self.lm.tokenizer, text)
        before = next((n for n in range(len(ids)) if self._same(ids, inside, n)), 0)  # BOS
        tokens = [Token(i, 0, 0) for i in ids[:before]] + inside
        tokens += [Token(i, len(text), len(text)) for i in ids[len(tokens) :]]
        weights = tuple(float(weight) for weight in self.weigh(text, tokens))
        if len(weights) != len(ids):
            raise ValueError(f"weigh gave {len(weights)} weights for {len(ids)} tokens.")
        return weights[start:]

    @staticmethod
    def _same(ids: Sequence[int], inside: Sequence[Token], at: int) -> bool:
        return [*ids[at : at + len(inside)]] == [token.id for token in inside]


Objective: TypeAlias = Callable[[Lesson], Iterable[Example]]
"""From a lesson to examples, in the order of training."""


def name_of(given: Any) -> str:
    """What an objective, or a function for one, is called."""
    if given is None or isinstance(given, str):
        return str(given)
    return str(getattr(given, "__name__", type(given).__name__))


def told(error: Exception) -> str:
    """An error in words."""
    return f"{type(error).__name__}: {error}".rstrip(".: ")
