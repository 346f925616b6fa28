"""Timing of many workloads in interleaved rounds, so that what the machine does besides falls on all of them alike."""

from __future__ import annotations

import gc
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from kdpipe.benchmark.machine import cores
from kdpipe.benchmark.timing import Load, Timing, Workload
from kdpipe.progress import Progress, silent

VISIT_NS = 20_000_000
"""Nanoseconds of passes that a workload makes in each round, as far as more than one pass fits."""
LONGEST_VISIT_NS = 5 * VISIT_NS
"""Nanoseconds of passes after which a visit ends: on a busy machine a pass may take far longer than in the warm-up."""
MOST_PASSES = 32
LEAST_ROUNDS = 5
"""Rounds of each workload, however slow it is."""
WARM_UP_PASSES = 3
SETTLE_SECONDS = 0.002
"""Pause after a pass of several threads, whose workers wait for more work in a busy loop."""
STAT = Path("/proc/stat")

Pass = Callable[[], object]
"""One pass of a workload, which returns when its logits are in memory."""


@dataclass(frozen=True)
class Rounds:
    """The passes of each workload by round, and the load of the machine meanwhile."""

    timings: Mapping[Workload, Timing]
    load: Load


def time_rounds(
    passes: Mapping[Workload, Pass],
    *,
    rounds: int,
    seed: int = 0,
    max_seconds: float = 30.0,
    progress: Progress = silent,
) -> Rounds:
    """Time every workload once per round; the order within a round is drawn from ``seed``.

    A visit of a workload is one untimed pass, so that its weights are in the processor's caches, and as many timed ones
    as take about ``VISIT_NS``, each timed by itself; a slower workload makes a single pass. Before the first round each
    workload makes ``WARM_UP_PASSES``. A workload that has taken ``max_seconds`` is left out of further rounds, but not
    of the first ``LEAST_ROUNDS``. Torch's number of threads is that of the workload during its passes, and restored
    afterwards. Garbage is not collected meanwhile.

    Raises:
        ValueError: ``rounds`` is not positive.
    """
    if rounds < 1:
        raise ValueError(f"expected at least one round, got {rounds}")
    workloads, generator = list(passes), np.random.default_rng(seed)
    wall: dict[Workload, list[tuple[int, ...]]] = {each: [] for each in workloads}
    cpu: dict[Workload, list[tuple[int, ...]]] = {each: [] for each in workloads}
    with torch_threads(), _without_collection(), progress("timing", rounds, "rounds") as advance:
        counts = {each: _warm_up(each, passes[each]) for each in workloads}
        spent = dict.fromkeys(workloads, 0)
        watch = _Watch()
        for number in range(rounds):
            for place in generator.permutation(len(workloads)):
                each = workloads[place]
                if number >= LEAST_ROUNDS and spent[each] >= max_seconds * 1e9:
                    continue
                taken, used = _visit(each, passes[each], counts[each])
                wall[each].append(taken)
                cpu[each].append(used)
                spent[each] += sum(taken)
            advance(1)
        load = watch.load()
    timings = {
        each: Timing(wall_ns=tuple(wall[each]), cpu_ns=tuple(cpu[each]), batch_size=each.batch_size, device=each.device)
        for each in workloads
    }
    return Rounds(timings, load)


def _warm_up(workload: Workload, run: Pass) -> int:
    """Make the first passes of a workload, and return how many it makes in each round."""
    torch.set_num_threads(workload.threads)
    took = [_timed(run)[0] for _ in range(WARM_UP_PASSES)]
    return max(1, min(MOST_PASSES, math.floor(VISIT_NS / max(1, min(took)))))


def _visit(workload: Workload, run: Pass, count: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return wall and CPU nanoseconds of ``count`` passes, or of fewer where they take long."""
    torch.set_num_threads(workload.threads)
    if count > 1:
        run()
    passes = [_timed(run)]
    while len(passes) < count and sum(taken for taken, _ in passes) < LONGEST_VISIT_NS:
        passes.append(_timed(run))
    taken, used = zip(*passes, strict=True)
    if workload.threads > 1:
        time.sleep(SETTLE_SECONDS)
    return taken, used


def _timed(run: Pass) -> tuple[int, int]:
    start, cpu_start = time.perf_counter_ns(), time.process_time_ns()
    run()
    used, taken = time.process_time_ns() - cpu_start, time.perf_counter_ns() - start
    return taken, used


@contextmanager
def torch_threads() -> Iterator[None]:
    """Restore torch's number of threads after the block."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _without_collection() -> Iterator[None]:
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


class _Watch:
    """Watches the load of the machine from its creation on."""

    def __init__(self) -> None:
        self._before = _load_average()
        self._busy, self._own, self._began = _busy_seconds(), time.process_time(), time.monotonic()

    def load(self) -> Load:
        """Return the load since then."""
        busy, seconds = _busy_seconds(), time.monotonic() - self._began
        others = None
        if busy is not None and self._busy is not None and seconds > 0:
            own = time.process_time() - self._own
            others = max(0.0, (busy - self._busy - own) / seconds)
        return Load(cores=cores() or 1, before=self._before, after=_load_average(), others=others)


def _load_average() -> float | None:
    try:
        return os.getloadavg()[0]
    except (OSError, AttributeError):
        return None


def _busy_seconds() -> float | None:
    """Return the seconds that all cores together have been busy since the machine started; None except on Linux."""
    try:
        fields = [int(each) for each in STAT.read_text().split("\n", 1)[0].split()[1:9]]
        ticks = os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError):
        return None
    if len(fields) < 8:
        return None
    user, nice, system, _idle, _waiting, irq, softirq, steal = fields
    return (user + nice + system + irq + softirq + steal) / ticks
