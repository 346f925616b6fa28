"""The objective of a student: the terms of its loss, and the weighted sum that a step minimizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass

import torch

from kdpipe.distil.adversary import Adversary
from kdpipe.distil.curves import Curve
from kdpipe.distil.learned import LearnedTemperature
from kdpipe.distil.losses import DistillationLoss, Loss
from kdpipe.distil.rotation import Rotation
from kdpipe.distil.selection import COVERED, SelectedLoss, Selection
from kdpipe.distil.signals import SignalTerms
from kdpipe.errors import ParamsError, UnsupportedLossError
from kdpipe.models import AnyPreset, taking
from kdpipe.training.batches import Batch
from kdpipe.training.objective import CrossEntropy, Forward, top1


@dataclass(frozen=True)
class Terms:
    """The loss and the weights of one epoch."""

    loss: DistillationLoss
    kd_weight: float
    ce_weight: float
    moving: dict[str, float]
    """Those of ``kd_weight``, ``ce_weight`` and ``temperature`` that are not the same in every epoch."""


@dataclass(frozen=True)
class Distillation:
    """The distillation term and the weights of both terms, each constant or a curve over the epochs."""

    loss: Loss | DistillationLoss
    """Losses as written, or one as ``make`` returns it."""
    _: KW_ONLY
    temperature: Curve | None = None
    """Temperature of the losses that do not give their own; ``None`` for the published ones."""
    kd_weight: Curve | float | None = None
    """Weight of the distillation term; ``None`` for the published one, with its warm-up."""
    ce_weight: Curve | float | None = None
    """Weight of the cross-entropy to the labels; ``None`` for the published one."""
    signals: SignalTerms | None = None
    """Losses on layers, added to the distillation term."""
    selection: Selection | None = None
    """The classes and samples that have soft targets; ``None`` where all have."""

    def __post_init__(self) -> None:
        """Refuse a temperature that no loss takes.

        Raises:
            UnsupportedLossError: no loss takes the temperature, or one is given beside a loss that ``make`` returned.
            ParamsError: a weight is to be learned.
        """
        if self.temperature is not None:
            if isinstance(self.loss, Loss):
                self.loss.refuse_temperature(self.temperature.written)
            self._at(self.temperature.at(0, 1))
        for name, weight in (("kd-weight", self.kd_weight), ("ce-weight", self.ce_weight)):
            if isinstance(weight, Curve) and weight.is_learned:
                raise ParamsError(f"--{name} {weight.written} is for --temperature: give a number or another curve.")

    def terms(self, epoch: int, epochs: int, *, validated: Sequence[float] = ()) -> Terms:
        """Return the loss and the weights in ``epoch``, from 0, of a training of ``epochs``.

        ``validated`` are the validation accuracies of the epochs before.

        Raises:
            ParamsError: a weight follows them, and they are not there.
        """
        temperature = None if self.temperature is None else self.temperature.at(epoch, epochs, validated=validated)
        loss = self._at(temperature)
        kd_weight, ce_weight = self.kd_weight, self.ce_weight
        if kd_weight is None:
            kd_weight = Curve("constant", loss.kd_weight, warmup=loss.warmup_epochs)
        curves = {
            "kd_weight": _curve(kd_weight),
            "ce_weight": _curve(loss.ce_weight if ce_weight is None else ce_weight),
        }
        if self.temperature is not None and not self.temperature.is_learned:
            curves["temperature"] = self.temperature
        values = {name: curve.at(epoch, epochs, validated=validated) for name, curve in curves.items()}
        moving = {name: values[name] for name, curve in curves.items() if not curve.is_constant}
        return Terms(loss, values["kd_weight"], values["ce_weight"], moving)

    def learned_temperature(self) -> LearnedTemperature | None:
        """Return a temperature to learn, where one is asked for."""
        if self.temperature is None or not self.temperature.is_learned:
            return None
        return LearnedTemperature(self.temperature)

    def at(self, temperature: torch.Tensor) -> DistillationLoss:
        """Return the loss at a learned temperature."""
        return self._at(temperature)

    def _at(self, temperature: float | torch.Tensor | None) -> DistillationLoss:
        if isinstance(self.loss, Loss):
            return self.loss.at(temperature)
        if temperature is not None:
            raise UnsupportedLossError("a loss that was made has its temperature: pass a Loss, such as parse('kd').")
        return self.loss


def _curve(weight: Curve | float) -> Curve:
    return weight if isinstance(weight, Curve) else Curve("constant", weight)


class DistillationObjective:
    """The loss of one student that learns from a teacher, from attacked images, or with an auxiliary task."""

    of_labeled = frozenset({"ce", "adversarial_top1"})

    def __init__(
        self,
        preset: AnyPreset,
        distillation: Distillation | None,
        *,
        label_smoothing: float = 0.0,
        adversary: Adversary | None = None,
        rotation: Rotation | None = None,
        device: torch.device | None = None,
        separate: bool = False,
    ) -> None:
        """Add up the terms of ``distillation``, or without it cross-entropy alone, and of ``rotation``.

        ``adversary`` attacks the images of the former two. A learned temperature is on ``device`` (default: the CPU).
        With ``separate``, ``parts`` is set.
        """
        self._preset, self._distillation = preset, distillation
        self._cross_entropy = CrossEntropy(preset, label_smoothing=label_smoothing)
        self._adversary = adversary
        self._signals = None if distillation is None else distillation.signals
        chosen = None if distillation is None else distillation.selection
        self._selected = None if chosen is None or chosen.whole else SelectedLoss(chosen)
        self._terms: Terms | None = None
        self._rotation = rotation
        self.parts: tuple[torch.Tensor, torch.Tensor] | None = None
        """The last batch's loss without the distillation term, and that term times its weight."""
        self._separate = separate
        self.beside = torch.nn.ModuleDict({} if self._signals is None else {**self._signals.projections})
        """Projections, heads and a temperature that are learned with the student and are no part of it."""
        self._temperature = None if distillation is None else distillation.learned_temperature()
        if self._temperature is not None:
            self.beside["temperature"] = self._temperature.to(device)
        if rotation is not None:
            self.beside["rotation"] = rotation.head

    def begin(self, epoch: int, epochs: int, *, validated: Sequence[float] = ()) -> None:
        """Take the weights of ``epoch``, from 0, of ``epochs``; ``validated`` are the accuracies of those before.

        Raises:
            ParamsError: a weight follows the validation, and there is none.
        """
        if self._distillation is not None:
            self._terms = self._distillation.terms(epoch, epochs, validated=validated)
        if self._temperature is not None:
            self._temperature.begin(epoch)

    @property
    def moving(self) -> dict[str, float]:
        """The epoch's weights and temperature that differ between epochs; a learned temperature is the present one."""
        moving = {} if self._terms is None else self._terms.moving
        return moving if self._temperature is None else {**moving, "temperature": self._temperature().item()}

    def __call__(
        self, forward: Forward, batch: Batch, pixels: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the logits of a batch and the terms of its loss, means over the batch; ``loss`` is their sum.

        ``pixels`` are the batch's at the student's input size, uint8 ``(n, 3, H, W)``. The logits are those of the
        cross-entropy: of attacked images where there is an adversary and no teacher.
        """
        self.parts = None
        logits, attacked = self._logits(forward, batch, pixels)
        terms = {"ce": self._cross_entropy.of(logits, batch)}
        if attacked is not None:
            terms["adversarial_top1"] = top1(attacked, batch.labels)
        if self._terms is None or batch.soft_targets is None:
            terms["loss"] = terms["ce"]
        else:
            terms["kd"] = self._distilled(self._loss(self._terms), logits, attacked, batch)
            if self._signals is not None:
                of_layers = self._signals(batch.signals, batch.indices)
                terms |= {**of_layers, "kd": terms["kd"] + self._signals.weighted(of_layers)}
            rest, taught = self._terms.ce_weight * terms["ce"], self._terms.kd_weight * terms["kd"]
            self.parts = (rest, taught) if self._separate else None
            terms["loss"] = taught + rest
        if self._rotation is not None:  # after the signals of the upright images were taken
            of_turns = self._rotation(forward, pixels)
            turned = self._rotation.weight * of_turns["rotation"]
            terms |= {**of_turns, "loss": terms["loss"] + turned}
            self.parts = None if self.parts is None else (self.parts[0] + turned, self.parts[1])
        return logits, terms

    def close(self) -> None:
        """Remove all hooks from the student."""
        if self._signals is not None:
            self._signals.close()
        if self._rotation is not None:
            self._rotation.close()

    def _logits(self, forward: Forward, batch: Batch, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the logits of the cross-entropy, and those of the attacked images, computed last.

        Hooks on the student's layers therefore hold the signals of attacked images.
        """
        if self._adversary is None:
            with taking(self._preset):
                return forward(self._preset.normalize(pixels)), None
        taught = self._terms is not None and batch.soft_targets is not None
        images = self._adversary(forward, batch, pixels, taught=taught)
        clean = forward(self._preset.normalize(pixels)) if taught else None
        attacked = forward(images)
        return attacked if clean is None else clean, attacked

    def _loss(self, terms: Terms) -> DistillationLoss:
        """Return the epoch's loss, at the learned temperature where there is one."""
        if self._temperature is None or self._distillation is None:
            return terms.loss
        return self._distillation.at(self._temperature())

    def _distilled(
        self, loss: DistillationLoss, clean: torch.Tensor, attacked: torch.Tensor | None, batch: Batch
    ) -> torch.Tensor:
        """Return the distillation term: of the clean images, of the attacked ones, or of both by their shares."""
        assert batch.soft_targets is not None
        if self._adversary is None or attacked is None:
            if self._selected is not None:
                covered = batch.signals[COVERED]
                return self._selected.of(loss, clean, batch.soft_targets, batch.labels, covered=covered)
            return loss(clean, batch.soft_targets, batch.labels)
        term = loss(attacked, batch.soft_targets, batch.labels)
        share = self._adversary.clean_share
        return (1 - share) * term + share * loss(clean, batch.soft_targets, batch.labels) if share else term
