"""What a store saved: the passes of the teacher that a student did not have to wait for."""

from __future__ import annotations

import math
from dataclasses import dataclass

from kdpipe.store.reader import LogitStore


@dataclass(frozen=True)
class Savings:
    """Trainings from a store against the same trainings, each with the teacher in its loop."""

    epochs: int
    """Passes of the teacher over the training samples that each student did not have to wait for."""
    samples: int
    seconds: float
    """What those of one student would have taken at the speed at which the store was filled."""
    store_seconds: float
    """What filling the store took."""
    students: int = 1
    """Students that were trained to their end."""

    @property
    def passes(self) -> int:
        """Passes that were not made for all students together."""
        return self.students * self.epochs

    @property
    def pays_from(self) -> int:
        """Number of such students after which the store has paid for itself."""
        return math.ceil(self.store_seconds / self.seconds)

    def __str__(self) -> str:
        """Say it in one line."""
        each = "" if self.students == 1 else f" ({self.epochs} for each of {self.students} students)"
        return (
            f"Saved {self.passes} passes of the teacher over {self.samples:,} images{each}, about "
            f"{self.students * self.seconds:.0f} s at the speed of its cache; that took {self.store_seconds:.0f} s and "
            f"pays for itself from student {self.pays_from} of this kind on."
        )


def savings(store: LogitStore, *, samples: int, epochs: int, students: int = 1) -> Savings | None:
    """Compare ``epochs`` of each of ``students`` on ``samples`` images with what filling the store took.

    ``None`` where that is not known.
    """
    seconds = store.manifest.about.get("seconds")
    if not isinstance(seconds, int | float) or seconds <= 0 or store.manifest.fingerprint.precision == "imported":
        return None
    rows = sum(split.samples * split.planes for split in store.manifest.splits.values())
    return Savings(epochs, samples, epochs * samples * seconds / rows, seconds, students)
