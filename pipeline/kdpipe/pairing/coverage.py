"""Coverage: which of the samples of a dataset a store has logits of, before anything else of the store is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kdpipe.dataset import Dataset, find_ids
from kdpipe.pairing.join import knows_pixels, moved_samples, with_store_ids
from kdpipe.pairing.recognition import differing
from kdpipe.progress import Progress, silent
from kdpipe.store.reader import LogitStore

_NAMED = 2
"""Samples that a message names."""


@dataclass(frozen=True)
class Coverage:
    """The samples of a split of a dataset that a store has."""

    split: str
    samples: int
    covered: int
    by_content: int
    """Those of ``covered`` that have another name in the store, and the same content."""
    by_pixels: int
    """Those of ``covered`` that have other bytes and the same pixels."""
    changed: int
    """Those of ``covered`` whose content has changed since the teacher's pass."""
    knows_pixels: bool
    """Whether the store tells a lossless copy from other pixels."""
    lacking: Sequence[str]
    """Keys of a few samples that the store lacks."""
    same_classes: bool

    @classmethod
    def of(cls, store: LogitStore, dataset: Dataset, *, progress: Progress = silent) -> Coverage:
        """Compare ids and contents; no plane is read."""
        known = with_store_ids(store, dataset, progress=progress)
        rows = find_ids(known.sample_ids, store.sample_ids)
        found = rows >= 0
        changed = differing(store, known, rows, progress=progress)
        saved_again = found & ~changed & (store.content_digests[rows] != known.content_digests).any(axis=1)
        moved = moved_samples(known) & found & ~changed & ~saved_again
        return cls(
            split=dataset.split,
            samples=len(dataset),
            covered=int(found.sum()),
            by_content=int(moved.sum()),
            by_pixels=int(saved_again.sum()),
            changed=int(changed.sum()),
            knows_pixels=knows_pixels(store),
            lacking=[known.keys[index] for index in np.flatnonzero(~found)[:_NAMED].tolist()],
            same_classes=tuple(dataset.classes) == store.classes,
        )

    @property
    def usable(self) -> int:
        """Samples that the store has, unchanged."""
        return self.covered - self.changed

    def __str__(self) -> str:
        """Return one line for a person."""
        parts = [f"{self.usable:,} of {self.samples:,} {self.split} images match"]
        if self.by_content:
            parts[0] += f", {self.by_content:,} by content"
        if self.by_pixels:
            parts[0] += f", {self.by_pixels:,} by pixels"
        if self.changed:
            parts.append(
                f"{self.changed:,} have the same names and other {'pixels' if self.knows_pixels else 'content'}"
            )
        if self.lacking:
            left = self.samples - self.covered - len(self.lacking)
            more = f" and {left:,} more" if left > 0 else ""
            parts.append(f"lacking: {', '.join(self.lacking)}{more}")
        if not self.same_classes:
            parts.append("the classes have other names or another order")
        return "; ".join(parts)
