"""Reasons why one student cannot go on while others can: too little memory, or a value that is not finite."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

import torch

from kdpipe.errors import DeviceError, DivergedError, KdpipeError
from kdpipe.models.parts import release_memory

_MESSAGES = ("can't allocate memory", "could not create a primitive", "could not create a memory object", "bad_alloc")
"""Messages of torch, oneDNN and the C++ library when the CPU's memory does not suffice."""


def ran_out_of_memory(error: BaseException) -> bool:
    """Return whether ``error`` is a failed allocation, on a GPU or on the CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(message in str(error) for message in _MESSAGES)


def largest_that_fits(step: Callable[[int], object], *, below: int) -> int | None:
    """Return the largest power of two below ``below``, and above 1, for which memory suffices for ``step``.

    ``step`` takes a number of samples; ``None`` where not even 2 fit. They are tried from the smallest on, because an
    allocator does not always give back what a larger step has left.
    """
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    release_memory()
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


T = TypeVar("T")


def attempt(act: Callable[[], T], too_little: Callable[[str], DeviceError]) -> T | KdpipeError:
    """Return the result of ``act``, or the error of too little memory or of a value that is not finite.

    ``too_little`` makes the error where memory did not suffice; it is told whose, cpu or cuda. By then nothing holds on
    to the memory that ``act`` took, nor does the error that is returned: it has no traceback.
    """
    try:
        return act()
    except DivergedError as error:
        return error.with_traceback(None)
    except (RuntimeError, MemoryError) as error:
        if not ran_out_of_memory(error):
            raise
        whose = "cuda" if isinstance(error, torch.OutOfMemoryError) else "cpu"
    release_memory()  # the other students may need what this one has left
    return too_little(whose)


_EVERY = 50
"""Steps between two checks of the losses."""


class LossWatch:
    """Checks the loss terms of every step, many steps at once, so that the device is not waited for."""

    def __init__(self, advice: Callable[[], str]) -> None:
        """End the message of a divergence with ``advice()``."""
        self._advice = advice
        self._recent: list[tuple[int, int, Mapping[str, torch.Tensor]]] = []

    def add(self, terms: Mapping[str, torch.Tensor], *, epoch: int, step: int) -> None:
        """Add the terms of a step, epoch and step counted from 1; ``terms["loss"]`` is their sum.

        Raises:
            DivergedError: as ``check`` does.
        """
        self._recent.append((epoch, step, terms))
        if len(self._recent) == _EVERY:
            self.check()

    def check(self) -> None:
        """Check every step since the last check.

        Raises:
            DivergedError: the loss of a step is not finite; the message has the first such step and its terms.
        """
        if not self._recent:
            return
        finite = torch.stack([terms["loss"] for _, _, terms in self._recent]).isfinite().tolist()
        if not all(finite):
            epoch, step, terms = self._recent[finite.index(False)]
            shown = ", ".join(f"{name} {value.item():.4g}" for name, value in terms.items())
            raise DivergedError(f"the loss of step {step} of epoch {epoch} is not finite ({shown}). {self._advice()}")
        self._recent.clear()


def not_finite(module: torch.nn.Module) -> str | None:
    """Return the name of the first weight or buffer that holds NaN or infinity, ``None`` where none does."""
    values = {name: value for name, value in module.state_dict().items() if value.is_floating_point()}
    finite = torch.stack([value.isfinite().all() for value in values.values()]).tolist() if values else []
    return next((name for name, good in zip(values, finite, strict=True) if not good), None)
