"""Files of questions to their rows: JSON lines, JSON, CSV. UTF-8 only; each row with its place."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from sift_rag.documents import MAX_BYTES

Rows: TypeAlias = Iterator[tuple[str, object]]

_SEPARATOR = "|"
_SEVERAL = {"references", "answers", "gold"}  # columns whose cells hold more than one value


def rows(path: Path) -> Rows:
    """The rows of a file, each with its place in it ("line 3").

    Raises:
        FileNotFoundError, IsADirectoryError: There is no such file.
        ValueError: Its ending is unknown, it is too large, no UTF-8, or broken at some line.
    """
    reader = _READERS.get(path.suffix.lower())
    if os.path.isdir(path):
        raise IsADirectoryError(f"{str(path)!r} is a folder: give a file of questions.")
    if not os.path.isfile(path):  # False also of a name too long for one
        raise FileNotFoundError(
            f"There is no file {str(path)!r}: give the path of a file of questions, or put the"
            " question itself in a list, [...]."
        )
    if reader is None:
        raise ValueError(
            f"{path}: the ending {path.suffix or '(none)'} is unknown; questions are read from"
            f" {', '.join(_READERS)}."
        )
    if (size := path.stat().st_size) > MAX_BYTES:
        raise ValueError(f"{path} has {size:,} bytes, more than {MAX_BYTES:,}: split it.")
    return reader(_decoded(path), path)


def _decoded(path: Path) -> str:
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{path}, line {line}: not valid UTF-8 (byte {error.start}): save the file as UTF-8."
        ) from None


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: not valid JSON ({error}).") from None


def _lines(text: str, path: Path) -> Rows:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield f"line {number}", _parsed(line, f"{path}, line {number}")


def _list(text: str, path: Path) -> Rows:
    if not text.strip():
        return
    try:
        found = _parsed(text, str(path))
    except ValueError as error:
        hint = " Name a file with one object a line .jsonl." if "Extra data" in str(error) else ""
        raise ValueError(f"{error}{hint}") from None
    if not isinstance(found, list):
        raise ValueError(
            f"{path}: a JSON list of questions was wanted, got {type(found).__name__}."
        )
    yield from ((f"item {number}", row) for number, row in enumerate(found, 1))


def _table(text: str, path: Path) -> Rows:
    header_line = text.lstrip("\r\n").partition("\n")[0]
    delimiter = next((one for one in ",;\t" if "question" in _header(header_line, one)), ",")
    cells = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header: list[str] = []
    line = 1
    try:
        for row in cells:
            if any(cell.strip() for cell in row):
                if header:
                    yield f"line {line}", _record(header, row, f"{path}, line {line}")
                else:
                    header = _checked([cell.strip() for cell in row], f"{path}, line {line}")
            line = cells.line_num + 1
    except csv.Error as error:
        raise ValueError(f"{path}, line {line}: not valid CSV ({error}).") from None


def _header(line: str, delimiter: str) -> list[str]:
    return [cell.strip().strip('"') for cell in line.split(delimiter)]


def _checked(header: list[str], where: str) -> list[str]:
    if twice := sorted({name for name in header if header.count(name) > 1}):
        raise ValueError(
            f"{where}: the column {twice[0]!r} is there twice; several answers go in one cell of"
            f' "references", parted by "{_SEPARATOR}".'
        )
    return header


def _record(header: Sequence[str], cells: Sequence[str], where: str) -> dict[str, object]:
    if len(cells) > len(header):
        raise ValueError(
            f"{where}: {len(cells)} cells under {len(header)} columns: put a cell that holds the"
            " delimiter in double quotes."
        )
    filled = ((name, cell) for name, cell in zip(header, cells, strict=False) if cell.strip())
    return {name: _several(cell) if name in _SEVERAL else cell for name, cell in filled}


def _several(cell: str) -> object:
    if cell.lstrip().startswith(("[", "{")):
        try:
            return json.loads(cell)
        except (ValueError, RecursionError):
            pass  # text that begins with a bracket
    return [part.strip() for part in cell.split(_SEPARATOR)]


_READERS: dict[str, Callable[[str, Path], Rows]] = {
    ".jsonl": _lines,
    ".json": _list,
    ".csv": _table,
}
