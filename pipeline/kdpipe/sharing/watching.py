"""Reading from servers that may be silent, slow or endless: done in another thread, and cut off."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from kdpipe.sharing.place import SLOWEST, PassingError, Stream

_Arrived = queue.Queue[Stream | bytes | BaseException | None]

_AHEAD = 4
"""Blocks that are read before they are taken."""


@contextmanager
def watched(open_stream: Callable[[], Stream], *, seconds: float, of: str) -> Iterator[Stream]:
    """Open a stream in another thread for the block; its blocks arrive in time, or PassingError is raised.

    A server is cut off after ``seconds`` of silence, or when it sends less than ``SLOWEST`` bytes per second for so
    long, whatever it is waiting in: a name server, a handshake, headers or content.

    Args:
        open_stream: opens it; its blocks are read in the same thread.
        seconds: the patience.
        of: the address, for messages.
    """
    arrived: _Arrived = queue.Queue(_AHEAD)
    abandoned = threading.Event()
    reader = threading.Thread(target=_read, args=(open_stream, arrived, abandoned), daemon=True, name="kdpipe-remote")
    reader.start()
    try:
        head = _next(arrived, seconds, of)
        if not isinstance(head, Stream):
            raise TypeError("a stream begins with its head")
        yield replace(head, blocks=_blocks(arrived, seconds, of))
    finally:
        abandoned.set()


def _blocks(arrived: _Arrived, seconds: float, of: str) -> Iterator[bytes]:
    waited, received = 0.0, 0
    while True:
        began = time.monotonic()
        block = _next(arrived, seconds, of)
        # Only the time of waiting counts: the consumer may be slow, too.
        waited += time.monotonic() - began
        if not isinstance(block, bytes):
            return
        yield block
        received += len(block)
        if waited >= seconds:
            if received < SLOWEST * waited:
                raise PassingError(
                    f"{of}: the server sends only {received / waited:,.0f} bytes per second. "
                    "Run this again: what has arrived is kept."
                )
            waited, received = 0.0, 0


def _next(arrived: _Arrived, seconds: float, of: str) -> Stream | bytes | None:
    try:
        found = arrived.get(timeout=seconds)
    except queue.Empty:
        raise PassingError(
            f"{of}: the server has been silent for {seconds:g} seconds. Run this again: what has arrived is kept."
        ) from None
    if isinstance(found, BaseException):
        raise found
    return found


def _read(open_stream: Callable[[], Stream], arrived: _Arrived, abandoned: threading.Event) -> None:
    def hand(what: Stream | bytes | BaseException | None) -> bool:
        while not abandoned.is_set():
            try:
                arrived.put(what, timeout=1)
            except queue.Full:
                continue
            return True
        return False

    try:
        stream = open_stream()
        if hand(stream):
            for block in stream.blocks:
                if not hand(block):
                    break
            hand(None)
    except BaseException as failure:  # raised again in the thread that reads the blocks
        hand(failure)
