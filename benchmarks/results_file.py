"""What every benchmark's result says of the machine it ran on, and how it comes to be written."""

import argparse
import os
import platform
from collections.abc import Iterable, Iterator
from pathlib import Path

from sift_rag.surroundings import processor, versions

FOLDER = Path(__file__).parent / "results"


def machine(*packages: str, threads: int = 1) -> Iterator[str]:
    """Processor, threads, system, Python and packages: two lines."""
    busy = "one thread" if threads == 1 else f"{threads} threads"
    yield f"{processor()}, {os.cpu_count()} cores, {busy}; {platform.system()},"
    yield f"Python {platform.python_version()}; {', '.join(map(named, packages))}."


def named(package: str) -> str:
    """A package and its version."""
    found = versions((package,))
    return f"{package} {found[package]}" if found else f"no {package}"


def load_average() -> str:
    """How busy the machine is."""
    return f"Load average while measuring: {os.getloadavg()[0]:.1f}."


def explained(doc: str | None) -> str:
    """A docstring without its first line and the command."""
    return (doc or "").partition("\n\n")[2].partition("\n\n")[2]


def arguments(name: str, doc: str | None) -> argparse.ArgumentParser:
    """The command line of a benchmark, which may add to it."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help=f"write results/{name}")
    return parser


def show(name: str, lines: Iterable[str], *, write: bool) -> None:
    """Print the lines as they come, and write the file when all are there."""
    shown = []
    for line in lines:
        print(line, flush=True)
        shown.append(line)
    if write:
        (FOLDER / name).write_text("\n".join(shown).rstrip() + "\n", encoding="utf-8")
