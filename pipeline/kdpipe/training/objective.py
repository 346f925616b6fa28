"""Objectives: the protocol that a trainer minimizes, and cross-entropy to the labels, the simplest one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F

from kdpipe.models import AnyPreset, taking
from kdpipe.training.batches import Batch
from kdpipe.views import SecondLabels

Forward = Callable[[torch.Tensor], torch.Tensor]
"""Normalized images, float32 ``(n, 3, H, W)``, to float32 logits ``(n, classes)``."""


class Objective(Protocol):
    """The loss of one student, as the trainer sees it."""

    @property
    def beside(self) -> torch.nn.Module:
        """Modules that are learned with the student and are no part of it."""

    @property
    def moving(self) -> dict[str, float]:
        """The epoch's weights and temperature that differ between epochs, for the history."""

    @property
    def of_labeled(self) -> frozenset[str]:
        """Names of the terms that are means over the labeled samples of a batch."""

    @property
    def parts(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """The last batch's loss in two parts that may have separate momenta; ``None`` where it has one part."""

    def begin(self, epoch: int, epochs: int, *, validated: Sequence[float] = ()) -> None:
        """Prepare for ``epoch``, from 0, of ``epochs``.

        ``validated`` are the validation accuracies of the epochs before; empty without a validation. What depends on
        them is a function of them, so that it is the same in a run that was resumed.
        """

    def __call__(
        self, forward: Forward, batch: Batch, pixels: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the logits of a batch and the terms of its loss, scalars; ``loss`` is what is minimized.

        ``pixels`` are the batch's at the student's input size, uint8 ``(n, 3, H, W)``.
        """

    def close(self) -> None:
        """Remove all hooks from the student."""


class CrossEntropy:
    """Cross-entropy to the labels: one label for each sample, or two where a view mixes images."""

    moving: dict[str, float] = {}  # noqa: RUF012
    of_labeled = frozenset({"ce"})
    parts = None

    def __init__(self, preset: AnyPreset, *, label_smoothing: float = 0.0) -> None:
        """Normalize images by ``preset``."""
        self._preset, self._smoothing = preset, label_smoothing
        self.beside = torch.nn.ModuleDict()

    def begin(self, epoch: int, epochs: int, *, validated: Sequence[float] = ()) -> None:
        """Do nothing: every epoch is the same."""

    def __call__(
        self, forward: Forward, batch: Batch, pixels: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the logits of a batch and the terms ``ce`` and ``loss``, which are equal."""
        with taking(self._preset):
            logits = forward(self._preset.normalize(pixels))
        loss = self.of(logits, batch)
        return logits, {"ce": loss, "loss": loss}

    def of(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Return the mean cross-entropy of logits ``(n, classes)`` to the labels of a batch."""
        if batch.second is None:
            return cross_entropy(logits, batch.labels, smoothing=self._smoothing)
        return mixed_cross_entropy(logits, batch.labels, batch.second, smoothing=self._smoothing)

    def close(self) -> None:
        """Do nothing: there are no hooks."""


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor, *, smoothing: float = 0.0) -> torch.Tensor:
    """Return the mean cross-entropy of logits ``(n, classes)`` over the samples whose label is not -1.

    It is 0 where no sample has a label. With ``smoothing`` s each label is 1 - s of itself and s of the uniform
    distribution: Szegedy et al., "Rethinking the Inception Architecture for Computer Vision" (2016), section 7.
    """
    total = F.cross_entropy(logits, labels, ignore_index=-1, reduction="sum", label_smoothing=smoothing)
    return total / (labels >= 0).sum().clamp(min=1)


def top1(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the share of right answers among the samples whose label is not -1; 0 where no sample has a label."""
    correct = (logits.detach().argmax(dim=1) == labels).float().sum()
    return correct / (labels >= 0).sum().clamp(min=1)


def mixed_cross_entropy(
    logits: torch.Tensor, labels: torch.Tensor, second: SecondLabels, *, smoothing: float = 0.0
) -> torch.Tensor:
    """Return the cross-entropy of logits ``(n, classes)`` to two labels each, weighed by their shares of the image.

    Zhang et al., "mixup: Beyond Empirical Risk Minimization" (2018), section 2. A label of -1 counts for nothing; the
    mean is over the shares that have a label. ``smoothing`` is as in ``cross_entropy``.
    """
    own_share = torch.from_numpy(second.own_share).to(logits.device)
    total, weight = logits.new_zeros(()), logits.new_zeros(())
    for label, share in (
        (labels, own_share),
        (torch.from_numpy(second.labels.astype(np.int64)).to(logits.device), 1 - own_share),
    ):
        each = F.cross_entropy(logits, label, ignore_index=-1, reduction="none", label_smoothing=smoothing)
        total = total + (share * each).sum()
        weight = weight + share[label >= 0].sum()
    return total / weight.clamp(min=1e-6)
