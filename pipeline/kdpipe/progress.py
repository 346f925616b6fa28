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

    def __call__(
        self, what: str, total: int, unit: str = "images", status: Callable[[], str] | None = None
    ) -> AbstractContextManager[Callable[[int], None]]:
        """Open a stretch called ``what``, of ``total`` units.

        ``status`` says more about the work under way. It is called only when that is to be shown, about once a second
        at most and from within the yielded function, so it may wait for a device.
        """
        ...


@contextmanager
def silent(
    what: str,  # noqa: ARG001
    total: int,  # noqa: ARG001
    unit: str = "images",  # noqa: ARG001
    status: Callable[[], str] | None = None,  # noqa: ARG001
) -> Iterator[Callable[[int], None]]:
    """Report nothing."""
    yield lambda _done: None
