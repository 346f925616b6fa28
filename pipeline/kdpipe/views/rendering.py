"""The pixels of (recipe, seed, sample, view): one function, shared by the teacher and every student.

All parameters are drawn by ``philox`` from the sample's id, so the result does not depend on position, subset, batch
size, worker count or rank; all arithmetic on pixels is exact, so it does not depend on the device either.

View 0 is the plain view: each model's own evaluation geometry. In any other view a box is chosen in the source image
and resized to the model's input; everything else happens there, in the order of ``recipe.PHASES``.
"""

from __future__ import annotations

import warnings
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from operator import itemgetter
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Sampler

from kdpipe.dataset import Dataset, Shared, find_ids, processors, worker_context
from kdpipe.errors import KdpipeError
from kdpipe.views import mixing, tensors
from kdpipe.views.geometry import Frame, Geometry, Images, Sources, middle
from kdpipe.views.philox import Draws, Integers
from kdpipe.views.recipe import Recipe

Indices = Sequence[int] | npt.NDArray[np.integer[Any]]
Batch = tuple[Integers, int, bool]
"""Indices of the images that a batch is made of, its view, and whether to return what is learned of its images."""
Looked = npt.NDArray[Any]
"""Records of images that were read, ``kdpipe.dataset.registry.LOOKED`` ``(n,)``."""
Made = tuple[tuple[torch.Tensor, ...], Looked | None]
"""The images of a batch for each renderer, and what was learned of them."""


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
    being the center of the image with its shorter side resized; without it they keep the dataset's size.

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
        population: mixing.Ids | Sequence[mixing.Ids] | None = None,
        workers: int | None = None,
    ) -> None:
        """Prepare to render; see ``render`` for the arguments.

        ``population`` are the ids, uint8 ``(N, 16)``, of the samples among which a recipe that mixes finds partners, in
        a store's order and for each of its segments (default: those of the dataset, or of the one that it is a subset
        of). ``workers`` processes decode a streamed dataset in ``batches`` (default: the dataset's, else one for each
        processor, which ranks share).
        """
        self.dataset = dataset
        self.recipe = recipe if isinstance(recipe, Recipe) else Recipe.parse(recipe)
        self.seed = seed
        self.geometry = geometry
        self.device = torch.device(device)
        self.workers = workers or dataset.workers or processors(of_rank=True)
        """Number of processes that decode a streamed dataset."""
        tensors.refuse_unfit(self.recipe, dataset.form)
        self._frame = Frame.of(dataset, geometry)
        self._mixes = self.recipe.mixes
        self._images = dataset.whole if self._mixes else dataset
        if self._mixes:
            self._population = mixing.Population(self._images, population, seed=seed)
            self._index_of = find_ids(dataset.sample_ids, self._images.sample_ids)
        self._start()

    def _start(self) -> None:
        pixels = self._images.pixels
        self._pixels = pixels if pixels is None else pixels.to(self.device)
        self._alone: Renderers | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without the pixels and the worker processes."""
        return {name: value for name, value in self.__dict__.items() if name not in ("_pixels", "_alone")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore the state, with the pixels of the dataset."""
        self.__dict__.update(state)
        self._start()

    def __call__(self, indices: Indices, view: int) -> torch.Tensor:
        """Render uint8 ``(n, 3, H, W)`` of ``view`` for the samples at ``indices``.

        Raises:
            DatasetError: a partner that is to be mixed in is not in the dataset.
        """
        needed = self._needed(np.array(indices, dtype=np.int64), view)
        return self._finish(self._framed(self._decoded(needed), needed, view), needed, view)

    def batches(self, batches: Iterable[Integers], view: int) -> Iterator[torch.Tensor]:
        """Render one batch after the other; worker processes render those of a streamed dataset ahead.

        ``batches`` are taken when they are needed.
        """
        if self.dataset.in_memory:
            return (self(indices, view) for indices in batches)
        return (images for (images,) in Renderers.of([self]).batches(batches, view))

    def looks(self, batches: Iterable[Integers]) -> Iterator[tuple[torch.Tensor, Looked]]:
        """Render the plain view as ``batches`` does, and yield also what was learned of each image, ``LOOKED``."""
        if not self.dataset.in_memory:
            yield from ((images, looked) for (images,), looked in Renderers.of([self]).looks(batches))
            return
        for indices in batches:
            yield self(indices, 0), self.dataset.look(indices)[1]

    def work(self, images: Images, needed: Integers, view: int) -> torch.Tensor:
        """Do a worker process's part on decoded images: everything for a CPU, cutting and resizing for a GPU."""
        framed = self._framed(images, needed, view)
        return self._finish(framed, needed, view) if self.device.type == "cpu" else framed

    def complete(self, images: torch.Tensor, needed: Integers, view: int) -> torch.Tensor:
        """Do the rest, in the main process."""
        return images if self.device.type == "cpu" else self._finish(images, needed, view)

    def second_labels(self, indices: Indices, view: int) -> SecondLabels | None:
        """Return the labels that ``view`` mixes into those of the samples at ``indices``; ``None`` for no mixing."""
        if view == 0 or not self._mixes:
            return None
        own, others = np.split(self._needed(np.array(indices, dtype=np.int64), view), 2)
        drawn = mixing.amounts(self.recipe, self._draws(own, view))
        return SecondLabels(self._images.labels[others], drawn.own_share)

    def _needed(self, indices: Integers, view: int) -> Integers:
        """Return the indices of the images that a batch is made of: its own, then their partners if it has any."""
        if not self._mixes:
            return indices
        own = self._index_of[indices]
        return own if view == 0 else np.concatenate([own, self._population.partners(own, view)])

    def _draws(self, needed: Integers, view: int) -> Draws:
        return Draws(self._images.sample_ids[needed], self.seed, view)

    def _decoded(self, needed: Integers) -> Images:
        """Return the source images at the indices of ``_needed``."""
        if self._pixels is not None:
            return self._pixels.index_select(0, torch.from_numpy(needed).to(self.device))
        return self._images.images(needed) if len(needed) else []

    def _framed(self, images: Images, needed: Integers, view: int) -> torch.Tensor:
        """Bring source images to the input size."""
        if not len(needed):
            return torch.empty(0, 3, self._frame.height, self._frame.width, dtype=torch.uint8, device=self.device)
        return self._frame(images, self._boxes(images, needed, view))

    def _boxes(self, images: Images, needed: Integers, view: int) -> Integers | None:
        """Return the boxes of a view, ``(n, 4)``; ``None`` for the plain one."""
        if view == 0 or not self.recipe.augments or self.dataset.form is not None:
            return None
        choose = next(iter(self.recipe.of("box")), middle)
        # The sizes of images that are read for the first time are not known before.
        alike = isinstance(images, torch.Tensor)
        sizes = [image.shape[-2:] for image in (images[:1] if alike else images)]
        sources = Sources(
            np.array(sizes, dtype=np.int64).repeat(len(images) if alike else 1, axis=0),
            square=self.geometry is not None,
        )
        boxes: Integers = choose(sources, self._draws(needed, view))
        return boxes

    def _finish(self, framed: torch.Tensor, needed: Integers, view: int) -> torch.Tensor:
        """Apply the operations that follow the box to images at the input size."""
        images: torch.Tensor = framed.to(self.device)
        if view == 0 or not len(images):
            return images
        draws = self._draws(needed, view)
        if self.dataset.form is not None:
            return tensors.changed(images, self.dataset.form, self.recipe, draws)
        for step in self.recipe.of("flip", "rotate", "color", "erase"):
            images = step(images, draws)
        if not self._mixes:
            return images
        own, partners = images.chunk(2)
        return mixing.mix(own, partners, mixing.amounts(self.recipe, self._draws(needed[: len(own)], view)))


