"""How long work says how far it has come, without knowing who listens.

Rooms take a ``Progress`` and call it once for each stretch of work; the command line passes one that draws
a bar, a library caller passes nothing and gets ``silent``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Progress(Protocol):
    """Opens a stretch of work and yields the function that reports units done since the last call."""

    def __call__(self, what: str, total: int, unit: str = "images") -> AbstractContextManager[Callable[[int], None]]:
        """Open a stretch called ``what``, of ``total`` units."""
        ...


@contextmanager
def silent(what: str, total: int, unit: str = "images") -> Iterator[Callable[[int], None]]:  # noqa: ARG001
    """Report nothing."""
    yield lambda _done: None
