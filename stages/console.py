"""The console of a stage: messages, results, progress (a bar on a terminal, plain lines elsewhere), and stop signals.

Everything that kdpipe prints passes through here, and foreign text in it is escaped.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

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
from rich.table import Table
from rich.text import Text

from kdpipe.printable import printable, printable_json

_PLAIN_EVERY = 10.0
"""Seconds between two plain lines."""
_STATUS_EVERY = 1.0
"""Seconds between two updates of a bar's status."""

_quiet = False
"""Whether messages and progress are left out; errors are not."""

console = Console(stderr=True, highlight=False, soft_wrap=True)
"""For progress and messages; results go to standard output."""


def quiet() -> None:
    """Leave out messages and progress from now on: another process reports what all do."""
    global _quiet
    _quiet = True


@contextmanager
def aloud() -> Iterator[None]:
    """Print in the block what only this process can tell, even if it is to be quiet."""
    global _quiet
    before, _quiet = _quiet, False
    try:
        yield
    finally:
        _quiet = before


def say(message: str) -> None:
    """Print one line to standard error, above the progress bar if there is one; see ``kdpipe.printable``."""
    if _quiet:
        return
    line = printable(message)
    if console.is_terminal:
        console.print(line, markup=False, emoji=False)
    else:
        print(line, file=sys.stderr, flush=True)


def show(line: str) -> None:
    """Print one line of a result to standard output; see ``kdpipe.printable``."""
    print(printable(line))


def show_json(value: Any) -> None:
    """Print a result to standard output as JSON in ASCII."""
    print(printable_json(value))


def on_terminal() -> bool:
    """Return whether standard output is a terminal, or is to be treated as one (``FORCE_COLOR``)."""
    return Console().is_terminal


def show_table(table: Table, *, width: int = 140) -> None:
    """Print a table, whose cells are printable, to standard output; ``width`` is that of what is no terminal."""
    terminal = Console(highlight=False)
    (terminal if terminal.is_terminal else Console(highlight=False, width=width)).print(table)


def show_columns(rows: Sequence[Sequence[str]]) -> None:
    """Print rows of text, the headings first, as columns with two spaces between them."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        show("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def amount(count: float) -> str:
    """Return a number of bytes with its unit, such as ``1.9 MB``."""
    for factor, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= factor:
            return f"{count / factor:,.1f} {unit}"
    return f"{count:.0f} bytes"


@contextmanager
def progress(
    what: str, total: int, unit: str = "images", status: Callable[[], str] | None = None
) -> Iterator[Callable[[int], None]]:
    """Show progress in the block; the yielded function takes the number of units done since its last call.

    ``status`` is shown below a bar, or at the end of a plain line. It is called only when it is shown.
    """
    what = printable(what)
    if _quiet:
        yield lambda _done: None
    elif console.is_terminal:
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            _Rate(),
            TimeRemainingColumn(),
        )
        with _Bar(*columns, console=console, transient=True) as bar:
            task = bar.add_task(what, total=total, unit=unit)
            updated = time.monotonic()

            def advance(done: int) -> None:
                nonlocal updated
                bar.advance(task, done)
                if status is not None and time.monotonic() - updated >= _STATUS_EVERY:
                    bar.status, updated = status(), time.monotonic()

            yield advance
    else:
        yield _Plain(what, total, unit, status).advance


@contextmanager
def stoppable() -> Iterator[Callable[[], bool]]:
    """Defer the first SIGINT or SIGTERM to the end of the block; the yielded function returns whether there was one.

    The signal is sent again at the end of the block, so that a training can first reach a point from which it can be
    resumed. A second signal takes effect at once.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return

    def note(number: int, _frame: FrameType | None) -> None:
        received.append(number)
        restore()

    handlers = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in handlers.items():
            signal.signal(number, handler)

    try:
        yield lambda: bool(received)
    finally:
        restore()
        if received:
            signal.raise_signal(received[0])


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.0f} {task.fields['unit']}/s")


class _Bar(Progress):
    """A progress bar with the status below it."""

    status = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        if self.status:
            yield Text(self.status, no_wrap=True, overflow="ellipsis")


class _Plain:
    """Prints a line every ten seconds; shorter work prints none."""

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
            speed = f"{rate:,.0f}/s" if rate >= 1 else f"{1 / rate:.0f} s each"
            line = f"{self._what}: {self._done}/{self._total} {self._unit}, {speed}, {remaining:.0f} s left"
            more = "" if self._status is None else self._status()
            print(printable(f"{line}, {more}" if more else line), file=sys.stderr, flush=True)
