"""Curriculum: the samples of each epoch, of which the first epochs have only the easiest."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from blake3 import blake3

from kdpipe.training.schedule import Indices, Sampling


@dataclass(frozen=True, eq=False)
class Curriculum:
    """A pool of samples that grows from the easiest to all of them; each epoch draws as many as there are samples.

    Bengio, Louradour, Collobert and Weston, "Curriculum learning" (2009); samples ranked by a teacher and a pool that
    grows: Hacohen and Weinshall, "On the Power of Curriculum Learning in Training Deep Networks" (2019), with a pace
    that is linear here. The number of steps is that of a training without a curriculum.
    """

    ranked: Indices
    """All samples, the easiest first, ``(n,)``."""
    labels: npt.NDArray[np.int32]
    """The samples' classes, ``(n,)``; -1 for none."""
    share: float
    """Part of the samples in the pool of the first epoch, 0..1."""
    epochs: int
    """Epochs of the training; from half of them on the pool has all samples."""

    def pool(self, epoch: int) -> Indices:
        """Return the samples that an epoch from 0 draws from."""
        reached = min(1.0, epoch / max(1, self.epochs // 2))
        share = self.share + (1 - self.share) * reached
        return self.ranked[: max(1, round(share * len(self.ranked)))]

    @property
    def digest(self) -> str:
        """32 hex digits over everything that decides the draws, without the seed."""
        facts = f"{self.share!r} {self.epochs}".encode()
        return blake3(facts + self.ranked.astype("<i8").tobytes() + self.labels.astype("<i4").tobytes()).hexdigest(
            length=16
        )

    def draw(self, *, data_seed: int, epoch: int) -> Indices:
        """Return the samples of an epoch from 0 in ascending order, int64 ``(n,)``.

        A sample of the pool is there ``floor(n / pool)`` or ``ceil(n / pool)`` times.
        """
        weights = np.zeros(len(self.ranked))
        weights[self.pool(epoch)] = 1
        return Sampling.of(weights, self.labels).draw(data_seed=data_seed, epoch=epoch)
