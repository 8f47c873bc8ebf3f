"""The file of one cached adapter: safetensors, checked in every part before it is believed.

metadata  entry     what is known of the adapter, JSON
          weights   SHA-256 of the weights' bytes
          checksum  SHA-256 of the two before
weights             (n,) float32
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from sift_rag.documents import Document, content_hash

FORMAT = "sift_rag.adapter"
VERSION = 1

_MAX_HEADER = 100_000_000  # safetensors' own limit


class Passage(NamedTuple):
    """What is kept of a passage that an adapter saw: id, source (or ""), hash of the text."""

    id: str
    source: str
    hash: str

    @classmethod
    def of(cls, document: Document) -> Passage:
        """What is kept of this one."""
        source = document.metadata.get("source")
        named = source if isinstance(source, str) else ""
        return cls(document.id, named, content_hash(document.text))

    def belongs(self, document_id: str) -> bool:
        """Whether it is that document, or a part that `split` or `read_folder` made of it."""
        part = self.id.startswith(document_id + "#")
        return part or document_id in (self.id, self.source)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CachedAdapter:
    """An adapter's weights, and where they come from.

    Attributes:
        key: What it was put under.
        created: When, in seconds since 1970.
        documents: The passages it was trained on, in their order.
        inherited: Those that the adapter it began with had seen.
        report: How it was trained, as plain data.
        weights: (n,) float32, the caller's own copy.
    """

    key: str
    created: float
    documents: tuple[Passage, ...]
    inherited: tuple[Passage, ...]
    report: dict[str, Any]
    weights: NDArray[np.float32]

    def saw(self, document_id: str) -> bool:
        """Whether that document, or a part of it, is in the weights."""
        return any(one.belongs(document_id) for one in self.documents + self.inherited)

    def text(self) -> str:
        """All but the weights as JSON.

        Raises:
            TypeError, ValueError: The report is no plain data.
        """
        names = ("key", "created", "documents", "inherited", "report")
        known = {name: getattr(self, name) for name in names}
        return json.dumps({"format": FORMAT, "version": VERSION, **known})


def flat_copy(weights: Any) -> NDArray[np.float32]:
    """A copy that nobody changes, also of a tensor that needs a gradient or lies on a GPU.

    Raises:
        ValueError: It is not flat, or not finite.
    """
    if hasattr(weights, "detach"):
        weights = weights.detach().cpu().numpy()
    flat = np.array(weights, np.float32)
    if flat.ndim != 1 or not flat.size:
        raise ValueError(f"The weights have shape {flat.shape}; wanted one flat, not empty row.")
    if not np.isfinite(flat).all():
        raise ValueError("The weights hold NaN or infinite numbers: such an adapter is broken.")
    return flat


def plain_report(report: Mapping[str, Any]) -> dict[str, Any]:
    """What would come back from a file, also where there is none.

    Raises:
        ValueError: It is no plain data.
    """
    try:
        return dict(json.loads(json.dumps(dict(report))))
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"The report is no plain data ({error}): use report.plain().") from error


class DamagedError(ValueError):
    """Why a file is of no use."""


def packed(adapter: CachedAdapter) -> bytes:
    """A file's content."""
    text, weights = adapter.text(), np.ascontiguousarray(adapter.weights, "<f4")
    known = {"entry": text, "weights": sha256(weights.data).hexdigest()}
    return save({"weights": weights}, known | {"checksum": _checksum(known)})


def _checksum(known: dict[str, str]) -> str:
    return content_hash(known["entry"] + known["weights"])


def _metadata(start: bytes, file: IO[bytes]) -> dict[str, str]:
    """The metadata, whose checksum is right, of a file that begins with these 8 bytes."""
    size = int.from_bytes(start, "little")
    if len(start) < 8 or size > min(_MAX_HEADER, os.fstat(file.fileno()).st_size - 8):
        raise DamagedError("it is truncated")
    try:
        known: dict[str, str] = json.loads(file.read(size))["__metadata__"]
        right = _checksum(known) == known["checksum"]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise DamagedError(f"its header is damaged ({error})") from error
    if not right:
        raise DamagedError("its checksum is wrong")
    return known


def read_head(file: IO[bytes]) -> CachedAdapter:
    """What a file says of its adapter; the weights are neither read nor checked.

    Raises:
        DamagedError: It is truncated, changed, or of another format.
    """
    return _understood(_metadata(file.read(8), file)["entry"])


def read_whole(file: IO[bytes]) -> CachedAdapter:
    """The adapter with its weights.

    Raises:
        DamagedError: It is truncated, changed, or of another format.
    """
    known = _metadata(file.read(8), file)
    file.seek(0)
    try:
        weights = load(file.read())["weights"]
    except (SafetensorError, KeyError, ValueError) as error:
        raise DamagedError(f"it holds no weights ({error})") from error
    if weights.dtype != np.float32 or weights.ndim != 1:
        raise DamagedError(f"its weights have shape {weights.shape} of {weights.dtype}")
    if sha256(np.ascontiguousarray(weights, "<f4").data).hexdigest() != known["weights"]:
        raise DamagedError("its weights were changed")
    if not np.isfinite(weights).all():
        raise DamagedError("its weights are not finite")
    return replace(_understood(known["entry"]), weights=weights)


def _understood(text: str) -> CachedAdapter:
    try:
        record = json.loads(text)
        found = (record["format"], record["version"])
        if found != (FORMAT, VERSION):
            raise TypeError(f"it is of format and version {found}")
        return CachedAdapter(
            key=record["key"],
            created=float(record["created"]),
            documents=_passages(record["documents"]),
            inherited=_passages(record["inherited"]),
            report=dict(record["report"]),
            weights=np.empty(0, np.float32),
        )
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        raise DamagedError(f"its header is not understood ({error})") from error


def _passages(rows: Any) -> tuple[Passage, ...]:
    passages = tuple(Passage(*row) for row in rows)
    if not all(isinstance(value, str) for passage in passages for value in passage):
        raise TypeError("a passage's id, source or hash is no string")
    return passages
