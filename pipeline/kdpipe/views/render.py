"""The pixels of (recipe, seed, sample, view): one function, shared by the teacher and every student.

Augmentation happens on uint8 source pixels, with parameters drawn by ``philox`` from the sample's id, so the
result does not depend on position, subset, batch size, worker count or rank. ``Geometry`` then fits the image to
a model's input size; its resampling may differ in the last bit between devices.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Sampler

from kdpipe.dataset import Dataset
from kdpipe.errors import DatasetError
from kdpipe.views.geometry import Geometry
from kdpipe.views.philox import Draws
from kdpipe.views.recipe import Recipe

Indices = Sequence[int] | npt.NDArray[np.integer[Any]]

_CROP_TOP, _CROP_LEFT, _FLIP = 1, 2, 3  # stream numbers; never reuse one


def render(
    dataset: Dataset,
    recipe: Recipe | str,
    *,
    seed: int,
    indices: Indices,
    view: int,
    size: int | None = None,
    device: torch.device | str = "cpu",
) -> torch.Tensor:
    """Render one view of some samples as uint8 ``(n, 3, H, W)`` on ``device``.

    View 0 is the plain view. ``size`` resizes the shorter side (bilinear, antialiased) and cuts out the centre
    square; without it the images keep the dataset's size.

    Raises:
        DatasetError: ``size`` is missing and the images have different sizes.
        RecipeError: the recipe is unknown.
    """
    geometry = None if size is None else Geometry(size, size, "bilinear")
    return Renderer(dataset, recipe, seed=seed, geometry=geometry, device=device)(indices, view)


class Renderer:
    """Renders views of one dataset; a dataset in memory is kept on the device between calls."""

    def __init__(
        self,
        dataset: Dataset,
        recipe: Recipe | str,
        *,
        seed: int,
        geometry: Geometry | None,
        device: torch.device | str = "cpu",
    ) -> None:
        """Prepare to render; see ``render`` for the arguments."""
        self.dataset = dataset
        self.recipe = recipe if isinstance(recipe, Recipe) else Recipe.parse(recipe)
        self.seed = seed
        self.geometry = geometry
        self.device = torch.device(device)
        if geometry is None and dataset.image_size is None:
            raise DatasetError(
                f"{dataset.spec} has images of different sizes: give the size to render them at, in pixels."
            )
        pixels = dataset.pixels
        self._pixels = pixels if pixels is None else pixels.to(self.device)
        self._queue = _Queue()
        self._loader: DataLoader[torch.Tensor] | None = None

    def __call__(self, indices: Indices, view: int) -> torch.Tensor:
        """Render uint8 ``(n, 3, H, W)`` of ``view`` for the samples at ``indices``."""
        rows = np.asarray(indices, dtype=np.int64)
        if self._pixels is not None:
            return self._finish(self._pixels[torch.from_numpy(rows).to(self.device)], rows, view)
        return self._each(self.dataset.images(rows), rows, view)

    def batches(self, batches: Sequence[npt.NDArray[np.int64]], view: int) -> Iterator[torch.Tensor]:
        """Render one batch after the other; a streamed dataset is decoded ahead by worker processes."""
        if self.dataset.in_memory:
            for rows in batches:
                yield self(rows, view)
            return
        if self._loader is None:
            self._loader = DataLoader(
                _Decoder(self.dataset),
                batch_sampler=self._queue,
                num_workers=min(8, os.cpu_count() or 1),
                collate_fn=list,
                persistent_workers=True,
                # A fork after this process has decoded Zarr would deadlock in the child.
                multiprocessing_context="spawn",
            )
        self._queue.batches = [rows.tolist() for rows in batches]
        for rows, images in zip(batches, self._loader, strict=True):
            yield self._each(images, rows, view)

    def _each(self, images: Sequence[torch.Tensor], rows: npt.NDArray[np.int64], view: int) -> torch.Tensor:
        rendered = [
            self._finish(image.to(self.device).unsqueeze(0), rows[position : position + 1], view)
            for position, image in enumerate(images)
        ]
        return torch.cat(rendered)

    def _finish(self, images: torch.Tensor, rows: npt.NDArray[np.int64], view: int) -> torch.Tensor:
        if view > 0 and self.recipe.augments:
            images = crop_flip(images, Draws(self.dataset.sample_ids[rows], self.seed, view))
        return images if self.geometry is None else self.geometry.fit(images)


class _Queue(Sampler[list[int]]):
    """The batches that the worker processes decode next; they outlive one plane or epoch."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


class _Decoder(torch.utils.data.Dataset[torch.Tensor]):
    """What the worker processes run: decode the image at an index."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset

    def __getitem__(self, index: int) -> torch.Tensor:
        return self._dataset.image(index)


def crop_flip(images: torch.Tensor, draws: Draws) -> torch.Tensor:
    """Pad uint8 ``(n, 3, H, W)`` with black by 1/8 of each side, crop back to size, flip half of them.

    The usual CIFAR augmentation (He et al., "Deep Residual Learning for Image Recognition", 2016, section 4.2):
    4 pixels at 32 x 32.
    """
    count, _, height, width = images.shape
    pad_rows, pad_columns = height // 8, width // 8
    top = draws.integers(_CROP_TOP, 2 * pad_rows + 1)
    left = draws.integers(_CROP_LEFT, 2 * pad_columns + 1)
    flip = draws.integers(_FLIP, 2).astype(bool)
    rows = top[:, None] + np.arange(height)
    columns = left[:, None] + np.arange(width)
    columns = np.where(flip[:, None], columns[:, ::-1], columns)
    padded = torch.nn.functional.pad(images, (pad_columns, pad_columns, pad_rows, pad_rows))
    # One flat gather per batch: the same channel-plane offsets for the three channels of an image.
    stride = width + 2 * pad_columns
    offsets = torch.from_numpy(rows[:, :, None] * stride + columns[:, None, :]).to(images.device)
    flat = padded.view(count, 3, -1)
    picked = flat.gather(2, offsets.view(count, 1, -1).expand(-1, 3, -1))
    return picked.view(count, 3, height, width)
