"""Trying what may stop one student and not those beside it: too little memory, or a value that is not finite."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

from kdpipe.errors import DeviceError, DivergedError, KdpipeError
from kdpipe.student.memory import ran_out_of_memory

T = TypeVar("T")


def attempt(act: Callable[[], T], too_little: Callable[[str], DeviceError]) -> T | KdpipeError:
    """Return what ``act`` returns, or the error that says why it could not.

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
    return too_little(whose)
