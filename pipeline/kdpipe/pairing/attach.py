"""Datasets with soft targets for other trainers: items are ``(image, label, soft_target)``.

The soft target is the teacher's float32 logits ``(classes,)`` of the image.
"""

from __future__ import annotations

import operator
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from kdpipe.dataset import Dataset, sample_id
from kdpipe.dataset.sources import content_digest_of, pixel_digest_of
from kdpipe.errors import DatasetError, StoreError
from kdpipe.pairing.growth import row_order
from kdpipe.pairing.join import check_classes, join_checked, locate, with_store_ids
from kdpipe.pairing.probes import refuse_another_order, replay
from kdpipe.pairing.recognition import recognized
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
    teacher's pixels in the epoch's view; ``set_epoch`` selects the view. Tensors are given as the dataset has them,
    a tensor or a dictionary, in the epoch's view. Where the view mixes samples, the label is
    the share of each class, float32 ``(classes,)``. Any other map-style dataset of ``(image, label, ...)`` keeps its
    own images, which must be plain: their soft targets are those of the plain view 0.

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
        rows = _rows(store, dataset, keys=keys, by_index=by_index)
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
                raise DatasetError(
                    f"{_name(self.dataset)}[{index}] is a {type(item).__name__}, expected a tuple (image, label); "
                    "wrap the dataset in one that returns that."
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


@dataclass(frozen=True)
class _Known:
    """Attributes of a dataset; ``None`` for those that it lacks."""

    classes: tuple[str, ...] | None
    paths: Sequence[str] | None
    """Relative to the split's folder, with forward slashes."""
    labels: npt.NDArray[Any] | None
    files: Sequence[Path] | None = None
    """The image files."""


def _rows(store: LogitStore, dataset: Any, *, keys: Sequence[str] | None, by_index: bool) -> npt.NDArray[np.int64]:
    """Return the store's row of each sample of any map-style dataset, int64 ``(len(dataset),)``."""
    name = _name(dataset)
    stream = isinstance(dataset, torch.utils.data.IterableDataset)
    if stream or not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        raise DatasetError(f"{name} is not a map-style dataset, expected one with a length and items by index.")
    if keys is not None and by_index:
        raise TypeError("samples are joined by keys or by_index, not by both")
    known = _known(dataset)
    if known.classes is not None:
        check_classes(store, known.classes, where=name)
    if by_index:
        index = _index_of(store, len(dataset), name=name)
        _check_order(store, known.labels, index, name=name)
        refuse_another_order(store, dataset.__getitem__, files=known.files, index=index, name=name)
        return np.argsort(index)
    listed = False
    if keys is None:
        if known.paths is None:
            raise DatasetError(
                f"{name} lists no files. Give the samples' keys, such as "
                f"keys=['{store.split}/cat/1.jpg', ...], or by_index=True if it is in the order of {store.path}."
            )
        keys, listed = [f"{store.split}/{path}" for path in known.paths], True
    if len(keys) != len(dataset):
        raise DatasetError(f"there are {len(keys)} keys for the {len(dataset)} samples of {name}; give each its own.")
    ids = np.frombuffer(b"".join(map(sample_id, keys)), dtype=np.uint8).reshape(-1, 16)
    if listed and known.files is not None:
        content_of, pixels_of = (partial(_digests, each, known.files) for each in (content_digest_of, pixel_digest_of))
        ids = recognized(store, ids, content_of=content_of, pixels_of=pixels_of)
    return locate(store, ids, keys=keys, where=f"samples of {name}")


def _index_of(store: LogitStore, samples: int, *, name: str) -> npt.NDArray[np.int64]:
    """Return the dataset's index of each row of a store that was made of all of its samples."""
    if store.manifest.hides_names:
        raise StoreError(f"{store.path} hides the names of its samples and their order: no images can be joined to it.")
    if samples != store.num_samples:
        raise StoreError(
            f"{name} has {samples} samples, {store.path} has {store.num_samples} of '{store.split}': they cannot be "
            "joined by index. Give the samples' keys."
        )
    if store.manifest.order is None:
        return np.arange(samples)
    if len(store.segments) > 1:
        raise StoreError(f"{store.path} has grown, so its rows have no index in {name}. Give the samples' keys.")
    return row_order(samples, seed=store.manifest.fingerprint.recipe.seed)


def _check_order(
    store: LogitStore, labels: npt.NDArray[Any] | None, index: npt.NDArray[np.int64], *, name: str
) -> None:
    """Compare the labels of a dataset with the store's, whose rows have the samples at ``index``."""
    if labels is None:
        return
    kept = store.labels[np.argsort(index)]
    differing = np.flatnonzero((labels != kept) & (labels >= 0) & (kept >= 0))
    if differing.size:
        first = int(differing[0])
        raise StoreError(
            f"{name} has the label {labels[first]} at index {first}, {store.path} has {kept[first]} "
            f"({differing.size} differ): another order, or corrected labels. Give the samples' keys."
        )


def _known(dataset: Any) -> _Known:
    """Read the attributes of torchvision's datasets (``classes``, ``samples``, ``root``, ``targets``) and of timm's."""
    if isinstance(dataset, torch.utils.data.Subset):
        whole = _known(dataset.dataset)
        paths = whole.paths and [whole.paths[index] for index in dataset.indices]
        labels = None if whole.labels is None else whole.labels[np.asarray(dataset.indices)]
        files = whole.files and [whole.files[index] for index in dataset.indices]
        return _Known(whole.classes, paths, labels, files)
    reader = getattr(dataset, "reader", dataset)
    names = getattr(dataset, "classes", None)
    if names is None and isinstance(places := getattr(reader, "class_to_idx", None), dict):
        names = sorted(places, key=lambda name: int(places[name]))
    classes = tuple(map(_class_name, names)) if isinstance(names, list | tuple) else None
    labels = np.asarray(getattr(dataset, "targets", ()))
    countable = labels.dtype.kind in "iu" and labels.shape == (len(dataset),)
    paths = _paths(reader)
    files = None if paths is None else [Path(path) for path, *_ in reader.samples]
    return _Known(classes, paths, labels if countable else None, files)


def _digests(
    digest_of: Callable[[Path], bytes], files: Sequence[Path], indices: npt.NDArray[np.int64]
) -> npt.NDArray[np.uint8]:
    """Return digests of some files, ``(k, 16)``; zeros for those that cannot be read or decoded."""
    found = np.zeros((len(indices), 16), dtype=np.uint8)
    for place, index in enumerate(indices):
        with suppress(DatasetError):
            found[place] = np.frombuffer(digest_of(files[index]), dtype=np.uint8)
    return found


def _paths(dataset: Any) -> list[str] | None:
    samples, root = getattr(dataset, "samples", None), getattr(dataset, "root", None)
    if not isinstance(samples, list | tuple) or not isinstance(root, str | Path):
        return None
    try:
        return [unicodedata.normalize("NFC", Path(path).relative_to(root).as_posix()) for path, *_ in samples]
    except (TypeError, ValueError):
        return None


def _class_name(name: Any) -> str:
    """Return a class name in the form of ``kdpipe.dataset``."""
    return unicodedata.normalize("NFC", name) if isinstance(name, str) else ", ".join(map(str, name))


def _name(dataset: Any) -> str:
    return type(dataset).__name__
