"""Writes down what an app answers while it runs, one JSON line each; `replaying` reads them.

A line is written by one call to a file that is opened for appending, so threads and processes may
share the file. One that was cut short, by a kill or a full disk, is given up by the next writer.
"""

from __future__ import annotations

import json
import math
import os
import stat
import threading
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from hashlib import blake2b
from typing import Any
from uuid import uuid4

from sift_rag.cases import STAGES, TOKENS, Reply
from sift_rag.documents import Document

SCHEMA = 1
"""Version of a line's layout: the value of its "schema". It changes when a key does."""

MAX_BYTES = 500_000_000
"""Some 100,000 requests with five passages each."""

Redact = Callable[[str], str]

KIND = "recorded"
"""What a line says that it is."""

SHARES = ("coverage", "uncertainty")
"""Of a reply, those that are kept beside its times and tokens; each 0 to 1."""

GIVEN_UP = b"\x18"
"""Ends a line that was cut short, as the next writer marks it; no JSON text holds it."""


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """One request, as one way answered it.

    Attributes:
        question: What was asked.
        reply: What came back; None where it failed.
        error: What was raised, as "Type: message"; empty where nothing was.
        request: The request's name, the same for each way that answered it.
        way: Who answered; empty for the recorder's own way.
        at: When, as ISO 8601 in UTC.
    """

    question: str
    reply: Reply | None = None
    error: str = ""
    request: str = field(default_factory=lambda: str(uuid4()))
    way: str = ""
    at: str = field(default_factory=_now)


def passage(text: str, metadata: Mapping[str, Any], id: str | None) -> Document:
    """A document of some framework as ours; what is no UTF-8 in it becomes "?"."""
    clean = [each.encode("utf-8", "replace").decode() for each in (text, id or "")]
    return Document(clean[0], metadata, clean[1])


def described(error: BaseException) -> str:
    """An error as "Type: message", also of one that cannot tell its message."""
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:
        return f"{type(error).__name__}: "


def sampled(request: str, share: float, *, seed: int = 0) -> bool:
    """Whether a request is among a share of all.

    The name decides, so every process and every way decides alike, and a smaller share is part of
    a larger one.
    """
    digest = blake2b(f"{seed}:{request}".encode("utf-8", "replace"), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2**64


class Recorder:
    """Appends requests to a file. Whatever goes wrong with that, the app does not hear of it.

    A row that cannot be written is lost: it is counted, and the first one is warned of. Each row is
    on its way to the disk when `record` returns; the file is opened for each, so it may be moved
    away at any time.

    Args:
        path: The file, readable by its owner only where it is made here.
        way: Who answers, where a row does not say it.
        share: Of the requests that is recorded, 0 to 1; see `sampled`.
        redact: Applied to each text before it is written: question, answer, error, passages and the
            strings in their metadata. Ids stay. Where it raises, the row is lost.
        max_bytes: Size of the file beyond which rows are lost.
        seed: Of the sampling.

    Attributes:
        lost: Rows that could not be written.

    Raises:
        ValueError: A share outside of 0 to 1, or max_bytes below 1.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        way: str = "app",
        share: float = 1.0,
        redact: Redact | None = None,
        max_bytes: int = MAX_BYTES,
        seed: int = 0,
    ) -> None:
        self.path = os.path.abspath(path)  # the app may change its folder
        self.way = way
        self.share = check_share(share)
        self.redact = redact
        if max_bytes < 1:
            raise ValueError(f"max_bytes is {max_bytes}; it must be at least 1.")
        self.max_bytes = max_bytes
        self.seed = seed
        self.lost = 0
        self._counting = threading.Lock()

    def wants(self, request: str) -> bool:
        """Whether a request of this name is recorded."""
        return sampled(request, self.share, seed=self.seed)

    def record(self, recorded: Recorded) -> None:
        """Write one row, if its request is among the share. Never raises."""
        try:
            if self.wants(recorded.request):
                _append(self.path, self._line(recorded), self.max_bytes)
        except Exception as error:
            self.lose(described(error))

    def lose(self, why: str) -> None:
        """Count a row that could not be written. The first one is warned of."""
        with self._counting:
            self.lost += 1
            first = self.lost == 1
        if first:
            with suppress(Warning):  # where warnings are errors, the app is to go on all the same
                warnings.warn(
                    f"A request was not recorded in {self.path}: {why}. The app goes on; further "
                    "ones are counted in the recorder's `lost` without a warning.",
                    RuntimeWarning,
                    stacklevel=3,
                )

    def _line(self, recorded: Recorded) -> bytes:
        row: dict[str, Any] = {
            "schema": SCHEMA,
            "kind": KIND,
            "request": recorded.request,
            "way": recorded.way or self.way,
            "at": recorded.at,
            "question": self._redacted(recorded.question),
            "error": self._redacted(recorded.error),
        }
        if recorded.reply is not None:
            row |= self._answered(recorded.reply)
        text = json.dumps(row, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        return text.encode("utf-8", "replace") + b"\n"  # a lone surrogate becomes "?"

    def _answered(self, reply: Reply) -> dict[str, Any]:
        found: dict[str, Any] = {"text": self._redacted(reply.text), "documents": None}
        if reply.documents is not None:
            found["documents"] = [
                {
                    "id": document.id,
                    "text": self._redacted(document.text),
                    "metadata": self._plain(document.metadata),
                }
                for document in reply.documents
            ]
        found["seconds"] = {k: float(reply.seconds[k]) for k in STAGES if k in reply.seconds}
        found["tokens"] = {k: int(reply.tokens[k]) for k in TOKENS if k in reply.tokens}
        for name in SHARES:
            if (value := getattr(reply, name)) is not None:
                found[name] = float(value)
        return found | ({"note": self._redacted(reply.note)} if reply.note else {})

    def _redacted(self, text: str) -> str:
        if not isinstance(text, str):
            raise TypeError(f"a {type(text).__name__} stands where a text belongs")
        if self.redact is None:
            return text
        try:
            text = self.redact(text)
        except Exception as error:  # whose message may hold what was to be redacted
            raise ValueError(f"redact raised {type(error).__name__}") from None
        if not isinstance(text, str):
            raise TypeError(f"redact gave a {type(text).__name__}, not a str")
        return text

    def _plain(self, value: Any) -> Any:
        """As JSON has it; what that cannot hold as its `str`."""
        if value is None or isinstance(value, (bool, int)):
            return value
        if isinstance(value, float) and math.isfinite(value):
            return value
        if isinstance(value, Mapping):
            return {str(key): self._plain(each) for key, each in value.items()}
        if isinstance(value, (list, tuple)):
            return [self._plain(each) for each in value]
        return self._redacted(str(value))


def check_share(share: float) -> float:
    """The share, if it is one.

    Raises:
        ValueError: It is not from 0 to 1.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share is {share}; it must be from 0 (no request) to 1 (all of them).")
    return share


def _append(path: str, line: bytes, max_bytes: int) -> None:
    file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK, 0o600)
    try:
        found = os.fstat(file)
        if not stat.S_ISREG(found.st_mode):
            raise OSError("that is no regular file")
        if found.st_size + len(line) > max_bytes:
            raise OSError(f"the file would exceed max_bytes, {max_bytes:,}: move it away")
        if found.st_size:
            os.lseek(file, -1, os.SEEK_END)
            # A writer was killed, or the disk was full. (Or one is just writing: this line comes
            # after its line in any case, and what is given up between them is empty.)
            if os.read(file, 1) != b"\n":
                line = GIVEN_UP + b"\n" + line
        if os.write(file, line) < len(line):
            raise OSError("the disk is full")
    finally:
        os.close(file)
