"""``cifar10:PATH``, ``cifar100:PATH`` and ``torchvision:NAME:PATH``: published datasets, read by torchvision."""

from __future__ import annotations

import inspect
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kdpipe.dataset import decode
from kdpipe.dataset.encoded import EncodedSource
from kdpipe.dataset.items import Items, ItemSource, as_label, as_labels, check_labels
from kdpipe.dataset.names import Names
from kdpipe.dataset.registry import Channels, Listing, Request, Source, register
from kdpipe.dataset.sources import Files, content_of, suggest_path
from kdpipe.errors import DatasetError, MissingSplitError, did_you_mean
from kdpipe.printable import first_line

SPLITS = {"train": ("train", "trainval"), "test": ("test", "val", "valid")}
"""Names of a split in torchvision's datasets, the preferred one first."""

CIFAR10_STATISTICS: tuple[Channels, Channels] = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
CIFAR100_STATISTICS: tuple[Channels, Channels] = ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761))
"""Mean and standard deviation over the training split, as commonly quoted."""

_FILE_LISTS = ("_image_files", "_images", "_samples", "samples")
_LABEL_LISTS = ("targets", "labels", "_labels")


@register("cifar10:PATH", source="https://www.cs.toronto.edu/~kriz/cifar.html")
def list_cifar10(request: Request, path: str) -> Listing:
    """CIFAR-10 in its published Python batches."""
    return replace(list_torchvision(request, "CIFAR10", path), statistics=CIFAR10_STATISTICS)


@register("cifar100:PATH", source="https://www.cs.toronto.edu/~kriz/cifar.html")
def list_cifar100(request: Request, path: str) -> Listing:
    """CIFAR-100 in its published Python batches, with its 100 fine classes."""
    return replace(list_torchvision(request, "CIFAR100", path), statistics=CIFAR100_STATISTICS)


@register("torchvision:NAME:PATH", source="https://docs.pytorch.org/vision/stable/datasets.html")
def list_torchvision(request: Request, name: str, path: str) -> Listing:
    """A classification dataset of torchvision, such as FashionMNIST; samples are in torchvision's order.

    Raises:
        DatasetError: The dataset is unknown, has no such split, or is not at ``path``.
    """
    name, split = class_name(name), request.split
    root = _dataset_root(Path(path).expanduser().absolute())
    opened = open_published(name, root, split=split, download=request.download)
    count = len(opened)
    where = f"{name} {split}"
    if count == 0:
        raise DatasetError(f"{where} at '{root}' has no samples; expected at least one")
    items = ItemSource(where, partial(open_published, name, root, split=split), opened)
    labels = _listed_labels(opened, items)
    if labels is None:
        labels = items.labels(count, what=f"reading {split}", progress=request.progress, processes=request.processes)
    classes = _classes(opened, labels)
    check_labels(labels, len(classes), where=where)
    paths = _listed_files(opened, items)
    source: Source = items
    if paths is not None:
        source = EncodedSource(Files(Names.of(paths)), memory=f"torchvision {name} {root} {split}")
    keys = tuple(f"{name.lower()}/{split}/{index}" for index in range(count))
    return Listing(name.lower(), classes, keys, labels, source)


def class_name(name: str) -> str:
    """Return the name of torchvision's class for a dataset's name in any case.

    Raises:
        DatasetError: There is none.
    """
    import torchvision.datasets

    known: dict[str, str] = {known.lower(): known for known in torchvision.datasets.__all__}
    if name.lower() not in known:
        near = did_you_mean(name.lower(), known)
        for lower in known:
            near = near.replace(f"'{lower}'", f"'{known[lower]}'")
        raise DatasetError(f"torchvision has no dataset '{name}'{near or '; see torchvision.datasets'}")
    return known[name.lower()]


def open_published(name: str, root: Path, *, split: str, download: bool = False) -> Items:
    """Construct torchvision's dataset for a split, which it takes as ``train=`` or ``split=``.

    Raises:
        DatasetError: It has no such split, or is not at ``root``.
    """
    import torchvision.datasets

    kind = getattr(torchvision.datasets, name)
    parameters = inspect.signature(kind).parameters
    if "root" not in parameters or not {"train", "split"} & parameters.keys():
        raise DatasetError(
            f"torchvision's {name} is not divided into train and test; "
            "divide it yourself into folders (folder:PATH) or in a function (package.module:function)"
        )
    extra = {"download": True} if download and "download" in parameters else {}
    words = SPLITS[split] if "split" in parameters else ("",)
    for word in words:
        chosen = {"split": word} if word else {"train": split == "train"}
        try:
            opened: Items = kind(root=str(root), **chosen, **extra)
            return opened
        except ValueError as error:
            if not word:
                raise _unusable(name, root, error=error, download=download) from error
        except (RuntimeError, OSError, ImportError) as error:
            raise _unusable(name, root, error=error, download=download) from error
    raise MissingSplitError(f"torchvision's {name} has no {split} split (tried {', '.join(words)})")


def _unusable(name: str, root: Path, *, error: Exception, download: bool) -> DatasetError:
    if isinstance(error, ImportError):
        return DatasetError(f"torchvision's {name} needs another package: {error}; install it")
    if download:
        return DatasetError(
            f"{name} could not be downloaded to '{root}': {first_line(error)}; check the network and the folder"
        )
    absent = "" if root.exists() else suggest_path(root)
    return DatasetError(f"{name} is not at '{root}', or damaged there{absent}; correct the path, or add --download")


def _dataset_root(root: Path) -> Path:
    """Return the folder above that of the CIFAR batches, which torchvision expects, if that one is given."""
    return root.parent if root.name in ("cifar-10-batches-py", "cifar-100-python") else root


def _listed_labels(opened: Items, items: ItemSource) -> npt.NDArray[np.int32] | None:
    """Return the labels that the dataset lists, if they agree with its first and last item."""
    found: Any = None
    for attribute in _LABEL_LISTS:
        if (found := getattr(opened, attribute, None)) is not None:
            break
    if found is None:
        pairs = next((pairs for name in _FILE_LISTS if (pairs := getattr(opened, name, None))), None)
        if not isinstance(pairs, list | tuple) or not all(isinstance(pair, tuple) for pair in pairs):
            return None
        found = [pair[-1] for pair in pairs]
    try:
        labels = np.asarray([as_label(value) for value in found], dtype=np.int64)
    except (ValueError, TypeError):
        return None
    if len(labels) != len(opened) or any(items.item(index)[1] != labels[index] for index in (0, len(opened) - 1)):
        return None
    return as_labels(labels)


def _listed_files(opened: Items, items: ItemSource) -> tuple[str, ...] | None:
    """Return the image files of the dataset, if its first item has the pixels of its first file."""
    for attribute in _FILE_LISTS:
        listed = getattr(opened, attribute, None)
        if not isinstance(listed, list | tuple) or len(listed) != len(opened):
            continue
        paths = [entry[0] if isinstance(entry, tuple) else entry for entry in listed]
        if not all(isinstance(path, str | Path) for path in paths) or not Path(paths[0]).is_file():
            continue
        if np.array_equal(decode.decode(content_of(str(paths[0])), str(paths[0])), items.item(0)[0]):
            return tuple(str(Path(path).absolute()) for path in paths)
    return None


def _classes(opened: Items, labels: npt.NDArray[np.int32]) -> tuple[str, ...]:
    names = getattr(opened, "classes", None)
    if isinstance(names, list | tuple) and len(names) > labels.max():
        return tuple(name if isinstance(name, str) else ", ".join(map(str, name)) for name in names)
    return tuple(str(label) for label in range(max(int(labels.max()) + 1, 1)))
