"""What a person sees while a stage works: a bar with rate and ETA on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

_PLAIN_EVERY = 10.0
"""Seconds between two plain lines."""
_STATUS_EVERY = 1.0
"""Seconds between two looks at the status of what a bar shows."""

console = Console(stderr=True, highlight=False, soft_wrap=True)
"""Where progress and messages go; results go to standard output."""


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.0f} {task.fields['unit']}/s")


class _Bar(Progress):
    """A bar with the status below it."""

    status = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        if self.status:
            yield Text(self.status, no_wrap=True, overflow="ellipsis")


@contextmanager
def progress(
    what: str, total: int, unit: str = "images", status: Callable[[], str] | None = None
) -> Iterator[Callable[[int], None]]:
    """Show a stretch of work; the yielded function takes the number of units done since its last call.

    ``status`` is shown below a bar, or at the end of a plain line, and called for no other reason.
    """
    if console.is_terminal:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            _Rate(),
            TimeRemainingColumn(),
        )
        with _Bar(*columns, console=console, transient=True) as bar:
            task = bar.add_task(what, total=total, unit=unit)
            looked = time.monotonic()

            def advance(done: int) -> None:
                nonlocal looked
                bar.advance(task, done)
                if status is not None and time.monotonic() - looked >= _STATUS_EVERY:
                    bar.status, looked = status(), time.monotonic()

            yield advance
    else:
        yield _Plain(what, total, unit, status).advance


class _Plain:
    """Prints a line every ten seconds, so short work prints none."""

    def __init__(self, what: str, total: int, unit: str, status: Callable[[], str] | None) -> None:
        self._what, self._total, self._unit, self._status = what, total, unit, status
        self._done = 0
        self._began = self._printed = time.monotonic()

    def advance(self, done: int) -> None:
        self._done += done
        now = time.monotonic()
        if now - self._printed >= _PLAIN_EVERY:
            self._printed = now
            rate = self._done / (now - self._began)
            remaining = (self._total - self._done) / rate
            line = f"{self._what}: {self._done}/{self._total} {self._unit}, {rate:,.0f}/s, {remaining:.0f} s left"
            more = "" if self._status is None else self._status()
            print(f"{line}, {more}" if more else line, file=sys.stderr, flush=True)


def say(message: str) -> None:
    """Print one line for a person, above the progress bar if there is one."""
    if console.is_terminal:
        console.print(message, markup=False)
    else:
        print(message, file=sys.stderr, flush=True)