class Renderers:
    """Renderers that differ in the size of their images alone, for which every image is decoded once."""

    def __init__(self, renderers: Sequence[Renderer]) -> None:
        """Render one dataset by each of ``renderers``, on one device."""
        self._renderers = tuple(renderers)
        self._queue = _Queue()
        self._loader: list[DataLoader[Made | KdpipeError]] = []
        # As garbage in a circle of references its worker processes would lose their queues before they are told to end,
        # and each be waited for in vain for five seconds. The loader must not refer to this object.
        weakref.finalize(self, self._loader.clear)

    @classmethod
    def of(cls, renderers: Sequence[Renderer]) -> Renderers:
        """Return those of ``renderers``; of a single one always the same object, which keeps its worker processes."""
        if len(renderers) > 1:
            return cls(renderers)
        (alone,) = renderers
        if alone._alone is None:
            copy = object.__new__(type(alone))  # which the loader may refer to
            copy.__dict__.update(alone.__dict__)
            alone._alone = cls([copy])
        return alone._alone

    def __call__(self, indices: Indices, view: int) -> tuple[torch.Tensor, ...]:
        """Render ``view`` of the samples at ``indices`` by each; see ``Renderer``."""
        return tuple(renderer(indices, view) for renderer in self._renderers)

    def batches(self, batches: Iterable[Integers], view: int) -> Iterator[tuple[torch.Tensor, ...]]:
        """Render one batch after the other by each; worker processes render those of a streamed dataset ahead."""
        return self.views((indices, view) for indices in batches)

    def views(self, wanted: Iterable[tuple[Integers, int]]) -> Iterator[tuple[torch.Tensor, ...]]:
        """Render one batch after the other, each with its own view; otherwise as ``batches``."""
        if self._renderers[0].dataset.in_memory:
            return (self(indices, view) for indices, view in wanted)
        return (images for images, _ in self._streamed(wanted, look=False))

    def looks(self, batches: Iterable[Integers]) -> Iterator[tuple[tuple[torch.Tensor, ...], Looked]]:
        """Render the plain view of a streamed dataset; yield also what was learned of each image, ``LOOKED``."""
        for images, looked in self._streamed(((indices, 0) for indices in batches), look=True):
            assert looked is not None
            yield images, looked

    def _streamed(self, wanted: Iterable[tuple[Integers, int]], *, look: bool) -> Iterator[Made]:
        first, waiting = self._renderers[0], iter(wanted)
        if not self._loader:
            # The first batch need not wait until worker processes have started.
            for indices, view in islice(waiting, 1):
                needed = first._needed(indices, view)
                images, looked = made_of(self._renderers, (needed, view, look))
                yield self._completed(images, needed, view), looked
            following = list(islice(waiting, 1))
            if not following:
                return
            waiting = chain(following, waiting)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)  # of more than processors
            if not self._loader:
                self._loader.append(
                    DataLoader(
                        _Worker(self._renderers),
                        batch_sampler=self._queue,
                        num_workers=first.workers,
                        collate_fn=itemgetter(0),
                        persistent_workers=True,
                        multiprocessing_context=worker_context(),
                    )
                )
            self._queue.start((first._needed(indices, view), view, look) for indices, view in waiting)
            rendered = iter(self._loader[0])
        for made in rendered:
            needed, view, _ = self._queue.taken.popleft()
            if isinstance(made, KdpipeError):
                raise made
            images, looked = made
            yield self._completed(images, needed, view), looked

    def _completed(self, made: Iterable[torch.Tensor], needed: Integers, view: int) -> tuple[torch.Tensor, ...]:
        pairs = zip(self._renderers, made, strict=True)
        return tuple(renderer.complete(images, needed, view) for renderer, images in pairs)


