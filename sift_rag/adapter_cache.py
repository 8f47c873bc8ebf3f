"""Adapters kept for the next question on the same passages: no training at all, or a warm start.

An adapter is used again only where the base, the training settings, the tenant and the passages,
in their order, are the same. Those used longest ago go first.
"""

from __future__ import annotations

import math
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sift_rag.adapter_files import KEY, AdapterFiles, Lifetime, warn
from sift_rag.adapter_format import CachedAdapter, Passage, flat_copy, plain_report
from sift_rag.adapter_keys import key_of, scope_of
from sift_rag.documents import Document

__all__ = ["AdapterCache", "CachedAdapter"]

_WAITED = 1000  # trainings under way at a time, far above any machine's


class _Kept(NamedTuple):
    adapter: CachedAdapter
    size: int
    saved: bool


class AdapterCache:
    """Adapters by base, training settings, tenant and ordered passages. Threads may share one.

    In memory, and in a folder where one is given, which other processes may use at the same time,
    best with the same `max_bytes` and `ttl`. What cannot be written there, or is damaged, is warned
    of and costs a training, never an answer. An adapter whose file is gone, as another process or
    a person has deleted it, is no longer used. Weights tell of the texts that they were trained on:
    the folder and its files are for their owner only, and nothing is written anywhere else.

    Attributes:
        hits: Adapters that were there.
        misses: Adapters that were not.

    Raises:
        ValueError: `max_bytes` or `ttl` is not above 0.
        OSError: There is no such folder, and it cannot be made.
    """

    def __init__(
        self,
        *,
        max_bytes: int = 256_000_000,
        ttl: float | None = None,
        folder: str | os.PathLike[str] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Begin with what is in the folder, if there is one.

        Args:
            max_bytes: Of memory, and of the folder, at most. An adapter counts its weights and what
                is known of them as JSON; a file counts its size.
            ttl: Seconds until an adapter expires. One from the future, as the clock was turned
                back, has expired too. None keeps it as long as there is room.
            folder: Where adapters outlive the process. Only files whose names are keys are touched.
            clock: Seconds since 1970.
        """
        if not isinstance(max_bytes, int) or max_bytes < 1:
            raise ValueError(f"max_bytes is {max_bytes!r}; it must be a whole number above 0.")
        if ttl is not None and not 0 < ttl < math.inf:
            raise ValueError(f"ttl is {ttl!r}; it must be a number of seconds above 0, or None.")
        self.hits = self.misses = 0
        self._max_bytes, self._lifetime = max_bytes, Lifetime(ttl, clock)
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        self._lock = Lock()  # held while files are read and written: a forgotten one stays so
        self._waited: OrderedDict[str, bool] = OrderedDict()  # missed key -> forget came after it
        self._files = None if folder is None else AdapterFiles(folder, max_bytes, self._lifetime)
        if self._files:
            self._files.trim()

    @staticmethod
    def key(*, base: str, config: Any, documents: Sequence[Document], tenant: str) -> str:
        """What an adapter is found by: hashes, which tell nothing of tenant and texts.

        Args:
            base: Name of the base model and a fingerprint of its weights.
            config: All settings of the training, such as a `TrainingConfig`. A function in it
                counts by its module, name and source; one that cannot be imported, such as a
                lambda, and any other object that is no plain data, as itself, in this process.
            documents: In the order of training. Ids and sources count as well as texts, so that
                what `forget` is asked for is what an adapter was trained on.
            tenant: Whose they are. No two tenants share an adapter.

        Raises:
            TypeError: `base` or `tenant` is no string.
        """
        return key_of(base, config, tenant, documents)

    def get(self, key: str) -> NDArray[np.float32] | None:
        """(n,) float32: a copy of an adapter's weights, or None; a hit or a miss, as `find`."""
        found = self.find(key)
        return None if found is None else found.weights

    def find(self, key: str) -> CachedAdapter | None:
        """An adapter with all that is known of it, or None; counted as a hit or a miss.

        Raises:
            ValueError: `key` is none that `AdapterCache.key` made.
        """
        _check_key(key)
        with self._lock:
            self._purge()
            found = self._found(key)
            if found is not None:
                self.hits += 1
                return found
            self.misses += 1
            self._waited[key] = False
            if len(self._waited) > _WAITED:
                self._waited.popitem(last=False)
            return None

    def put(
        self,
        key: str,
        weights: Any,
        documents: Sequence[Document],
        report: Mapping[str, Any],
        *,
        began_with: CachedAdapter | None = None,
    ) -> None:
        """Keep an adapter, in place of the one that is there.

        It is not kept where a document was forgotten since `find` or `get` missed this key: the
        training may have read it before.

        Args:
            key: See `key`.
            weights: (n,) a tensor on any device, or an array; copied as float32.
            documents: Those that the key was made of.
            report: How it was trained, as plain data; numbers, strings, lists and mappings.
            began_with: The adapter that a warm start took its first weights from: what that one
                has seen, this one has seen.

        Raises:
            ValueError: `key` is no key, the weights are not flat or not finite, or the report is
                no plain data.
        """
        _check_key(key)
        inherited = began_with.documents + began_with.inherited if began_with else ()
        adapter = CachedAdapter(
            key=key,
            created=self._lifetime.clock(),
            documents=tuple(map(Passage.of, documents)),
            inherited=tuple(dict.fromkeys(inherited)),
            report=plain_report(report),
            weights=flat_copy(weights),
        )
        with self._lock:
            self._purge()
            if self._waited.pop(key, False):
                return
            if _size(adapter) > self._max_bytes:
                warn(f"An adapter of {_size(adapter):,} bytes exceeds max_bytes={self._max_bytes}.")
                return
            self._keep(adapter, saved=self._files is not None and self._files.save(adapter))

    def closest(
        self,
        documents: Sequence[Document],
        *,
        base: str,
        config: Any,
        tenant: str,
        least: float = 0.5,
    ) -> CachedAdapter | None:
        """The adapter that shares most with these passages, for a warm start; counts for nothing.

        Base, settings and tenant must be the same. The share is Jaccard's index of the sets of
        texts: how many are in both, of those in either. Of equal ones the newest is taken.

        Args:
            documents: That are to be trained on.
            base: See `key`.
            config: See `key`.
            tenant: See `key`.
            least: The share below which there is none, above 0 and at most 1.
        """
        if not 0 < least <= 1:
            raise ValueError(f"least is {least!r}; it must be above 0 and at most 1.")
        wanted = {Passage.of(document).hash for document in documents}
        scope = scope_of(base, config, tenant)
        with self._lock:
            self._purge()
            heads = [kept.adapter for kept in self._kept.values()]
            heads += self._files.heads(scope) if self._files else []
            near = {
                (_shared(wanted, head), head.created, head.key)
                for head in heads
                if head.key.startswith(scope)
            }
            for share, _, key in sorted(near, reverse=True):
                if share >= least and (found := self._found(key)):
                    return found
        return None

    def forget(self, document_id: str) -> int:
        """Drop each adapter that saw a document or a part of it, of any tenant; how many these are.

        A document is meant by its id or its `source`, a part by an id that goes on with "#". What
        is being trained meanwhile is not kept. Other processes that share the folder must not be
        training on the document.

        Raises:
            ValueError: The id is empty.
            OSError: A file may still be there, as it could not be read or deleted.
        """
        if not isinstance(document_id, str) or not document_id:
            raise ValueError(f"document_id is {document_id!r}; it must be a string, not empty.")
        with self._lock:
            self._waited = OrderedDict.fromkeys(self._waited, True)
            gone = {key for key, kept in self._kept.items() if kept.adapter.saw(document_id)}
            for key in gone:
                del self._kept[key]
            return len(gone | (self._files.forget(document_id) if self._files else set()))

    @property
    def bytes(self) -> int:
        """Of the adapters in memory: their weights, and what is known of them as JSON."""
        with self._lock:
            self._purge()
            return self._bytes()

    def __len__(self) -> int:
        """How many adapters are in memory."""
        with self._lock:
            self._purge()
            return len(self._kept)

    def _found(self, key: str) -> CachedAdapter | None:
        """The caller's own copy of what is in memory or on disk, which then is used last."""
        kept = self._kept.get(key)
        if kept and kept.saved and not (self._files and self._files.touch(key)):
            del self._kept[key]  # deleted on purpose, by someone else
            kept = None
        if kept is None:
            adapter = self._files.read(key) if self._files else None
            if adapter is None or self._files is None or not self._files.touch(key):
                return None
            kept = self._keep(adapter, saved=True)
        self._kept.move_to_end(key)
        weights = kept.adapter.weights.copy()
        return replace(kept.adapter, weights=weights, report=deepcopy(kept.adapter.report))

    def _keep(self, adapter: CachedAdapter, *, saved: bool) -> _Kept:
        kept = _Kept(adapter, _size(adapter), saved)
        self._kept.pop(adapter.key, None)
        self._kept[adapter.key] = kept
        over = self._bytes() - self._max_bytes
        while over > 0:
            over -= self._kept.popitem(last=False)[1].size
        return kept

    def _bytes(self) -> int:
        return sum(kept.size for kept in self._kept.values())

    def _purge(self) -> None:
        """Let go of what has expired in memory."""
        over = self._lifetime.over
        for key in [key for key, kept in self._kept.items() if over(kept.adapter.created)]:
            del self._kept[key]


def _size(adapter: CachedAdapter) -> int:
    return adapter.weights.nbytes + len(adapter.text())


def _shared(wanted: set[str], head: CachedAdapter) -> float:
    there = {passage.hash for passage in head.documents}
    return len(wanted & there) / max(1, len(wanted | there))


def _check_key(key: object) -> None:
    if not isinstance(key, str) or not KEY.fullmatch(key):
        raise ValueError(f"{key!r} is no key: make one with AdapterCache.key(...).")
