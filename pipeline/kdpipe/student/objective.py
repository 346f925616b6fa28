"""What a student's answers to a batch cost: the terms of its loss, and their weighted sum, which a step goes down."""

from __future__ import annotations

from collections.abc import Callable

import torch

from kdpipe.models import Preset
from kdpipe.student.batches import Batch
from kdpipe.student.distillation import Distillation, Terms
from kdpipe.student.hard_labels import cross_entropy, mixed_cross_entropy, top1
from kdpipe.student.losses import DistillationLoss
from kdpipe.student.robust import Adversary
from kdpipe.student.rotation import Rotation

Forward = Callable[[torch.Tensor], torch.Tensor]
"""Normalised images, float32 ``(n, 3, H, W)``, to float32 logits ``(n, classes)``."""


class Objective:
    """The loss of one student; what is learned for it, and is no part of the student, is in ``beside``."""

    def __init__(
        self,
        preset: Preset,
        distillation: Distillation | None,
        *,
        label_smoothing: float,
        adversary: Adversary | None = None,
        rotation: Rotation | None = None,
    ) -> None:
        """Learn from ``distillation``, or without it from labels alone, and from ``rotation`` where there is one.

        ``adversary`` attacks the images of the former two.
        """
        self._preset, self._distillation, self._smoothing = preset, distillation, label_smoothing
        self._adversary = adversary
        self._signals = None if distillation is None else distillation.signals
        self._terms: Terms | None = None
        self._rotation = rotation
        self.beside = torch.nn.ModuleDict({} if self._signals is None else {**self._signals.projections})
        if rotation is not None:
            self.beside["rotation"] = rotation.head

    def begin(self, epoch: int, epochs: int) -> None:
        """Take the weights of ``epoch``, from 0, of ``epochs``."""
        self._terms = None if self._distillation is None else self._distillation.terms(epoch, epochs)

    @property
    def moving(self) -> dict[str, float]:
        """The epoch's weights and temperature, those that are not the same in every epoch."""
        return {} if self._terms is None else self._terms.moving

    def __call__(
        self, forward: Forward, batch: Batch, pixels: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the logits of a batch and the terms of its loss, means over the batch; ``loss`` is their sum.

        ``pixels`` are those of the batch that the student is shown, uint8 ``(n, 3, H, W)``. The logits are those that
        cross-entropy is of: of attacked images where there is an adversary and no teacher.
        """
        logits, attacked = self._logits(forward, batch, pixels)
        terms = {"ce": self._cross_entropy(logits, batch)}
        if attacked is not None:
            terms["adversarial_top1"] = top1(attacked, batch.labels)
        if self._terms is None or batch.soft_targets is None:
            terms["loss"] = terms["ce"]
        else:
            terms["kd"] = self._distilled(self._terms.loss, logits, attacked, batch)
            if self._signals is not None:
                of_layers = self._signals(batch.signals)
                terms |= {**of_layers, "kd": terms["kd"] + self._signals.weighted(of_layers)}
            terms["loss"] = self._terms.kd_weight * terms["kd"] + self._terms.ce_weight * terms["ce"]
        if self._rotation is not None:  # after the signals of the upright images were taken
            of_turns = self._rotation(forward, pixels)
            terms |= {**of_turns, "loss": terms["loss"] + self._rotation.weight * of_turns["rotation"]}
        return logits, terms

    def close(self) -> None:
        """Let go of the student."""
        if self._signals is not None:
            self._signals.close()
        if self._rotation is not None:
            self._rotation.close()

    def _logits(self, forward: Forward, batch: Batch, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the logits that cross-entropy is of, and those of the attacked images, the last that pass the model.

        What watches the model's layers for a distillation term sees attacked images.
        """
        if self._adversary is None:
            return forward(self._preset.normalize(pixels)), None
        taught = self._terms is not None and batch.soft_targets is not None
        images = self._adversary(forward, batch, pixels, taught=taught)
        clean = forward(self._preset.normalize(pixels)) if taught else None
        attacked = forward(images)
        return attacked if clean is None else clean, attacked

    def _distilled(
        self, loss: DistillationLoss, clean: torch.Tensor, attacked: torch.Tensor | None, batch: Batch
    ) -> torch.Tensor:
        """Return the distillation term: of the clean images, of the attacked ones, or of both by their shares."""
        assert batch.soft_targets is not None
        if self._adversary is None or attacked is None:
            return loss(clean, batch.soft_targets, batch.labels)
        term = loss(attacked, batch.soft_targets, batch.labels)
        share = self._adversary.clean_share
        return (1 - share) * term + share * loss(clean, batch.soft_targets, batch.labels) if share else term

    def _cross_entropy(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        if batch.second is None:
            return cross_entropy(logits, batch.labels, smoothing=self._smoothing)
        return mixed_cross_entropy(logits, batch.labels, batch.second, smoothing=self._smoothing)
