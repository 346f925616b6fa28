"""Check that a dataset which is joined by position has the images of a store in the store's order."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from blake3 import blake3
from PIL import Image

from kdpipe.errors import StoreError
from kdpipe.reading import open_regular
from kdpipe.store.reader import LogitStore

COMPARED = 128
"""Items that are compared, besides the probes."""
_SEARCHED = 4096
"""Items among which the images of the probes are searched."""


def refuse_another_order(
    store: LogitStore, item: Callable[[int], Any], *, files: Sequence[Path] | None, name: str
) -> None:
    """Compare some items with the images that the store has at their positions: its probes, and an even sample.

    The store knows an image by the digest of its file or pixels, and its probes also by hashes of their decoded pixels
    and of their pixels at the teacher's input size. ``item`` returns the dataset's items by index, ``files`` are its
    image files if it lists them. Images that a dataset has resized, normalized or augmented match none of these, and
    are accepted: nothing can be told of them.

    Raises:
        StoreError: an image of the store is at another position, or some images match and others do not.
    """
    known = _known(store)
    probes = store.probe_rows.tolist()
    spread = np.linspace(0, store.num_samples - 1, min(COMPARED, store.num_samples)).astype(np.int64).tolist()
    seen = [(row, list(_marks(item, files, row))) for row in sorted({*probes, *spread})]
    right = [row for row, marks in seen if any(row in known[mark] for mark in marks if mark in known)]
    if not right and any(marks for row, marks in seen if row in probes):
        seen += [(row, list(_marks(item, files, row))) for row in _alike(store, probes)]
    for row, marks in seen:
        others = sorted({other for mark in marks for other in known.get(mark, ())})
        if others and row not in others:
            raise StoreError(
                f"{name} has at index {row} the image that {store.path} has at index {others[0]}: it is in another "
                "order. Give the samples' keys."
            )
    kinds = {mark[0] for row, marks in seen if row in right for mark in marks if row in known.get(mark, ())}
    for row, marks in seen:
        if "digest" in kinds and marks and not any(mark in known for mark in marks):
            raise StoreError(
                f"{name} has at index {row} an image that {store.path} lacks, and others at the places of the store's. "
                "Give the samples' keys, or restore the images."
            )


def _known(store: LogitStore) -> dict[Hashable, set[int]]:
    """Return the rows of each mark of an image that the store has."""
    known: dict[Hashable, set[int]] = defaultdict(set)
    for row, digest in enumerate(store.content_digests):
        known["digest", digest.tobytes()].add(row)
    recorded = store.manifest.rendering
    sources = () if recorded is None else recorded.sources.get(store.split, ())
    hashes = [int(value).to_bytes(8, "little").hex() for value in store.probe_hashes[0]]
    for kept in (sources, hashes):
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
