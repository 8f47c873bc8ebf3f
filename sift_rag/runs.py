"""The run file of a comparison: JSON lines, only ever added to, so that a kill loses one at most.

    {"kind": "comparison", "schema": 1, "identity": {...}, "settings": {...}, ...}   the header
    {"kind": "case", ...}                                         each question, before any answer
    {"kind": "document", "key": ..., "id", "text", "metadata"}    each passage, once
    {"kind": "row", "case", "way", "reply": {...}, "values": {...}, "error": ""}
    {"kind": "metrics", "metrics": [...]}          when the file is gone on with, and others wanted

A row that comes again for the same case and way takes the place of the one before.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import IO, Any

from sift_rag.cases import Case, Reply, Row
from sift_rag.documents import Document, content_hash

SCHEMA = 1


class RunFileError(ValueError):
    """A run file that cannot be read, or that belongs to another comparison."""


class Log:
    """What is known of a run, kept in a file where there is one.

    Attributes:
        header: The file's first line.
        cases: By id, in their order.
        rows: By case and way.
        metrics: Of the metrics, all but their functions.
    """

    def __init__(self, file: IO[bytes] | None = None) -> None:
        self.header: dict[str, Any] = {}
        self.cases: dict[str, Case] = {}
        self.rows: dict[tuple[str, str], Row] = {}
        self.metrics: list[dict[str, Any]] = []
        self._documents: dict[str, Document] = {}
        self._file = file

    def add(self, row: Row) -> None:
        """Keep a row, on the disk before this returns."""
        documents = row.reply.documents if row.reply else None
        keys = [self._keep(document) for document in documents or ()]
        record: dict[str, Any] = {"case": row.case, "way": row.way, "reply": None}
        if row.reply:
            reply = {name: getattr(row.reply, name) for name in Reply.__dataclass_fields__}
            reply["documents"] = None if documents is None else keys
            record["reply"] = {key: value for key, value in reply.items() if value is not None}
        record |= {"values": dict(row.values), "error": row.error}
        self._write("row", record | {"unmeasured": dict(row.unmeasured)})

    def start(
        self,
        header: Mapping[str, Any],
        cases: Sequence[Case],
        metrics: Sequence[Mapping[str, Any]],
    ) -> None:
        """Write what stands before the rows, or check that it is what is there.

        Raises:
            RunFileError: The file holds another comparison.
        """
        if not self.header:
            self._write("comparison", {"schema": SCHEMA, **header, "cases": len(cases)})
        _check_same(self.header["identity"], _plain(header["identity"]))
        for case in cases:
            if case.id not in self.cases:
                self._write("case", asdict(case))
        if self.metrics != _plain(metrics):
            self._write("metrics", {"metrics": list(metrics)})

    def take(self, record: dict[str, Any]) -> None:
        """Understand one line."""
        kind = record.pop("kind")
        if kind == "comparison":
            self.header = record
        elif kind == "case":
            texts = {name: tuple(record[name]) for name in ("references", "gold")}
            self.cases[record["id"]] = Case(**record | texts)
        elif kind == "document":
            key = record.pop("key")
            self._documents[key] = Document(**record)
        elif kind == "metrics":
            self.metrics = record["metrics"]
        elif kind == "row":
            reply = record.pop("reply")
            row = Row(reply=None if reply is None else self._reply(reply), **record)
            self.rows[row.case, row.way] = row
        else:
            raise KeyError(f"unknown kind {kind!r}")

    def _reply(self, record: dict[str, Any]) -> Reply:
        reply = Reply(**record)
        if reply.documents is None:
            return reply
        keys: Iterable[Any] = reply.documents
        return replace(reply, documents=tuple(self._documents[key] for key in keys))

    def _keep(self, document: Document) -> str:
        record = {"id": document.id, "text": document.text, "metadata": document.metadata}
        key = content_hash(_dumps(record))[:16]
        if key not in self._documents:
            self._write("document", {"key": key, **record})
        return key

    def _write(self, kind: str, record: Mapping[str, Any]) -> None:
        # What is kept is what a reader of the file will see, also where there is no file.
        line = _dumps({"kind": kind, **record}).encode("utf-8", "replace")
        if self._file:
            self._file.write(line + b"\n")
            self._file.flush()
        self.take(json.loads(line))


def read(path: str | os.PathLike[str]) -> Log:
    """Read a run file; a last line that a kill cut short is left out.

    Raises:
        RunFileError: It is no run file, of another schema, or damaged.
        OSError: It cannot be read.
    """
    log = Log()
    with open(path, "rb") as file:
        _read(file, log, Path(path))
    if not log.header:
        raise RunFileError(f"{os.fspath(path)!r} is empty: it holds no comparison yet.")
    return log


@contextmanager
def writing(path: str | os.PathLike[str] | None) -> Iterator[Log]:
    """The log of a run, to go on with or to begin; with no path it is kept in memory only.

    Raises:
        RunFileError: The file is no run file, or another process writes to it.
        OSError: It cannot be written.
    """
    if path is None:
        yield Log()
        return
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(target, "a+b") as file:
        _lock(file, target)
        log = Log(file)
        file.seek(0)
        whole = _read(file, log, target)
        file.truncate(whole)  # a line that a kill cut short
        yield log


def _read(file: IO[bytes], log: Log, path: Path) -> int:
    """Take all whole lines; returns where the last one ends."""
    end = 0
    for number, line in enumerate(file, 1):
        if not line.endswith(b"\n"):
            break
        try:
            record = json.loads(line)
            if number == 1 and (record["kind"], record["schema"]) != ("comparison", SCHEMA):
                raise KeyError(f"the first line is not the header of schema {SCHEMA}")
            log.take(record)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise RunFileError(
                f"{str(path)!r} is no run file of a comparison, or is damaged: line {number}: "
                f"{error}. It stays as it is; give another path."
            ) from error
        end += len(line)
    return end


def _check_same(there: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    if there == wanted:
        return
    here, now = dict(_flat(there)), dict(_flat(wanted))
    names = [name for name in {**here, **now} if here.get(name) != now.get(name)]
    shown = "; ".join(
        f"{name} was {here.get(name, 'not there')}, is {now.get(name, 'not there')}"
        for name in names[:5]
    )
    raise RunFileError(
        f"The run file holds a comparison with other settings ({shown}): its rows would not be "
        "comparable. Repeat its settings to go on with it, or give another path."
    )


def _flat(tree: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(tree, Mapping) and tree:
        for key, value in tree.items():
            yield from _flat(value, f"{name}.{key}" if name else str(key))
    else:
        yield name, tree


def _lock(file: IO[bytes], path: Path) -> None:
    """Two processes would ask everything twice; the lock goes with its process."""
    with suppress(ImportError):  # Windows has none
        import fcntl

        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunFileError(
                f"Another process is writing to {str(path)!r}: wait for it, or give another path."
            ) from None


def _dumps(record: Mapping[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False, default=_as_json)


def _plain(data: Any) -> Any:
    return json.loads(json.dumps(data, default=_as_json))


def _as_json(value: Any) -> Any:
    """NumPy's numbers as numbers; what else JSON does not know as its text."""
    item = getattr(value, "item", None)
    return item() if callable(item) and getattr(value, "size", 1) == 1 else str(value)
