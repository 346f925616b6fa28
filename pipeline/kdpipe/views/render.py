"""The pixels of (recipe, seed, sample, view): one function, shared by the teacher and every student.

All parameters are drawn by ``philox`` from the sample's id, so the result does not depend on position, subset, batch
size, worker count or rank; all arithmetic on pixels is exact, so it does not depend on the device either.

View 0 is the plain view: each model's own evaluation geometry. In any other view a box is chosen in the source image
and resized to the model's input, and everything else happens there, in the order of ``operations.PHASES``.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.context import BaseContext
from operator import itemgetter
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Sampler

from kdpipe.dataset import Dataset, find_ids, processors
from kdpipe.errors import DatasetError
from kdpipe.views import mixing
from kdpipe.views.geometry import Geometry, Sources, middle
from kdpipe.views.philox import Draws
from kdpipe.views.recipe import Recipe
from kdpipe.views.resample import cut

Indices = Sequence[int] | npt.NDArray[np.integer[Any]]
Rows = npt.NDArray[np.int64]
Images = torch.Tensor | list[torch.Tensor]
"""Decoded source images, uint8: ``(n, 3, H, W)``, or ``n`` times ``(3, H, W)``."""


@dataclass(frozen=True)
class SecondLabels:
    """The labels of the samples that are mixed into those of a batch."""

    labels: npt.NDArray[np.int32]
    """``(n,)``, -1 for none."""
    own_share: npt.NDArray[np.float32]
    """The weight of each sample's own label, ``(n,)``, in 0..1; the second label has the rest."""


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

    View 0 is the plain view. With ``size`` the images are squares of that side (bilinear, antialiased), the plain view
    being the centre of the image with its shorter side resized; without it they keep the dataset's size.

    Raises:
        DatasetError: ``size`` is missing and the images have different sizes.
        RecipeError: the recipe cannot be parsed.
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
        population: npt.NDArray[np.uint8] | None = None,
        workers: int | None = None,
    ) -> None:
        """Prepare to render; see ``render`` for the arguments.

        ``population`` are the ids, uint8 ``(N, 16)``, of the samples among which a recipe that mixes finds partners, in
        a store's order; by default those of the dataset, or of the one that it is a subset of. ``workers`` processes
        decode a streamed dataset in ``batches``; by default one for each processor, eight at most.
        """
        self.dataset = dataset
        self.recipe = recipe if isinstance(recipe, Recipe) else Recipe.parse(recipe)
        self.seed = seed
        self.geometry = geometry
        self.device = torch.device(device)
        self._workers = workers or min(8, processors())
        self._frame = _Frame.of(dataset, geometry)
        self._mixes = self.recipe.mixes
        self._images = dataset.whole if self._mixes else dataset
        if self._mixes:
            self._population = mixing.Population(self._images, population, seed=seed)
            self._rows = find_ids(dataset.sample_ids, self._images.sample_ids)
        self._start()

    def _start(self) -> None:
        pixels = self._images.pixels
        self._pixels = pixels if pixels is None else pixels.to(self.device)
        self._alone: Renderers | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave the pixels and the worker processes out."""
        return {name: value for name, value in self.__dict__.items() if name not in ("_pixels", "_alone")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take the pixels from the dataset again."""
        self.__dict__.update(state)
        self._start()

    def __call__(self, indices: Indices, view: int) -> torch.Tensor:
        """Render uint8 ``(n, 3, H, W)`` of ``view`` for the samples at ``indices``.

        Raises:
            DatasetError: a partner that is to be mixed in is not in the dataset.
        """
        rows = self._needed(np.array(indices, dtype=np.int64), view)
        return self._finish(self._framed(self._decoded(rows), rows, view), rows, view)

    def batches(self, batches: Sequence[Rows], view: int) -> Iterator[torch.Tensor]:
        """Render one batch after the other; those of a streamed dataset are made ahead by worker processes."""
        if self.dataset.in_memory:
            return (self(rows, view) for rows in batches)
        return (images for (images,) in Renderers.of([self]).batches(batches, view))

    def work(self, images: Images, rows: Rows, view: int) -> torch.Tensor:
        """Do what a worker process does of decoded images: all on a CPU, the boxes for a device."""
        framed = self._framed(images, rows, view)
        return self._finish(framed, rows, view) if self.device.type == "cpu" else framed

    def complete(self, images: torch.Tensor, rows: Rows, view: int) -> torch.Tensor:
        """Do what a worker process has left."""
        return images if self.device.type == "cpu" else self._finish(images, rows, view)

    def second_labels(self, indices: Indices, view: int) -> SecondLabels | None:
        """Return what ``view`` mixes into the labels of the samples at ``indices``; ``None`` where it mixes nothing."""
        if view == 0 or not self._mixes:
            return None
        rows = self._needed(np.array(indices, dtype=np.int64), view)
        own, others = np.split(rows, 2)
        drawn = mixing.amounts(self.recipe, self._draws(own, view))
        return SecondLabels(self._images.labels[others], drawn.own_share)

    def _needed(self, indices: Rows, view: int) -> Rows:
        """Return the rows of the images that a batch is made of: its own, then their partners if it has any."""
        if not self._mixes:
            return indices
        rows = self._rows[indices]
        return rows if view == 0 else np.concatenate([rows, self._population.partners(rows, view)])

    def _draws(self, rows: Rows, view: int) -> Draws:
        return Draws(self._images.sample_ids[rows], self.seed, view)

    def _decoded(self, rows: Rows) -> Images:
        """Return the source images of the rows that ``_needed`` named."""
        if self._pixels is not None:
            return self._pixels.index_select(0, torch.from_numpy(rows).to(self.device))
        return self._images.images(rows) if len(rows) else []

    def _framed(self, images: Images, rows: Rows, view: int) -> torch.Tensor:
        """Bring the source images of the rows to the input size."""
        if not len(rows):
            return torch.empty(0, 3, self._frame.height, self._frame.width, dtype=torch.uint8, device=self.device)
        return self._frame(images, self._boxes(rows, view))

    def _boxes(self, rows: Rows, view: int) -> Rows | None:
        """Return the boxes of a view, int64 ``(n, 4)``; ``None`` for the plain one."""
        if view == 0 or not self.recipe.augments:
            return None
        sources = Sources(self._images.sizes[rows], square=self.geometry is not None)
        draws = self._draws(rows, view)
        for step in self.recipe.of("box"):
            return step(sources, draws)  # type: ignore[no-any-return]
        return middle(sources, draws)

    def _finish(self, framed: torch.Tensor, rows: Rows, view: int) -> torch.Tensor:
        """Apply what follows the box to the images of the rows that ``_needed`` named."""
        images = framed.to(self.device)
        if view == 0 or not len(images):
            return images
        draws = self._draws(rows, view)
        for step in self.recipe.of("flip", "rotate", "color", "erase"):
            images = step(images, draws)
        if not self._mixes:
            return images
        own, partners = images.chunk(2)
        return mixing.mix(own, partners, mixing.amounts(self.recipe, self._draws(rows[: len(own)], view)))


