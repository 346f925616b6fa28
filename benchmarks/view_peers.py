"""The recipes that ``views.py`` times, and what torchvision's ``transforms.v2`` has that means the same."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, default_collate
from torchvision.transforms import v2

Transform = Callable[[Any], Any]

_FLIP = v2.RandomHorizontalFlip()
_JITTER = v2.ColorJitter(0.4, 0.4, 0.4, 0.1)
_GRAY = 128


def recipes(size: int) -> dict[str, list[Transform] | None]:
    """Return the transforms of one sample for each recipe, for an input of ``size`` pixels; None where there are none.

    Mixing is not among them: it is done to batches, by ``mixing``.
    """
    crop_flip = [v2.RandomCrop(size, padding=size // 8), _FLIP]
    rrc_flip = [v2.RandomResizedCrop(size, antialias=True), _FLIP]
    return {
        "none": [],
        "crop-flip": crop_flip,
        "rrc-flip": rrc_flip,
        "rrc-flip+color": [*rrc_flip, _JITTER],
        "color": [_JITTER],
        "trivial": [v2.TrivialAugmentWide()],
        "rrc-flip+randaug:2,9": [*rrc_flip, v2.RandAugment(2, 9)],
        "crop-flip+erase": [*crop_flip, v2.RandomErasing(p=0.5, value=_GRAY)],
        "mask:0.5": None,
        "crop-flip+mixup:0.2": crop_flip,
        "crop-flip+cutmix:1": crop_flip,
    }


def mixing(recipe: str, classes: int) -> list[Transform]:
    """Return the transforms of a batch; torchvision's mixup wants floating point."""
    if recipe.endswith("mixup:0.2"):
        return [v2.ToDtype(torch.float32, scale=True), v2.MixUp(alpha=0.2, num_classes=classes)]
    return [v2.CutMix(alpha=1.0, num_classes=classes)] if recipe.endswith("cutmix:1") else []


class InMemory(Dataset[tuple[torch.Tensor, int]]):
    """Transformed uint8 images out of one tensor."""

    def __init__(self, pixels: torch.Tensor, labels: Sequence[int], transforms: list[Transform]) -> None:
        """Take ``pixels``, ``(n, 3, H, W)``, and the transforms of one image."""
        self._pixels, self._labels, self._transforms = pixels, labels, transforms

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        """Transform one image."""
        return applied(self._transforms, self._pixels[index]), self._labels[index]


class Files(Dataset[tuple[torch.Tensor, int]]):
    """Transformed photographs, decoded by Pillow as torchvision's ``ImageFolder`` does."""

    def __init__(self, paths: Sequence[Path], transforms: list[Transform]) -> None:
        """Take the transforms of one image."""
        self._paths, self._transforms = paths, transforms

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        """Decode and transform one photograph."""
        with Image.open(self._paths[index]) as image:
            pixels = v2.functional.pil_to_tensor(image.convert("RGB"))
        return applied(self._transforms, pixels), 0


class Collate:
    """Batches of samples, mixed; it pickles, for workers that are spawned."""

    def __init__(self, transforms: list[Transform]) -> None:
        """Take the transforms of a batch."""
        self._transforms = transforms

    def __call__(self, samples: list[tuple[torch.Tensor, int]]) -> Any:
        """Stack the samples and mix them."""
        batch = default_collate(samples)
        for transform in self._transforms:
            batch = transform(*batch)
        return batch


def applied(transforms: list[Transform], image: torch.Tensor) -> torch.Tensor:
    """Apply one transform after the other; all at once, ``v2.Compose`` does the same."""
    for transform in transforms:
        image = transform(image)
    return image


def epoch(
    samples: Dataset[tuple[torch.Tensor, int]],
    batches: Sequence[list[int]],
    *,
    workers: int,
    mixed_by: list[Transform] | None = None,
) -> Callable[[], float]:
    """Return what runs an epoch over ``batches`` and returns its seconds; its workers, of one thread each, persist.

    One epoch has been run.
    """
    loader: DataLoader[Any] = DataLoader(
        samples,
        batch_sampler=batches,
        num_workers=workers,
        persistent_workers=workers > 0,
        collate_fn=Collate(mixed_by or []),
    )

    def seconds() -> float:
        began = time.perf_counter()
        for _ in loader:
            pass
        return time.perf_counter() - began

    seconds()
    return seconds
