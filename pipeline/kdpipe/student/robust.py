"""Learning from attacked images: adversarial training on labels alone, robust distillation with a teacher.

The teacher's soft targets are those of the clean images throughout.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F

from kdpipe.models import Preset, evaluating
from kdpipe.student.attack import Attack
from kdpipe.student.batches import Batch
from kdpipe.student.hard_labels import cross_entropy, mixed_cross_entropy

RobustLoss = Literal["ard", "rslad"]


@dataclass(frozen=True)
class Robust:
    """How a student learns from attacked images.

    Without a teacher it is the adversarial training of Madry et al., "Towards Deep Learning Models Resistant to
    Adversarial Attacks" (2018): cross-entropy on attacked images, which the attack maximises.
    """

    attack: Attack
    loss: RobustLoss = "rslad"
    """What is learned with a teacher.

    ``ard``: the distillation term on attacked images and cross-entropy on clean ones, as in Goldblum et al.,
    "Adversarially Robust Distillation" (2020); the attack maximises cross-entropy to the labels. ``rslad``: the
    distillation term on attacked images and on clean ones, 5/6 and 1/6, as in Zi et al., "Revisiting Adversarial
    Robustness Distillation: Robust Soft Labels Make Student Better" (2021); the attack maximises the KL to the soft
    targets.
    """

    @property
    def clean_share(self) -> float:
        """Share of the distillation term that is of the clean images."""
        return 1 / 6 if self.loss == "rslad" else 0.0

    def harm(self, logits: torch.Tensor, batch: Batch, *, taught: bool) -> torch.Tensor:
        """Return what the attack maximises, up to what does not depend on the logits ``(n, classes)``: a scalar.

        Cross-entropy to the label, or to both of a mixed image, without smoothing; with ``rslad`` and a teacher, for
        all samples, and with ``ard``, for those without a label, the KL to the soft targets at temperature 1.
        """
        soft_targets = batch.soft_targets if taught else None
        if soft_targets is not None and self.loss == "rslad":
            return _divergence(logits, soft_targets).sum()
        if batch.second is None:
            harm = cross_entropy(logits, batch.labels)
        else:
            harm = mixed_cross_entropy(logits, batch.labels, batch.second)
        if soft_targets is not None:
            harm = harm + _divergence(logits, soft_targets)[_without_label(batch)].sum()
        return harm


class Adversary:
    """Attacks the images that a student is about to learn from, as it is at that step."""

    def __init__(self, robust: Robust, module: torch.nn.Module, preset: Preset) -> None:
        """Attack ``module`` in evaluation mode: its batch norms neither see the attempts nor depend on the batch."""
        self._robust, self._module, self._preset = robust, module, preset
        self.clean_share = robust.clean_share

    def __call__(
        self, forward: Callable[[torch.Tensor], torch.Tensor], batch: Batch, pixels: torch.Tensor, *, taught: bool
    ) -> torch.Tensor:
        """Return the attacked images of ``pixels``, uint8 ``(n, 3, H, W)``, normalised for the student.

        ``forward`` takes normalised images to logits; ``taught`` says whether the soft targets of the batch are meant
        for this student.
        """
        with evaluating(self._module):
            images = self._robust.attack(
                lambda images: forward(self._preset.standardize(images)),
                self._preset.scaled(pixels),
                lambda logits: self._robust.harm(logits, batch, taught=taught),
            )
        return self._preset.standardize(images)


def _divergence(logits: torch.Tensor, soft_targets: torch.Tensor) -> torch.Tensor:
    """Return the KL from the soft targets plus their entropy, ``(n,)``: the gradient is that of the KL."""
    return F.cross_entropy(logits, soft_targets.softmax(dim=1), reduction="none")


def _without_label(batch: Batch) -> torch.Tensor:
    """Say which samples have no label of either of their images, ``(n,)``."""
    without = batch.labels < 0
    if batch.second is not None:
        without = without & torch.from_numpy(batch.second.labels < 0).to(without.device)
    return without
