"""How much memory a piece of work takes at its highest. Asked of the system; never an error."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

_PROCESS = Path("/proc/self")


def watch() -> Callable[[], int | None]:
    """Begin to watch.

    Memory of the GPU counts where the model lies on one, that of the process else: what is resident
    (Linux only). The highest mark is the whole process's, so that work of other threads counts too,
    and of two that watch at the same time the first sees less.

    Returns:
        A function that tells by how many bytes memory has grown at its highest since; None where
        the system does not tell.
    """
    for highest in (_of_cuda, _resident):
        try:
            mark = highest()
            if mark is None:
                continue
            before = mark()
        except Exception:  # noqa: S112 - whatever goes wrong in a driver or in /proc
            continue
        return lambda mark=mark, before=before: _grown(mark, before)  # type: ignore[misc]
    return lambda: None


def _grown(mark: Callable[[], int], before: int) -> int | None:
    try:
        return max(mark() - before, 0)
    except Exception:
        return None


def _of_cuda() -> Callable[[], int] | None:
    """The highest mark of what lies on the GPUs, begun anew; None where nothing does."""
    cuda: Any = getattr(sys.modules.get("torch"), "cuda", None)
    if cuda is None or not cuda.is_initialized():
        return None
    devices = range(cuda.device_count())
    if not any(cuda.memory_allocated(device) for device in devices):
        return None
    for device in devices:
        cuda.reset_peak_memory_stats(device)
    return lambda: sum(cuda.max_memory_allocated(device) for device in devices)


def _resident() -> Callable[[], int] | None:
    """The highest mark of resident memory, begun anew: see proc(5), clear_refs and VmHWM."""
    (_PROCESS / "clear_refs").write_text("5")
    return _high_water


def _high_water() -> int:
    status = (_PROCESS / "status").read_text()
    return next(
        int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:")
    )
