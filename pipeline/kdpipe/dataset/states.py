"""The state of a file: size, times and inode, by which a change of its content is noticed without reading it."""

from __future__ import annotations

import os
import struct
import time

import numpy as np

State = tuple[int, int, int, int]
"""Size, time of modification and time of change in nanoseconds, inode."""
STATE = np.dtype([("bytes", "<u8"), ("modified", "<i8"), ("changed", "<i8"), ("inode", "<u8")])
"""A ``State`` in an array."""
PACKED = struct.Struct("<QqqQ")
"""A ``State`` as bytes, in the layout of ``STATE``."""

_SETTLED_NS = 2_000_000_000


def state_of(info: os.stat_result) -> State:
    """Return the state of a file."""
    return info.st_size, info.st_mtime_ns, info.st_ctime_ns, info.st_ino


def settled_before() -> int:
    """Return the time in nanoseconds before which a file was last written if its state identifies its content.

    A file that was written just now may be written again without a change of its times.
    """
    return time.time_ns() - _SETTLED_NS
