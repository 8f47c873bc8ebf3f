"""What is learnt of the selected passages: each objective makes training examples of a lesson.

`text` predicts the passages. `qa` also answers questions made of them, and reads them in another
order. `distill` answers without the passages as the base does with them in its context.
`leave_one_out` takes the passages for worked examples. A function of your own does as well: it
takes a `Lesson` and gives examples, which the lesson helps to make.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

from sift_rag.lessons import Example
from sift_rag.question_objectives import distill, qa
from sift_rag.teaching import Lesson, Objective, name_of, told
from sift_rag.worker import Cancelled

__all__ = ["OBJECTIVES", "Lesson", "Objective", "as_objective", "distill", "examples_of"]
__all__ += ["leave_one_out", "name_of", "qa", "text"]

_MOST = 10_000  # examples of one lesson: an objective may go on for ever


def text(lesson: Lesson) -> list[Example]:
    """The passages themselves, one example each."""
    return lesson.texts(lesson.passages)


def leave_one_out(lesson: Lesson) -> Iterator[Example]:
    """Passages are worked examples: each in turn is predicted after the others.

    As many others as fit the window stand before it, those selected first; a passage by itself is
    plain text. One example reads all of them, so time grows with their number squared.
    """
    space = lesson.template.separator
    tokens = {p: len(lesson.lm.text(p + space, end=False)) for p in lesson.passages}
    size = min(lesson.window, lesson.lm.context)
    for passage in lesson.passages:
        before, left = list[str](), size - len(lesson.lm.text(passage))
        for other in tokens:
            if other != passage and tokens[other] <= left:
                before.append(other)
                left -= tokens[other]
        yield from [lesson.after(before, passage)] if before else lesson.texts([passage])


def as_objective(given: str | Objective) -> Objective:
    """The objective of this name, or the function that was given.

    Raises:
        ValueError: There is no objective of this name.
        TypeError: It is neither a name nor a function.
    """
    if isinstance(given, str):
        if given not in OBJECTIVES:
            names = ", ".join(OBJECTIVES)
            raise ValueError(
                f"There is no objective {given!r}; there are {names}, or give a function that takes"
                " a Lesson and gives examples."
            )
        return OBJECTIVES[given]
    if not callable(given):
        raise TypeError(
            f"objective is {given!r}; it must be one of {', '.join(OBJECTIVES)}, or a function."
        )
    return given


def examples_of(objective: str | Objective, lesson: Lesson) -> tuple[list[Example], str]:
    """The examples of an objective, or of the passages' plain text where it fails.

    Call it while no adapter is attached: the lesson's base may be asked to write.

    Returns:
        The examples, and what went another way than asked for, in sentences; mostly "". No
        examples come of passages without text only.

    Raises:
        ValueError, TypeError: As `as_objective`.
        Cancelled: The call was cancelled while the base wrote.
    """
    chosen = as_objective(objective)
    try:
        found = [_checked(one, lesson) for one in islice(chosen(lesson), _MOST)]
        problem = "" if found else "gave no examples"
    except Cancelled:
        raise
    except Exception as error:  # of the user's own code, which may raise anything
        found, problem = [], f"failed with {told(error)}"
    if not found:
        found = replace(lesson, weigh=None).texts(lesson.passages)
        if found or problem != "gave no examples":
            lesson.notes.append(
                f"The objective {name_of(chosen)} {problem}: the passages were learnt as plain"
                " text."
            )
    return found, " ".join(dict.fromkeys(lesson.notes))


def _checked(example: Any, lesson: Lesson) -> Example:
    if not isinstance(example, Example):
        raise TypeError(
            f"it gave {type(example).__name__}, wanted an Example: make one by lesson.text(...)"
        )
    read = max(len(example.ids), len(example.teacher or ()) + len(example.ids) - example.start)
    if example.teacher is not None and read > lesson.lm.context:
        raise ValueError(
            f"a taught example has {read} tokens, the model's context is {lesson.lm.context}"
        )
    known = lesson.lm.model.get_input_embeddings().weight.shape[0]  # type: ignore[index]
    if strange := [i for i in (*example.ids, *(example.teacher or ())) if not 0 <= i < known]:
        raise ValueError(f"it gave the token {strange[0]}, the model knows {known}")
    return example


OBJECTIVES: dict[str, Objective] = {
    "text": text,
    "qa": qa(),
    "distill": distill(),
    "leave_one_out": leave_one_out,
}
