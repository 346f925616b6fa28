"""Interleaved rounds: who is called when, how often and with how many threads, and what the clocks say."""

import time
from collections.abc import Callable

import pytest
import torch

from kdpipe.benchmark.rounds import LEAST_ROUNDS, WARM_UP_PASSES, time_rounds
from kdpipe.benchmark.timing import Network, Workload

NETWORK = Network("resnet8", "0" * 16, 32)


def _workloads(count: int, **others: int) -> list[Workload]:
    return [Workload(network=NETWORK, batch_size=1 + number, **others) for number in range(count)]


def _spin(seconds: float) -> None:
    """Use a core for so many seconds of CPU time."""
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def _rounds_of(calls: list[int], count: int) -> list[list[int]]:
    """Return the calls after the warm-up, by round of single passes."""
    timed = calls[WARM_UP_PASSES * count :]
    return [timed[start : start + count] for start in range(0, len(timed), count)]


def test_each_round_visits_every_workload_once_in_a_seeded_order() -> None:
    workloads = _workloads(4)

    def visits(seed: int) -> list[list[int]]:
        calls: list[int] = []

        def record(number: int) -> Callable[[], None]:
            return lambda: (calls.append(number), _spin(0.011))[1]  # too slow for more than one pass

        passes = {workload: record(number) for number, workload in enumerate(workloads)}
        found = time_rounds(passes, rounds=6, seed=seed)
        assert calls[: WARM_UP_PASSES * 4] == [number for number in range(4) for _ in range(WARM_UP_PASSES)]
        assert {timing.rounds for timing in found.timings.values()} == {6}
        return _rounds_of(calls, 4)

    first, again, other = visits(0), visits(0), visits(1)
    assert [sorted(each) for each in first] == [[0, 1, 2, 3]] * 6
    assert first == again != other
    assert len({tuple(each) for each in first}) > 1


def test_fast_workloads_make_several_passes_per_visit_after_one_that_is_not_timed() -> None:
    slow, fast = _workloads(2)
    calls = {slow: 0, fast: 0}

    def run(workload: Workload, seconds: float) -> Callable[[], None]:
        def once() -> None:
            calls[workload] += 1
            _spin(seconds)

        return once

    found = time_rounds({slow: run(slow, 0.03), fast: run(fast, 0.001)}, rounds=5).timings
    assert [len(each) for each in found[slow].wall_ns] == [1] * 5
    passes = [len(each) for each in found[fast].wall_ns]
    assert 2 <= max(passes) <= 20
    assert calls == {slow: WARM_UP_PASSES + 5, fast: WARM_UP_PASSES + found[fast].repeats + 5}


def test_a_visit_ends_where_passes_become_slow() -> None:
    """As they do when another program takes the core: three passes of 40 ms, not the 32 that warm-up promised."""
    seconds = iter([0.0005] * (WARM_UP_PASSES + 1))
    (timing,) = time_rounds({_workloads(1)[0]: lambda: time.sleep(next(seconds, 0.04))}, rounds=2).timings.values()
    assert all(1 <= len(each) <= 3 for each in timing.wall_ns)  # fewer where a pass of 40 ms takes yet longer


def test_a_slow_workload_is_bounded_and_the_others_go_on() -> None:
    slow, fast = _workloads(2)
    found = time_rounds({slow: lambda: _spin(0.15), fast: lambda: _spin(0.011)}, rounds=12, max_seconds=0.7).timings
    assert (found[slow].rounds, found[fast].rounds) == (LEAST_ROUNDS, 12)


def test_wall_and_cpu_time() -> None:
    """A sleeping pass takes wall time alone; a spinning one takes the CPU time that it asks for."""
    sleeping, spinning = _workloads(2)
    found = time_rounds({sleeping: lambda: time.sleep(0.02), spinning: lambda: _spin(0.02)}, rounds=6).timings
    assert 20 <= found[sleeping].p50_ms < 60
    assert found[sleeping].cpu_ms < 5
    assert found[spinning].cpu_ms == pytest.approx(20, rel=0.1)
    assert found[spinning].p50_ms >= 19.9
    assert found[sleeping].wall_over_cpu is not None
    assert found[sleeping].wall_over_cpu > 3


def test_threads_are_those_of_the_workload_and_restored() -> None:
    seen: list[int] = []
    before = torch.get_num_threads()
    workloads = [Workload(network=NETWORK, threads=threads) for threads in (1, 2)]
    passes = {each: lambda: (seen.append(torch.get_num_threads()), _spin(0.011))[1] for each in workloads}
    time_rounds(passes, rounds=3)
    assert seen[:6] == [1, 1, 1, 2, 2, 2]
    assert sorted(seen[6:]) == [1, 1, 1, 2, 2, 2]
    assert torch.get_num_threads() == before


def test_threads_come_back_after_an_error() -> None:
    before = torch.get_num_threads()

    def fail() -> None:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        time_rounds({Workload(network=NETWORK, threads=before + 1): fail}, rounds=1)
    assert torch.get_num_threads() == before


def test_progress_counts_the_rounds() -> None:
    from contextlib import contextmanager

    told: list[object] = []

    @contextmanager
    def progress(what: str, total: int, unit: str = "", status: object = None):  # type: ignore[no-untyped-def]
        told.extend((what, total, unit))
        yield told.append

    time_rounds({Workload(network=NETWORK): lambda: None}, rounds=3, progress=progress)
    assert told == ["timing", 3, "rounds", 1, 1, 1]


def test_no_rounds_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one round"):
        time_rounds({}, rounds=0)
