"""Forecast of a store before it is made: seconds, bytes and files, and the students after which it pays for itself.

The rates are measured on a pilot of the images; everything else is arithmetic.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Limit = Literal["rendering", "teacher", "encoding"]


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Seconds on this machine. A row is one view of one sample."""

    start: float
    """From the first request to the first batch of images."""
    plain: float
    """Rendering and teacher together, for a row of the plain view."""
    augmented: float
    """The same for a row of an augmented view."""
    render: float
    """Rendering an augmented row in one process."""
    forward: float
    """The teacher's forward pass of a row on one device."""
    encode: float
    """Encoding and compressing a row in one thread."""
    processes: int
    """Processes that render."""
    shared: bool
    """Whether rendering, teacher and encoding share the same cores, as on a CPU."""


@dataclass(frozen=True, kw_only=True)
class Pass:
    """The teacher pass that fills a store."""

    devices: int
    seconds: float
    limit: Limit
    """The slowest part, if the three parts overlap."""
    processes: int
    """Processes that would have to render so that rendering is not the limit."""


def teacher_pass(rates: Rates, *, plain: int, augmented: int, devices: int = 1) -> Pass:
    """Return the forecast for ``plain`` and ``augmented`` rows on ``devices``.

    Several CPUs are machines of this kind; several other devices are in this machine, and share its processes.
    """
    rows = plain + augmented
    parts: dict[Limit, float] = {
        "rendering": rates.render / (rates.processes * (devices if rates.shared else 1)),
        "teacher": rates.forward / devices,
        "encoding": rates.encode / devices,
    }
    if rates.shared:
        busy = plain * rates.plain + augmented * rates.augmented + rows * rates.encode / max(1, rates.processes)
        seconds = rates.start + busy / devices
    elif devices == 1:
        seconds = rates.start + max(plain * rates.plain + augmented * rates.augmented, rows * rates.encode)
    else:
        seconds = rates.start + rows * max(parts.values())
    needed = math.ceil(rates.render / max(parts["teacher"], parts["encoding"], 1e-9))
    return Pass(devices=devices, seconds=seconds, limit=max(parts, key=parts.__getitem__), processes=max(1, needed))


@dataclass(frozen=True, kw_only=True)
class Training:
    """One student's training, against the store and with a live teacher."""

    samples: int
    epochs: int
    cached: float
    """Seconds of a sample in an epoch against the store."""
    live: float
    """Seconds of a sample in an epoch with the teacher in the loop."""

    @property
    def epoch_seconds(self) -> float:
        """Seconds of an epoch against the store, without its evaluation."""
        return self.samples * self.cached

    @property
    def live_epoch_seconds(self) -> float:
        """Seconds of an epoch with a live teacher."""
        return self.samples * self.live

    def pays_from(self, store_seconds: float) -> int | None:
        """Return the number of students whose trainings save the seconds of the pass; None if they save nothing."""
        saved = self.epochs * (self.live_epoch_seconds - self.epoch_seconds)
        return math.ceil(store_seconds / saved) if saved > 0 else None
