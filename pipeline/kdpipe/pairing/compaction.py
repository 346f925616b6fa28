"""A store copied with one segment per split, without the rows of images that were removed or have changed.

Codes are copied as they are, so that logits stay the same to the bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kdpipe.dataset import Dataset
from kdpipe.errors import StoreError
from kdpipe.pairing.growth import row_order
from kdpipe.pairing.join import join_checked, with_store_ids
from kdpipe.pairing.probes import probe_hashes, probe_rows, rendering, replay, stored_recipe, teacher_preset
from kdpipe.progress import Progress, silent
from kdpipe.store.manifest import Manifest
from kdpipe.store.plan import Plan, SplitPlan
from kdpipe.store.reader import LogitStore
from kdpipe.store.segments import Ids, pixel_digests
from kdpipe.store.writer import build
from kdpipe.views import Geometry


@dataclass(frozen=True)
class _Kept:
    """The samples of a split that are copied."""

    dataset: Dataset
    rows: npt.NDArray[np.int64]
    """The store's row of each."""


def compact(
    stores: Mapping[str, LogitStore], datasets: Mapping[str, Dataset], out: Path, *, progress: Progress = silent
) -> Manifest:
    """Copy a store to ``out`` with the samples of ``datasets``, and return the copy's manifest.

    Its rows are in the order of the datasets, or shuffled as those of the store.

    ``stores`` are all splits of the store, opened for its signals, and ``datasets`` the same splits. A copy that was
    interrupted is continued.

    Raises:
        StoreError: the store's recipe mixes samples, whose partners are found among all samples of a segment.
        DatasetError: the store lacks samples, or their images have changed.
        StaleStoreError: images are rendered to other pixels; or another store is at ``out``.
    """
    first = stores["train"]
    if stored_recipe(first).mixes:
        raise StoreError(
            f"{first.path} cannot be compacted: its recipe {first.manifest.fingerprint.recipe.name} mixes samples, and "
            "a sample's partner depends on all others of its segment. Make a new store."
        )
    kept = {split: _kept(store, datasets[split]) for split, store in stores.items()}
    with build(out, _plan(stores, kept)) as builder:
        if builder.sealed:
            return builder.manifest
        digests = {split: _pixel_digests(store) for split, store in stores.items()}
        total = sum(len(each.rows) * (stores[split].num_views + 1) for split, each in kept.items())
        with progress("copying", total=total, unit="rows") as done:
            for split, each in kept.items():
                for view in range(stores[split].num_views + 1):
                    for shard in builder.unfinished(split, view):
                        rows = each.rows[shard.start : shard.stop]
                        pixels = digests[split][rows] if shard.pixels else None
                        builder.copy(shard, stores[split].gather(view, rows), pixels)
                    done(len(each.rows))
        return builder.seal(first.manifest.about | {"compacted": first.digest})


def _pixel_digests(store: LogitStore) -> Ids:
    found = pixel_digests(store.segments)
    return np.zeros_like(store.sample_ids) if found is None else found


def _kept(store: LogitStore, dataset: Dataset) -> _Kept:
    paired = with_store_ids(store, dataset)
    order, seed = store.manifest.order, store.manifest.fingerprint.recipe.seed
    rows = np.arange(len(paired)) if order is None else row_order(len(paired), seed=seed)
    paired = paired.subset(rows)  # whose fingerprint covers the store's ids
    return _Kept(paired, join_checked(store, paired))


def _plan(stores: Mapping[str, LogitStore], kept: Mapping[str, _Kept]) -> Plan:
    first = stores["train"]
    found, geometry = first.manifest, Geometry.of(teacher_preset(first))
    probes = {split: probe_rows(each.dataset) for split, each in kept.items()}
    splits = {
        split: SplitPlan(
            sample_ids=each.dataset.sample_ids,
            content_digests=each.dataset.content_digests,
            labels=each.dataset.labels,
            planes=stores[split].num_views + 1,
            probe_rows=probes[split],
            probe_hashes=probe_hashes(
                replay(stores[split], each.dataset), probes[split], planes=stores[split].num_views + 1
            ),
            keys=each.dataset.keys,
            pixel_digests=all(part.read_pixels is not None for part in stores[split].segments),
        )
        for split, each in kept.items()
    }
    datasets = {split: each.dataset for split, each in kept.items()}
    fingerprints = {split: dataset.fingerprint for split, dataset in datasets.items()}
    return Plan(
        fingerprint=found.fingerprint.model_copy(update={"dataset": fingerprints}),
        teacher_probe=found.teacher_probe,
        dataset=found.dataset,
        classes=found.classes,
        splits=splits,
        calibrated=first.encoding,
        choice=found.choice,
        signals=found.kept,
        provenance=found.provenance,
        rendering=rendering(stored_recipe(first), geometry, datasets, probes),
        order=found.order,
    )
