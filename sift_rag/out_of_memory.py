"""Telling that memory ran out from other errors: each allocator of torch says it in its own way."""

import errno

import torch

_WORDS = (
    "out of memory",  # CUDA's own error; MPS: "MPS backend out of memory"
    "not enough memory",  # the CPU's allocator on Windows
    "can't allocate memory",  # and elsewhere
    "invalid buffer size",  # MPS, where one tensor alone is too large
    "status_alloc_failed",  # cuBLAS, cuDNN
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, of the machine or of the device.

    The error's traceback holds the tensors of the work that failed: let go of it, leave its
    `except` block, before the work is tried again in a smaller way.
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    said = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in said for words in _WORDS)
