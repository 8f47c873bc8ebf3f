"""Whether an error says that memory ran out."""

import errno

import numpy as np
import pytest
import torch

from sift_rag.out_of_memory import is_out_of_memory


def test_more_than_the_machine_has_is_told_by_torch_and_numpy() -> None:
    with pytest.raises(RuntimeError) as failed:
        torch.empty(1 << 60)
    assert is_out_of_memory(failed.value)
    with pytest.raises(MemoryError) as numpys:
        np.empty(1 << 60, dtype=np.uint8)
    assert is_out_of_memory(numpys.value)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
        RuntimeError("MPS backend out of memory (MPS allocated: 1.00 GB, max allowed: 1.00 GB)."),
        RuntimeError("Invalid buffer size: 47.68 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to ..."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
    ],
)
def test_allocators_say_it_in_their_own_ways(error: Exception) -> None:
    assert is_out_of_memory(error)


def test_other_errors_are_none_of_memory() -> None:
    with pytest.raises(RuntimeError) as shapes:
        torch.ones(2) @ torch.ones(3)
    assert not is_out_of_memory(shapes.value)
    assert not is_out_of_memory(ValueError("out of memory"))
    assert not is_out_of_memory(OSError(errno.ENOENT, "No such file"))
