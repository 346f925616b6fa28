"""Latency of a module, and a description of the machine that it was measured on."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from torch import nn

from kdpipe.models import evaluating

MINIMUM_REPEATS = 5
CPUINFO = Path("/proc/cpuinfo")


@dataclass(frozen=True)
class Latency:
    """Distribution of the time of one forward pass, from a batch on the device to its logits."""

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

    The module must already be on ``device``. It runs in evaluation mode without gradients; afterwards each of its parts
    is in its former mode. Warm-up and measurement each stop after ``max_seconds``, with at least one pass of warm-up
    and at least ``MINIMUM_REPEATS`` timed passes. The device is synchronized around each pass.

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
    """Return the nanoseconds of each pass; after ``max_seconds`` it stops as soon as there are ``at_least``."""
    times: list[int] = []
    while len(times) < max(at_least, at_most):
        _synchronize(images.device)
        start = time.perf_counter_ns()
        module(images)
        _synchronize(images.device)
        times.append(time.perf_counter_ns() - start)
        if len(times) >= at_least and sum(times) >= max_seconds * 1e9:
            break
    return times


def _synchronize(device: torch.device) -> None:
    """Wait until the device has finished its queued work; a CPU has none."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def machine() -> dict[str, str | int | None]:
    """Return a description of this machine as JSON values; None for what cannot be determined.

    ``platform``, ``processor`` (model name), ``cores`` (logical, usable by this process), ``torch_threads``,
    ``memory_bytes``, ``python``, ``torch``, ``torchvision`` and ``gpu`` (its name).
    """
    return {
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": _cores(),
        "torch_threads": torch.get_num_threads(),
        "memory_bytes": _memory_bytes(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),  # a subclass of str
        "torchvision": _version("torchvision"),
        "gpu": _gpu(),
    }


def _processor() -> str | None:
    if CPUINFO.exists():
        found = re.search(r"^model name\s*:\s*(.+)$", CPUINFO.read_text(errors="replace"), flags=re.MULTILINE)
        if found:
            return found[1].strip()
    if platform.system() == "Darwin":
        command = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
        try:
            asked = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
        except (OSError, subprocess.SubprocessError):
            pass
        else:
            return asked.stdout.strip() or None
    return platform.processor() or platform.machine() or None


def _cores() -> int | None:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _gpu() -> str | None:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    if torch.backends.mps.is_available():
        return "Apple GPU (mps)"
    return None
