"""The teacher's pixels again, and how to tell that they are the same: replay probes.

A store remembers hashes of what the teacher was shown of a few samples. Where they differ here, it also remembers
enough to say why: hashes of the decoded source images, and what each operation made of synthetic ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from blake3 import blake3

from kdpipe.dataset import Dataset, decoder_name
from kdpipe.errors import RecipeError, StaleStoreError
from kdpipe.models import Preset
from kdpipe.store.reader import LogitStore
from kdpipe.store.sections import Rendering
from kdpipe.views import Geometry, Population, Recipe, Renderer, trial

PROBES = 8
"""Samples per split whose pixels a store remembers, for each view."""


def stored_recipe(store: LogitStore) -> Recipe:
    """Return the recipe that a store's views were rendered by, with the tables that it keeps.

    Raises:
        StaleStoreError: this kdpipe does not know it, or draws other pixels by it.
    """
    stored = store.manifest.fingerprint.recipe
    try:
        recipe = Recipe.parse(stored.name, thresholds=stored.thresholds)
    except RecipeError as error:
        raise StaleStoreError(
            f"{store.path} was made with the recipe {stored.version}, which this kdpipe cannot draw ({error}) Use the "
            f"kdpipe that kdpipe inspect {store.path} shows."
        ) from None
    if recipe.version != stored.version:
        raise StaleStoreError(
            f"{store.path} was made with the recipe {stored.version}; this kdpipe draws {recipe.version}, which gives "
            f"other pixels. Use the kdpipe that kdpipe inspect {store.path} shows, or make a new store."
        )
    return recipe


def replay(
    store: LogitStore, dataset: Dataset, *, geometry: Geometry | None = None, device: torch.device | str = "cpu"
) -> Renderer:
    """Return what renders the store's views of a dataset that is joined to it: the pixels that the teacher saw.

    ``geometry`` is that of another model, for the same views at its own input size.

    Raises:
        StaleStoreError: this kdpipe cannot draw the store's recipe.
    """
    return Renderer(
        dataset,
        stored_recipe(store),
        seed=store.manifest.fingerprint.recipe.seed,
        geometry=geometry or Geometry.of(teacher_preset(store)),
        device=device,
        population=store.sample_ids,
    )


def teacher_preset(store: LogitStore) -> Preset:
    """Return the evaluation view of the teacher that wrote a store."""
    return Preset.parse(dict(store.manifest.fingerprint.teacher.preset))


def lacking(store: LogitStore, dataset: Dataset) -> int:
    """Return how many samples a dataset lacks that the store's views mix into its own.

    What a subset left out counts as lacking: samples that were held out must not show up in others.
    """
    recipe = stored_recipe(store)
    if not recipe.mixes:
        return 0
    population = Population(dataset, store.sample_ids, seed=store.manifest.fingerprint.recipe.seed)
    return population.lacking(range(1, store.num_views + 1))


@dataclass(frozen=True)
class Drift:
    """How pixels differ from those that the teacher saw."""

    probes: int
    """Probes, over all views, that render to other pixels."""
    of: int
    """Probes that were compared."""
    reason: str
    """What differs, as far as it can be told."""

    def __str__(self) -> str:
        """Say it in a few words."""
        return f"{self.probes} of {self.of} replay probes render to other pixels: {self.reason}"


def drift(store: LogitStore, dataset: Dataset, rows: npt.NDArray[np.int64]) -> Drift | None:
    """Render those of the store's probes that ``dataset`` has, and say how their pixels differ; ``None`` if none does.

    ``rows`` are the store's row of each sample; see ``lacking`` for recipes that mix.
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
    sources = np.array(recorded.sources.get(store.split, ()))[available]
    changed = int((np.array(source_hashes(renderer.dataset, indices)) != sources).sum())
    reasons = []
    if changed:
        reasons.append(
            f"{changed} of {len(indices)} images decode to other pixels (by {recorded.decoder} for the teacher, by "
            f"{decoder_name()} here)"
        )
    assert renderer.geometry is not None
    return reasons + [
        f"the {_called(name, teacher_preset(store).interpolation)} gives other pixels here"
        for name in recorded.differing(trial(renderer.recipe, renderer.geometry))
    ]


def rendering(
    recipe: Recipe, geometry: Geometry, datasets: Mapping[str, Dataset], probes: Mapping[str, npt.NDArray[np.int64]]
) -> Rendering:
    """Record what makes the pixels of some datasets, whose ``probes`` are rows."""
    return Rendering(
        decoder=decoder_name(),
        trial=trial(recipe, geometry),
        sources={split: source_hashes(dataset, probes[split]) for split, dataset in datasets.items()},
    )


def probe_rows(dataset: Dataset) -> npt.NDArray[np.int64]:
    """Choose the samples to remember: evenly spaced in the order of their ids, int64 ``(p,)``."""
    order = np.lexsort(dataset.sample_ids.T[::-1])
    return np.sort(order[np.linspace(0, len(order) - 1, min(PROBES, len(order))).astype(np.int64)])


def probe_hashes(renderer: Renderer, indices: npt.NDArray[np.int64], *, planes: int) -> npt.NDArray[np.uint64]:
    """Hash the rendered pixels of some samples in views 0 to ``planes - 1``, uint64 ``(planes, p)``."""
    hashes = np.empty((planes, len(indices)), dtype=np.uint64)
    for view in range(planes):
        for column, image in enumerate(renderer(indices, view).cpu().numpy()):
            hashes[view, column] = int.from_bytes(blake3(image.tobytes()).digest(length=8), "little")
    return hashes


def source_hashes(dataset: Dataset, indices: npt.NDArray[np.int64]) -> tuple[str, ...]:
    """Hash the decoded source images of some samples: 64 bits of BLAKE3, in hexadecimal digits."""
    return tuple(blake3(image.numpy().tobytes()).hexdigest(length=8) for image in dataset.images(indices))


def _called(name: str, interpolation: str) -> str:
    return f"resize ({interpolation} for the teacher)" if name == "resize" else f"operation {name}"
