"""Checks of a teacher before its pass: its logits depend on the image alone, and they are logits."""

from __future__ import annotations

import numpy as np
import torch

from kdpipe.errors import ModelError
from kdpipe.teacher.forward import FrozenTeacher
from kdpipe.teacher.recompute import TOLERANCES
from kdpipe.views import Renderer

_IMAGES = 24
"""Images that are passed twice; as many others take the place of half of them the third time."""
_SLACK = 10
"""Factor of the tolerance: dropout and batch statistics are far above it, the kernels of a GPU below."""
_SPREAD = 0.5
"""Smallest range of values in 0..1 that are the outputs of a sigmoid, and not small logits."""


def refuse_unfit(forward: FrozenTeacher, renderer: Renderer, *, name: str) -> None:
    """Pass some images twice, and half of them in another batch, and compare the outputs.

    Raises:
        ModelError: the outputs differ, are not finite, or are probabilities.
    """
    rows = np.arange(min(2 * _IMAGES, len(renderer.dataset)))
    first = rows[:_IMAGES]
    kept = first[: (len(first) + 1) // 2]
    once = forward(renderer(first, 0)).cpu()
    finite = torch.isfinite(once).all(dim=1)
    if not finite.any() or not np.isfinite(forward.probe()).all():
        raise ModelError(f"{name} returns logits that are not finite: check its weights, or pass --precision fp32.")
    if not finite.all():
        return  # the pass names the sample
    if _differ(once, forward(renderer(first, 0)).cpu(), forward):
        raise ModelError(
            f"{name} returns other logits when the same images are passed again: it draws at random, as dropout in "
            "training mode does. Put it into evaluation mode, also where its forward says training=True."
        )
    other = np.concatenate([kept[::-1], rows[_IMAGES:]])
    if _differ(once[: len(kept)], forward(renderer(other, 0)).cpu()[: len(kept)].flip(0), forward):
        raise ModelError(
            f"{name} returns other logits for an image in another batch, as batch norm in training mode does. Put it "
            "into evaluation mode, also where its forward says training=True."
        )
    refuse_probabilities(once, name=name)


def refuse_probabilities(logits: torch.Tensor, *, name: str) -> None:
    """Refuse outputs ``(n, classes)`` of a softmax or a sigmoid.

    Raises:
        ModelError: they are probabilities; the message has the remedy.
    """
    values = logits.double()
    if values.shape[1] < 2 or values.min() < 0:
        return
    if torch.allclose(values.sum(dim=1), torch.ones(len(values), dtype=values.dtype), atol=1e-2):
        raise ModelError(
            f"{name} returns probabilities: no value is negative, and each row sums to 1. Leave out its softmax, or "
            "return the logarithm of the probabilities; a second softmax would give wrong soft targets."
        )
    if values.max() <= 1 and values.max() - values.min() > _SPREAD:
        raise ModelError(
            f"{name} returns values in 0..1, as a sigmoid does. Leave out its sigmoid, or return torch.logit of the "
            "values; a softmax of them would give nearly equal soft targets."
        )


def _differ(expected: torch.Tensor, found: torch.Tensor, forward: FrozenTeacher) -> bool:
    """Return whether logits differ by more than the arithmetic, relative as in ``TOLERANCES``."""
    scale = (expected.amax(dim=1, keepdim=True) - expected).mean().clamp(min=1e-6)
    tolerance = _SLACK * TOLERANCES.get(forward.precision, TOLERANCES["fp32"])
    return not bool((found - expected).abs().mean() / scale <= tolerance)
