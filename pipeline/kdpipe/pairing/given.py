"""Datasets of other libraries, joined to a store: by the files that they list, by given keys, or by position.

A dataset that is joined by position is compared with the store's labels, and some of its images with those that the
store knows.
"""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from blake3 import blake3
from PIL import Image

from kdpipe.dataset.sources import content_digest_of, pixel_digest_of
from kdpipe.errors import DatasetError, StoreError
from kdpipe.pairing.growth import row_order
from kdpipe.pairing.join import check_classes, ids_of, locate
from kdpipe.pairing.recognition import recognized
from kdpipe.reading import open_regular
from kdpipe.store.reader import LogitStore

COMPARED = 128
"""Items that are compared, besides the probes."""
_SEARCHED = 4096
"""Items among which the images of the probes are searched."""


@dataclass(frozen=True)
class _Known:
    """Attributes of a dataset; ``None`` for those that it lacks."""

    classes: tuple[str, ...] | None
    paths: Sequence[str] | None
    """Relative to the split's folder, with forward slashes."""
    labels: npt.NDArray[Any] | None
    files: Sequence[Path] | None = None
    """The image files."""


def join_given(store: LogitStore, dataset: Any, *, keys: Sequence[str] | None, by_index: bool) -> npt.NDArray[np.int64]:
    """Return the store's row of each sample of any map-style dataset, int64 ``(len(dataset),)``.

    Raises:
        StaleStoreError: the classes differ.
        DatasetError: it is no map-style dataset, the store lacks a sample, or it lists no paths and no keys are given.
        StoreError: by index, numbers of samples, labels or images differ.
    """
    name = type(dataset).__name__
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
        _refuse_other_labels(store, known.labels, index, name=name)
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
    ids = ids_of(keys)
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


def _refuse_other_labels(
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


def refuse_another_order(
    store: LogitStore,
    item: Callable[[int], Any],
    *,
    files: Sequence[Path] | None,
    index: npt.NDArray[np.int64],
    name: str,
) -> None:
    """Compare some items with the images that the store has of them: its probes, and an even sample.

    ``index`` is the item's index of each row of the store.

    The store knows an image by the digest of its file or pixels, and its probes also by hashes of their decoded pixels
    and of their pixels at the teacher's input size. ``item`` returns the dataset's items by index, ``files`` are its
    image files if it lists them. Images that a dataset has resized, normalized or augmented match none of these, and
    are accepted: nothing can be told of them.

    Raises:
        StoreError: an image of the store is at another position, or some images match and others do not.
    """
    known = _marked(store)
    probes = store.probe_rows.tolist()
    spread = np.linspace(0, store.num_samples - 1, min(COMPARED, store.num_samples)).astype(np.int64).tolist()
    seen = [(row, list(_marks(item, files, int(index[row])))) for row in sorted({*probes, *spread})]
    right = [row for row, marks in seen if any(row in known[mark] for mark in marks if mark in known)]
    if not right and any(marks for row, marks in seen if row in probes):
        seen += [(row, list(_marks(item, files, int(index[row])))) for row in _alike(store, probes)]
    for row, marks in seen:
        others = sorted({other for mark in marks for other in known.get(mark, ())})
        if others and row not in others:
            raise StoreError(
                f"{name} has at index {index[row]} the image that {store.path} has at index {index[others[0]]}: it is "
                "in another order. Give the samples' keys."
            )
    kinds = {mark[0] for row, marks in seen if row in right for mark in marks if row in known.get(mark, ())}
    for row, marks in seen:
        if "digest" in kinds and marks and not any(mark in known for mark in marks):
            raise StoreError(
                f"{name} has at index {index[row]} an image that {store.path} lacks, and others at the places of the "
                "store's. Give the samples' keys, or restore the images."
            )


def _marked(store: LogitStore) -> dict[Hashable, set[int]]:
    """Return the rows of each mark of an image that the store has."""
    known: dict[Hashable, set[int]] = defaultdict(set)
    for row, digest in enumerate(store.content_digests):
        known["digest", digest.tobytes()].add(row)
    hashes = [int(value).to_bytes(8, "little").hex() for value in store.probe_hashes[0]]
    for kept in (store.source_hashes, hashes):
        for row, mark in zip(store.probe_rows.tolist(), kept, strict=False):
            known["hash", mark].add(row)
    return known


def _alike(store: LogitStore, probes: Iterable[int]) -> list[int]:
    """Return rows with the labels of the probes, evenly spread: labels are compared before, so one may be there."""
    rows = np.flatnonzero(np.isin(store.labels, store.labels[list(probes)]))
    return rows[np.linspace(0, len(rows) - 1, min(_SEARCHED, len(rows))).astype(np.int64)].tolist() if len(rows) else []


def _marks(item: Callable[[int], Any], files: Sequence[Path] | None, index: int) -> Iterator[tuple[str, Any]]:
    """Yield what identifies an image: the digests of its file and of its pixels, and a hash of the latter."""
    if files is not None:
        try:
            with open_regular(files[index], follow=True) as file:
                yield "digest", blake3(file.read()).digest(length=16)
                return
        except OSError:
            pass
    found = item(index)
    pixels = as_pixels(found[0]) if isinstance(found, tuple | list) and found else None
    if pixels is not None:
        shape = np.asarray(pixels.shape, dtype="<u4").tobytes()
        yield "digest", blake3(shape + pixels.tobytes()).digest(length=16)
        yield "hash", blake3(pixels.tobytes()).hexdigest(length=8)


def as_pixels(image: Any) -> npt.NDArray[np.uint8] | None:
    """Return an image as uint8 ``(3, height, width)``; ``None`` if it is normalized, or no image."""
    if isinstance(image, Image.Image):
        image = np.asarray(image.convert("RGB"))
    elif isinstance(image, torch.Tensor):
        image = image.detach().cpu().numpy()
    if not isinstance(image, np.ndarray) or image.ndim not in (2, 3) or not image.size:
        return None
    if image.dtype.kind == "f":
        levels = image * 255
        if not (levels.min() >= -0.01 and levels.max() <= 255.01 and np.allclose(levels, levels.round(), atol=0.01)):
            return None
        image = levels.round().astype(np.uint8)
    if image.dtype != np.uint8:
        return None
    if image.ndim == 2:
        image = image[None]
    elif image.shape[0] not in (1, 3):
        image = image.transpose(2, 0, 1)
    if image.shape[0] == 1:
        image = image.repeat(3, axis=0)
    return np.ascontiguousarray(image) if image.shape[0] == 3 else None
