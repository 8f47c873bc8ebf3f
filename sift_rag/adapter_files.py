"""Adapters on disk: a folder with one file each, `<key>.safetensors`, see `adapter_format`.

A file is written beside and moved into place, so that a reader, who needs no lock, finds a whole
one or none. Names are made of hashes and checked before anything is read or deleted; symbolic links
are not followed. The time of a file's last change is that of its last use.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import stat
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO

from sift_rag.adapter_format import CachedAdapter, DamagedError, packed, read_head, read_whole

KEY = re.compile(r"[0-9a-f]{32}-[0-9a-f]{64}")

_NAME = re.compile(rf"{KEY.pattern}\.safetensors")
_BESIDE = re.compile(r"[0-9a-f]{32}\.part")
_HEADS = 500  # are looked at in a search, some 0.1 ms each
_STALE_SECONDS = 3600  # younger ones may belong to another process that saves right now
_NO_LINK = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)  # nor wait for a pipe
_LINKS = os.utime not in os.supports_follow_symlinks  # where there is no choice: Windows


@dataclass(frozen=True, slots=True)
class Lifetime:
    """How long an adapter may be used: `ttl` seconds, or for ever, by a clock (since 1970)."""

    ttl: float | None
    clock: Callable[[], float]

    def over(self, created: float) -> bool:
        """Whether it has expired. One from the future has: the clock was wrong then, or is now."""
        return self.ttl is not None and not 0 <= self.clock() - created < self.ttl


class AdapterFiles:
    """The files of a cache. Nothing that goes wrong with one is an error, except in `forget`.

    Args:
        folder: Made if it is missing; only files of the right name in it are ever touched.
        max_bytes: Size of all files together, and so of one, at most.
        lifetime: Of an adapter.

    Raises:
        NotADirectoryError: It is a file.
        OSError: There is no such folder, and it cannot be made.
    """

    def __init__(self, folder: str | os.PathLike[str], max_bytes: int, lifetime: Lifetime) -> None:
        self.folder = Path(os.path.realpath(folder))  # the process may change its own
        self._max_bytes = max_bytes
        self._lifetime = lifetime
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except FileExistsError:
            raise NotADirectoryError(
                f"{str(folder)!r} is a file: give a folder for the adapters."
            ) from None
        self._warned: set[str] = set()

    def read(self, key: str) -> CachedAdapter | None:
        """The adapter of that key, checked; None where there is none that is whole and young."""
        return self._usable(f"{key}.safetensors", read_whole)

    def heads(self, scope: str) -> Iterator[CachedAdapter]:
        """The adapters whose key begins so, last used first, without weights."""
        used = [(status.st_mtime_ns, name) for name, status in self._stats(_NAME)]
        names = (name for _, name in sorted(used, reverse=True) if name.startswith(scope))
        for name in islice(names, _HEADS):
            if found := self._usable(name, read_head):
                yield found

    def save(self, adapter: CachedAdapter) -> bool:
        """Write an adapter, readable by its owner only; False where that could not be done."""
        data = packed(adapter)
        if len(data) > self._max_bytes:
            return False
        beside = self.folder / f"{secrets.token_hex(16)}.part"
        try:
            self.folder.mkdir(mode=0o700, exist_ok=True)  # it may have been removed meanwhile
            _write(beside, data)
            os.replace(beside, self.folder / f"{adapter.key}.safetensors")
        except OSError as error:
            self._warn("save", f"An adapter is kept in memory only: {error}.")
            return False
        finally:
            with suppress(OSError):
                beside.unlink(missing_ok=True)
        self._warned.discard("save")
        self.touch(adapter.key)
        self.trim()
        return True

    def touch(self, key: str) -> bool:
        """Note a use; False where the file is gone, as another process has deleted it."""
        now, path = self._lifetime.clock(), self.folder / f"{key}.safetensors"
        try:
            os.utime(path, (now, now), follow_symlinks=_LINKS)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:  # a read-only folder
            return True
        return True

    def trim(self) -> None:
        """Delete what has expired, what a dead save left, and the oldest while all is too large."""
        for name, status in self._stats(_BESIDE):
            if abs(time.time() - status.st_mtime) > _STALE_SECONDS:  # or the clock was turned back
                self._unlink(name)
        now = self._lifetime.clock()
        files = sorted(self._stats(_NAME), key=lambda item: _use(item[1], now))
        over = sum(status.st_size for _, status in files) - self._max_bytes
        for name, status in files:
            # What was last used too long ago was made before; what is used is looked at then.
            if over > 0 or self._lifetime.over(min(status.st_mtime, now)):
                self._unlink(name)
                over -= status.st_size

    def forget(self, document_id: str) -> set[str]:
        """Delete what saw a document, and what is too damaged to tell; the keys of these.

        Raises:
            OSError: A file could not be read or deleted, so that it may still be there.
        """
        gone: set[str] = set()
        failed: list[str] = []
        for name in [*self._names(_NAME), *self._names(_BESIDE)]:
            try:
                if self._may_have_seen(name, document_id):
                    (self.folder / name).unlink()
                    gone.add(name.removesuffix(".safetensors"))
            except FileNotFoundError:
                continue
            except OSError as error:
                failed.append(f"{name}: {error.strerror}")
        if gone:
            _sync(self.folder)  # a power cut must not bring them back
        if failed:
            raise OSError(
                errno.EACCES,
                f"{len(failed)} adapters could not be looked at or deleted and may still hold "
                f"{document_id!r} ({failed[0]}); delete them yourself",
                str(self.folder),
            )
        return {name for name in gone if KEY.fullmatch(name)}

    def _may_have_seen(self, name: str, document_id: str) -> bool:
        try:
            with _opened(self.folder / name) as file:
                return read_head(file).saw(document_id)
        except DamagedError:  # an unfinished one has no weights before its head is whole
            return _BESIDE.fullmatch(name) is None

    def _usable(
        self, name: str, read: Callable[[IO[bytes]], CachedAdapter]
    ) -> CachedAdapter | None:
        try:
            with _opened(self.folder / name) as file:
                if os.fstat(file.fileno()).st_size > self._max_bytes:
                    return None  # of a process that may keep more
                found = read(file)
            if f"{found.key}.safetensors" != name:
                raise DamagedError("it was put under another key")
        except FileNotFoundError:
            return None
        except DamagedError as error:
            self._unlink(name)
            self._warn(name, f"The cached adapter {name} is not used, and deleted: {error}.")
            return None
        except OSError as error:
            self._warn("read", f"A cached adapter could not be read: {error}.")
            return None
        if self._lifetime.over(found.created):
            self._unlink(name)
            return None
        return found

    def _names(self, wanted: re.Pattern[str]) -> list[str]:
        try:
            return sorted(name for name in os.listdir(self.folder) if wanted.fullmatch(name))
        except OSError:  # removed, or no longer ours to read
            return []

    def _stats(self, wanted: re.Pattern[str]) -> Iterator[tuple[str, os.stat_result]]:
        for name in self._names(wanted):
            with suppress(OSError):
                yield name, (self.folder / name).lstat()

    def _unlink(self, name: str) -> None:
        with suppress(OSError):
            (self.folder / name).unlink(missing_ok=True)

    def _warn(self, what: str, text: str) -> None:
        if what not in self._warned:
            self._warned.add(what)
            warn(text)


def _use(status: os.stat_result, now: float) -> tuple[bool, float]:
    """Sorts by last use; uses in the future, of which a wrong clock told, count as the oldest."""
    return status.st_mtime <= now, status.st_mtime


def warn(text: str) -> None:
    """Warn, and go on also where warnings are errors: a cache must not cost an answer."""
    with suppress(Warning):
        warnings.warn(f"{text} Answers are the same, slower ones.", RuntimeWarning, stacklevel=3)


def _opened(path: Path) -> IO[bytes]:
    """Open a regular file for reading: no link, folder, pipe or device."""
    try:
        file = open(path, "rb", opener=_safely)  # noqa: SIM115 - the caller closes it
    except IsADirectoryError:
        raise DamagedError("it is a folder") from None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise DamagedError("it is a symbolic link") from None
        raise
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise DamagedError("it is no regular file")
    return file


def _safely(name: str, flags: int) -> int:
    return os.open(name, flags | _NO_LINK, 0o600)


def _write(path: Path, data: bytes) -> None:
    with open(path, "xb", opener=_safely) as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())  # or a power cut leaves an empty file under the right name


def _sync(folder: Path) -> None:
    if os.name == "posix":
        with suppress(OSError):
            handle = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
