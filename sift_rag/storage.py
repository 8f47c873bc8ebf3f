"""An index on disk: a folder of a manifest, the vectors (.npy) and the documents (JSON lines).

Every save gives the other two files new names; the manifest holds these, their sizes and their
checksums. Its replacement (`os.replace`) is the one moment at which an index changes: a process
killed at any time leaves the old index or the new one. Nothing here pickles or unpickles.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from sift_rag.documents import Document, file_hash

FORMAT = "sift_rag.index"
VERSION = 1

_MANIFEST = "manifest.json"
_OWN = re.compile(r"(vectors-\w{16}\.npy|documents-\w{16}\.jsonl|manifest-\w{16}\.json)", re.A)
_STALE_SECONDS = 3600  # younger strangers may belong to another process that saves right now


class IndexFormatError(ValueError):
    """A folder is no index that can be used: missing, damaged, of another format or embedder."""


class Stored(NamedTuple):
    """What an index folder holds: the embedder's name, n documents, (n, d) float32 unit rows."""

    embedder: str
    documents: tuple[Document, ...]
    rows: NDArray[np.float32]


def check_target(path: str | os.PathLike[str]) -> None:
    """Make sure that an index may be saved here: a new path, an empty folder, or an older index.

    Raises:
        FileExistsError: Something else is there, which saving must not touch.
    """
    folder = Path(path)
    if not os.path.lexists(folder):
        return
    if not folder.is_dir():
        raise FileExistsError(f"{str(folder)!r} is not a folder: give another path for the index.")
    if _manifest(folder).get("format") != FORMAT:
        other = next((item.name for item in folder.iterdir() if not _OWN.fullmatch(item.name)), "")
        if other:
            raise FileExistsError(
                f"{str(folder)!r} holds {other!r} and is not an index: it stays as it is; give"
                " another path, or empty it yourself."
            )


def save(path: str | os.PathLike[str], stored: Stored) -> None:
    """Write an index: a new folder is moved into place whole, an older index changes at once.

    Raises:
        FileExistsError: See `check_target`.
        ValueError: A document's metadata cannot be written as JSON.
        OSError: The disk is full, the place is read-only, ... What was there before is untouched.
    """
    check_target(path)
    folder = Path(path)
    try:
        if folder.exists():
            _write(folder, stored)
            return
        folder.parent.mkdir(parents=True, exist_ok=True)
        beside = folder.parent / f".{folder.name}.{secrets.token_hex(8)}.tmp"
        try:
            beside.mkdir()
            _write(beside, stored)
            beside.rename(folder)
            _sync(folder.parent)
        finally:
            shutil.rmtree(beside, ignore_errors=True)  # nothing is left of it after the renaming
    except OSError as error:
        raise OSError(
            error.errno,
            f"The index could not be saved ({error.strerror or error}); what was there before is"
            " untouched",
            str(folder),
        ) from error


def check(path: str | os.PathLike[str]) -> None:
    """Make sure, at once, that a folder says it is an index; `load` looks at the rest.

    Raises:
        IndexFormatError: It is missing, none, or of another format version.
    """
    _checked_manifest(Path(path))


def load(path: str | os.PathLike[str]) -> Stored:
    """Read an index and check everything that its manifest says.

    Raises:
        IndexFormatError: It is missing, of another format version, truncated or tampered with.
    """
    folder = Path(path)
    manifest = _checked_manifest(folder)
    try:
        stored = Stored(
            manifest["embedder"],
            _read_documents(_checked_file(folder, manifest, "documents")),
            _read_rows(_checked_file(folder, manifest, "vectors")),
        )
    except FileNotFoundError as error:
        if _manifest(folder) != manifest:  # replaced by another process while it was being read
            return load(path)
        raise IndexFormatError(f"The index {str(folder)!r} lacks a file: {error}.") from error
    wanted = (manifest["documents"], manifest["dimension"])
    if stored.rows.shape != wanted or len(stored.documents) != wanted[0]:
        raise IndexFormatError(
            f"The index {str(folder)!r} has {len(stored.documents)} documents and vectors of shape"
            f" {stored.rows.shape}, its manifest says {wanted}: build it again."
        )
    return stored


# --- writing ----------------------------------------------------------------------------------


def _write(folder: Path, stored: Stored) -> None:
    before, token = _named(folder), secrets.token_hex(8)
    vectors = folder / f"vectors-{token}.npy"
    documents = folder / f"documents-{token}.jsonl"
    manifest = folder / f"manifest-{token}.json"
    try:
        content = {
            "format": FORMAT,
            "version": VERSION,
            "embedder": stored.embedder,
            "dimension": stored.rows.shape[1],
            "documents": len(stored.documents),
            "files": {
                "vectors": _write_file(vectors, _npy(stored.rows)),
                "documents": _write_file(documents, _lines(stored.documents)),
            },
        }
        _write_file(manifest, [json.dumps(content, indent=2).encode()])
        os.replace(manifest, folder / _MANIFEST)
        _sync(folder)
    finally:  # whichever manifest stands now, after success, an error or Ctrl-C: its files stay
        made = {vectors.name, documents.name, manifest.name}
        for name in (made | before | _stale(folder)) - _named(folder):
            (folder / name).unlink(missing_ok=True)


