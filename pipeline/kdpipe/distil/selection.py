"""A student of the dataset's classes where the store has others: which columns and samples have soft targets.

The soft targets of such a student are the softmax over the store's columns of the classes that both have. A sample
without soft targets, because the store does not have it or its class, learns from its label alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from kdpipe.distil.losses import DistillationLoss
from kdpipe.training.batches import Signals, Targets

COVERED = "covered"
"""Name, among the signals of a batch, of the mask of the samples with soft targets."""


@dataclass(frozen=True, eq=False)
class Selection:
    """The classes and samples that a student and a store have in common."""

    classes: tuple[int, ...]
    """Indices of the student's classes that the store has."""
    columns: tuple[int, ...]
    """The store's column of each of them."""
    total: int
    """Number of the student's classes."""
    covered: npt.NDArray[np.bool_]
    """Which samples have soft targets, ``(n,)``."""

    @property
    def whole(self) -> bool:
        """Whether all classes and samples have soft targets."""
        return len(self.classes) == self.total and bool(self.covered.all())


class SelectedTargets:
    """Soft targets over some columns of another source's; that source is asked for every sample."""

    def __init__(self, targets: Targets, selection: Selection) -> None:
        """Take the columns of ``selection`` from ``targets``, which serve the same samples."""
        self._targets, self._columns = targets, torch.tensor(selection.columns)
        self._covered = None if selection.whole else torch.from_numpy(selection.covered)
        self.renderer = targets.renderer

    def start_epoch(self, view: int, next_view: int | None) -> None:
        """Prepare the source."""
        self._targets.start_epoch(view, next_view)

    def order(self, samples: npt.NDArray[np.int64], *, data_seed: int, epoch: int) -> npt.NDArray[np.int64] | None:
        """Return the order that the source needs."""
        return self._targets.order(samples, data_seed=data_seed, epoch=epoch)

    def skip(self, samples: int) -> None:
        """Skip samples of the source."""
        self._targets.skip(samples)

    def logits(self, indices: npt.NDArray[np.int64], pixels: torch.Tensor) -> torch.Tensor:
        """Return float32 ``(n, columns)``."""
        return self.take(indices, pixels)[0]

    def take(self, indices: npt.NDArray[np.int64], pixels: torch.Tensor) -> tuple[torch.Tensor, Signals]:
        """Return the selected columns, and the signals with the mask of the samples that have soft targets."""
        logits, signals = self._targets.take(indices, pixels)
        if self._covered is not None:
            signals = {**signals, COVERED: self._covered[torch.from_numpy(indices)].to(pixels.device)}
        return logits[:, self._columns.to(logits.device)], signals


class SelectedLoss:
    """A distillation loss over the classes and samples that have soft targets; the mean over those samples."""

    def __init__(self, selection: Selection) -> None:
        """Compare the student's logits of the classes of ``selection``."""
        place = np.full(selection.total + 1, -1, dtype=np.int64)
        place[list(selection.classes)] = np.arange(len(selection.classes))
        self._classes, self._place = torch.tensor(selection.classes), torch.from_numpy(place)

    def of(
        self,
        loss: DistillationLoss,
        logits: torch.Tensor,
        soft_targets: torch.Tensor,
        labels: torch.Tensor,
        *,
        covered: torch.Tensor,
    ) -> torch.Tensor:
        """Return the loss of logits ``(n, total)``; 0 where no sample has soft targets."""
        if not covered.any():
            return logits.sum() * 0
        chosen = logits[covered][:, self._classes.to(logits.device)]
        return loss(chosen, soft_targets[covered], self._place.to(labels.device)[labels[covered]])