class _Queue(Sampler[list[Batch]]):
    """The batches that the worker processes render next; the processes outlive one plane or epoch."""

    def __init__(self) -> None:
        self.start(iter(()))

    def start(self, batches: Iterator[Batch]) -> None:
        """Begin with other batches, each of which is taken when a worker process is free for it."""
        self._waiting = batches
        self.taken: deque[Batch] = deque()

    def __iter__(self) -> Iterator[list[Batch]]:
        for batch in self._waiting:
            self.taken.append(batch)
            yield [batch]


def made_of(renderers: Sequence[Renderer], batch: Batch) -> Made:
    """Do a worker process's part of a batch."""
    needed, view, look = batch
    images, looked = renderers[0]._images.look(needed) if look else (renderers[0]._decoded(needed), None)
    return tuple(renderer.work(images, needed, view) for renderer in renderers), looked


class _Worker(torch.utils.data.Dataset[Made | KdpipeError]):
    """The renderers as a dataset of batches, which the worker processes read."""

    def __init__(self, renderers: Sequence[Renderer]) -> None:
        self._shared = Shared(tuple(renderers))

    def __getitem__(self, batch: Batch) -> Made | KdpipeError:
        """Return the images of a batch, or the error of one: torch would put a traceback around its message."""
        try:
            return made_of(self._shared.value, batch)
        except KdpipeError as error:
            return error
