"""Attacks on a model (PGD), and adversarial training: on labels alone, or distillation with a teacher."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from kdpipe.models import Preset, evaluating
from kdpipe.models.layout import arranged
from kdpipe.progress import Progress, silent
from kdpipe.registry import Count, Range, Registry
from kdpipe.spec import shortest
from kdpipe.training.batches import Batch
from kdpipe.training.evaluation import plain_batches
from kdpipe.training.objective import cross_entropy, mixed_cross_entropy
from kdpipe.views import Renderer

Classifier = Callable[[torch.Tensor], torch.Tensor]
"""Images in 0..1, float32 ``(n, 3, H, W)``, to float32 logits ``(n, classes)``, each row a function of its image."""


class Attack(Protocol):
    """Changes images a little, so that a model does worse on them; ``str`` returns it as it is written."""

    def __call__(
        self,
        classify: Classifier,
        images: torch.Tensor,
        harm: Callable[[torch.Tensor], torch.Tensor],
        *,
        generator: torch.Generator | None = None,
    ) -> torch.Tensor:
        """Return ``images``, float32 ``(n, 3, H, W)`` in 0..1, changed so that ``harm``, a scalar of logits, is large.

        ``harm`` is a sum, or a weighted mean, over the rows of logits. Random numbers are drawn by ``generator``, or by
        torch's for the images' device.
        """


ATTACKS: Registry[Attack] = Registry("attack")
"""Every attack by the name that ``--adversarial`` takes, such as ``pgd:8/255,10``."""


@ATTACKS.register("pgd", source="Madry et al., 2018")
@dataclass(frozen=True)
class PGD:
    """Projected gradient descent in the ball of EPSILON around each image, in the maximum norm over its pixels.

    Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks" (2018), section 2.1: from a uniformly
    drawn point of the ball, steps along the sign of the gradient, each projected back to the ball and to valid images.
    """

    epsilon: Annotated[float, Range("above 0 and at most 1", lambda value: 0 < value <= 1)]
    """Largest change of a pixel in 0..1."""
    steps: Count

    @property
    def step_size(self) -> float:
        """Change of each pixel in a step: as in the paper, enough to reach the ball's edge from any start."""
        return 2.5 * self.epsilon / self.steps

    def __call__(
        self,
        classify: Classifier,
        images: torch.Tensor,
        harm: Callable[[torch.Tensor], torch.Tensor],
        *,
        generator: torch.Generator | None = None,
    ) -> torch.Tensor:
        """Return the attacked images; the starts are random, and the model's parameters get no gradient."""
        lowest, highest = (images - self.epsilon).clamp_(min=0), (images + self.epsilon).clamp_(max=1)
        device = images.device if generator is None else generator.device
        drawn = torch.rand(images.shape, generator=generator, device=device).to(images.device)
        moved = torch.clamp(images + self.epsilon * (2 * drawn - 1), lowest, highest)
        for _ in range(self.steps):
            moved = torch.clamp(moved + self.step_size * _uphill(classify, moved, harm).sign_(), lowest, highest)
        return moved

    def __str__(self) -> str:
        """Return the attack as it is written, its size as a fraction of 255 where it is one."""
        levels = round(self.epsilon * 255, 9)
        epsilon = f"{levels:.0f}/255" if levels == round(levels) else shortest(self.epsilon)
        return f"pgd:{epsilon},{self.steps}"


@torch.enable_grad()
def _uphill(classify: Classifier, images: torch.Tensor, harm: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """Return the gradient of ``harm`` by the images, each image's scaled by a positive number.

    At the logits each row is scaled to 1, which changes no sign: the gradient of a confident model would otherwise
    underflow in 16-bit arithmetic.
    """
    images = images.detach().requires_grad_()
    logits = classify(images)
    shown = logits.detach().requires_grad_()
    (slope,) = torch.autograd.grad(harm(shown), shown)
    steepest = slope.abs().amax(dim=1, keepdim=True)
    (gradient,) = torch.autograd.grad(logits, images, slope / steepest.where(steepest > 0, 1))
    return gradient


RobustLoss = Literal["ard", "rslad"]


@dataclass(frozen=True)
class Robust:
    """Adversarial training: the attack, and the terms that it attacks.

    Without a teacher it is the adversarial training of Madry et al., "Towards Deep Learning Models Resistant to
    Adversarial Attacks" (2018): cross-entropy on attacked images, which the attack maximizes.
    """

    attack: Attack
    loss: RobustLoss = "rslad"
    """The terms with a teacher.

    ``ard``: the distillation term on attacked images and cross-entropy on clean ones, as in Goldblum et al.,
    "Adversarially Robust Distillation" (2020); the attack maximizes cross-entropy to the labels. ``rslad``: the
    distillation term on attacked images and on clean ones, 5/6 and 1/6, as in Zi et al., "Revisiting Adversarial
    Robustness Distillation: Robust Soft Labels Make Student Better" (2021); the attack maximizes the KL to the soft
    targets.
    """

    @property
    def clean_share(self) -> float:
        """Weight of the clean images in the distillation term."""
        return 1 / 6 if self.loss == "rslad" else 0.0

    def harm(self, logits: torch.Tensor, batch: Batch, *, taught: bool) -> torch.Tensor:
        """Return the scalar that the attack maximizes, up to a constant, of logits ``(n, classes)``.

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
    """Attacks the images of a batch with the student's present weights."""

    def __init__(self, robust: Robust, module: torch.nn.Module, preset: Preset) -> None:
        """Attack ``module`` in evaluation mode: batch norms neither change nor depend on the batch."""
        self._robust, self._module, self._preset = robust, module, preset
        self.clean_share = robust.clean_share

    def __call__(
        self, forward: Callable[[torch.Tensor], torch.Tensor], batch: Batch, pixels: torch.Tensor, *, taught: bool
    ) -> torch.Tensor:
        """Return the attacked images of ``pixels``, uint8 ``(n, 3, H, W)``, normalized for the student.

        ``forward`` maps normalized images to logits; ``taught`` is whether this student learns from the soft targets.
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
    """Return which samples have no label of either of their images, bool ``(n,)``."""
    without = batch.labels < 0
    if batch.second is not None:
        without = without & torch.from_numpy(batch.second.labels < 0).to(without.device)
    return without


def predict_attacked(
    module: torch.nn.Module,
    renderer: Renderer,
    *,
    preset: Preset,
    attack: Attack,
    seed: int = 0,
    progress: Progress = silent,
) -> npt.NDArray[np.float32]:
    """Return float32 logits ``(n, classes)`` of the plain view of every sample, attacked where it has a label.

    The attack maximizes cross-entropy to the label, from starts drawn by ``seed``. The module must be on the renderer's
    device; its parts keep their modes.
    """
    dataset, generator = renderer.dataset, torch.Generator().manual_seed(seed)
    batches, blocks = plain_batches(renderer), []
    with evaluating(module), progress(f"attacking {dataset.split}", total=len(dataset)) as advance:
        for rows, pixels in zip(batches, renderer.batches(batches, view=0), strict=True):
            labels = torch.from_numpy(dataset.labels[rows].astype(np.int64)).to(renderer.device)
            images = attack(
                lambda images: module(arranged(preset.standardize(images), module)).float(),
                preset.scaled(pixels),
                partial(cross_entropy, labels=labels),
                generator=generator,
            )
            with torch.inference_mode():
                blocks.append(module(arranged(preset.standardize(images), module)).float().cpu())
            advance(len(rows))
    logits: npt.NDArray[np.float32] = torch.cat(blocks).numpy()
    return logits
