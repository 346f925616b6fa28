"""Replay of the teacher's pixels, and the probes that check them.

A store has hashes of the rendered pixels of a few samples. To explain differences, it also has hashes of their decoded
source images, and of the result of each operation on synthetic images. A dataset that is joined by position is compared
with the store's images and their order.
"""

from __future__ import annotations

import shlex
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from blake3 import blake3
from PIL import Image

from kdpipe.dataset import Dataset, decoder_name
from kdpipe.errors import RecipeError, StaleStoreError, StoreError
from kdpipe.models import AnyPreset, Preset, TensorPreset, parse_preset
from kdpipe.reading import open_regular
from kdpipe.store.reader import LogitStore
from kdpipe.store.sections import Rendering
from kdpipe.views import Geometry, Population, Recipe, Renderer, trial

PROBES = 8
"""Samples per split whose pixels are hashed, for each view."""


def stored_recipe(store: LogitStore) -> Recipe:
    """Return the recipe of a store's views, with the store's tables of lambda.

    Raises:
        StaleStoreError: the recipe is unknown to this version of kdpipe, or renders other pixels.
    """
    stored = store.manifest.fingerprint.recipe
    try:
        recipe = Recipe.parse(stored.name, thresholds=stored.thresholds)
    except RecipeError as error:
        raise StaleStoreError(
            f"{store.path} was made with the recipe {stored.version}, which this kdpipe cannot draw ({error}) Use the "
            f"version of kdpipe that kdpipe inspect {shlex.quote(str(store.path))} prints."
        ) from None
    if recipe.version != stored.version:
        raise StaleStoreError(
            f"{store.path} was made with the recipe {stored.version}; this kdpipe draws {recipe.version}, which gives "
            f"other pixels. Use the version of kdpipe that kdpipe inspect {shlex.quote(str(store.path))} prints, or "
            "make a new store."
        )
    return recipe


def replay(
    store: LogitStore, dataset: Dataset, *, geometry: Geometry | None = None, device: torch.device | str = "cpu"
) -> Renderer:
    """Return a renderer of the teacher's pixels or tensors, for a dataset that is joined to the store.

    ``geometry`` renders the same views at another model's input size.

    Raises:
        StaleStoreError: this version of kdpipe cannot draw the store's recipe.
    """
    preset = teacher_preset(store)
    of_teacher = preset.form if isinstance(preset, TensorPreset) else None
    if of_teacher != dataset.form:
        raise StaleStoreError(
            f"{store.path} was made of {of_teacher or 'images'}, {dataset.spec} has {dataset.form or 'images'}: "
            "use the dataset that the store was made from, or make a store for this one."
        )
    return Renderer(
        dataset,
        stored_recipe(store),
        seed=store.manifest.fingerprint.recipe.seed,
        geometry=geometry or Geometry.of(preset),
        device=device,
        population=store.populations,
    )


def teacher_preset(store: LogitStore) -> AnyPreset:
    """Return the preprocessing of a store's teacher."""
    return parse_preset(dict(store.manifest.fingerprint.teacher.preset))


def lacking(store: LogitStore, dataset: Dataset) -> int:
    """Return the number of mixing partners of a dataset's samples that the dataset lacks.

    Samples that a subset leaves out are lacking: held-out samples must not be mixed into others.
    """
    recipe = stored_recipe(store)
    if not recipe.mixes:
        return 0
    population = Population(dataset, store.populations, seed=store.manifest.fingerprint.recipe.seed)
    return population.lacking(range(1, store.num_views + 1))


@dataclass(frozen=True)
class Drift:
    """Differences from the teacher's pixels."""

    probes: int
    """Number of probes, over all views, that render to other pixels."""
    of: int
    """Number of probes compared."""
    reason: str
    """The causes that were found."""

    def __str__(self) -> str:
        """Return the differences in one line."""
        return f"{self.probes} of {self.of} replay probes render to other pixels: {self.reason}"


