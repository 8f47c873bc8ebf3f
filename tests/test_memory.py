"""Peak memory is what was really taken, also where it is given back before the end."""

import mmap
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sift_rag import memory
from sift_rag.memory import watch

MEGABYTE = 2**20
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux's /proc")


def touch(megabytes: int) -> None:
    """Take memory of the system, write to all of it, give it back.

    Mapped: what is only allocated may be memory that the process has had before.
    """
    with mmap.mmap(-1, megabytes * MEGABYTE) as mapped:
        for start in range(0, megabytes * MEGABYTE, mmap.PAGESIZE):
            mapped[start] = 1


@linux
def test_the_highest_mark_counts_and_not_what_is_left() -> None:
    grown = watch()
    touch(200)
    told = grown()
    assert told is not None
    assert 195 * MEGABYTE < told < 220 * MEGABYTE


@linux
def test_what_was_taken_before_does_not_count() -> None:
    touch(200)
    grown = watch()
    touch(20)
    told = grown()
    assert told is not None
    assert 15 * MEGABYTE < told < 40 * MEGABYTE


def test_a_system_that_does_not_tell_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_PROCESS", Path("/nonexistent"))
    assert watch()() is None


@linux
def test_a_mark_that_is_lost_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    grown = watch()
    monkeypatch.setattr(memory, "_PROCESS", Path("/nonexistent"))
    assert grown() is None


class Cuda:
    """Two GPUs whose marks are set by hand: there is none here."""

    def __init__(self, allocated: list[int]) -> None:
        self.allocated, self.highest = allocated, [7 * each for each in allocated]

    def is_initialized(self) -> bool:
        return True

    def device_count(self) -> int:
        return len(self.allocated)

    def memory_allocated(self, device: int) -> int:
        return self.allocated[device]

    def reset_peak_memory_stats(self, device: int) -> None:
        self.highest[device] = self.allocated[device]

    def max_memory_allocated(self, device: int) -> int:
        return self.highest[device]


def test_where_the_model_lies_on_gpus_their_memory_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = Cuda([1000, 10])
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    grown = watch()
    cuda.highest = [1500, 30]
    assert grown() == 520


@linux
@pytest.mark.parametrize(
    "torch",
    [
        None,
        SimpleNamespace(),
        SimpleNamespace(cuda=Cuda([0])),
        SimpleNamespace(cuda=SimpleNamespace(is_initialized=lambda: False)),
        SimpleNamespace(cuda=SimpleNamespace(is_initialized=lambda: 1 / 0)),
    ],
    ids=["none", "half imported", "nothing on it", "not begun", "broken"],
)
def test_a_gpu_that_is_not_in_use_is_passed_over(
    monkeypatch: pytest.MonkeyPatch, torch: Any
) -> None:
    monkeypatch.setitem(sys.modules, "torch", torch)
    grown = watch()
    touch(50)
    told = grown()
    assert told is not None
    assert 45 * MEGABYTE < told < 70 * MEGABYTE
