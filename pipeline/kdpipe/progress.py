"""Progress of long work, independent of its display.

Functions take a ``Progress`` and call it once for each task. The command line passes one that draws a bar; the default
is ``silent``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Progress(Protocol):
    """Opens a task, and yields the function that reports the units done since its last call."""

    def __call__(
        self, what: str, total: int, unit: str = "images", status: Callable[[], str] | None = None
    ) -> AbstractContextManager[Callable[[int], None]]:
        """Open a task called ``what``, of ``total`` units.

        ``status`` returns further figures to display. It is called only to be displayed, at most about once a second
        and from within the yielded function, so it may wait for a device.
        """
        ...


@contextmanager
def in_bytes(progress: Progress, what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Open a task of ``total`` bytes, in kB; yield the function that reports the bytes done since its last call."""
    with progress(what, -(-total // 1000), unit="kB") as advance:
        left = 0

        def report(size: int) -> None:
            nonlocal left
            done, left = divmod(left + size, 1000)
            if done:
                advance(done)

        yield report
        if left:
            advance(1)


@contextmanager
def silent(
    what: str,  # noqa: ARG001
    total: int,  # noqa: ARG001
    unit: str = "images",  # noqa: ARG001
    status: Callable[[], str] | None = None,  # noqa: ARG001
) -> Iterator[Callable[[int], None]]:
    """Report nothing."""
    yield lambda _done: None
