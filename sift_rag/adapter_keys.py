"""What a trained adapter depends on, as hashes: base, settings, tenant, passages.

A key begins with 32 hex digits that stand for all but the passages: the scope within which one
adapter may serve as the beginning of another.
"""

from __future__ import annotations

import inspect
import json
import math
import secrets
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from enum import Enum
from hashlib import sha256
from typing import Any
from weakref import WeakKeyDictionary

from sift_rag.adapter_format import FORMAT, VERSION, Passage
from sift_rag.documents import Document

_SCOPE = 32  # hex digits


def scope_of(base: str, config: Any, tenant: str) -> str:
    """What the keys begin with of all adapters of one base, with one setting, of one tenant."""
    return _digest(_identity(base, config, tenant))[:_SCOPE]


def key_of(base: str, config: Any, tenant: str, documents: Sequence[Document]) -> str:
    """The key of an adapter; see `AdapterCache.key`."""
    known = _identity(base, config, tenant)
    passages = [Passage.of(document) for document in documents]
    return f"{_digest(known)[:_SCOPE]}-{_digest([*known, passages])}"


def _identity(base: str, config: Any, tenant: str) -> list[Any]:
    for name, value in (("base", base), ("tenant", tenant)):
        if not isinstance(value, str):
            raise TypeError(f"{name} is {value!r}; it must be a string.")
    return [FORMAT, VERSION, base, _plain(config), tenant]


def _digest(known: Iterable[Any]) -> str:
    return sha256(json.dumps(list(known)).encode()).hexdigest()


def _plain(value: Any) -> Any:
    """Settings as JSON knows them: the same for equal ones, different for others."""
    if isinstance(value, Enum):
        value = [type(value).__qualname__, value.value]
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int | float):
        return int(value) if math.isfinite(value) and value == int(value) else float(value)
    if isinstance(value, Mapping):
        pairs = [[_plain(key), _plain(inner)] for key, inner in value.items()]
        return {"mapping": sorted(pairs, key=json.dumps)}
    if isinstance(value, set | frozenset):
        return {"set": sorted(map(_plain, value), key=json.dumps)}
    if isinstance(value, list | tuple):
        return list(map(_plain, value))
    if is_dataclass(value) and not isinstance(value, type):
        known = {field.name: getattr(value, field.name) for field in fields(value)}
        return {"type": type(value).__qualname__, "fields": _plain(known)}
    return {"object": _name(value)}


_names: WeakKeyDictionary[Any, str] = WeakKeyDictionary()


def _name(thing: Any) -> str:
    """What stands for a function or another object; equal ones have the same name."""
    try:
        if thing not in _names:
            _names[thing] = _importable(thing) or secrets.token_hex(16)
        return _names[thing]
    except TypeError:  # cannot be hashed or weakly referred to, so it is never the same again
        return secrets.token_hex(16)


def _importable(thing: Any) -> str | None:
    """A module's own function by its name and source; None for what may mean something else."""
    if not inspect.isfunction(thing) or thing.__module__ == "__main__":
        return None
    module, name = thing.__module__, thing.__qualname__
    known = vars(sys.modules.get(module, object)).get(name) is thing
    try:
        return f"{module}.{name} {_digest([inspect.getsource(thing)])}" if known else None
    except (OSError, TypeError):  # no source to be had
        return None
