"""Listings of datasets in tables of Arrow or Parquet."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kdpipe.dataset.arrow import LARGEST_COLUMNS, Format, features_of
from kdpipe.dataset.columns import Chosen, choose, class_label_names, keys_of, labels_of
from kdpipe.dataset.containers import Parts, parts
from kdpipe.dataset.encoded import EncodedSource
from kdpipe.dataset.labels import Column, class_labels, class_names, names_from, refuse_indices
from kdpipe.dataset.names import Names, nfc
from kdpipe.dataset.registry import Listing, Request
from kdpipe.dataset.sources import Files
from kdpipe.errors import DatasetError, MissingSplitError

OPTIONS = ("image", "label", "key", "classes")


@dataclass(frozen=True)
class Tables:
    """The tables of a dataset."""

    name: str
    form: Format
    files: Callable[[str], Sequence[Path]]
    """Returns the files of a split."""
    given: Mapping[str, str]
    """Options of the spec."""
    memory: str
    """Name of the dataset in the cache."""
    features: Callable[[str], Mapping[str, Any]] | None = None
    """Returns the features of Hugging Face ``datasets`` of a split; None for those in the files."""
    notes: Callable[[Sequence[Path], str], tuple[str, ...]] = lambda _paths, _column: ()
    """Returns lines for the user on files and the column of images."""
    roots: tuple[Path, ...] = ()
    """Folders that may hold images whose path alone is in the table."""
    named_by_path: bool = False
    """Whether such images are named by their paths below these folders, rather than by their content."""


def list_tables(request: Request, tables: Tables) -> Listing:
    """Return the samples of a split in the order of its files and rows.

    Raises:
        MissingSplitError: There are no files of the split.
        DatasetError: A file is damaged, or its columns are not those of a classification dataset.
    """
    split, paths = request.split, tables.files(request.split)
    chosen = choose(tables.form.schema(paths[0]), _features(tables, split, paths[0]), tables.given, where=str(paths[0]))
    _refuse_other_classes(tables, split, paths, chosen)
    counts = [tables.form.rows(path) for path in paths]
    if not sum(counts):
        raise DatasetError(f"{paths[0]} has no rows; expected at least one image")
    values = _labels(tables, paths, chosen)
    classes = names_from(tables.given["classes"]) if "classes" in tables.given else chosen.classes
    if classes is None:
        trained = paths if split == "train" else tables.files("train")
        train = values if split == "train" else _labels(tables, trained, chosen)
        classes = class_names(train, where=f"'{chosen.label}' of {trained[0]}")
        refuse_indices(values, train, where=f"'{chosen.label}' of {paths[0]}")
    labels = class_labels(values, classes, where=f"'{chosen.label}' of {paths[0]}")
    files = _files(tables, paths, chosen)
    rows = [np.arange(count) for count in counts]
    names = [[f"row {row}" for row in each] for each in rows]
    blobs: Files | Parts = files or parts(paths, tables.form.images(chosen.image), names=names, places=rows)
    source = EncodedSource(blobs, memory=f"{tables.memory} {split}")
    keys: Sequence[str]
    if chosen.key is not None:
        keys = [f"{split}/{nfc(key)}" for key in _keys(tables, paths, chosen.key)]
    elif files is not None and tables.named_by_path:
        keys = _relative(files, tables.roots, split)
    else:
        source, keys = _by_content(source, request)
    return Listing(tables.name, classes, keys, labels, source, notes=tables.notes(paths, chosen.image))


def _features(tables: Tables, split: str, path: Path) -> Mapping[str, Any]:
    return features_of(tables.form.schema(path)) if tables.features is None else tables.features(split)


def _refuse_other_classes(tables: Tables, split: str, paths: Sequence[Path], chosen: Chosen) -> None:
    """Refuse files whose class indices are of other names than those of the first one, and than those of ``train``.

    Raises:
        DatasetError: there is such a file.
    """
    several = [(split, path) for path in (paths[1:] if tables.features is None else ())]
    if split != "train":
        with contextlib.suppress(MissingSplitError):
            several.append(("train", tables.files("train")[0]))
    for other, path in several:
        found = class_label_names(_features(tables, other, path), chosen.label, where=str(path))
        if found != chosen.classes and not ("classes" in tables.given and None in (found, chosen.classes)):
            theirs, ours = (", ".join(each[:4]) if each else "no names" for each in (found, chosen.classes))
            raise DatasetError(
                f"'{chosen.label}' has other classes in {path} than in {paths[0]} ({theirs} against {ours}): the same "
                "index would be another class. Write both with the same names in the same order."
            )


def _labels(tables: Tables, paths: Sequence[Path], chosen: Chosen) -> Column:
    found = [
        labels_of(values, where=f"'{chosen.label}' of {path}") for path, values in _whole(tables, paths, chosen.label)
    ]
    kinds = {each.dtype for each in found if len(each)}
    if len(kinds) > 1:
        raise DatasetError(f"'{chosen.label}' has class names in some of the files of {tables.name}, indices in others")
    return np.concatenate([each for each in found if len(each)])


def _keys(tables: Tables, paths: Sequence[Path], name: str) -> list[str]:
    return [key for path, values in _whole(tables, paths, name) for key in keys_of(values, where=f"'{name}' of {path}")]


def _whole(tables: Tables, paths: Sequence[Path], name: str) -> Iterator[tuple[Path, Any]]:
    """Yield a column of each file, ``LARGEST_COLUMNS`` bytes at most together."""
    left = LARGEST_COLUMNS
    for path in paths:
        values = tables.form.columns(path, [name], most=left).column(0)
        left -= values.nbytes
        yield path, values


def _files(tables: Tables, paths: Sequence[Path], chosen: Chosen) -> Files | None:
    """Return the image files that tables name, ``None`` where they hold the images themselves.

    Raises:
        DatasetError: a file is outside of the dataset's folders, or a row has neither.
    """
    if chosen.path is None or not tables.roots:
        return None
    if tables.form.columns(paths[0], [chosen.image]).column(0).null_count == 0:
        return None
    found = [path for each in paths for path in tables.form.columns(each, [chosen.path]).column(0).to_pylist()]
    roots = [str(root.resolve()) + os.sep for root in tables.roots]
    for path in found:
        if path is None or not os.path.realpath(path).startswith(tuple(roots)):
            raise DatasetError(f"{paths[0]} names the image '{path}', which is not below {tables.roots[0]}")
    return Files(Names.of(found))


def _relative(files: Files, roots: Sequence[Path], split: str) -> list[str]:
    """Return the names of image files below their folder, beginning with the split."""
    found = []
    for path in files.paths:
        root = next((root for root in roots if Path(path).is_relative_to(root)), None)
        name = nfc(path if root is None else str(Path(path).relative_to(root)))
        found.append(name if name.startswith(f"{split}/") else f"{split}/{name}")
    return found


def _by_content(source: EncodedSource, request: Request) -> tuple[EncodedSource, list[str]]:
    """Return names made of content digests, numbered where several images are the same, and what was read for them."""
    every = np.arange(len(source.blobs))
    found = source.survey(every, what=f"naming {request.split}", progress=request.progress, processes=request.processes)
    seen: dict[str, int] = {}
    keys = []
    for index, digest in enumerate(map(bytes, found.digests)):
        name = f"broken {index}" if index in found.broken else digest.hex()
        seen[name] = seen.get(name, 0) + 1
        keys.append(f"{request.split}/{name}" + (f"-{seen[name]}" if seen[name] > 1 else ""))
    return source.holding(found), keys
