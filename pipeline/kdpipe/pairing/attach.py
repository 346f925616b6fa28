"""Datasets with soft targets for other trainers: items are ``(image, label, soft_target)``.

The soft target is the teacher's float32 logits ``(classes,)`` of the image.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from kdpipe.dataset import Dataset
from kdpipe.errors import DatasetError
from kdpipe.pairing.given import join_given
from kdpipe.pairing.join import join_checked, with_store_ids
from kdpipe.pairing.probes import replay
from kdpipe.pairing.shared import Origin, SharedTargets
from kdpipe.pairing.windowed import WindowedTargets
from kdpipe.store import machine
from kdpipe.store.blocks import draw
from kdpipe.store.reader import LogitStore
from kdpipe.views import Renderer

Transform = Callable[[Any], Any]


class AttachedDataset(torch.utils.data.Dataset[tuple[Any, ...]]):
    """A map-style dataset whose items end with their soft target, from ``kdpipe.attach``.

    Works in the workers of a ``DataLoader``, forked or spawned, persistent or not: they share one decoded view, or a
    window of it.
    """

    def __init__(
        self,
        items: Items,
        targets: SharedTargets | WindowedTargets,
        *,
        views: Sequence[int],
        transform: Transform | None,
        data_seed: int = 0,
    ) -> None:
        """Pair ``items`` with ``targets``, of one of ``views`` in each epoch."""
        self._data_seed, self._epoch = data_seed, 0
        self._items = items
        self._targets = targets
        self._views = views
        self._transform = transform

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self._items)

    @property
    def view(self) -> int:
        """The view of the soft targets."""
        return self._targets.view

    def set_epoch(self, epoch: int) -> None:
        """Select the view of epoch ``epoch`` (from 0): ``1 + epoch mod V``, or the only view.

        Call it before the epoch's first batch is loaded, as with ``DistributedSampler``, in the process that attached
        the store; workers follow, also persistent ones. The dataset's own ``set_epoch`` is called as well.
        """
        self._epoch = epoch
        self._targets.start(epoch, self._views[epoch % len(self._views)])
        self._items.set_epoch(epoch)

    def sampler(self, rank: int = 0, world: int = 1) -> torch.utils.data.Sampler[int]:
        """Return a sampler that shuffles the samples anew in each epoch, for ``DataLoader(sampler=)``.

        If views do not fit in memory, the order is that of their windows, and no other is quick. Of ``world`` processes
        that train one model, each has its ``rank``; the samples that the last round lacks are left out.
        """
        return _Order(self, rank, world)

    def _order(self) -> npt.NDArray[np.int64]:
        if isinstance(self._targets, WindowedTargets):
            return self._targets.order()
        return draw(np.zeros(len(self), np.int64), held=1, data_seed=self._data_seed, epoch=self._epoch)[0]

    def __getitem__(self, index: Any) -> Any:
        """Return one item, or a list of items for a slice.

        Raises:
            IndexError: there is no such sample.
        """
        if isinstance(index, slice):
            return self.__getitems__(range(*index.indices(len(self))))
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Any, ...]]:
        """Return several items, with soft targets gathered and decoded at once."""
        found = [self._checked(index) for index in indices]
        view, soft_targets = self._targets.take(found)
        items = self._items.read(found, view)
        if self._transform is not None:
            items = [(self._transform(image), *rest) for image, *rest in items]
        return [(*item, target) for item, target in zip(items, soft_targets, strict=True)]

    def _checked(self, index: int) -> int:
        found = operator.index(index)
        if not -len(self) <= found < len(self):
            raise IndexError(f"there is no index {found}, only 0 to {len(self) - 1}")
        return found % len(self)


class _Order(torch.utils.data.Sampler[int]):
    """The indices of one process in the order of the epoch."""

    def __init__(self, dataset: AttachedDataset, rank: int, world: int) -> None:
        self._dataset, self._rank, self._world = dataset, rank, world

    def __len__(self) -> int:
        return len(self._dataset) // self._world

    def __iter__(self) -> Iterator[int]:
        return iter(self._dataset._order()[self._rank :: self._world][: len(self)].tolist())


def attach(
    store: LogitStore,
    dataset: Any,
    *,
    keys: Sequence[str] | None = None,
    by_index: bool = False,
    view: int | None = None,
    transform: Transform | None = None,
    allow_drift: bool = False,
    data_seed: int = 0,
) -> AttachedDataset:
    """Append each item's soft target to a dataset, for your own trainer (docs/guides/trainers.md).

    A ``kdpipe.dataset.Dataset`` gives ``(image, label, soft_target)``: the image, uint8 ``(3, height, width)``, has the
    teacher's pixels in the epoch's view; ``set_epoch`` selects the view. Tensors are given as the dataset has them, a
    tensor or a dictionary, in the epoch's view. Where the view mixes samples, the label is the share of each class,
    float32 ``(classes,)``. Any other map-style dataset of ``(image, label, ...)`` keeps its own images, which must be
    plain: their soft targets are those of the plain view 0.

    Samples are joined by id: from ``keys`` (``"train/cat/1.jpg"``), or from the paths that a dataset like
    torchvision's ``ImageFolder`` lists. A file that was moved since is recognized by its content.

    If views exceed the store's memory limit, they are read in windows: load samples in the order of ``sampler``, and
    call ``set_epoch`` before each epoch. The ranks of a machine share one copy.

    By index, labels are compared, and some images with those that the store knows: by the digests of their files or
    pixels. Images that the dataset resizes, normalizes or augments cannot be compared: their order is not checked.

    Args:
        store: the soft targets, from ``kdpipe.open_store``.
        dataset: of ``kdpipe.dataset.load``, or any map-style dataset.
        keys: the key of each sample, for a dataset that lists no paths.
        by_index: join by position instead of by id.
        view: take every epoch's soft targets from this view.
        transform: applied to each image.
        allow_drift: accept pixels that differ from the teacher's.
        data_seed: seed of the order of ``sampler``.

    Raises:
        StaleStoreError: the classes differ, or the pixels (unless ``allow_drift``).
        DatasetError: the store lacks a sample, or the dataset lists no paths and no keys are given.
        StoreError: by index, numbers of samples, labels or images differ; the view is missing, or two of its chunks
            exceed the memory limit.
    """
    if isinstance(dataset, Dataset):
        if keys is not None or by_index:
            raise TypeError("a kdpipe dataset is joined by its own sample ids: leave keys and by_index out")
        dataset = with_store_ids(store, dataset)
        rows = join_checked(store, dataset, allow_drift=allow_drift)
        items: Items = _Rendered(replay(store, dataset))
        views: Sequence[int] = range(1, store.num_views + 1) or (0,)
    else:
        rows = join_given(store, dataset, keys=keys, by_index=by_index)
        items = _Given(dataset)
        views = (0,)
    if view is not None:
        views = (view,)
    origin, slots = Origin.of(store, rows), min(2, len(views))
    targets: SharedTargets | WindowedTargets
    if machine.shares() or slots * len(rows) * store.row_bytes > store.memory_limit:
        targets = WindowedTargets(origin, epoch=0, view=views[0], data_seed=data_seed)
    else:
        targets = SharedTargets(origin, view=views[0], slots=slots)
    return AttachedDataset(items, targets, views=views, transform=transform, data_seed=data_seed)


class Items(Protocol):
    """A source of images and labels."""

    def __len__(self) -> int:
        """Return the number of samples."""

    def set_epoch(self, epoch: int) -> None:
        """Prepare for an epoch."""

    def read(self, indices: list[int], view: int) -> list[tuple[Any, ...]]:
        """Return ``(image, label, ...)`` of some samples; a kdpipe dataset renders the pixels of ``view``."""


@dataclass(frozen=True)
class _Given:
    """Items of the caller's dataset, with its own pixels."""

    dataset: Any

    def __len__(self) -> int:
        return len(self.dataset)

    def set_epoch(self, epoch: int) -> None:
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(epoch)

    def read(self, indices: list[int], view: int) -> list[tuple[Any, ...]]:  # noqa: ARG002
        if hasattr(self.dataset, "__getitems__"):
            items = list(self.dataset.__getitems__(indices))
        else:
            items = [self.dataset[index] for index in indices]
        for index, item in zip(indices, items, strict=True):
            if not isinstance(item, tuple | list) or len(item) < 2:
                name = type(self.dataset).__name__
                raise DatasetError(
                    f"{name}[{index}] is a {type(item).__name__}, expected a tuple (image, label); wrap the dataset in "
                    "one that returns that."
                )
        return [tuple(item) for item in items]


