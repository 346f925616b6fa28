"""How long a module takes per batch, as a user of it would wait."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from kdpipe.models import evaluating

MINIMUM_REPEATS = 5


@dataclass(frozen=True)
class Latency:
    """The distribution of the time of one forward pass, from a batch on the device to its logits."""

    p50_ms: float
    """Median, in milliseconds per batch."""
    p95_ms: float
    """95th percentile, in milliseconds per batch."""
    p99_ms: float
    """99th percentile, in milliseconds per batch; close to the slowest pass below 100 repeats."""
    images_per_second: float
    """Batch size over the median."""
    batch_size: int
    """Images per forward pass."""
    repeats: int
    """Passes that were timed."""
    device: str
    """Kind of device, such as ``cpu`` or ``cuda``."""


def latency(
    module: nn.Module,
    *,
    size: int,
    device: torch.device | str,
    batch_size: int,
    warmup: int = 10,
    repeats: int = 50,
    max_seconds: float = 5.0,
) -> Latency:
    """Time forward passes of ``module`` on a random float32 batch ``(batch_size, 3, size, size)``.

    The module must already be on ``device``. It runs in eval mode without gradients, and each of its parts is
    put back into the mode it was in. Warming up and measuring each stop after ``max_seconds``, but at least
    one pass warms up and at least ``MINIMUM_REPEATS`` are timed. The device is synchronised around each pass.

    Raises:
        ValueError: ``size`` or ``batch_size`` is not positive, or ``warmup`` or ``repeats`` is negative.

    """
    if size < 1 or batch_size < 1 or warmup < 0 or repeats < 0:
        raise ValueError(
            "expected size and batch_size of at least 1, warmup and repeats of at least 0, "
            f"got size={size}, batch_size={batch_size}, warmup={warmup}, repeats={repeats}"
        )
    device = torch.device(device)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch_size, 3, size, size, generator=generator).to(device)
    with evaluating(module), torch.inference_mode():
        _pass_times(module, images, at_least=1, at_most=warmup, max_seconds=max_seconds)
        times = _pass_times(module, images, at_least=MINIMUM_REPEATS, at_most=repeats, max_seconds=max_seconds)
    p50, p95, p99 = (float(value) for value in np.percentile(np.asarray(times) / 1e6, [50, 95, 99]))
    return Latency(
        p50_ms=p50,
        p95_ms=p95,
        p99_ms=p99,
        images_per_second=batch_size / max(p50 / 1e3, 1e-9),
        batch_size=batch_size,
        repeats=len(times),
        device=device.type,
    )


def _pass_times(
    module: nn.Module, images: torch.Tensor, *, at_least: int, at_most: int, max_seconds: float
) -> list[int]:
    """Return the nanoseconds of each pass; past ``max_seconds`` only ``at_least`` passes are completed."""
    times: list[int] = []
    while len(times) < max(at_least, at_most):
        _synchronise(images.device)
        start = time.perf_counter_ns()
        module(images)
        _synchronise(images.device)
        times.append(time.perf_counter_ns() - start)
        if len(times) >= at_least and sum(times) >= max_seconds * 1e9:
            break
    return times


def _synchronise(device: torch.device) -> None:
    """Wait until the device has finished what it was given; a CPU has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
