"""Statistics of timings, identity of networks, and the warnings about a busy machine."""

import math
from dataclasses import replace
from statistics import median
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom
from torch import nn

from kdpipe import models
from kdpipe.benchmark.machine import machine
from kdpipe.benchmark.timing import Load, Network, Timing, Workload, median_interval, shipped_timings, waiting, warnings
from tests.timings import timed

PASSES = st.lists(st.lists(st.integers(1, 10**9), min_size=1, max_size=5), min_size=1, max_size=40)
RESNET8 = Network("resnet8", "0" * 16, 32)


def _timing(wall: list[list[int]], cpu: list[list[int]] | None = None, **others: Any) -> Timing:
    rows = [tuple(map(tuple, each)) for each in (wall, cpu or wall)]
    return Timing(wall_ns=rows[0], cpu_ns=rows[1], **{"batch_size": 1, "device": "cpu"} | others)


@given(PASSES)
@settings(max_examples=100, deadline=None)
def test_percentiles_are_those_of_numpy(rounds: list[list[int]]) -> None:
    timing = _timing(rounds, batch_size=8)
    every = np.concatenate([np.asarray(each, dtype=np.float64) for each in rounds]) / 1e6
    found = [timing.p90_ms, timing.p95_ms, timing.p99_ms]
    assert found == pytest.approx(np.percentile(every, [90, 95, 99]))
    assert timing.p50_ms == pytest.approx(np.median([np.median(each) for each in rounds]) / 1e6)
    assert (timing.rounds, timing.repeats) == (len(rounds), len(every))
    assert timing.images_per_second == pytest.approx(8 / (timing.p50_ms / 1e3))


@pytest.mark.parametrize("count", [*range(1, 60), 300])
def test_the_interval_is_the_narrowest_pair_of_order_statistics_with_95_percent(count: int) -> None:
    """The median lies between the k-th smallest and the k-th largest value unless k - 1 or fewer lie on one side."""
    confidences = {k: 1 - 2 * binom.cdf(k - 1, count, 0.5) for k in range(1, count // 2 + 1)}
    enough = [k for k, confidence in confidences.items() if confidence >= 0.95]
    found = median_interval([float(value) for value in range(count, 0, -1)])
    assert found == ((max(enough), count + 1 - max(enough)) if enough else None)
    assert (found is None) == (count < 6)


def test_the_interval_holds_the_median_of_a_skewed_distribution() -> None:
    generator = np.random.default_rng(0)
    draws = [median_interval(list(generator.exponential(size=20))) for _ in range(500)]
    held = np.mean([each is not None and each.low <= math.log(2) <= each.high for each in draws])
    assert held >= 0.95


def test_one_network_is_one_workload_whatever_its_weights() -> None:
    def identity(name: str, classes: int = 10, size: int = 32) -> Network:
        return Network.of(models.create(name, classes), architecture=name, size=size)

    assert identity("resnet8") == identity("resnet8")
    different = [identity("resnet8"), identity("resnet8", 100), identity("resnet8", size=16), identity("resnet14")]
    assert len(set(different)) == 4
    wide, narrow = models.create("resnet8", 10), models.create("resnet8", 10)
    first = next(name for name, part in narrow.named_modules() if isinstance(part, nn.Conv2d))
    narrow.get_submodule(first).weight = nn.Parameter(wide.get_submodule(first).weight[:8].detach())
    widths = [Network.of(each, architecture="resnet8", size=32) for each in (wide, narrow)]
    assert widths[0] != widths[1]


def test_wall_over_cpu() -> None:
    assert _timing([[30], [30]], [[10], [20]]).wall_over_cpu == 2
    assert _timing([[30], [30]], [[60], [60]]).wall_over_cpu == 0.5
    assert _timing([[30]], [[1]], device="cuda").wall_over_cpu is None
    assert _timing([[30]], [[0]]).wall_over_cpu is None


def test_a_workload_that_waits_is_named() -> None:
    busy, idle = (Workload(network=RESNET8, engine=engine, threads=2) for engine in ("onnx", "eager"))
    timings = {busy: _timing([[25]] * 20, [[10]] * 20), idle: _timing([[11]] * 20, [[10]] * 20)}
    assert waiting(timings) == [busy]
    (line,) = warnings(timings, Load(cores=4, before=1.0, after=1.0, others=0.3))
    assert line == (
        "1 of 2 workloads waited for a core: their wall time is more than 1.2 times their CPU time, 2.5 times for "
        "resnet8 at 32 px, onnx fp32, 2 threads, batch 1, cpu."
    )


@pytest.mark.parametrize(
    ("load", "said"),
    [
        (
            Load(cores=4, before=0.1, after=1.0, others=0.5),
            "other processes kept 0.5 of 4 cores busy (load average 0.1",
        ),
        (Load(cores=4, before=3.0, after=1.0), "load average 3.0 and 1.0"),
        (Load(cores=4, before=9.0, after=9.0, others=0.1), None),
        (Load(cores=4), None),
    ],
)
def test_a_busy_machine_is_reported(load: Load, said: str | None) -> None:
    lines = warnings(timed({1: 1.0}), load)
    assert len(lines) == (said is not None)
    assert said is None or said in lines[0]


def test_few_rounds_are_reported() -> None:
    workload = Workload(network=RESNET8)
    (line,) = warnings({workload: _timing([[10]] * 19)}, Load(cores=1))
    assert "19 rounds" in line
    assert warnings({workload: _timing([[10]] * 20)}, Load(cores=1)) == []


def test_students_are_compared_by_the_engine_to_ship() -> None:
    eager = timed({1: 4.0, 8: 9.0})
    int8 = timed({1: 1.0}, engine="onnx", precision="int8")
    onnx = timed({1: 2.0, 64: 7.0}, engine="onnx") | timed({1: 3.0}, engine="onnx", threads=2)
    every = eager | onnx | int8
    assert {batch: each.p50_ms for batch, each in shipped_timings(every).items()} == {1: 4.0, 8: 9.0}
    assert {batch: each.p50_ms for batch, each in shipped_timings(every, "onnx").items()} == {1: 2.0, 64: 7.0}
    assert shipped_timings(every, "openvino") == {}


def test_cpu_time_is_a_median_of_medians() -> None:
    rounds = [[1, 2, 9], [5], [7, 8]]
    timing = replace(_timing([[1, 1, 1], [1], [1, 1]]), cpu_ns=tuple(map(tuple, rounds)))
    assert timing.cpu_ms == median(map(median, rounds)) / 1e6


def test_machine_is_plain_and_knows_itself() -> None:
    import torch

    described = machine()
    assert set(described) >= {"platform", "processor", "cores", "memory_bytes", "python", "gpu"}
    assert described["torch"] == torch.__version__
    assert all(value is None or type(value) in (str, int) for value in described.values())
    assert isinstance(described["cores"], int)
    assert described["cores"] >= 1
