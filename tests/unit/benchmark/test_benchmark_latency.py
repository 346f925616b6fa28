"""Latency: what is called, how often, and in which mode."""

import itertools
import time

import pytest
import torch
from torch import nn

from kdpipe.benchmark.latency import Latency, latency, machine


class Counting(nn.Module):
    """Counts its calls and remembers what it saw."""

    def __init__(self, *, seconds: float = 0.0) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.calls: list[tuple[torch.Size, bool, bool]] = []
        self.seconds = seconds

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.calls.append((images.shape, self.training or self.norm.training, torch.is_inference_mode_enabled()))
        time.sleep(self.seconds)
        return images.mean(dim=(2, 3))


def test_counts_calls_in_eval_and_inference_mode() -> None:
    module = Counting()
    measured = latency(module, size=4, device="cpu", batch_size=2, warmup=3, repeats=7)
    assert module.calls == [(torch.Size([2, 3, 4, 4]), False, True)] * 10
    assert (measured.batch_size, measured.repeats, measured.device) == (2, 7, "cpu")


@pytest.mark.parametrize(("whole", "norm"), [(True, True), (True, False), (False, False)])
def test_every_part_keeps_its_mode(whole: bool, norm: bool) -> None:
    module = Counting().train(whole)
    module.norm.train(norm)
    latency(module, size=4, device="cpu", batch_size=1, warmup=0, repeats=5)
    assert (module.training, module.norm.training) == (whole, norm)


def test_the_mode_comes_back_after_an_error() -> None:
    module = nn.Sequential(nn.Linear(5, 5))
    with pytest.raises(RuntimeError):
        latency(module, size=4, device="cpu", batch_size=1)
    assert module.training
    assert module[0].training


@pytest.mark.parametrize("repeats", [0, 50])
def test_a_slow_module_is_still_timed_a_few_times(repeats: int) -> None:
    module = Counting(seconds=0.005)
    measured = latency(module, size=4, device="cpu", batch_size=1, repeats=repeats, max_seconds=0.001)
    assert measured.repeats == 5
    assert len(module.calls) == 6
    assert measured.p50_ms >= 5


def test_percentiles_of_a_known_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    durations = [1_000_000] + [1_000_000 * step for step in range(1, 102)]
    ticks = itertools.chain.from_iterable((0, duration) for duration in durations)
    monkeypatch.setattr(time, "perf_counter_ns", lambda: next(ticks))
    measured = latency(Counting(), size=1, device="cpu", batch_size=8, warmup=1, repeats=101, max_seconds=60)
    assert measured == Latency(
        p50_ms=51.0,
        p95_ms=96.0,
        p99_ms=100.0,
        images_per_second=pytest.approx(8 / 0.051),
        batch_size=8,
        repeats=101,
        device="cpu",
    )


@pytest.mark.parametrize("wrong", [{"size": 0}, {"batch_size": 0}, {"warmup": -1}, {"repeats": -1}])
def test_nonsense_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="expected size and batch_size"):
        latency(Counting(), **{"size": 4, "device": "cpu", "batch_size": 1} | wrong)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_device_is_waited_for() -> None:
    module = nn.Sequential(*[nn.Conv2d(3, 3, 3, padding=1) for _ in range(20)]).cuda()
    small = latency(module, size=16, device="cuda", batch_size=1)
    large = latency(module, size=512, device="cuda", batch_size=64)
    assert large.p50_ms > 2 * small.p50_ms
    assert large.device == "cuda"


def test_machine_is_plain_and_knows_itself() -> None:
    described = machine()
    assert set(described) >= {
        "platform",
        "processor",
        "cores",
        "torch_threads",
        "memory_bytes",
        "python",
        "gpu",
    }
    assert described["torch"] == torch.__version__
    assert all(value is None or type(value) in (str, int) for value in described.values())
    assert isinstance(described["cores"], int)
    assert described["cores"] >= 1
