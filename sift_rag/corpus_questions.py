"""Questions made from a corpus, where nobody has written any: by rules, a model or the user.

Made questions stand close to their passage, in words too. They are good for holding ways against
each other over the same passages; how well users' own questions retrieve, they do not tell.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from sift_rag.cases import Case
from sift_rag.choosing import at_least_one
from sift_rag.documents import Document, Progress, as_documents
from sift_rag.question_templates import ask_by_template
from sift_rag.question_writing import INSTRUCTION, written
from sift_rag.questions import as_case

if TYPE_CHECKING:
    from sift_rag.engine import Engine

Maker: TypeAlias = Callable[[Document], Iterable["tuple[str, Any] | Mapping[str, Any]"]]
"""From a passage to questions: pairs (question, reference), or mappings as `questions.read` has."""

_TRIES = 20  # passages tried at most for each question wanted: a model may take seconds for each
_PATIENCE = 10  # passages that a maker may fail on, at least, before none else is tried


def from_corpus(
    documents: Iterable[str | Document],
    n: int = 50,
    *,
    make: Maker = ask_by_template,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[Case]:
    """Make questions from passages that are spread over a corpus.

    Every question has another passage; where there are too few passages, the second questions of
    some come next, and so on. Equal passages are asked once, equal questions too. At most 20 n
    passages are tried.

    Args:
        documents: Passages (`Index.documents`); split long documents first.
        n: How many questions.
        make: Makes the questions of a passage, the best first: `ask_by_template`, `ask_by(engine)`,
            or a function of your own.
        seed: Chooses the passages.
        progress: Called with (questions made, n) after each passage.

    Returns:
        n cases, or fewer, with a warning that says so. Their origin is "made", their gold the id of
        the passage, their metadata says who made them ("maker").

    Raises:
        ValueError: `n` < 1, no passages, or no question was made of any. A passage of which the
            maker raised is left out, with a warning; all of them, and it is an error.
    """
    at_least_one("n", n)
    passages = {document.text: document for document in as_documents(documents)}
    if not passages:
        raise ValueError("There are no passages to make questions of: the corpus is empty.")
    made: list[list[Case]] = []
    failed: list[tuple[str, Exception]] = []
    asked: set[str] = set()
    for passage in _spread(list(passages.values()), n, seed)[: _TRIES * n]:
        try:
            made.append(_made(passage, make))
            asked.update(case.question for case in made[-1][:1])
        except Exception as error:  # of the user's own code, which may raise anything
            failed.append((passage.id, error))
        if progress:
            progress(len(asked), n)
        if len(asked) == n or (not asked and len(failed) >= max(n, _PATIENCE)):
            break
    cases = list(_rounds(made))[:n]
    _tell(len(cases), n, tried=len(made) + len(failed), failed=failed)
    return cases


def ask_by(engine: Engine) -> Maker:
    """A maker that lets a model write one question of each passage, with its answer.

    How good they are is up to the model. The one that comes along cannot do it; a chat model of a
    few billion parameters can. Questions that a model is to be tested on are better written by
    another one. A reply that holds no question with an answer, or was cut off, gives none.
    """

    def make(document: Document) -> list[tuple[str, str]]:
        answer = engine.answer(INSTRUCTION, [document], mode="stuff")
        if answer.left_out:
            raise ValueError(
                f"the passage does not fit the model's context of {engine.context} tokens: split"
                " documents into shorter ones."
            )
        return written(answer.text, whole=answer.finish_reason == "stop")

    make.__name__ = f"ask_by({engine.name})"
    return make


def _spread(passages: Sequence[Document], n: int, seed: int) -> list[Document]:
    """All of them, one out of each nth of the corpus in turn, in random order."""
    random = np.random.default_rng(seed)
    parts = np.array_split(np.arange(len(passages)), min(n, len(passages)))
    shuffled = [random.permutation(part) for part in parts]
    order = [
        shuffled[i][turn]
        for turn in range(len(shuffled[0]))  # the first part is never the shorter one
        for i in random.permutation(len(parts))
        if turn < len(shuffled[i])
    ]
    return [passages[i] for i in order]


def _made(passage: Document, make: Maker) -> list[Case]:
    maker = getattr(make, "__name__", type(make).__name__)
    cases = []
    found = make(passage)
    if isinstance(found, (str, Mapping)) or not isinstance(found, Iterable):
        raise TypeError(f"{maker} gave {type(found).__name__}, wanted a list of pairs.")
    for pair in found:
        if not isinstance(pair, Mapping):
            if isinstance(pair, str) or len(pair) != 2:
                raise ValueError(f"{maker} gave {pair!r}, wanted a pair (question, reference).")
            pair = {"question": pair[0], "reference": pair[1]}
        case = as_case(pair, f"A question by {maker}", origin="made")
        metadata = {**case.metadata, "maker": maker}
        cases.append(replace(case, gold=case.gold or (passage.id,), metadata=metadata, id=""))
    return cases


def _rounds(made: Sequence[Sequence[Case]]) -> Iterator[Case]:
    """The first questions of all passages, then the second ones, ...; each question once."""
    seen = set()
    for turn in range(max(map(len, made), default=0)):
        for cases in made:
            if turn < len(cases) and cases[turn].question not in seen:
                seen.add(cases[turn].question)
                yield cases[turn]


def _tell(made: int, n: int, *, tried: int, failed: Sequence[tuple[str, Exception]]) -> None:
    """Say what went wrong."""
    if not made and not failed:
        raise ValueError(
            f"No questions were made of {tried} passages, the maker found none in them: give"
            " another one, such as make=ask_by(engine) or a function of your own."
        )
    if failed:
        name, error = failed[0]
        what = f"The maker failed on {len(failed)} of {tried} passages"
        first = f"first on {name!r} with {type(error).__name__}: {error}"
        if not made:
            raise ValueError(f"No questions were made. {what}, {first}") from error
        warnings.warn(f"{what}, which were left out; {first}", stacklevel=3)
    if made < n:
        warnings.warn(f"Only {made} of {n} questions were made of {tried} passages.", stacklevel=3)
