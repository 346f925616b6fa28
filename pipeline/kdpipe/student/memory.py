"""Too little memory for a step: how that shows, and which batch size does fit."""

from __future__ import annotations

from collections.abc import Callable

import torch

_MESSAGES = ("can't allocate memory", "could not create a primitive", "could not create a memory object", "bad_alloc")
"""What torch, oneDNN and the C++ library say when the CPU's memory does not suffice."""


def ran_out_of_memory(error: BaseException) -> bool:
    """Say whether ``error`` is a failed allocation, on a GPU or by one of the allocators of the CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(message in str(error) for message in _MESSAGES)


def largest_that_fits(step: Callable[[int], object], *, below: int) -> int | None:
    """Return the largest power of two below ``below``, and above 1, for which ``step`` finds the memory.

    ``step`` takes a number of samples; ``None`` where not even 2 fit. They are tried from the smallest on, because an
    allocator does not always give back what a larger step has left.
    """
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    fitting, size = None, 2
    while size < below and _fits(step, size):
        fitting, size = size, 2 * size
    return fitting


def _fits(step: Callable[[int], object], size: int) -> bool:
    try:
        step(size)
    except (RuntimeError, MemoryError) as error:
        if not ran_out_of_memory(error):
            raise
        return False
    return True
