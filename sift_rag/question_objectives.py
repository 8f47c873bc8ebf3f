"""Objectives that ask: passages are learnt by questions on them, not only as they stand."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, TypeVar
from weakref import ref

from sift_rag.documents import Document, content_hash
from sift_rag.lessons import Example
from sift_rag.made_pairs import Maker, Recent, pairs_of, texts_of
from sift_rag.question_templates import ask_by_template
from sift_rag.question_writing import INSTRUCTION, written
from sift_rag.restating import shuffled
from sift_rag.teaching import Lesson, Objective, name_of, told
from sift_rag.worker import Cancelled

T = TypeVar("T")
Restate: TypeAlias = Callable[[str], Iterable[str]]
"""From a passage to other tellings of it."""

_RESTATE = (
    "Write the text above again in other words. Keep every fact, name and number, add nothing, and"
    " write nothing else."
)
_EACH = 3  # as Parametric RAG takes (arXiv 2501.15915)
_ANSWERS: Recent[str] = Recent()


def qa(
    make: Maker | Literal["model"] = ask_by_template,
    *,
    restate: Restate | Literal["model"] | None = shuffled,
    most: int = _EACH,
) -> Objective:
    """An objective: the passages, other tellings of them, and questions with answers.

    The passages come first, then their other tellings, then the first question of each, then the
    second ones, ...

    Args:
        make: Makes the questions: a function from a `Document`, which has the passage's text and
            nothing else, to (question, answer); or "model", which has the base write one of each
            passage (a chat model of a few billion parameters can). What was made of a text is kept
            in memory.
        restate: Makes the other tellings: a function from a text to texts; "model", which has the
            base write one; or None for none.
        most: Questions of a passage at most, the first ones that were made.
    """
    return _Questions(make, restate, _at_least_one(most))


def distill(
    make: Maker | Literal["model"] = ask_by_template,
    *,
    asked: bool = True,
    texts: bool = False,
    most: int = _EACH,
) -> Objective:
    """An objective: without the passages, answer as the base does with them in its context.

    The questions are the one that is asked and those made of the passages. The base writes the
    answers, the question's from all passages, a made one's from its own. The loss is
    Kullback-Leibler's divergence from what the base predicts with the passages ("context
    distillation", arXiv 2209.15189).

    Args:
        make: Makes the questions, as for `qa`.
        asked: Whether the question that is asked is among them.
        texts: Whether the passages themselves are learnt as well. A passage of which no question
            is made always is.
        most: Questions of a passage at most, the first ones that were made.
    """
    return _Taught(make, asked, texts, _at_least_one(most))


@dataclass(frozen=True)
class _Questions:
    make: Maker | Literal["model"]
    restate: Restate | Literal["model"] | None
    most: int

    @property
    def __name__(self) -> str:
        made = "" if self.make is ask_by_template else f"make={name_of(self.make)}"
        others = "" if self.restate is shuffled else f"restate={name_of(self.restate)}"
        return _call("qa", made, others, f"most={self.most}" * (self.most != _EACH))

    def __call__(self, lesson: Lesson) -> Iterator[Example]:
        yield from lesson.texts(lesson.passages)
        others = _each(lesson, name_of(self.restate), lambda p: _restated(lesson, self, p))
        for other in _rounds(others):
            yield lesson.text(other)
        asked = _each(lesson, name_of(self.make), lambda p: _asked(lesson, self, p))
        for question, answer in _rounds(asked):
            yield lesson.pair(question, answer)


@dataclass(frozen=True)
class _Taught:
    make: Maker | Literal["model"]
    asked: bool
    texts: bool
    most: int

    @property
    def __name__(self) -> str:
        made = "" if self.make is ask_by_template else f"make={name_of(self.make)}"
        flags = ("asked=False" * (not self.asked), "texts=True" * self.texts)
        return _call("distill", made, *flags, f"most={self.most}" * (self.most != _EACH))

    def __call__(self, lesson: Lesson) -> Iterator[Example]:
        def taught(passage: str) -> list[Example]:
            asked = _asked(lesson, self, passage)
            return [one for pair in asked for one in _answered(lesson, pair[0], (passage,))]

        made = _each(lesson, self.__name__, taught)
        bare = [p for p, found in zip(lesson.passages, made, strict=True) if not found]
        yield from lesson.texts(lesson.passages if self.texts else bare)
        if self.asked:
            yield from _own(lesson)
        yield from _rounds(made)


def _call(name: str, *given: str) -> str:
    inside = ", ".join(filter(None, given))
    return f"{name}({inside})" if inside else name


def _asked(lesson: Lesson, by: _Questions | _Taught, passage: str) -> Sequence[tuple[str, str]]:
    """The questions on a passage, with answers."""
    if callable(by.make):
        return pairs_of(passage, by.make)[: by.most]

    def make(document: Document) -> list[tuple[str, str]]:
        return written(lesson.write(INSTRUCTION, [document.text]))

    return pairs_of(passage, make, by=lesson.lm.model, of=_hand(lesson))[: by.most]


def _restated(lesson: Lesson, by: _Questions, passage: str) -> Sequence[str]:
    """A passage's other tellings."""
    if by.restate is None or callable(by.restate):
        return texts_of(passage, by.restate) if by.restate else ()

    def restate(text: str) -> list[str]:
        return [lesson.write(_RESTATE, [text])]

    return texts_of(passage, restate, by=lesson.lm.model, of=_hand(lesson))


def _hand(lesson: Lesson) -> Hashable:
    """What, beside the model, the base's writing depends on."""
    return lesson.template, lesson.written_by


def _own(lesson: Lesson) -> list[Example]:
    """The question that is asked, with what the base answers to it."""
    try:
        return _answered(lesson, lesson.question, lesson.passages)
    except Cancelled:
        raise
    except Exception as error:  # of the base, which may run out of memory
        lesson.notes.append(f"The question itself was not distilled: {told(error)}.")
        return []


def _answered(lesson: Lesson, question: str, passages: Sequence[str]) -> list[Example]:
    """The question with what the base answers, as it answers; none where it answers nothing."""
    read = tuple(map(content_hash, passages))
    key = (ref(lesson.lm.model), _hand(lesson), question, read)
    answer = _ANSWERS.get(key, lambda: lesson.write(question, passages))
    return [lesson.taught(question, answer, passages)] if answer.strip() else []


def _each(lesson: Lesson, name: str, make: Callable[[str], Sequence[T]]) -> list[Sequence[T]]:
    """What is made of each passage; nothing, and a note, where that fails."""
    made, failed = list[Sequence[T]](), list[str]()
    for passage in lesson.passages:
        try:
            made.append(make(passage))
        except Cancelled:
            raise
        except Exception as error:  # of the user's own code, which may raise anything
            made.append([])
            failed.append(told(error))
    if failed:
        lesson.notes.append(
            f"{name} failed on {len(failed)} of {len(lesson.passages)} passages, first with"
            f" {failed[0]}; these were learnt as text only."
        )
    return made


def _at_least_one(most: int) -> int:
    if most < 1:
        raise ValueError(f"most is {most}; it must be at least 1.")
    return most


def _rounds(made: Sequence[Sequence[T]]) -> Iterator[T]:
    """The first ones of all, then the second ones, ..."""
    for turn in range(max(map(len, made), default=0)):
        yield from (one[turn] for one in made if turn < len(one))
