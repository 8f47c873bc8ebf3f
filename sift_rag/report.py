"""What a comparison found, for people: one HTML file, Markdown, JSON. Pure functions of it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sift_rag import page, tables
from sift_rag.explaining import shorten
from sift_rag.summary import SCHEMA, summary

if TYPE_CHECKING:
    from sift_rag.comparison import Comparison

__all__ = ["SCHEMA", "html", "markdown", "summary", "to_json", "write"]


def to_json(comparison: Comparison) -> str:
    """The summary as JSON: see `sift_rag.summary.summary`. ASCII, so that any reader takes it."""
    return json.dumps(summary(comparison), indent=1, allow_nan=False)


def html(comparison: Comparison) -> str:
    """One page that needs nothing else: no network, no other file; its script sorts and filters.

    Raises:
        ImportError: jinja2 is not installed.
    """
    return page.render(summary(comparison))


def markdown(comparison: Comparison) -> str:
    """Verdict, ways by metrics, pairs, break-even, settings: short, for an issue or a wiki."""
    found = summary(comparison)
    main = next((one for one in found["metrics"] if one["name"] == found["main"]), None)
    warnings = map(str, found["settings"].get("warnings") or ())
    parts = [f"# {_line(page.title(found))}", f"**{_line(found['verdict']['sentence'])}**"]
    parts += [_line(each) for each in (*found["verdict"]["details"], *warnings)]
    parts += ["## Ways", _table(tables.ways(found)), page.LEVEL]
    parts += ["## Costs", _table(tables.stages(found)), _table(tables.costs(found))]
    parts += [f"- {_line(each['sentence'])}" for each in found["break_even"]]
    if main and (pairs := found["pairs"].get(main["name"])):
        parts += [f"## Pairs, {_line(main['title'])}", _table(tables.pairs(pairs, main))]
    parts += ["## Settings", "\n".join(_settings(found))]
    return "\n\n".join(part for part in parts if part).replace("\u202f", " ") + "\n"


def _table(table: tables.Table) -> str:
    if len(table.headings) < 2:
        return ""
    lines = [table.headings, ["---", *["---:"] * (len(table.headings) - 1)]]
    rows = [*lines[:1], *([_cell(cell) for cell in row] for row in table.rows)]
    texts = ["| " + " | ".join(_line(each) for each in row) + " |" for row in rows]
    return "\n".join([texts[0], "| " + " | ".join(lines[1]) + " |", *texts[1:]])


def _cell(cell: tables.Cell) -> str:
    small = f" ({cell.small})" if cell.small else ""
    return cell.text + small + (f", {cell.mark}" if cell.mark else "")


def _settings(found: Mapping[str, Any]) -> Iterator[str]:
    settings = found["settings"]
    for way, told in (settings.get("ways") or {}).items():
        yield f"- {_line(way)}: {_line(tables.told(told))}"
    for key, value in tables.settings(found):
        yield f"- {_line(key)}: {_line(value)}"
    for key in ("machine", "versions"):
        if settings.get(key):
            yield f"- {key}: {_line(tables.told(settings[key]))}"
    if settings.get("command"):
        yield f"- to repeat: {_line(str(settings['command']))}"


_MARKUP = re.compile(r"[\\`*\[\]<>|~#&!$]|(?<!\w)_|_(?!\w)|(?<=:)/|(?<=www)\.|@")


def _line(text: str) -> str:
    """Words on one line that Markdown takes as words: no links, no HTML, no cells of their own."""
    return _MARKUP.sub(lambda found: f"\\{found[0]}", shorten(text, 2_000))


_WRITERS: Mapping[str, Callable[[Comparison], str]] = {
    ".html": html,
    ".md": markdown,
    ".json": to_json,
}


def check_target(path: str | os.PathLike[str] | None) -> None:
    """Whether a report can be written there: asked before the long work, not after it.

    Raises:
        ValueError: The name ends otherwise than in .html, .md or .json.
        OSError: It is a folder, or lies in none that exists.
        ImportError: HTML is asked for and jinja2 is not installed.
    """
    if path is None:
        return
    target = Path(path)
    if target.suffix.lower() not in _WRITERS:
        raise ValueError(
            f"A report is written as .html, .md or .json, got {str(target)!r}: end its name so."
        )
    if target.is_dir():
        raise IsADirectoryError(f"{target} is a folder: give the name of a file in it.")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"There is no folder {target.parent}: make it first.")
    if target.suffix.lower() == ".html":
        page.template()


def write(comparison: Comparison, path: str | os.PathLike[str]) -> Path:
    """Write a report, whole or not at all: HTML, Markdown or JSON, as its name ends.

    Raises:
        ValueError: See `check_target`.
        OSError: See there; or it cannot be written.
        ImportError: See there.
    """
    check_target(path)
    target = Path(path)
    writer = _WRITERS[target.suffix.lower()]
    text = writer(comparison)
    beside = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        beside.write_bytes(text.encode())
        os.replace(beside, target)
    finally:
        beside.unlink(missing_ok=True)
    return target
