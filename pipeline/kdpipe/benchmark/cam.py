"""Grad-CAM: the places of an image that raise the score of a class, for a teacher and its students on the same images.

Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-Based Localization" (2017), equations 1
and 2, at the last layer that has positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from kdpipe import models
from kdpipe.metrics import Figure
from kdpipe.models import Model, evaluating, of_images
from kdpipe.models.layout import arranged
from kdpipe.views import Geometry, Renderer

TOP_SHARE = 0.2
"""Fraction of the pixels of a map that are compared: those with the largest values."""
BY_CHANCE = TOP_SHARE / (2 - TOP_SHARE)
"""Overlap of two sets of that size that are independent of each other: about 0.11."""
_SIDE = 64
"""Side of the maps that are compared, in pixels."""
_BATCH = 64

CAM_OVERLAP = Figure(
    "cam_overlap",
    "CAM overlap",
    "Overlap of the Grad-CAM maps of student and teacher for the class that the teacher predicts: of the 20 % of the "
    "pixels with the largest values in each map, those in both over those in either, the mean over the images. Maps "
    f"that have nothing to do with each other reach {BY_CHANCE:.0%} on average. Images for which a map is zero "
    "everywhere do not count.",
    "%",
)

Maps = NDArray[np.float32]
"""Grad-CAM of n images, ``(n, 64, 64)``: 0 to 1, the largest value of each map 1 unless it is zero everywhere."""


@dataclass(frozen=True, eq=False)
class Explained:
    """The maps of one network."""

    maps: Maps
    predicted: NDArray[np.int64]
    """The class that the network predicts for each image, ``(n,)``."""
    layer: str
    """Name of the layer that the maps are of."""


@dataclass(frozen=True, eq=False)
class Explanations:
    """The maps of a teacher and of the students, on the same test images and for the same classes."""

    images: NDArray[np.uint8]
    """The plain view at the teacher's input size, ``(n, 3, S, S)``."""
    labels: NDArray[np.int32]
    """``(n,)``, -1 for none."""
    teacher: Explained
    students: Mapping[str, Explained]
    """By the name of the student; of several seeds those of the first, the run to ship."""


def explain(model: Model, renderer: Renderer, classes: NDArray[np.int64] | None = None) -> Explained | None:
    """Return Grad-CAM of each class in ``classes`` (default: the predicted ones) on the renderer's plain view.

    None if the network has no layer with positions, such as transformers on tokens and exported programs. The network
    must be on the renderer's device; its parts keep their modes.
    """
    size = of_images(model.preset, "Grad-CAM").size
    layer = last_positions(model.module, size)
    if layer is None:
        return None
    count = len(renderer.dataset)
    parts = []
    for start in range(0, count, _BATCH):
        pixels = renderer(range(start, min(start + _BATCH, count)), 0)
        parts.append(_explain(model, layer, pixels, None if classes is None else classes[start : start + _BATCH]))
    maps, predicted = (np.concatenate(each) for each in zip(*parts, strict=True))
    return Explained(maps, predicted, layer)


def _explain(
    model: Model, layer: str, pixels: torch.Tensor, classes: NDArray[np.int64] | None
) -> tuple[Maps, NDArray[np.int64]]:
    """Return maps and predicted classes of uint8 images ``(n, 3, S, S)``."""
    seen: list[torch.Tensor] = []

    def remember(_layer: torch.nn.Module, _inputs: object, output: torch.Tensor) -> torch.Tensor:
        seen.append(output)
        return output.clone()  # because later layers may work in place

    hook = model.module.get_submodule(layer).register_forward_hook(remember)
    try:
        with evaluating(model.module), torch.inference_mode(False), torch.enable_grad():
            images = arranged(model.preset.normalize(pixels.clone()), model.module).requires_grad_()
            logits = model.module(images).float()
            predicted = logits.argmax(dim=1)
            wanted = predicted if classes is None else torch.from_numpy(classes).to(predicted.device)
            score = logits.gather(1, wanted[:, None]).sum()
            (gradient,) = torch.autograd.grad(score, seen[-1])
    finally:
        hook.remove()
    # Equation 1: the mean gradient of each channel weighs it; equation 2: the positive part of their sum.
    maps = F.relu((gradient.float().mean((2, 3), keepdim=True) * seen[-1].detach().float()).sum(1))
    return _scaled(maps), predicted.cpu().numpy()


def last_positions(module: torch.nn.Module, size: int) -> str | None:
    """Return the name of the last layer whose output has channels and more than one position; None without one.

    ``size`` is the side of the images.
    """
    with_positions = [
        name for name, shape in models.layers(module, size).items() if len(shape) == 3 and shape[1] * shape[2] > 1
    ]
    return with_positions[-1] if with_positions else None


def overlap(first: Maps, second: Maps) -> float | None:
    """Return ``CAM_OVERLAP`` of two networks' maps; None if no image has both."""
    shared = [_overlap(*pair) for pair in zip(first, second, strict=True)]
    known = [value for value in shared if value is not None]
    return sum(known) / len(known) if known else None


def in_frame(maps: Maps, own: Geometry, other: Geometry) -> Maps:
    """Return maps over the part of the image that another network's plain view has, zero beyond the own one.

    Plain views are squares in the middle of the image; their side is ``size / resize`` of its shorter side.
    """
    share = (other.size / other.resize) / (own.size / own.resize)
    side = round(_SIDE * min(share, 1 / share))
    start = (_SIDE - side) // 2
    if side == _SIDE:
        return maps
    if share < 1:
        return _scaled(torch.from_numpy(maps[:, start : start + side, start : start + side]))
    wider = np.zeros_like(maps)
    wider[:, start : start + side, start : start + side] = _resized(torch.from_numpy(maps), side).numpy()
    return wider


def _scaled(maps: torch.Tensor) -> Maps:
    """Return maps ``(n, H, W)`` at the common size, each divided by its largest value."""
    resized = _resized(maps, _SIDE)
    largest = resized.amax((1, 2), keepdim=True)
    found: Maps = (resized / largest.where(largest > 0, 1)).cpu().numpy()
    return found


def _resized(maps: torch.Tensor, side: int) -> torch.Tensor:
    return F.interpolate(maps[:, None], size=(side, side), mode="bilinear", align_corners=False)[:, 0]


def _overlap(first: NDArray[np.float32], second: NDArray[np.float32]) -> float | None:
    one, other = (_top(each) for each in (first, second))
    if not one.any() or not other.any():
        return None
    return float((one & other).sum() / (one | other).sum())


def _top(each: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Return the pixels with the largest values, at most ``TOP_SHARE`` of them; of equal ones the first."""
    chosen = np.zeros(each.size, dtype=bool)
    chosen[np.argsort(-each.ravel(), kind="stable")[: round(TOP_SHARE * each.size)]] = True
    return chosen & (each.ravel() > 0)
