"""What one gradient step learns from: token ids, where the loss is, how much each token counts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Example:
    """A text to learn.

    Attributes:
        ids: (T,) tokens that the model reads.
        start: The first token that is to be predicted; those before it are only read.
        weights: (T - start,) how much each predicted token counts; None for all the same. They
            matter relative to each other.
        teacher: Tokens that the base reads in place of ids[:start]. Then the example is distilled:
            the adapter is to predict what the base predicts after these. None for the tokens
            themselves.

    Raises:
        ValueError: There is nothing to predict, or the weights are of another number, negative, or
            all zero.
    """

    ids: tuple[int, ...]
    start: int = 1
    weights: tuple[float, ...] | None = None
    teacher: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        wanted = len(self.ids) - self.start
        if self.start < 1 or wanted < 1:
            raise ValueError(
                f"An example of {len(self.ids)} tokens has nothing to predict from token "
                f"{self.start} on: start must be 1 to {len(self.ids) - 1}."
            )
        if self.weights is None:
            return
        if len(self.weights) != wanted or not all(0 <= w < float("inf") for w in self.weights):
            raise ValueError(
                f"An example predicts {wanted} tokens and has {len(self.weights)} weights; it must "
                "have one for each, 0 or more."
            )
        if not any(self.weights):
            raise ValueError("All weights of an example are 0: leave the example out.")


def windows(examples: Iterable[Sequence[int] | Example], size: int) -> list[Example]:
    """Cut examples into pieces of at most `size` tokens, in order.

    A piece begins with the last token of the one before, so that each token is predicted exactly
    once. What is only read goes before the first piece, as much as fits, and is cut on its left. A
    distilled example is never cut: its teacher is asked for all of it, which must fit the model.
    Bare token lists are texts; those of fewer than two tokens have nothing to predict and give
    none.
    """
    return [piece for example in examples for piece in _cut(example, size)]


def _cut(example: Sequence[int] | Example, size: int) -> Iterator[Example]:
    if not isinstance(example, Example):
        if len(example) < 2:
            return
        example = Example(tuple(example))
    if len(example.ids) <= size or example.teacher is not None:
        yield example
        return
    read = example.ids[: example.start][-max(1, size // 2) :]
    wanted, weights = example.ids[example.start :], example.weights
    begin, end = 0, size - len(read)
    while begin < len(wanted):
        counted = None if weights is None else weights[begin:end]
        if counted is None or any(counted):
            yield Example((*read, *wanted[begin:end]), len(read), counted)
        read = wanted[end - 1 : end]
        begin, end = end, end + size - 1


def held_out(
    examples: Iterable[Sequence[int] | Example], share: float, least: int, most: int
) -> tuple[list[Sequence[int] | Example], list[Example]]:
    """Take the last tokens of long texts away, to see later how well they are predicted.

    Only of texts in which `share` is at least `least` tokens, and at most `most` of each: of a
    short text every word may be the fact that is asked for.

    Returns:
        What is left to learn, and what was taken: each reads the tokens before it, as many.
    """
    kept: list[Sequence[int] | Example] = []
    taken: list[Example] = []
    for example in examples:
        ids = () if isinstance(example, Example) else tuple(example)
        size = min(most, int(share * len(ids)))
        if size < max(1, least):
            kept.append(example)
            continue
        kept.append(ids[:-size])
        taken.append(Example(ids[-2 * size :], size))
    return kept, taken
