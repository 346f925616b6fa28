"""``folder:PATH``: image files in a folder for each class."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import numpy as np

from kdpipe.dataset import walking
from kdpipe.dataset.decode import image_extensions
from kdpipe.dataset.registry import Listing, Request, register
from kdpipe.dataset.sources import FileSource, suggest_path
from kdpipe.errors import DatasetError, did_you_mean

FOLDERS = {"train": ("train",), "test": ("test", "val")}
"""The folders on disk that may hold a split, the preferred one first."""

UNLABELED = "unlabeled"
"""The folder of further training images, which have no label."""


@register("folder:PATH")
def list_folder(request: Request, path: str) -> Listing:
    """Images in PATH/train/CLASS and PATH/test/CLASS (or val), and those without a label in PATH/unlabeled.

    Classes are in the order of their names, the images of a class in the order of theirs. Those in ``PATH/unlabeled``
    come last in ``train``, with the label -1. Hidden files, thumbnails and files without an image's extension are left
    out. Class folders may be nested. Links to image files and to folders are followed, but none to a folder above it.

    Raises:
        DatasetError: A folder is missing or empty, or the class folders of train and test differ.
    """
    root, split = Path(path).expanduser(), request.split
    if not root.is_dir():
        raise DatasetError(f"there is no folder '{root}'{suggest_path(root) or '; check the path'}")
    folder = _split_folder(root, split)
    if folder is None:
        raise _no_split(root, split)
    classes = _class_folders(folder)
    if not classes:
        raise DatasetError(f"'{folder}' has no class folders; expected '{folder}/<class>/', a folder for each class")
    _check_other_split(root, split, folder=folder)
    keys: list[str] = []
    paths: list[str] = []
    labels: list[int] = []
    parts = [(label, f"{split}/{name}", class_folder) for label, (name, class_folder) in enumerate(classes.items())]
    if split == "train" and (root / UNLABELED).is_dir():
        parts.append((-1, UNLABELED, root / UNLABELED))
    for label, key, place in parts:
        found = sorted((f"{key}/{_nfc(inner)}", file) for inner, file in walking.images(place))
        if not found:
            raise DatasetError(
                f"the folder '{place}' has no images (of {_endings()} and others); add some, or remove the folder"
            )
        keys += [key for key, _ in found]
        paths += [file for _, file in found]
        labels += [label] * len(found)
    root = root.absolute()
    return Listing(
        name=_nfc(root.name),
        classes=tuple(classes),
        keys=tuple(keys),
        labels=np.asarray(labels, dtype=np.int32),
        source=FileSource(tuple(paths), memory=f"folder {os.fsencode(root)!r} {split}"),
    )


def _nfc(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _endings() -> str:
    return ", ".join(ending for ending in (".jpg", ".png", ".webp") if ending in image_extensions())


def _split_folder(root: Path, split: str) -> Path | None:
    """Return the first folder of the split with class folders, else the first that exists."""
    existing = [root / name for name in FOLDERS[split] if (root / name).is_dir()]
    filled = [folder for folder in existing if _class_folders(folder)]
    return next(iter(filled + existing), None)


def _no_split(root: Path, split: str) -> DatasetError:
    folders = sorted(child.name for child in root.iterdir() if child.is_dir() and not _hidden(child.name))
    wanted = " or ".join(f"'{name}'" for name in FOLDERS[split])
    found = ", ".join(f"'{name}'" for name in folders[:8]) or "no folders"
    return DatasetError(
        f"'{root}' has no {split} split: expected a folder {wanted} with one folder for each class, "
        f"found {found}{did_you_mean(split, folders)}"
    )


def _hidden(name: str) -> bool:
    return name.startswith(".") or name in walking.LEFT_BEHIND


def _class_folders(folder: Path) -> dict[str, Path]:
    """Return the class folders by name, in the order of their names.

    Raises:
        DatasetError: Two names are the same in Unicode form NFC.
    """
    found: dict[str, Path] = {}
    for child in folder.iterdir():
        if _hidden(child.name) or not child.is_dir():
            continue
        if child.is_symlink():
            walking.refuse_upward(child)
        name = _nfc(child.name)
        if name in found:
            raise DatasetError(f"two class folders in '{folder}' are called '{name}' in Unicode form NFC; rename one")
        found[name] = child
    return dict(sorted(found.items()))


def _check_other_split(root: Path, split: str, *, folder: Path) -> None:
    other = _split_folder(root, "test" if split == "train" else "train")
    if other is None:
        return
    here, there = set(_class_folders(folder)), set(_class_folders(other))
    if here == there:
        return
    lone = [(folder, name) for name in sorted(here - there)] + [(other, name) for name in sorted(there - here)]
    named = ", ".join(f"'{where.name}/{name}'" for where, name in lone[:6])
    more = f" and {len(lone) - 6} more" if len(lone) > 6 else ""
    raise DatasetError(
        f"'{folder}' and '{other}' have different class folders: {named}{more} without a counterpart; "
        "both must hold the same classes"
    )
