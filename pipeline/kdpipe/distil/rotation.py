"""Auxiliary tasks, which need no labels: predicting by how many quarter turns an image was rotated.

Gidaris, Singh and Komodakis, "Unsupervised Representation Learning by Predicting Image Rotations" (2018), is the idea;
added to another loss it is that of Hendrycks et al., "Using Self-Supervised Learning Can Improve Model Robustness and
Uncertainty" (2019), with one drawn turn for each image where they take all four.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import nn

from kdpipe.errors import ModelError
from kdpipe.models import Preset
from kdpipe.models.signals import FEATURES, PENULTIMATE, Signal, Watch
from kdpipe.registry import Positive, Registry
from kdpipe.spec import shortest

TURNS = 4
"""No turn, and one, two and three quarter turns."""
_PENULTIMATE = Signal(FEATURES, PENULTIMATE)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


class Auxiliary(Protocol):
    """An auxiliary task as it is written."""

    def attach(self, student: nn.Module, preset: Preset, *, name: str, seed: int, device: torch.device) -> Rotation:
        """Hook the task onto ``student``, called ``name`` in errors, with its head drawn by ``seed``."""


AUXILIARY_TASKS: Registry[Auxiliary] = Registry("auxiliary task")
"""Every auxiliary task by the name that ``--aux`` takes."""


@AUXILIARY_TASKS.register("rotation", source="Hendrycks et al., 2019")
@dataclass(frozen=True)
class RotationTask:
    """Predict by which quarter turn each image was rotated."""

    weight: Positive = 0.5
    """Weight in the loss: that of Hendrycks et al., in their code for adversarial training and corrupted labels."""

    def attach(self, student: nn.Module, preset: Preset, *, name: str, seed: int, device: torch.device) -> Rotation:
        """Hook the task onto ``student``; see ``Rotation``."""
        return Rotation(student, preset, weight=self.weight, name=name, seed=seed, device=device)

    def __str__(self) -> str:
        """Return the task as it is written."""
        return f"rotation:{shortest(self.weight)}"


class Rotation:
    """The rotation task of one student: a linear head on its penultimate features of rotated images."""

    def __init__(
        self, student: nn.Module, preset: Preset, *, weight: float, name: str, seed: int, device: torch.device
    ) -> None:
        """Hook onto ``student``, called ``name`` in errors; ``weight`` is that of the task in its loss.

        The head is drawn by ``seed``, whatever has been drawn before, and moved to ``device``.

        Raises:
            ModelError: the student has no penultimate features.
        """
        self.weight = weight
        self._preset = preset
        try:
            self._watch = Watch(student, [_PENULTIMATE], size=preset.size, name=name)
        except ModelError:
            raise ModelError(
                f"no layer of {name} makes its logits, so it has no penultimate features for the task. Leave out "
                "--aux, or take another model."
            ) from None
        norms = [part for part in student.modules() if isinstance(part, _BATCH_NORMS)]
        self._norms = [norm for norm in norms if norm.track_running_stats]
        (dim,) = self._watch.shapes[str(_PENULTIMATE)]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            head = nn.Linear(dim, TURNS)
        self.head = head.to(device)
        """Penultimate features to the logits of the turns; learned beside the student, and not part of it."""

    def __call__(
        self, forward: Callable[[torch.Tensor], torch.Tensor], pixels: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Rotate each image by a random turn, and return the head's cross-entropy and accuracy.

        ``forward`` runs the student on normalized images, float32 ``(n, 3, S, S)``; ``pixels`` are uint8 of that shape.
        Both are means over all images, ``rotation`` in nats without its weight, ``rotation_top1`` as a share.
        """
        turns = torch.randint(TURNS, (len(pixels),), device=pixels.device)
        with self._running_statistics_kept():
            forward(self._preset.normalize(turned(pixels, turns)))
        predicted = self.head(self._watch.take()[str(_PENULTIMATE)])
        top1 = (predicted.detach().argmax(dim=1) == turns).float().mean()
        return {"rotation": F.cross_entropy(predicted, turns), "rotation_top1": top1}

    def close(self) -> None:
        """Remove the hook from the student."""
        self._watch.close()

    @contextmanager
    def _running_statistics_kept(self) -> Iterator[None]:
        """Normalize by the batch alone: running statistics are those of upright images."""
        for norm in self._norms:
            norm.track_running_stats = False
        try:
            yield
        finally:
            for norm in self._norms:
                norm.track_running_stats = True


def turned(pixels: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
    """Return square images ``(n, channels, S, S)``, rotated counterclockwise by quarter ``turns``, ``(n,)``, 0..3."""
    result = pixels
    for turn in range(1, TURNS):
        result = torch.where((turns == turn)[:, None, None, None], torch.rot90(pixels, turn, dims=(2, 3)), result)
    return result
