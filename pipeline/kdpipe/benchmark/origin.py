"""The origin of students: what each run was given, and what its training cost and saved."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Data, settings and lineage of a run; None and empty for what it did not record."""

    data: str | None = None
    """The dataset as the user wrote it."""
    samples: int | None = None
    """Training samples."""
    fingerprint: str | None = None
    """That of the training samples."""
    epochs: int | None = None
    batch_size: int | None = None
    optimizer: str | None = None
    recipe: str | None = None
    """Name of the recipe of the views."""
    views: int | None = None
    """Augmented views that it cycled through; None where each epoch had its own."""
    seeds: tuple[tuple[str, int], ...] = ()
    """Name and value of each seed."""
    stores: tuple[tuple[str, str], ...] = ()
    """Path and digest of each store that it learned from."""
    teachers: tuple[tuple[str, str], ...] = ()
    """Name and digest of each teacher that it learned from."""
    initial: tuple[str, str] | None = None
    """Name and digest of the weights that it began with."""
    parent: str | None = None
    """Directory of the run that it was compressed from."""
    parent_digest: str | None = None
    weights: str | None = None
    """Digest of its weights."""
    git_revision: str | None = None
    seconds: float | None = None
    """Duration of its training."""
    device: str | None = None
    command: str = ""
    """A command with the same settings; empty where they are not known."""


@dataclass(frozen=True, kw_only=True)
class LedgerLine:
    """The teacher passes that the runs of one student did not need, since a store had them."""

    student: str
    runs: int
    passes: int
    """Teacher passes over the training samples that were saved, all runs together."""
    saved_seconds: float | None
    """Duration of these passes at the speed of the cache; None where that is unknown."""
    training_seconds: float | None
    """Duration of the trainings, all runs together; None where one is unknown."""


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """The account of the stores: what filling them took, and what they saved."""

    store_seconds: float | None
    """Duration of the teacher passes that filled the stores; None where that is unknown."""
    lines: tuple[LedgerLine, ...] = ()

    @property
    def saved_seconds(self) -> float | None:
        """Duration of the saved passes of all students; None where one is unknown."""
        found = [line.saved_seconds for line in self.lines]
        known = [seconds for seconds in found if seconds is not None]
        return sum(known) if found and len(known) == len(found) else None

    @property
    def breaks_even(self) -> int | None:
        """Number of such runs, on average, after which the stores have saved what they took; None where unknown."""
        saved, runs = self.saved_seconds, sum(line.runs for line in self.lines)
        if self.store_seconds is None or not saved or not runs:
            return None
        return math.ceil(self.store_seconds / (saved / runs))


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
