"""A signal waits for the end of the block, a second one does not, and none is left handled otherwise."""

from __future__ import annotations

import signal
import threading

import pytest

from stages.stopping import stoppable


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
