"""The bytes of a file to its texts: plain text, Markdown, HTML, JSON lines, PDF. UTF-8 only.

A reader raises `Unreadable` for a whole file and hands one over in place of each part that it
could not read, so that nothing is lost without a reason. bs4 and pypdf load when they are needed.
"""

from __future__ import annotations

import json
import logging
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from io import BytesIO
from typing import Any

_BLOCKS = re.compile(
    "^(address|article|aside|blockquote|br|dd|div|dl|dt|fieldset|figure|footer|form|h[1-6r]|header"
    "|li|main|ol|p|pre|section|table|td|th|tr|ul)$"
)
_NOT_TEXT = ["script", "style", "nav", "noscript", "template", "title"]


class Unreadable(Exception):
    """Why a file, or a part of it, gives no text."""


@dataclass(frozen=True, slots=True)
class Record:
    """One text of a file.

    Attributes:
        text: Not blank.
        metadata: What the file says of it.
        anchor: Where in the file it stands, as "#page=3"; empty if it is the whole file.
        id: The name that the file gives it, if any.
    """

    text: str
    metadata: dict[str, Any] = field(default_factory=dict)
    anchor: str = ""
    id: str = ""


def require(module: str) -> Any:
    """Import a package that only the folder reader and the splitter need.

    Raises:
        ImportError: It is not installed; the message holds the command that installs it.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise ImportError(
            f"Reading and splitting files needs the package {module}, which is not installed:"
            ' pip install "sift-rag-ttt[cli]"'
        ) from error


def _decode(data: bytes) -> str:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Unreadable(f"not valid UTF-8 (byte {error.start})") from None
    if "\0" in text:
        raise Unreadable("binary data (zero bytes), not text")
    if not text.strip():
        raise Unreadable("empty")
    return text.replace("\r\n", "\n")  # a text hashes alike whichever system wrote it


def _read_text(data: bytes) -> list[Record | Unreadable]:
    return [Record(_decode(data))]


def _read_html(data: bytes) -> list[Record | Unreadable]:
    bs4, markup = require("bs4"), _decode(data)
    with warnings.catch_warnings():  # bs4's guesses at what its caller may have meant
        warnings.simplefilter("ignore")
        soup = bs4.BeautifulSoup(markup, "html.parser")
    title = " ".join(soup.title.get_text().split()) if soup.title else ""
    for tag in soup(_NOT_TEXT):
        tag.decompose()
    for piece in soup.find_all(string=True):  # source line breaks are spaces, except in <pre>
        if type(piece) is bs4.NavigableString and not piece.find_parent("pre"):
            piece.replace_with(re.sub(r"\s+", " ", piece))
    for tag in soup(_BLOCKS):
        tag.insert_before("\n")
        tag.insert_after("\n")
    lines = [line.strip() for line in soup.get_text().split("\n")]
    text = "\n".join(line for line in lines if line)
    if not text:
        raise Unreadable("HTML without text")
    return [Record(text, {"title": title} if title else {})]


def _read_lines(data: bytes) -> list[Record | Unreadable]:
    found: list[Record | Unreadable] = []
    for number, line in enumerate(_decode(data).split("\n"), 1):
        if line.strip():
            try:
                found.append(_read_line(line, number))
            except (Unreadable, ValueError, RecursionError) as error:
                why = str(error) if isinstance(error, Unreadable) else f"not valid JSON ({error})"
                found.append(Unreadable(f"line {number}: {why}"))
    if all(isinstance(item, Unreadable) for item in found):
        raise Unreadable(f'no line is an object with a "text" ({found[0]})')
    return found


def _read_line(line: str, number: int) -> Record:
    row = json.loads(line)
    if not isinstance(row, dict):
        raise Unreadable(f"a JSON object was expected, got {type(row).__name__}")
    text, name = row.pop("text", None), row.pop("id", None)
    if not isinstance(text, str) or not text.strip():
        raise Unreadable('"text" must be a string that is not blank')
    name = "" if name is None else str(name)
    (text + name).encode()  # JSON can spell lone surrogates, UTF-8 cannot: a ValueError
    return Record(text, row, f"#line={number}", name)


def _read_pdf(data: bytes) -> list[Record | Unreadable]:
    pypdf, log = require("pypdf"), logging.getLogger("pypdf")
    if not log.handlers:  # else Python prints its warnings where no program asked for a log
        log.addHandler(logging.NullHandler())
    try:
        reader = pypdf.PdfReader(BytesIO(data))
        if reader.is_encrypted and not reader.decrypt(""):
            raise Unreadable("an encrypted PDF: save it without the password")
        pages = [page.extract_text() for page in reader.pages]
    except Unreadable:
        raise
    except Exception as error:  # "broken PDF files might cause other Exceptions": pypdf/errors.py
        raise Unreadable(f"a PDF that cannot be read ({type(error).__name__}: {error})") from error
    found: list[Record | Unreadable] = []
    for number, page in enumerate(pages, 1):
        text = page.encode("utf-8", "replace").decode()  # broken fonts give lone surrogates
        if text.strip():
            found.append(Record(text, {"page": number}, f"#page={number}"))
    if not found:
        raise Unreadable("a PDF without text (scanned pages?)")
    return found


READERS: dict[str, Callable[[bytes], list[Record | Unreadable]]] = {
    ".txt": _read_text,
    ".text": _read_text,
    ".md": _read_text,
    ".html": _read_html,
    ".htm": _read_html,
    ".jsonl": _read_lines,
    ".pdf": _read_pdf,
}
"""By suffix: the texts of a file's bytes."""
