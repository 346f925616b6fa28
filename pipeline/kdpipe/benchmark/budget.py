"""The budget of a training: the settings that a run and its baseline must share for a comparison."""

from __future__ import annotations

from dataclasses import dataclass

_SLACK = 0.05


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The training of a run, as far as a baseline must share it."""

    epochs: int | None = None
    samples: int | None = None
    """Training samples; None where the run did not record them."""
    batch_size: int | None = None
    optimizer: str | None = None
    recipe: str | None = None
    """Name and version."""
    data: tuple[str | None, int | None] = (None, None)
    """The dataset as the user wrote it, and the limit of its training samples."""
    fingerprint: str | None = None
    """That of the training samples."""
    left_out: int = 0
    """Samples that were left out because they had no label."""

    def difference(self, other: Budget) -> str | None:
        """Return in what ``other`` differs, as ``epochs 2, not 6``; None where the two can be compared.

        The number of samples over all epochs may differ by 5 %: epochs of labeled samples only are shorter.
        """
        if None not in (self.samples, other.samples, self.epochs, other.epochs):
            mine, its = (each.samples * each.epochs for each in (self, other))  # type: ignore[operator]
            if abs(mine - its) > _SLACK * max(mine, its):
                plural = "s" * (other.epochs != 1)
                return f"{its:,} images over {other.epochs} epoch{plural}, not {mine:,} over {self.epochs}"
        elif self.epochs != other.epochs:
            return f"epochs {other.epochs}, not {self.epochs}"
        for name in ("batch_size", "optimizer", "recipe"):
            mine, its = getattr(self, name), getattr(other, name)
            if mine != its:
                return f"{name.replace('_', ' ')} {its}, not {mine}"
        labeled_only = self.data == other.data and bool(self.left_out) != bool(other.left_out)
        if self.fingerprint != other.fingerprint and not labeled_only:
            return "other training images"
        return None
