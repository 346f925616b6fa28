"""``folder:PATH``: image files in a folder for each class."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from kdpipe.dataset.decode import image_extensions
from kdpipe.dataset.encoded import EncodedSource
from kdpipe.dataset.folders import images, is_hidden, refuse_upward
from kdpipe.dataset.names import Names, nfc
from kdpipe.dataset.registry import Listing, Request, register
from kdpipe.dataset.sources import Files, suggest_path
from kdpipe.errors import DatasetError, MissingSplitError, did_you_mean

FOLDERS = {"train": ("train",), "test": ("test", "val", "valid", "validation")}
"""The folders on disk that may hold a split, the preferred one first."""

UNLABELED = "unlabeled"
"""The folder of further training images, which have no label."""


@register("folder:PATH")
def list_folder(request: Request, path: str) -> Listing:
    """Images in PATH/train/CLASS and PATH/test/CLASS (or val, valid), and those without a label in PATH/unlabeled.

    Classes are in the order of their names, the images of a class in the order of theirs. Those in ``PATH/unlabeled``
    come last in ``train``, with the label -1. Hidden files, thumbnails and files without an image's extension are left
    out. Class folders may be nested. Links to image files and to folders are followed, but none to a folder above it.

    Raises:
        MissingSplitError: There is no folder of the split.
        DatasetError: A folder is missing or empty, or test has a class that train lacks.
    """
    root, split = Path(path).expanduser(), request.split
    folder = _found(root, split)
    classes = _class_folders(folder)
    if not classes:
        raise DatasetError(f"'{folder}' has no class folders; expected '{folder}/<class>/', a folder for each class")
    train = _split_folder(root, "train") if split == "test" else None
    if train is not None:
        classes = _as_in_train(_class_folders(train), classes, train=train, test=folder)
    keys: list[tuple[str, list[str]]] = []
    paths: list[tuple[str, list[str]]] = []
    parts = [(label, f"{split}/{name}", place) for label, (name, place) in enumerate(classes.items()) if place.is_dir()]
    if split == "train" and (root / UNLABELED).is_dir():
        parts.append((-1, UNLABELED, root / UNLABELED))
    for label, key, place in parts:
        inner, normal = _sorted(images(place))
        if not inner and train is None:
            raise DatasetError(
                f"the folder '{place}' has no images (of {_endings()} and others); add some, or remove the folder"
                f"{_counterpart(root, split, place.name) if label >= 0 else ''}"
            )
        keys.append((key, normal))
        paths.append((str(place.absolute()), inner))
    counts = [len(names) for _, names in keys]
    if not sum(counts):
        raise DatasetError(f"'{folder}' has no images (of {_endings()} and others); add some, or remove the folder")
    labels = np.repeat(np.array([label for label, _, _ in parts], dtype=np.int32), counts)
    present = {label for (label, _, _), count in zip(parts, counts, strict=True) if count}
    absent = [name for label, name in enumerate(classes) if label not in present]
    notes = (f"{_several(absent)} of train without test images: the test says nothing about them.",) if absent else ()
    root = root.absolute()
    return Listing(
        name=nfc(root.name),
        classes=tuple(classes),
        keys=Names.below(keys),
        labels=labels,
        source=EncodedSource(Files(Names.below(paths)), memory=f"folder {os.fsencode(root)!r} {split}"),
        notes=notes,
    )


def _found(root: Path, split: str) -> Path:
    """Return the folder of a split.

    Raises:
        MissingSplitError: There is none in ``root``.
        DatasetError: ``root`` is missing, or no folder.
    """
    if root.exists() and not root.is_dir():
        raise DatasetError(f"'{root}' is a file, expected a folder of images; unpack it and pass the folder")
    if not root.is_dir():
        raise DatasetError(f"there is no folder '{root}'{suggest_path(root) or '; check the path'}")
    folder = _split_folder(root, split)
    if folder is None:
        raise _no_split(root, split)
    return folder


def _sorted(names: list[str]) -> tuple[list[str], list[str]]:
    """Return paths in the order of their Unicode form NFC, and in that form."""
    if all(map(str.isascii, names)):
        names.sort()
        return names, names
    pairs = sorted((nfc(name), name) for name in names)
    return [name for _, name in pairs], [normal for normal, _ in pairs]


def _endings() -> str:
    return ", ".join(ending for ending in (".jpg", ".png", ".webp") if ending in image_extensions())


def _split_folder(root: Path, split: str) -> Path | None:
    """Return the first folder of the split with class folders, else the first that exists."""
    existing = [root / name for name in FOLDERS[split] if (root / name).is_dir()]
    filled = [folder for folder in existing if len(existing) == 1 or _class_folders(folder)]
    return next(iter(filled + existing), None)


def _no_split(root: Path, split: str) -> DatasetError:
    folders = sorted(child.name for child in root.iterdir() if child.is_dir() and not is_hidden(child.name))
    wanted = " or ".join(f"'{name}'" for name in FOLDERS[split])
    found = ", ".join(f"'{name}'" for name in folders[:8]) or "no folders"
    return MissingSplitError(
        f"'{root}' has no {split} split: expected a folder {wanted} with one folder for each class, "
        f"found {found}{did_you_mean(split, folders)}"
    )


def _class_folders(folder: Path) -> dict[str, Path]:
    """Return the class folders by name, in the order of their names.

    Raises:
        DatasetError: Two names are the same in Unicode form NFC.
    """
    found: dict[str, Path] = {}
    with os.scandir(folder) as children:
        for child in children:
            if is_hidden(child.name) or not child.is_dir():
                continue
            if child.is_symlink():
                refuse_upward(Path(child.path))
            name = nfc(child.name)
            if name in found:
                raise DatasetError(
                    f"two class folders in '{folder}' are called '{name}' in Unicode form NFC; rename one"
                )
            found[name] = Path(child.path)
    return dict(sorted(found.items()))


def _as_in_train(classes: dict[str, Path], found: dict[str, Path], *, train: Path, test: Path) -> dict[str, Path]:
    """Return the folders of the test split for all classes of train; those that test lacks do not exist.

    Raises:
        DatasetError: test has a class that train lacks.
    """
    lone = sorted(found.keys() - classes.keys())
    if lone:
        raise DatasetError(
            f"'{test}' has {_several(lone)} that '{train}' lacks, so that no model can learn them; remove these "
            f"folders from '{test}', or correct their names"
        )
    return {name: found.get(name, test / name) for name in classes}


def _several(names: list[str]) -> str:
    more = f" and {len(names) - 6} more" if len(names) > 6 else ""
    return f"the class{'es' if len(names) > 1 else ''} {', '.join(map(repr, names[:6]))}{more}"


def _counterpart(root: Path, split: str, name: str) -> str:
    """Return the folder of the other split that has to be removed with an empty class folder, as a phrase."""
    other = _split_folder(root, "test" if split == "train" else "train")
    return f" and '{other / name}'" if other is not None and (other / name).is_dir() else ""
