"""Texts: what a document is."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

_ID_DIGITS = 16


def content_hash(text: str) -> str:
    """The SHA-256 of a text's UTF-8 bytes in hex: equal for equal texts, on every machine."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


@dataclass(frozen=True, slots=True)
class Document:
    """A text, what is known about it, and its name.

    A passage (a piece of a split document) is a `Document` too. Two documents are equal when
    text, metadata and id are; the hash leaves the metadata out, as its values may be unhashable.

    Attributes:
        text: Any string that UTF-8 can hold.
        metadata: Copied, so that what the caller does to its own mapping changes nothing here.
        id: By default the first 16 hex digits of `content_hash(text)`.

    Raises:
        TypeError: `text` or `id` is no string, or `metadata` no mapping.
        ValueError: `text` or `id` holds a lone surrogate, which no UTF-8 file can store.
    """

    text: str
    metadata: Mapping[str, Any] = field(default_factory=dict, hash=False)
    id: str = ""

    def __post_init__(self) -> None:
        _check_string(self.text, "text")
        _check_string(self.id, "id")
        if not isinstance(self.metadata, Mapping):
            raise TypeError(
                f"A Document's metadata must be a mapping, got {type(self.metadata).__name__}."
            )
        object.__setattr__(self, "metadata", dict(self.metadata))
        if not self.id:
            object.__setattr__(self, "id", content_hash(self.text)[:_ID_DIGITS])


def as_documents(items: Iterable[str | Document]) -> list[Document]:
    """Strings and documents as documents, in order.

    Raises:
        TypeError: `items` is one bare string or `Document`, or holds anything else than these two.
    """
    if isinstance(items, (str, Document)):
        raise TypeError(
            f"Documents must come as a list, got a single {type(items).__name__}: put it in [...]."
        )
    return [item if isinstance(item, Document) else Document(item) for item in items]


def _check_string(value: object, what: str) -> None:
    if not isinstance(value, str):
        raise TypeError(f"A Document's {what} must be a string, got {type(value).__name__}.")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"A Document's {what} holds a lone surrogate ({value[error.start]!a} at {error.start}),"
            " which UTF-8 cannot store: decode the source with errors='replace'."
        ) from None
