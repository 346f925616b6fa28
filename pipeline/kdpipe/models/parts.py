"""Forward passes on a CPU in parts, so that the memory of a layer's output is reused by the next.

At 224 pixels, a batch of 256 has outputs of hundreds of megabytes. The C library takes each from the kernel and gives
it back, and clearing these pages costs more than the arithmetic. Blocks of up to 32 MB are kept instead, so a batch is
passed in parts whose largest output is below that. The parts follow from network, input size and batch alone, not from
a measurement: the same work is cut the same way on every machine.
"""

from __future__ import annotations

import ctypes
import math
from typing import TYPE_CHECKING, Any

from kdpipe.models.inputs import InputSize, blank
from kdpipe.models.inspection import device_of, evaluating

if TYPE_CHECKING:
    import torch
    from torch import nn

_KEPT = 32 * 1024**2
"""Bytes of the largest block that glibc can be told to keep (``DEFAULT_MMAP_THRESHOLD_MAX``)."""
_HEADER = 4096
"""Bytes that alignment and the allocator's own header may add to a block."""
_TRIM, _MMAP = -1, -3
"""``M_TRIM_THRESHOLD`` and ``M_MMAP_THRESHOLD`` of glibc's ``mallopt``."""
_LEAST = 2
"""Images in a part: programs of torch.export may take no single one."""


def keep_memory() -> None:
    """Let the C library keep freed blocks of up to 32 MB, 1 GB in total; only glibc can be told."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP, _KEPT)
        mallopt(_TRIM, 1024**3)


def release_memory() -> None:
    """Let the C library give back the freed blocks that it keeps; only glibc can be told."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def part_size(module: nn.Module, size: InputSize) -> int | None:
    """Return how many ``(3, size, size)`` images, or items, of a batch to pass at once; ``None`` for all, as on a GPU.

    Found by a pass of two images, on which the largest tensor is measured.
    """
    import torch

    device = device_of(module)
    if device.type != "cpu":
        return None
    with evaluating(module), torch.inference_mode(), _largest() as largest:
        module(blank(size, _LEAST))
        of_both: int = largest.bytes
    return max(_LEAST, _LEAST * (_KEPT - _HEADER) // max(of_both, 1))


def in_parts(images: torch.Tensor, part: int | None) -> tuple[torch.Tensor, ...]:
    """Cut a batch into as few parts of nearly equal size as have at most ``part`` images."""
    if part is None or len(images) <= part:
        return (images,)
    return images.tensor_split(math.ceil(len(images) / part))


def _largest() -> Any:
    """Return a context that measures the largest tensor which operators return, in ``bytes``."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.bytes = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            for each in out if isinstance(out, (tuple, list)) else (out,):
                if isinstance(each, torch.Tensor):
                    self.bytes = max(self.bytes, each.nbytes)
            return out

    return Largest()
