"""``webdataset:GLOB``: images and labels in tar archives, as WebDataset writes them."""

from __future__ import annotations

import re
from pathlib import Path

from kdpipe.dataset.containers import RangeFile, parts
from kdpipe.dataset.encoded import EncodedSource
from kdpipe.dataset.labels import Column, class_labels, class_names, column, names_from, refuse_indices
from kdpipe.dataset.options import dataset_name, options, split_files
from kdpipe.dataset.registry import Listing, Request, register
from kdpipe.dataset.tars import TarIndex, tar_index
from kdpipe.errors import DatasetError

_NUMBER = re.compile(r"-1|\d{1,18}", re.ASCII)
_OPTIONS = ("image", "label", "classes")


@register("webdataset:GLOB", source="https://github.com/webdataset/webdataset")
def list_webdataset(request: Request, written: str) -> Listing:
    """Tar archives of NAME.jpg (or png, webp) and NAME.cls or NAME.json, one or more for each split.

    Raises:
        MissingSplitError: There are no archives of the split.
        DatasetError: An archive is missing or damaged, or a sample has no image or several.
    """
    pattern, given = options("webdataset", written, _OPTIONS)
    paths, split = split_files(pattern, request.split, kind="webdataset"), request.split
    indexes = _indexes(request, paths, given.get("image"), given.get("label"))
    values = _labels(indexes, paths)
    if "classes" in given:
        classes = names_from(given["classes"])
    else:
        trained = paths if split == "train" else split_files(pattern, "train", kind="webdataset")
        train = indexes if split == "train" else _indexes(request, trained, given.get("image"), given.get("label"))
        of_train = _labels(train, trained)
        classes = class_names(of_train, where=str(trained[0]))
        values = _labels(indexes, paths, numbers=of_train.dtype != object)
        refuse_indices(values, of_train, where=str(paths[0].parent))
    found = parts(
        paths,
        RangeFile,
        names=[each.images for each in indexes],
        places=[each.offsets for each in indexes],
        sizes=[each.sizes for each in indexes],
    )
    keys = [key for each in indexes for key in each.names]
    if len(set(keys)) < len(keys):
        keys = [f"{path.stem}/{key}" for path, each in zip(paths, indexes, strict=True) for key in each.names]
    return Listing(
        name=dataset_name(pattern),
        classes=classes,
        keys=[f"{split}/{key}" for key in keys],
        labels=class_labels(values, classes, where=str(paths[0].parent)),
        source=EncodedSource(found, memory=f"webdataset {Path(pattern).absolute()} {split}"),
    )


def _indexes(request: Request, paths: list[Path], image: str | None, label: str | None) -> list[TarIndex]:
    found = []
    with request.progress("indexing archives", total=len(paths), unit="files") as report:
        for path in paths:
            found.append(tar_index(path, image=image, label=label))
            report(1)
    if not any(each.names for each in found):
        raise DatasetError(f"{paths[0]} has no images; expected members such as 0001.jpg and 0001.cls")
    return found


def _labels(indexes: list[TarIndex], paths: list[Path], *, numbers: bool = True) -> Column:
    """Return the labels of archives; if all are numbers they are class indices, unless ``numbers`` is false."""
    labels = [label for each in indexes for label in each.labels]
    texts = {label for label in labels if isinstance(label, str)}
    if numbers and all(_NUMBER.fullmatch(text) for text in texts):
        labels = [int(label) if isinstance(label, str) else label for label in labels]
    return column(labels, where=str(paths[0].parent))
