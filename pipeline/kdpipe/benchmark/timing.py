"""Timings of networks: a workload is timed once, and every run of its network has that timing."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from blake3 import blake3

from kdpipe.models import InputSize, short_name

if TYPE_CHECKING:
    from torch import nn

WAITING = 1.2
"""Wall time over CPU time above which a workload is reported as waiting; it is 1 where one thread computes alone."""


@dataclass(frozen=True)
class Network:
    """A network as far as its time depends on it: layers, widths and input size, not the values of its weights."""

    architecture: str
    """Its name."""
    structure: str
    """Hex BLAKE3-64 of its layers and the shapes of its tensors."""
    size: int | str
    """Side of its input, in pixels, or its tensors in words."""

    @property
    def input(self) -> str:
        """Its input, for people."""
        return f"{self.size} px" if isinstance(self.size, int) else self.size

    @classmethod
    def of(cls, module: nn.Module, *, architecture: str, size: InputSize) -> Network:
        """Identify a module that takes images of ``size`` pixels, or tensors of that form."""
        shapes = [[key, str(tensor.dtype), list(tensor.shape)] for key, tensor in module.state_dict().items()]
        digest = blake3(json.dumps([repr(module), shapes]).encode())
        return cls(architecture, digest.hexdigest(length=8), size if isinstance(size, int) else str(size))


@dataclass(frozen=True, kw_only=True)
class Workload:
    """One way of running a network that is timed: engine, precision, threads, batch size, device."""

    network: Network
    engine: str = "eager"
    """Name of the engine; see ``kdpipe list engines``."""
    precision: str = "fp32"
    threads: int = 1
    """Threads within one operation."""
    batch_size: int = 1
    """Images per pass."""
    device: str = "cpu"

    @property
    def title(self) -> str:
        """Its parts, for people."""
        threads = f"{self.threads} thread{'s' * (self.threads > 1)}"
        network = f"{short_name(self.network.architecture)} at {self.network.input}"
        return f"{network}, {self.engine} {self.precision}, {threads}, batch {self.batch_size}, {self.device}"


@dataclass(frozen=True, kw_only=True)
class Start:
    """One start of a process that loads a network from its file and passes images to it."""

    load_ms: float
    """From opening the file to the logits of the first image, in milliseconds, after the libraries are imported."""
    libraries_bytes: int
    """Resident memory of the process before it opens the file: Python and the libraries of the engine."""
    peak_bytes: int
    """Highest resident memory of the process during passes of the workload's batch size."""


NEGLIGIBLE = 0.02
"""Relative difference of two latencies that nobody would ship another network for, however surely it is there."""


class Interval(NamedTuple):
    """An interval that contains a median with a confidence of at least 95 %."""

    low: float
    high: float


@dataclass(frozen=True)
class Latency:
    """A median latency in milliseconds, with its interval and the rounds that it is of."""

    ms: float
    low: float
    high: float
    rounds: tuple[float, ...] = ()
    """Median of each round, in the order of the rounds; empty where they are unknown."""

    def faster_than(self, other: Latency) -> bool:
        """Whether this latency is significantly lower than another one.

        Two workloads of the same rounds are compared within each round, where the state of the machine is the same:
        the interval of the median ratio must lie below ``1 - NEGLIGIBLE``. Of fewer than six common rounds the
        intervals of the two medians must be apart.
        """
        ratios = [mine / its for mine, its in zip(self.rounds, other.rounds, strict=False)]
        found = median_interval(ratios)
        return self.high < other.low if found is None else found.high < 1 - NEGLIGIBLE

    def equals(self, other: Latency) -> bool:
        """Whether neither is significantly lower than the other."""
        return not self.faster_than(other) and not other.faster_than(self)


