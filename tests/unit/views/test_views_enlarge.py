"""Boxes of small images that are enlarged a batch at a time: the pixels of the exact resize, box by box."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kdpipe.views.resample import cut, exactly


@pytest.mark.parametrize("kernel", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("source", "target"), [((32, 32), (32, 32)), ((7, 12), (9, 31)), ((1, 5), (32, 20))])
def test_every_box_is_resized_as_if_alone(source: tuple[int, int], target: tuple[int, int], kernel: str) -> None:
    generator = np.random.default_rng(0)
    sides = generator.integers(1, np.array(source) + 1, size=(200, 2))
    places = np.concatenate([generator.integers(0, np.array(source) - sides + 1), sides], axis=1)
    images = torch.from_numpy(generator.integers(0, 256, size=(200, 3, *source), dtype=np.uint8))
    images[::3] = images[::3] // 128 * 255  # overshoots beyond black and white
    enlarged = cut(images, places, np.zeros(200, dtype=bool), height=target[0], width=target[1], kernel=kernel)
    for image, (top, left, height, width), result in zip(images, places.tolist(), enlarged, strict=True):
        box = image[None, :, top : top + height, left : left + width]
        assert torch.equal(result, exactly(box, *target, kernel=kernel)[0])