class _Rendered:
    """Items with the teacher's pixels of a view: uint8 ``(3, height, width)`` at its input size; or tensors."""

    def __init__(self, renderer: Renderer) -> None:
        self._renderer = renderer

    def __len__(self) -> int:
        return len(self._renderer.dataset)

    def set_epoch(self, epoch: int) -> None:
        """Do nothing: ``read`` is given the view."""

    def read(self, indices: list[int], view: int) -> list[tuple[Any, ...]]:
        made, form = self._renderer(indices, view), self._renderer.dataset.form
        items: Sequence[Any] = list(made)
        if form is not None:
            parts = form.split(made)
            several = [{name: values[place] for name, values in parts.items()} for place in range(len(indices))]
            items = several if form.named else [each[""] for each in several]
        return list(zip(items, self._labels(indices, view), strict=True))

    def _labels(self, indices: list[int], view: int) -> Sequence[int | torch.Tensor]:
        """Return each sample's label, or the share of each class, ``(classes,)``, if the view mixes samples."""
        dataset = self._renderer.dataset
        own, second = dataset.labels[indices], self._renderer.second_labels(indices, view)
        if second is None:
            labels: list[int] = own.tolist()
            return labels
        shares = torch.zeros(len(indices), len(dataset.classes))
        for label, share in ((own, second.own_share), (second.labels, 1 - second.own_share)):
            known = np.flatnonzero(label >= 0)
            shares[known, label[known]] += torch.from_numpy(share[known])
        return list(shares)
