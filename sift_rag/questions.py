"""Questions as they are given: strings, mappings, a file, a data set. Each becomes a `Case`.

Questions that are made from a corpus, and passages held out of it: `sift_rag.corpus_questions`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from sift_rag.cases import Case, Origin
from sift_rag.choosing import at_least_one
from sift_rag.question_files import rows

Source: TypeAlias = "str | os.PathLike[str] | Iterable[str | Mapping[str, Any] | Case]"
"""A path, or what can be gone through: a list, a generator, a data set of Hugging Face."""

_REFERENCES = ("references", "reference", "answers", "answer")
_WANTED = '"question" and, where they are known, "references" (or "reference", "answers", "answer")'


def read(source: Source, *, limit: int | None = None) -> list[Case]:
    """Read questions, in order.

    A mapping has a `question`; right answers under the first of `references`, `reference`,
    `answers` and `answer` that it has; maybe `gold` (ids or texts of the passages that hold the
    answer) and an `id`. All else becomes metadata. Answers and gold may be one value or a list, and
    answers may lie as in SQuAD, `{"text": [...]}`. Numbers become text; true is "yes" or "true",
    false "no" or "false"; null, NaN and blank are no answer.

    A file is UTF-8, with or without a BOM, by its ending: .jsonl holds an object or a string a line
    (empty lines are skipped), .json a list of them, .csv a header and rows, parted by comma,
    semicolon or tab. In a CSV the cells of `references`, `answers` and `gold` hold several values
    parted by "|", or a JSON list.

    Args:
        source: Strings, mappings or cases; or the path of a file, as `pathlib.Path` or as a string
            by itself; or one split of a Hugging Face data set.
        limit: Reads so many questions at most, and nothing after them.

    Returns:
        Cases with different ids. A question without an id that comes again as it is, answers and
        gold included, has "-2" after its id.

    Raises:
        FileNotFoundError, IsADirectoryError: There is no such file.
        ValueError: No questions, or one that cannot be read: file, place and what was wanted.
        TypeError: Something that holds no questions.
    """
    if limit is not None:
        at_least_one("limit", limit)
    name, found = _found(source)
    cases: dict[str, Case] = {}
    places: dict[str, str] = {}
    for place, row in islice(found, limit):
        where = f"{name}{place}"
        case = _unique(as_case(row, where), row, cases, places, where)
        cases[case.id], places[case.id] = case, place
    if not cases:
        raise ValueError(
            f"{name.rstrip(', ') or 'The source'} holds no questions: give one or more."
        )
    return list(cases.values())


def as_case(row: object, where: str, *, origin: Origin = "given") -> Case:
    """One question; a case stays as it is.

    Args:
        row: A string, a mapping as in `read`, or a case.
        where: Where it comes from, for the error.
        origin: Who asks.

    Raises:
        TypeError, ValueError: It is none; the message begins with `where`.
    """
    try:
        case = _case(row, origin)
        texts = [case.question, case.id, *case.references, *case.gold]
        texts.append(json.dumps(case.metadata, ensure_ascii=False, default=str, skipkeys=True))
        "".join(texts).encode()
    except UnicodeEncodeError:
        raise ValueError(
            f"{where}: a text holds a lone surrogate, which UTF-8 cannot store: decode its source"
            " with errors='replace'."
        ) from None
    except (TypeError, ValueError) as error:
        raise type(error)(f"{where}: {error}") from None
    return case


def _case(row: object, origin: Origin) -> Case:
    if isinstance(row, Case):
        return row
    if isinstance(row, str):
        return Case(row, origin=origin)
    if not isinstance(row, Mapping):
        raise TypeError(
            f"a question is a string, a mapping with {_WANTED}, or a Case; got"
            f" {type(row).__name__}."
        )
    if not isinstance(row.get("question"), str):
        got = f"a {type(row['question']).__name__} there" if "question" in row else _keys(row)
        raise ValueError(f'"question" must be a string; got {got}. Wanted: {_WANTED}.')
    key = next((key for key in _REFERENCES if key in row), "")
    known = {"question", "gold", "id", key}
    return Case(
        str(row["question"]),  # a plain one, also of a string of NumPy
        _texts(row.get(key), key),
        _texts(row.get("gold"), "gold"),
        origin=origin,
        metadata={str(name): value for name, value in row.items() if name not in known},
        id="".join(_texts(row.get("id"), "id")[:1]),
    )


def _texts(value: Any, key: str) -> tuple[str, ...]:
    """The strings of a reference or of gold, each once."""
    return tuple(dict.fromkeys(text for text in _each(value, key) if text.strip()))


def _each(value: Any, key: str) -> Iterator[str]:
    if isinstance(value, (np.ndarray, np.generic)):
        value = value.tolist()
    if isinstance(value, str):
        yield value
    elif isinstance(value, bool):
        yield from ("yes", "true") if value else ("no", "false")
    elif isinstance(value, float):
        if value == value:  # NaN is how tables say that there is nothing
            yield np.format_float_positional(value, trim="-")
    elif isinstance(value, (list, tuple, set)):
        for one in value:
            yield from _each(one, key)
    elif isinstance(value, Mapping):
        if "text" not in value:
            raise ValueError(
                f'"{key}" must be text, a list or {{"text": [...]}}; got {_keys(value)}.'
            )
        yield from _each(value["text"], key)
    elif value is not None:
        yield str(value)


def _keys(row: Mapping[Any, Any]) -> str:
    names = [repr(str(key)) for key in row]
    return f"the keys {', '.join(names[:12])}{' ...' * (len(names) > 12)}" if names else "no keys"


def _found(source: Source) -> tuple[str, Iterator[tuple[str, object]]]:
    """Its name for errors, and each row with its place."""
    if isinstance(source, (str, os.PathLike)):
        path = Path(source)
        return f"{path}, ", rows(path)
    columns = getattr(source, "column_names", None)
    if isinstance(columns, Mapping):
        raise TypeError(
            "The data set has several splits: choose a split, as in"
            f" dataset[{next(iter(columns), '')!r}]; there are {', '.join(map(repr, columns))}."
        )
    if isinstance(source, (Mapping, Case)):
        raise TypeError(f"Questions must come as a list, got a single {type(source).__name__}.")
    if hasattr(source, "iterrows"):
        raise TypeError('A table must come as rows: give table.to_dict("records").')
    if not isinstance(source, Iterable):
        raise TypeError(f"Questions are a list, a path or a data set, got {type(source).__name__}.")
    what = "row" if columns else "question"
    return "", ((f"{what} {i}", row) for i, row in enumerate(source, 1))


def _unique(
    case: Case, row: object, cases: Mapping[str, Case], places: Mapping[str, str], where: str
) -> Case:
    """The case under an id of its own; one that its source gave is not changed."""
    if case.id not in cases:
        return case
    named = isinstance(row, Mapping) and bool(_texts(row.get("id"), "id"))
    if named or (isinstance(row, Case) and row != cases[case.id]):
        raise ValueError(
            f"{where}: the id {case.id!r} is that of {places[case.id]} too: give each question"
            " another, or none."
        )
    number = 2
    while f"{case.id}-{number}" in cases:
        number += 1
    return replace(case, id=f"{case.id}-{number}")
