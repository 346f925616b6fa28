"""Comparing times on a machine that others use too: interleaved rounds, ratios within a round, their median."""

from __future__ import annotations

import math
import os
import platform
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Any

import torch


def interleaved(
    ways: Mapping[str, Callable[[], float]], *, rounds: int, seed: int | None = None
) -> dict[str, list[float]]:
    """Run every way once per round; ways return their own seconds.

    Every other round is in reverse order, or each in an order drawn by ``seed``.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    random = None if seed is None else Random(seed)
    for number in range(rounds):
        order = list(ways) if number % 2 == 0 else list(ways)[::-1]
        if random is not None:
            random.shuffle(order)
        for name in order:
            seconds[name].append(ways[name]())
        print(
            f"round {number + 1}/{rounds}: " + ", ".join(f"{name} {seconds[name][-1]:.3g} s" for name in ways),
            flush=True,
        )
    return seconds


def ratio(numerator: Sequence[float], denominator: Sequence[float]) -> dict[str, Any]:
    """Return the median of the ratios within each round, and its interval of at least 95 % confidence.

    The interval is that between two order statistics, which holds for any distribution; ``None`` for fewer than six
    rounds, which cannot give one.
    """
    ratios = sorted(one / other for one, other in zip(numerator, denominator, strict=True))
    count = len(ratios)
    tails = [sum(math.comb(count, k) for k in range(rank)) / 2**count for rank in range(1, count // 2 + 1)]
    rank = sum(tail <= 0.025 for tail in tails)
    interval = [ratios[rank - 1], ratios[count - rank]] if rank else None
    return {"median": statistics.median(ratios), "interval_95": interval, "rounds": count}


def machine() -> dict[str, Any]:
    """Describe what the times were measured on."""
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": sys.version.split()[0],
        "torch": torch.__version__,
    }