def _write_file(path: Path, chunks: Iterable[bytes]) -> dict[str, str | int]:
    """Write a new file through to the disk; what the manifest says of it."""
    digest, size = sha256(), 0
    with path.open("xb") as file:
        for chunk in chunks:
            file.write(chunk)
            digest.update(chunk)
            size += len(chunk)
        file.flush()
        os.fsync(file.fileno())
    return {"name": path.name, "bytes": size, "sha256": digest.hexdigest()}


def _npy(rows: NDArray[np.float32]) -> Iterator[bytes]:
    rows = np.ascontiguousarray(rows, dtype="<f4")
    header = BytesIO()
    npy.write_array_header_1_0(header, npy.header_data_from_array_1_0(rows))
    yield header.getvalue()
    for start in range(0, len(rows), 4096):
        yield rows[start : start + 4096].tobytes()


def _lines(documents: Sequence[Document]) -> Iterator[bytes]:
    for document in documents:
        row = {"id": document.id, "text": document.text, "metadata": document.metadata}
        try:
            line = json.dumps(row, ensure_ascii=False).encode() + b"\n"
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(
                f"The metadata of document {document.id!r} cannot be written as JSON ({error}):"
                " keep to strings, numbers, booleans, None, lists and dicts."
            ) from error
        yield line


def _stale(folder: Path) -> set[str]:
    """Files of our own making that a killed process left behind long ago."""
    ours = [item for item in folder.iterdir() if _OWN.fullmatch(item.name)]
    old = time.time() - _STALE_SECONDS
    return {item.name for item in ours if item.stat().st_mtime < old}


def _sync(folder: Path) -> None:
    """Make renamings in a folder survive a power cut, where the system can do that."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


# --- reading ----------------------------------------------------------------------------------


def _manifest(folder: Path) -> dict[str, Any]:
    """The manifest as it stands; empty if there is none, or no JSON object in it."""
    try:
        found = json.loads((folder / _MANIFEST).read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValueError, RecursionError):
        return {}  # any other OSError says nothing about what the folder holds
    return found if isinstance(found, dict) else {}


def _named(folder: Path) -> set[str]:
    """Names of the files that the manifest points to; only such as are ours to write and delete."""
    files = _manifest(folder).get("files")
    entries = files.values() if isinstance(files, dict) else ()
    names = [entry.get("name") for entry in entries if isinstance(entry, dict)]
    return {name for name in names if isinstance(name, str) and _OWN.fullmatch(name)}


def _checked_manifest(folder: Path) -> dict[str, Any]:
    manifest = _manifest(folder)
    if manifest.get("format") != FORMAT:
        found = "its manifest.json is damaged or of another program"
        if not (folder / _MANIFEST).exists():
            found = "it has no manifest.json" if folder.exists() else "nothing is there"
        raise IndexFormatError(
            f"{str(folder)!r} is not an index ({found}): make one with `sift-rag index` or"
            " Index.build(...).save(path)."
        )
    if manifest.get("version") != VERSION:
        raise IndexFormatError(
            f"The index {str(folder)!r} has format version {manifest.get('version')!r}, this"
            f" sift_rag reads version {VERSION}: build it again."
        )
    kinds = {"embedder": str, "dimension": int, "documents": int, "files": dict}
    for key, kind in kinds.items():
        if type(manifest.get(key)) is not kind:
            raise IndexFormatError(
                f"The manifest of the index {str(folder)!r} says {key} = {manifest.get(key)!r},"
                f" wanted a {kind.__name__}: build it again."
            )
    return manifest


def _checked_file(folder: Path, manifest: dict[str, Any], kind: str) -> Path:
    entry = manifest["files"].get(kind)
    name = entry.get("name") if isinstance(entry, dict) else None
    if not isinstance(name, str) or not (_OWN.fullmatch(name) and name.startswith(kind)):
        raise IndexFormatError(
            f"The manifest of the index {str(folder)!r} names {name!r} as its {kind} file, which"
            " no index does: build it again."
        )
    path = folder / name
    if path.stat().st_size != entry.get("bytes") or file_hash(path) != entry.get("sha256"):
        raise IndexFormatError(
            f"{str(path)!r} is not what its manifest says ({path.stat().st_size:,} bytes, wanted"
            f" {entry.get('bytes')}, or another SHA-256): truncated or changed; build it again."
        )
    return path


def _read_rows(path: Path) -> NDArray[np.float32]:
    try:
        rows = np.array(np.load(path, mmap_mode="r", allow_pickle=False))
    except (ValueError, EOFError) as error:
        raise IndexFormatError(f"{str(path)!r} holds no vectors: {error}") from error
    if rows.dtype != np.float32 or rows.ndim != 2:
        raise IndexFormatError(
            f"{str(path)!r} has shape {rows.shape} of {rows.dtype}, wanted (n, d) of float32."
        )
    off = np.flatnonzero(~(np.abs(np.linalg.norm(rows, axis=1) - 1) < 1e-3))
    if off.size:
        raise IndexFormatError(
            f"Vector {off[0]} in {str(path)!r} and {off.size - 1} others are not finite or not of"
            " length 1: build the index again."
        )
    return rows


def _read_documents(path: Path) -> tuple[Document, ...]:
    documents = []
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line)
                documents.append(Document(row["text"], row["metadata"], row["id"]))
            except (ValueError, TypeError, KeyError, RecursionError) as error:
                raise IndexFormatError(
                    f"Line {number} of {str(path)!r} is no document: {error!r}"
                ) from error
    return tuple(documents)
