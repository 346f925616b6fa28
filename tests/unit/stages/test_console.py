"""Progress on a terminal and elsewhere, when its status is called, and signals that wait for the end of a block."""

from __future__ import annotations

import io
import signal
import threading
from collections.abc import Callable
from types import SimpleNamespace

import pytest
from rich.console import Console

from kdpipe.stages import console
from kdpipe.stages.console import stoppable


class Clock:
    """A clock that moves when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(console, "time", SimpleNamespace(monotonic=lambda: self.now))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def _counted(texts: list[str]) -> tuple[Callable[[], str], list[int]]:
    calls: list[int] = []

    def status() -> str:
        calls.append(len(calls))
        return texts[len(calls) - 1]

    return status, calls


def test_elsewhere_a_line_every_ten_seconds(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    status, calls = _counted(["loss 0.5", ""])
    with console.progress("epoch 2/3", 1000, status=status) as advance:
        for _ in range(24):
            clock.now += 1
            advance(20)
    assert len(calls) == 2
    assert capsys.readouterr().err.splitlines() == [
        "epoch 2/3: 200/1000 images, 20/s, 40 s left, loss 0.5",
        "epoch 2/3: 400/1000 images, 20/s, 30 s left",
    ]


def test_units_of_several_seconds_are_told_by_their_time(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with console.progress("timing", 30, "rounds") as advance:
        for _ in range(3):
            clock.now += 4
            advance(1)
    assert capsys.readouterr().err == "timing: 3/30 rounds, 4 s each, 108 s left\n"


def test_short_work_says_nothing(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    status, calls = _counted([])
    with console.progress("epoch 2/3", 1000, status=status) as advance:
        clock.now += 9.9
        advance(1000)
    assert (calls, capsys.readouterr().err) == ([], "")


def _terminal(monkeypatch: pytest.MonkeyPatch, width: int) -> io.StringIO:
    shown = io.StringIO()
    terminal = Console(file=shown, force_terminal=True, width=width, soft_wrap=True, color_system=None, _environ={})
    monkeypatch.setattr(console, "console", terminal)
    return shown


def test_a_terminal_looks_once_a_second(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = _terminal(monkeypatch, 100)
    status, calls = _counted([f"loss {number}" for number in range(3)])
    with console.progress("epoch 2/3", 1000, status=status) as advance:
        for _ in range(8):
            clock.now += 0.4
            advance(100)
        assert len(calls) == 2
    drawn = shown.getvalue()
    assert "epoch 2/3" in drawn
    assert "800/1000" in drawn
    assert "loss 1" in drawn
    assert "loss 2" not in drawn


def test_a_narrow_terminal_keeps_one_line_for_each(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = _terminal(monkeypatch, 60)
    with console.progress("epoch 2/3", 1000, status=lambda: "loss 0.5, " * 20) as advance:
        clock.now += 2
        advance(100)
    drawn = [line.split("\x1b")[0].rstrip("\r") for line in shown.getvalue().split("\n")]
    cut = [line for line in drawn if line.startswith("loss")]
    assert cut
    assert all(len(line) == 60 and line.endswith("…") for line in cut)


def test_work_without_a_status(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = _terminal(monkeypatch, 100)
    with console.progress("verifying", 3, "files") as advance:
        clock.now += 5
        advance(3)
    assert "3/3" in shown.getvalue()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_waits_for_the_end(number: signal.Signals) -> None:
    seen: list[int] = []
    before = signal.signal(number, lambda received, _frame: seen.append(received))
    try:
        with stoppable() as should_stop:
            assert not should_stop()
            signal.raise_signal(number)
            assert should_stop()
            assert seen == []
            signal.raise_signal(number)
            assert seen == [number]
        assert seen == [number, number]
        with stoppable() as should_stop:
            pass
        assert seen == [number, number]
        signal.raise_signal(number)
        assert len(seen) == 3
    finally:
        signal.signal(number, before)


def test_the_signal_wins_over_what_it_stopped() -> None:
    def interrupted() -> None:
        with stoppable():
            signal.raise_signal(signal.SIGINT)
            raise RuntimeError("stopped")

    # A program that was started in the background may be deaf to it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            interrupted()
    finally:
        signal.signal(signal.SIGINT, before)


def test_other_threads_have_no_signals() -> None:
    asked: list[bool] = []

    def work() -> None:
        with stoppable() as should_stop:
            asked.append(should_stop())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert asked == [False]