@dataclass(frozen=True)
class _Frame:
    """How source images are brought to the size of a model's input."""

    geometry: Geometry | None
    height: int
    width: int
    kernel: str

    @classmethod
    def of(cls, dataset: Dataset, geometry: Geometry | None) -> _Frame:
        """Take the model's input size, or without a model that of the dataset's images.

        Raises:
            DatasetError: there is no model, and the images have different sizes.
        """
        if geometry is not None:
            return cls(geometry, geometry.size, geometry.size, geometry.interpolation)
        if dataset.image_size is None:
            raise DatasetError(
                f"{dataset.spec} has images of different sizes: give the size to render them at, in pixels."
            )
        return cls(None, *dataset.image_size, "bilinear")

    def __call__(self, images: Images, boxes: Rows | None) -> torch.Tensor:
        """Return the plain view of source images, or boxes of them, uint8 ``(n, 3, height, width)``."""
        if boxes is not None:
            return cut(images, boxes, height=self.height, width=self.width, kernel=self.kernel)
        if isinstance(images, torch.Tensor):
            return images if self.geometry is None else self.geometry.fit(images)
        return torch.cat([self(image.unsqueeze(0), None) for image in images]).contiguous()


class Renderers:
    """Renderers that differ in the size of their images alone, for which every image is decoded once."""

    def __init__(self, renderers: Sequence[Renderer]) -> None:
        """Render one dataset by each of ``renderers``, on one device."""
        self._renderers = tuple(renderers)
        self._queue = _Queue()
        self._loader: DataLoader[tuple[torch.Tensor, ...]] | None = None

    @classmethod
    def of(cls, renderers: Sequence[Renderer]) -> Renderers:
        """Return the one for ``renderers``: of a single renderer always the same, with its worker processes."""
        if len(renderers) > 1:
            return cls(renderers)
        (alone,) = renderers
        if alone._alone is None:
            # A copy, so that no circle of references keeps worker processes until Python looks for circles: their
            # queues would be gone by then, and each end of a worker would be waited for in vain for five seconds.
            copy = object.__new__(Renderer)
            copy.__dict__.update(alone.__dict__)
            alone._alone = cls([copy])
        return alone._alone

    def __call__(self, indices: Indices, view: int) -> tuple[torch.Tensor, ...]:
        """Render ``view`` of the samples at ``indices`` by each; see ``Renderer``."""
        return tuple(renderer(indices, view) for renderer in self._renderers)

    def batches(self, batches: Sequence[Rows], view: int) -> Iterator[tuple[torch.Tensor, ...]]:
        """Render one batch after the other by each; those of a streamed dataset are made ahead by worker processes."""
        first = self._renderers[0]
        if first.dataset.in_memory:
            for rows in batches:
                yield self(rows, view)
            return
        if self._loader is None:
            self._loader = DataLoader(
                _Worker(self._renderers),
                batch_sampler=self._queue,
                num_workers=first._workers,
                collate_fn=itemgetter(0),
                persistent_workers=True,
                multiprocessing_context=_forkserver(),
            )
        self._queue.batches = [(first._needed(rows, view), view) for rows in batches]
        for (rows, _), made in zip(self._queue.batches, self._loader, strict=True):
            yield tuple(
                renderer.complete(images, rows, view) for renderer, images in zip(self._renderers, made, strict=True)
            )


def _forkserver() -> BaseContext:
    """Return the context of worker processes: forks of a process that has imported what they need and done nothing.

    A fork of this process, after it has decoded Zarr, would deadlock.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


Batch = tuple[Rows, int]
"""The rows that a batch is made of, and its view."""


class _Queue(Sampler[list[Batch]]):
    """The batches that the worker processes make next; they outlive one plane or epoch."""

    def __init__(self) -> None:
        self.batches: list[Batch] = []

    def __iter__(self) -> Iterator[list[Batch]]:
        return ([batch] for batch in self.batches)

    def __len__(self) -> int:
        return len(self.batches)


class _Worker(torch.utils.data.Dataset[tuple[torch.Tensor, ...]]):
    """What the worker processes run."""

    def __init__(self, renderers: Sequence[Renderer]) -> None:
        self._renderers = tuple(renderers)

    def __getitem__(self, batch: Batch) -> tuple[torch.Tensor, ...]:
        rows, view = batch
        images = self._renderers[0]._decoded(rows)
        return tuple(renderer.work(images, rows, view) for renderer in self._renderers)