def drift(store: LogitStore, dataset: Dataset, rows: npt.NDArray[np.int64]) -> Drift | None:
    """Render the probes that ``dataset`` has, and compare their pixels with the teacher's; ``None`` if all are equal.

    ``rows`` are the store's row of each sample, ``(len(dataset),)``. For recipes that mix, see ``lacking``.
    """
    index_of = dict(zip(rows.tolist(), range(len(rows)), strict=True))
    available = [position for position, row in enumerate(store.probe_rows.tolist()) if row in index_of]
    indices = np.array([index_of[int(store.probe_rows[position])] for position in available], dtype=np.int64)
    if not indices.size:
        return None
    renderer = replay(store, dataset)
    hashes = probe_hashes(renderer, indices, planes=store.num_views + 1)
    differing = hashes != store.probe_hashes[:, available]
    if not differing.any():
        return None
    reasons = _reasons(store, renderer, indices, available) or [
        "the plain view"
        if differing[0].any()
        else f"views {', '.join(map(str, np.flatnonzero(differing.any(axis=1))))}"
    ]
    return Drift(int(differing.sum()), differing.size, "; ".join(reasons))


def _reasons(store: LogitStore, renderer: Renderer, indices: npt.NDArray[np.int64], available: list[int]) -> list[str]:
    recorded = store.manifest.rendering
    if recorded is None:
        return ["another image decoder, resize kernel or version of a library"]
    known = store.source_hashes
    changed = 0
    if known:
        changed = int((np.array(source_hashes(renderer.dataset, indices)) != np.array(known)[available]).sum())
    reasons = []
    if changed:
        reasons.append(
            f"{changed} of {len(indices)} images decode to other pixels (by {recorded.decoder} for the teacher, by "
            f"{decoder_name()} here)"
        )
    tried = renderer.geometry or renderer.dataset.form
    assert tried is not None
    preset = teacher_preset(store)
    kernel = preset.interpolation if isinstance(preset, Preset) else ""
    return reasons + [
        f"the {_called(name, kernel)} gives other pixels here"
        for name in recorded.differing(trial(renderer.recipe, tried))
    ]


def rendering(
    recipe: Recipe,
    geometry: Geometry | None,
    datasets: Mapping[str, Dataset],
    probes: Mapping[str, npt.NDArray[np.int64]],
) -> Rendering:
    """Return the origin of the pixels of datasets by split; ``probes`` are indices of each dataset."""
    tried = geometry or next(iter(datasets.values())).form
    assert tried is not None
    return Rendering(
        decoder=decoder_name(),
        trial=trial(recipe, tried),
        sources={split: source_hashes(dataset, probes[split]) for split, dataset in datasets.items()},
    )


def probe_rows(dataset: Dataset) -> npt.NDArray[np.int64]:
    """Choose the samples to hash, evenly spaced in the order of their ids; int64 indices ``(p,)``."""
    order = np.lexsort(dataset.sample_ids.T[::-1])
    return np.sort(order[np.linspace(0, len(order) - 1, min(PROBES, len(order))).astype(np.int64)])


def probe_hashes(renderer: Renderer, indices: npt.NDArray[np.int64], *, planes: int) -> npt.NDArray[np.uint64]:
    """Hash the rendered pixels at ``indices`` in views 0 to ``planes - 1``, uint64 ``(planes, p)``."""
    hashes = np.empty((planes, len(indices)), dtype=np.uint64)
    for view in range(planes):
        for column, image in enumerate(renderer(indices, view).cpu().numpy()):
            hashes[view, column] = int.from_bytes(blake3(image.tobytes()).digest(length=8), "little")
    return hashes


def source_hashes(dataset: Dataset, indices: npt.NDArray[np.int64]) -> tuple[str, ...]:
    """Hash the decoded source images at ``indices``: 64 bits of BLAKE3 in hexadecimal digits."""
    return tuple(blake3(image.numpy().tobytes()).hexdigest(length=8) for image in dataset.images(indices))


def _called(name: str, interpolation: str) -> str:
    return f"resize ({interpolation} for the teacher)" if name == "resize" else f"operation {name}"


COMPARED = 128
"""Items that are compared, besides the probes."""
_SEARCHED = 4096
"""Items among which the images of the probes are searched."""


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
    known = _known(store)
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


def _known(store: LogitStore) -> dict[Hashable, set[int]]:
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
