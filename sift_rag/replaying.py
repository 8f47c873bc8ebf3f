"""Reads what a `Recorder` wrote: the questions, and ways that give the recorded replies again."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sift_rag.cases import STAGES, TOKENS, Case, Reply
from sift_rag.documents import Document
from sift_rag.foreign import Foreign
from sift_rag.recording import GIVEN_UP, KIND, SCHEMA, SHARES, Recorded


class RecordedError(RuntimeError):
    """What a way raised when it was recorded; of a subclass with the name of the first type."""


@dataclass(frozen=True, eq=False)
class Recording:
    """What was recorded.

    Attributes:
        cases: The questions, in the order in which their requests were first written; their id is
            the request's, their origin "recorded".
        rows: What each way made of each request: way -> request -> row.
        blank: Rows without a question, which are left out.
    """

    cases: tuple[Case, ...]
    rows: Mapping[str, Mapping[str, Recorded]]
    blank: int = 0

    @property
    def ways(self) -> tuple[str, ...]:
        """The ways' names, in the order in which they first answered."""
        return tuple(self.rows)

    @property
    def documents(self) -> tuple[Document, ...]:
        """All passages that any way gave, each text once: a corpus, where there is no other."""
        found: dict[str, Document] = {}
        for rows in self.rows.values():
            for row in rows.values():
                for document in (row.reply and row.reply.documents) or ():
                    found.setdefault(document.text, document)
        return tuple(found.values())

    def answered(self, *ways: str) -> tuple[Case, ...]:
        """The cases that each of these ways has a row for; of a shadow, those of its share.

        Raises:
            ValueError: There is no such way.
        """
        rows = [self._of(way) for way in ways]
        return tuple(case for case in self.cases if all(case.id in found for found in rows))

    def as_way(self, way: str) -> Foreign:
        """A way that gives the recorded reply, with the recorded times, or raises what was raised.

        Raises:
            ValueError: There is no such way.
            LookupError: When it is asked a case that this way was not asked.
            RecordedError: When it is asked a case that failed.
        """
        rows = self._of(way)

        def recorded(case: Case) -> Reply:
            row = rows.get(case.id)
            if row is None:
                raise LookupError(f"{way!r} has no row for the request {case.id}: see `answered`.")
            if row.reply is None:
                kind, _, message = row.error.partition(": ")
                # Of the name that it had: a row of this error reads as the first one did.
                raise type(kind if kind.isidentifier() else "RecordedError", (RecordedError,), {})(
                    message
                )
            return row.reply

        return Foreign(recorded, {"kind": "recorded", "way": way})

    def _of(self, way: str) -> Mapping[str, Recorded]:
        if way not in self.rows:
            names = ", ".join(self.rows) or "none"
            raise ValueError(f"There is no way {way!r} in this recording; there are: {names}.")
        return self.rows[way]


def read(path: str | os.PathLike[str]) -> Recording:
    """Read what a `Recorder` wrote.

    Lines that were cut short are passed over. A request that has several rows of one way has the
    last of them.

    Raises:
        OSError: The file cannot be read.
        ValueError: A line is none of a `Recorder`, or of another version; it says which.
    """
    cases: dict[str, Case] = {}
    rows: dict[str, dict[str, Recorded]] = {}
    blank = 0
    for row in _rows(path):
        if not row.question.strip():
            blank += 1
            continue
        rows.setdefault(row.way, {})[row.request] = row
        if row.request not in cases:
            about = {"at": row.at}
            cases[row.request] = Case(
                row.question, origin="recorded", metadata=about, id=row.request
            )
    return Recording(tuple(cases.values()), rows, blank)


def _rows(path: str | os.PathLike[str]) -> Iterator[Recorded]:
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            text = line.strip()
            if not text or text.endswith(GIVEN_UP):
                continue
            try:
                row = json.loads(text.decode("utf-8"), parse_constant=_refuse)
            except (ValueError, RecursionError) as error:
                if not line.endswith(b"\n"):  # the last one, cut short or being written
                    return
                raise ValueError(f"{os.fspath(path)}, line {number}: no JSON, {error}.") from None
            try:
                yield _recorded(row)
            except (KeyError, TypeError, ValueError) as error:
                what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
                raise ValueError(f"{os.fspath(path)}, line {number}: {what}") from None


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def _recorded(row: Any) -> Recorded:
    if not isinstance(row, dict) or row.get("kind") != KIND:
        raise ValueError(f'not a line of a Recorder: its "kind" is not "{KIND}".')
    if row.get("schema") != SCHEMA:
        raise ValueError(
            f"schema is {row.get('schema')!r} and this version of sift_rag reads {SCHEMA}: read it "
            "with the version that wrote it."
        )
    texts = {name: row[name] for name in ("question", "error", "request", "way", "at")}
    for name, text in texts.items():
        if not isinstance(text, str) or not (text or name in ("question", "error")):
            raise TypeError(f"{name} is {text!r}; it must be a string, and not empty.")
    if "text" not in row and not row["error"]:
        raise ValueError("there is neither a text nor an error.")
    return Recorded(**texts, reply=_reply(row) if "text" in row else None)


def _reply(row: dict[str, Any]) -> Reply:
    found = row.get("documents")
    return Reply(
        text=Document(row["text"]).text,  # which checks it
        documents=None if found is None else tuple(_document(each) for each in found),
        seconds=_numbers(row, "seconds", STAGES),
        tokens={name: int(n) for name, n in _numbers(row, "tokens", TOKENS).items()},
        **_numbers(row, "", SHARES),
        note=str(row.get("note", "")),
    )


def _document(found: dict[str, Any]) -> Document:
    return Document(found["text"], found["metadata"], found["id"])


def _numbers(row: dict[str, Any], key: str, names: tuple[str, ...]) -> dict[str, Any]:
    found = row.get(key, {}) if key else row
    numbers = {name: found[name] for name in names if name in found}
    for name, number in numbers.items():
        if isinstance(number, bool) or not isinstance(number, (int, float)) or not number >= 0:
            raise ValueError(f"{name} is {number!r}; it must be a number that is not negative.")
    return numbers
