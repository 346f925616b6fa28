"""What a store saved: the passes of the teacher that a student did not have to wait for."""

from __future__ import annotations

import math
from dataclasses import dataclass

from kdpipe.store import LogitStore


@dataclass(frozen=True)
class Savings:
    """A training from a store against the same training with the teacher in the loop."""

    passes: int
    """Passes of the teacher over the training samples that were not made."""
    samples: int
    seconds: float
    """What they would have taken at the speed at which the store was filled."""
    store_seconds: float
    """What filling the store took."""

    @property
    def students(self) -> int:
        """Number of such students after which the store has paid for itself."""
        return math.ceil(self.store_seconds / self.seconds)

    def __str__(self) -> str:
        """Say it in one line."""
        return (
            f"Saved {self.passes} passes of the teacher over {self.samples:,} images, about {self.seconds:.0f} s at "
            f"the speed of its cache; that took {self.store_seconds:.0f} s and pays for itself from student "
            f"{self.students} of this kind on."
        )


def savings(store: LogitStore, *, samples: int, epochs: int) -> Savings | None:
    """Compare ``epochs`` on ``samples`` images with what filling the store took; ``None`` where that is not known."""
    seconds = store.manifest.about.get("seconds")
    if not isinstance(seconds, int | float) or seconds <= 0 or store.manifest.fingerprint.precision == "imported":
        return None
    rows = sum(split.samples * split.planes for split in store.manifest.splits.values())
    return Savings(epochs, samples, epochs * samples * seconds / rows, seconds)
