"""Views of fixed synthetic images, to name the operation that gives other pixels than it did elsewhere."""

from __future__ import annotations

import numpy as np
import torch
from blake3 import blake3

from kdpipe.dataset import Form
from kdpipe.views import mixing
from kdpipe.views.geometry import Geometry, Sources
from kdpipe.views.philox import Draws, Words, philox
from kdpipe.views.recipe import Recipe
from kdpipe.views.resample import cut
from kdpipe.views.tensors import Items

_COUNT, _HEIGHT, _WIDTH, _SIDE = 32, 40, 48, 32
"""The number of images, their size, and the size that they are resized to."""


def trial(recipe: Recipe, geometry: Geometry | Form) -> dict[str, str]:
    """Try the resize and each operation of a recipe on fixed synthetic images, to name one that gives other pixels.

    Returns a 64-bit hash of the pixels, in hexadecimal digits, by ``resize`` and the names of the operations. Tensors
    are not resized.
    """
    ids = np.stack(_words(_COUNT), axis=1).astype("<u4").view(np.uint8)
    draws = Draws(ids, seed=0, view=1)
    if isinstance(geometry, Form):
        blank = torch.from_numpy(geometry.blank()).expand(_COUNT, -1, -1, -1)
        return {step.name: _hash(step(Items(geometry, geometry.split(blank)), draws)) for step in recipe.steps}
    kernel = geometry.interpolation
    words = np.concatenate(_words(_COUNT * 3 * _HEIGHT * _WIDTH // 4))
    images = torch.from_numpy((words >> 24).astype(np.uint8).reshape(_COUNT, 3, _HEIGHT, _WIDTH))
    smaller = Geometry(_SIDE, _SIDE, kernel).fit(images)
    found = {"resize": _hash(smaller, geometry.fit(images))}
    sources = Sources(np.tile([_HEIGHT, _WIDTH], (_COUNT, 1)), square=True)
    for step in recipe.steps:
        tried = smaller
        for part in step.parts:
            if part.operation.phase == "box":
                tried = cut(images, part(sources, draws), height=_SIDE, width=_SIDE, kernel=kernel)
            elif part.operation.phase == "mix":
                drawn = part(recipe.thresholds[part.name], draws)
                tried = mixing.mix(smaller, smaller.roll(1, 0), drawn)
            else:
                tried = part(tried, draws)
        found[step.name] = _hash(tried)
    return found


def _words(count: int) -> tuple[Words, ...]:
    """Return four arrays of ``count`` fixed words."""
    position, zeros = np.arange(count, dtype=np.uint32), np.zeros(count, dtype=np.uint32)
    return philox((position, zeros, zeros, zeros), (zeros, zeros))


def _hash(*images: torch.Tensor) -> str:
    return blake3(b"".join(tensor.numpy().tobytes() for tensor in images)).hexdigest(length=8)
