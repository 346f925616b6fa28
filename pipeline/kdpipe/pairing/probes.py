"""Replay of the teacher's pixels, and the probes that check them.

A store has hashes of the rendered pixels of a few samples. To explain differences, it also has hashes of their decoded
source images, and of the result of each operation on synthetic images.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from blake3 import blake3

from kdpipe.dataset import Dataset, decoder_name
from kdpipe.errors import RecipeError, StaleStoreError
from kdpipe.models import AnyPreset, Preset, TensorPreset, parse_preset
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
