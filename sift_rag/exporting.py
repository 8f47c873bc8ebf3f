"""Adapters as ordinary PEFT folders: adapter_config.json and adapter_model.safetensors."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def write_peft(
    folder: str | os.PathLike[str], config: Mapping[str, Any], weights: Mapping[str, Tensor]
) -> None:
    """Write an adapter's folder: made beside it, whole, then moved into its place.

    Raises:
        FileExistsError: Something that is no adapter is there; it stays as it is.
        OSError: The disk is full, the place is read-only, ...
    """
    target = Path(folder)
    check_place(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.parent / f".{target.name}.{secrets.token_hex(8)}.tmp"
    try:
        beside.mkdir()
        text = json.dumps(dict(config), indent=2, sort_keys=True, allow_nan=False)
        (beside / CONFIG).write_text(text + "\n", encoding="utf-8")
        save_file(dict(weights), beside / WEIGHTS, metadata={"format": "pt"})
        _move(beside, target)
    finally:
        shutil.rmtree(beside, ignore_errors=True)  # nothing is left of it after the move


def check_place(target: Path) -> None:
    """Make sure that an adapter may be written here: a new path, an empty folder, or an adapter.

    Raises:
        FileExistsError: Something else is there.
    """
    if not os.path.lexists(target):
        return
    if target.is_symlink() or not target.is_dir():
        raise FileExistsError(f"{str(target)!r} is not a folder: give another path.")
    other = sorted({item.name for item in target.iterdir()} - {CONFIG, WEIGHTS})
    if other:
        raise FileExistsError(
            f"{str(target)!r} holds {other[0]!r} and is no folder that an adapter was exported to: "
            "it stays as it is; give another path, or empty it yourself."
        )


def _move(beside: Path, target: Path) -> None:
    """A folder with something in it cannot be replaced in one step: the older one goes aside."""
    aside = beside.with_suffix(".old")
    try:
        if target.exists():
            target.rename(aside)
        beside.rename(target)
    except OSError:
        if aside.exists() and not target.exists():
            aside.rename(target)
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
