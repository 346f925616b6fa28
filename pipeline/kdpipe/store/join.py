"""A consumer's dataset against a store: joined by sample id, with unchanged files and the same pixels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from blake3 import blake3

from kdpipe.dataset import Dataset
from kdpipe.errors import DatasetError, StaleStoreError
from kdpipe.models import Preset
from kdpipe.store.reader import LogitStore
from kdpipe.views import Geometry, Recipe, Renderer

PROBES = 8
"""Samples per split whose rendered pixels a store remembers, for each view."""


def join(store: LogitStore, dataset: Dataset) -> npt.NDArray[np.int64]:
    """Return the store's row of each sample of ``dataset``, int64 ``(len(dataset),)``.

    Raises:
        StaleStoreError: the classes differ.
        DatasetError: the store lacks samples of the dataset; the message names the first.
    """
    check_classes(store, dataset.classes, where=dataset.spec)
    where = f"'{dataset.split}' samples of {dataset.spec}"
    return locate(store, dataset.sample_ids, keys=dataset.keys, where=where)


def check_classes(store: LogitStore, classes: Sequence[str], *, where: str) -> None:
    """Refuse class names that are not the store's, in its order.

    Raises:
        StaleStoreError: the classes differ.
    """
    if tuple(classes) != store.classes:
        raise StaleStoreError(
            f"{store.path} has the classes {_listed(store.classes)}; {where} has {_listed(tuple(classes))}. "
            "Use the dataset that the store was made from, or make a store for this one."
        )


def locate(
    store: LogitStore, sample_ids: npt.NDArray[np.uint8], *, keys: Sequence[str], where: str
) -> npt.NDArray[np.int64]:
    """Return the store's row of each of ``sample_ids`` ``(n, 16)``, int64 ``(n,)``; ``keys`` are their names.

    Raises:
        DatasetError: the store lacks some; the message names the first and says ``where`` they are.
    """
    known = _keys(store.sample_ids)
    wanted = _keys(sample_ids)
    order = np.argsort(known)
    position = np.searchsorted(known[order], wanted).clip(max=len(known) - 1)
    rows: npt.NDArray[np.int64] = order[position]
    missing = np.flatnonzero(known[rows] != wanted)
    if missing.size:
        raise DatasetError(
            f"{store.path} has no logits for {missing.size} of the {len(wanted)} {where}, first "
            f"{keys[missing[0]]}. The store was made from {store.manifest.dataset}; "
            "use that dataset, or make a store for this one."
        )
    return rows


def join_checked(store: LogitStore, dataset: Dataset, *, allow_drift: bool = False) -> npt.NDArray[np.int64]:
    """Join a dataset to a store by sample id, and make sure the student will see what the teacher saw.

    Returns the store's row of each sample, int64 ``(len(dataset),)``. ``allow_drift`` lets pixels that render
    differently pass.

    Raises:
        DatasetError: samples are missing from the store, or their content has changed.
        StaleStoreError: the classes differ, or the replay probes render to other pixels.
    """
    stored = store.manifest.fingerprint.recipe
    if Recipe.parse(stored.name).version != stored.version:
        raise StaleStoreError(
            f"{store.path} was made with the recipe {stored.version}; this kdpipe draws "
            f"{Recipe.parse(stored.name).version}, which gives other pixels. Use the kdpipe that "
            f"kdpipe inspect {store.path} shows, or make a new store."
        )
    rows = join(store, dataset)
    changed = changed_content(store, dataset, rows)
    if changed:
        raise DatasetError(
            f"{len(changed)} samples of {dataset.spec} have changed since {store.path} was made, first {changed[0]}. "
            "Restore them, or make a new store."
        )
    preset = Preset.parse(dict(store.manifest.fingerprint.teacher.preset))
    drifted = 0 if allow_drift else drifted_probes(store, dataset, rows, preset=preset)
    if drifted:
        raise StaleStoreError(
            f"{drifted} of the {store.probe_hashes.size} replay probes of {store.path} render to other pixels here: "
            "another image decoder, resize kernel or version of a library. Install the versions that "
            f"kdpipe inspect {store.path} shows, or pass --allow-drift."
        )
    return rows


def changed_content(store: LogitStore, dataset: Dataset, rows: npt.NDArray[np.int64]) -> list[str]:
    """Return the keys of the samples whose file or pixels are not the ones that the teacher saw."""
    changed = (store.content_digests[rows] != dataset.content_digests).any(axis=1)
    return [dataset.keys[index] for index in np.flatnonzero(changed)]


def drifted_probes(store: LogitStore, dataset: Dataset, rows: npt.NDArray[np.int64], *, preset: Preset) -> int:
    """Render the store's probes that ``dataset`` has, and count those whose pixels differ."""
    index_of = dict(zip(rows.tolist(), range(len(rows)), strict=True))
    available = [position for position, row in enumerate(store.probe_rows.tolist()) if row in index_of]
    if not available:
        return 0
    indices = np.array([index_of[int(store.probe_rows[position])] for position in available], dtype=np.int64)
    recipe = store.manifest.fingerprint.recipe
    renderer = Renderer(dataset, recipe.name, seed=recipe.seed, geometry=Geometry.of(preset))
    hashes = probe_hashes(renderer, indices, planes=store.num_views + 1)
    return int((hashes != store.probe_hashes[:, available]).sum())


def probe_rows(dataset: Dataset) -> npt.NDArray[np.int64]:
    """Choose the samples to remember: evenly spaced in the order of their ids, int64 ``(p,)``."""
    order = np.argsort(_keys(dataset.sample_ids), kind="stable")
    return np.sort(order[np.linspace(0, len(order) - 1, min(PROBES, len(order))).astype(np.int64)])


def probe_hashes(renderer: Renderer, indices: npt.NDArray[np.int64], *, planes: int) -> npt.NDArray[np.uint64]:
    """Hash the rendered pixels of some samples in views 0 to ``planes - 1``, uint64 ``(planes, p)``."""
    hashes = np.empty((planes, len(indices)), dtype=np.uint64)
    for view in range(planes):
        for column, image in enumerate(renderer(indices, view).cpu().numpy()):
            hashes[view, column] = int.from_bytes(blake3(image.tobytes()).digest(length=8), "little")
    return hashes


def _keys(sample_ids: npt.NDArray[np.uint8]) -> npt.NDArray[np.void]:
    return np.ascontiguousarray(sample_ids).view(np.dtype((np.void, 16))).reshape(-1)


def _listed(names: tuple[str, ...]) -> str:
    shown = ", ".join(names[:4])
    return f"{shown}, … ({len(names)} in all)" if len(names) > 4 else shown