@dataclass(frozen=True, kw_only=True)
class Timing:
    """The timed passes of a workload, by round: from a uint8 batch in memory to its logits in memory."""

    wall_ns: tuple[tuple[int, ...], ...]
    """Nanoseconds of each pass, by round; there is at least one of each."""
    cpu_ns: tuple[tuple[int, ...], ...]
    """CPU nanoseconds of the process, all threads together, of the same passes."""
    batch_size: int
    device: str
    difference: float | None = None
    """Largest absolute difference of its logits from those of eager fp32, on the images that were checked."""
    agreement: float | None = None
    """Fraction of the checked images with the same top-1 class as eager fp32."""
    start: Start | None = None
    """Load time and peak memory; None where they were not measured."""

    @property
    def rounds(self) -> int:
        """Rounds in which it was timed."""
        return len(self.wall_ns)

    @property
    def repeats(self) -> int:
        """Timed passes of all rounds."""
        return sum(map(len, self.wall_ns))

    @property
    def p50_ms(self) -> float:
        """Median over the rounds of the median pass of each, in milliseconds per batch."""
        return median(map(median, self.wall_ns)) / 1e6

    @property
    def p90_ms(self) -> float:
        """90th percentile of all passes, in milliseconds per batch."""
        return self._percentile(90)

    @property
    def p95_ms(self) -> float:
        """95th percentile of all passes, in milliseconds per batch."""
        return self._percentile(95)

    @property
    def p99_ms(self) -> float:
        """99th percentile of all passes, in milliseconds per batch; close to the slowest below 100 passes."""
        return self._percentile(99)

    @property
    def interval_ms(self) -> Interval | None:
        """Interval of ``p50_ms`` with a confidence of at least 95 %; None for fewer than six rounds."""
        found = median_interval([median(passes) for passes in self.wall_ns])
        return None if found is None else Interval(found.low / 1e6, found.high / 1e6)

    @property
    def latency(self) -> Latency:
        """The median with its interval; of fewer than six rounds, with their whole extent."""
        rounds = tuple(median(passes) / 1e6 for passes in self.wall_ns)
        low, high = self.interval_ms or (min(rounds), max(rounds))
        return Latency(self.p50_ms, low, high, rounds)

    @property
    def cpu_ms(self) -> float:
        """Median over the rounds of the median CPU time of a pass, in milliseconds per batch, all threads together."""
        return median(map(median, self.cpu_ns)) / 1e6

    @property
    def wall_over_cpu(self) -> float | None:
        """Wall time over CPU time of all passes; None on another device, whose work takes no CPU time.

        It is about 1 for one thread and less for several. Above that, the process waited, usually for a core.
        """
        used = sum(chain.from_iterable(self.cpu_ns))
        return sum(chain.from_iterable(self.wall_ns)) / used if self.device == "cpu" and used else None

    @property
    def images_per_second(self) -> float:
        """Batch size over the median."""
        return self.batch_size / max(self.p50_ms / 1e3, 1e-9)

    def _percentile(self, percent: float) -> float:
        return float(np.percentile(list(chain.from_iterable(self.wall_ns)), percent)) / 1e6


def median_interval(values: Sequence[float]) -> Interval | None:
    """Return the interval between two order statistics that holds the median with a confidence of at least 95 %.

    It holds for any distribution of independent values: the number of values below the median is binomial with
    p = 1/2 (Conover, "Practical Nonparametric Statistics", 1999, section 3.2). None for fewer than six values.
    """
    count, ordered = len(values), sorted(values)
    tails = [sum(math.comb(count, k) for k in range(rank)) / 2**count for rank in range(1, count // 2 + 1)]
    rank = sum(tail <= 0.025 for tail in tails)
    return Interval(ordered[rank - 1], ordered[count - rank]) if rank else None


@dataclass(frozen=True, kw_only=True)
class Cost:
    """The cost of a network that is the same on every machine."""

    parameters: int
    """Number of parameters."""
    macs: int | None
    """Multiply-accumulates of one image; None where they cannot be counted."""
    format_bytes: Mapping[str, int] = field(default_factory=dict)
    """Size on disk by format, such as ``safetensors``, ``onnx`` and ``onnx int8``."""


@dataclass(frozen=True, kw_only=True)
class Load:
    """The load of the machine while the rounds were timed."""

    cores: int
    """Logical cores."""
    before: float | None = None
    """Load average of one minute before the first round; None where the system has none."""
    after: float | None = None
    """The same after the last round."""
    others: float | None = None
    """Cores that other processes kept busy during the rounds, on average; None where it cannot be determined."""

    @property
    def busy(self) -> bool:
        """Whether other processes took more than a tenth of the cores, or the load average says so before."""
        if self.others is not None:
            return self.others > 0.1 * self.cores
        return self.before is not None and self.before > 0.5 * self.cores


def shipped_timings(timings: Mapping[Workload, Timing], engine: str = "") -> dict[int, Timing]:
    """Return the timings of ``engine``, or of the first engine, by batch size.

    Of several precisions, numbers of threads or devices the first is taken.
    """
    first = next((each for each in timings if engine in ("", each.engine)), None)
    if first is None:
        return {}
    return {
        each.batch_size: timing
        for each, timing in timings.items()
        if replace(first, batch_size=each.batch_size) == each
    }


def waiting(timings: Mapping[Workload, Timing]) -> list[Workload]:
    """Return the workloads whose wall time is above ``WAITING`` times their CPU time."""
    return [
        workload
        for workload, timing in timings.items()
        if timing.wall_over_cpu is not None and timing.wall_over_cpu > WAITING
    ]


def warnings(timings: Mapping[Workload, Timing], load: Load) -> list[str]:
    """Return one sentence for each reason to doubt the timings."""
    found, waited = [], waiting(timings)
    if load.busy:
        average = " and ".join(f"{each:.1f}" for each in (load.before, load.after) if each is not None)
        others = "" if load.others is None else f"other processes kept {load.others:.1f} of {load.cores} cores busy"
        found.append(
            f"the machine was busy while the networks were timed: {others or f'load average {average}'}"
            f"{f' (load average {average})' if others and average else ''}. Wall times are too high, those of slow "
            "networks most; CPU times are nearly those of an idle machine."
        )
    if waited:
        worst = max(waited, key=lambda each: timings[each].wall_over_cpu or 0.0)
        found.append(
            f"{len(waited)} of {len(timings)} workloads waited for a core: their wall time is more than {WAITING:g} "
            f"times their CPU time, {timings[worst].wall_over_cpu:.1f} times for {worst.title}."
        )
    few = {timing.rounds for timing in timings.values() if timing.rounds < 20}
    if few:
        found.append(f"some workloads were timed in {min(few)} rounds only; decide by 20 or more (--rounds).")
    return found
