"""Teacher passes that a store saves."""

from __future__ import annotations

import math
from dataclasses import dataclass

from kdpipe.store.reader import LogitStore


@dataclass(frozen=True)
class Savings:
    """Trainings from a store, compared with the same trainings with a live teacher."""

    epochs: int
    """Teacher passes over the training samples that each student saved."""
    samples: int
    seconds: float
    """Duration of one student's passes at the speed of the cache."""
    store_seconds: float
    """Duration of the teacher pass that filled the store."""
    students: int = 1
    """Students that were trained to their end."""

    @property
    def passes(self) -> int:
        """Teacher passes that all students saved."""
        return self.students * self.epochs

    @property
    def pays_from(self) -> int:
        """Number of such students after which the store breaks even."""
        return math.ceil(self.store_seconds / self.seconds)

    def __str__(self) -> str:
        """Return one line for a person."""
        each = "" if self.students == 1 else f" ({self.epochs} for each of {self.students} students)"
        return (
            f"Saved {self.passes} passes of the teacher over {self.samples:,} images{each}, about "
            f"{self.students * self.seconds:.0f} s at the speed of its cache; that took {self.store_seconds:.0f} s and "
            f"breaks even after {self.pays_from} such student{'s' * (self.pays_from > 1)}."
        )


def savings(store: LogitStore, *, samples: int, epochs: int, students: int = 1) -> Savings | None:
    """Compare ``epochs`` of each of ``students`` on ``samples`` images with the teacher pass that filled the store.

    Returns ``None`` where its duration is unknown.
    """
    seconds = store.manifest.about.get("seconds")
    if not isinstance(seconds, int | float) or seconds <= 0 or store.manifest.fingerprint.precision == "imported":
        return None
    rows = sum(split.samples * split.planes for split in store.manifest.splits.values())
    return Savings(epochs, samples, epochs * samples * seconds / rows, seconds, students)
