"""A consumer's dataset against a store: by id, with the same content and the same pixels."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdpipe.dataset import Dataset, load
from kdpipe.errors import DatasetError, StaleStoreError
from kdpipe.models import Preset
from kdpipe.store import (
    LogitStore,
    changed_content,
    drifted_probes,
    join,
    open_store,
    probe_rows,
    verify_data,
)
from kdpipe.views import Geometry
from tests.unit.store.small_store import make, plan_of

PRESET = Preset(size=12, resize=14, interpolation="bilinear", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
VIEWS = 2


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "insects"
    for name in ("ant", "bee"):
        (root / "train" / name).mkdir(parents=True)
        for index in range(6):
            levels = np.random.default_rng([index, ord(name[0])]).integers(0, 256, (16, 18, 3), dtype=np.uint8)
            Image.fromarray(levels).save(root / "train" / name / f"{index}.png")
    return root


@pytest.fixture
def dataset(folder: Path) -> Dataset:
    return load(f"folder:{folder}", "train")


@pytest.fixture
def store(dataset: Dataset, tmp_path: Path) -> LogitStore:
    make(tmp_path / "insects.zarr", plan_of(dataset, preset=PRESET, views=VIEWS))
    return open_store(tmp_path / "insects.zarr")


def repaint(folder: Path, name: str) -> None:
    path = folder / "train" / name
    pixels = np.asarray(Image.open(path)).copy()
    pixels[8, 9] ^= 255
    Image.fromarray(pixels).save(path)


def test_the_same_dataset_joins_in_order(store: LogitStore, dataset: Dataset) -> None:
    rows = join(store, dataset)
    assert rows.dtype == np.int64
    assert rows.tolist() == list(range(12))
    assert changed_content(store, dataset, rows) == []
    assert drifted_probes(store, dataset, rows, preset=PRESET) == 0
    assert verify_data(store, dataset) == []


@pytest.mark.parametrize("indices", [[7], [3, 1, 11], list(range(11, -1, -1))])
def test_subsets_and_other_orders_join_by_id(store: LogitStore, dataset: Dataset, indices: list[int]) -> None:
    subset = dataset.subset(indices)
    rows = join(store, subset)
    assert rows.tolist() == indices
    assert np.array_equal(store.sample_ids[rows], subset.sample_ids)
    assert changed_content(store, subset, rows) == []
    assert drifted_probes(store, subset, rows, preset=PRESET) == 0


def test_a_missing_sample_is_named(store: LogitStore, dataset: Dataset, folder: Path) -> None:
    Image.new("RGB", (18, 16)).save(folder / "train" / "bee" / "new.png")
    more = load(f"folder:{folder}", "train")
    with pytest.raises(DatasetError, match=r"no logits for 1 of the 13 'train' samples.*train/bee/new\.png"):
        join(store, more)


def test_ids_with_zeros_are_told_apart(store: LogitStore, dataset: Dataset) -> None:
    ids = np.zeros_like(store.sample_ids)
    ids[:, 0] = 1
    ids[:, 15] = np.arange(12)
    store.sample_ids = ids[::-1].copy()
    assert join(store, dataclasses.replace(dataset, sample_ids=ids)).tolist() == list(range(11, -1, -1))


def test_other_classes_are_refused(store: LogitStore, dataset: Dataset) -> None:
    swapped = dataclasses.replace(dataset, classes=("bee", "ant"))
    with pytest.raises(StaleStoreError, match=r"classes ant, bee; .*bee, ant"):
        join(store, swapped)


def test_a_changed_file_is_named(store: LogitStore, folder: Path) -> None:
    repaint(folder, "bee/2.png")
    changed = load(f"folder:{folder}", "train")
    rows = join(store, changed)
    assert changed_content(store, changed, rows) == ["train/bee/2.png"]
    assert any("train/bee/2.png" in fault for fault in verify_data(store, changed))


def test_changed_pixels_show_in_every_view_of_a_probe(store: LogitStore, dataset: Dataset, folder: Path) -> None:
    key = dataset.keys[int(store.probe_rows[0])]
    repaint(folder, key.removeprefix("train/"))
    changed = load(f"folder:{folder}", "train")
    drifted = drifted_probes(store, changed, join(store, changed), preset=PRESET)
    # A crop may cut the changed pixel out, the plain view does not.
    assert 1 <= drifted <= 1 + VIEWS


def test_another_resize_drifts_all_probes(store: LogitStore, dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = join(store, dataset)
    fit = Geometry.fit
    monkeypatch.setattr(
        Geometry, "fit", lambda self, images: fit(dataclasses.replace(self, interpolation="bicubic"), images)
    )
    assert drifted_probes(store, dataset, rows, preset=PRESET) == store.probe_hashes.size
    assert verify_data(store, dataset) == [
        f"{store.probe_hashes.size} of {store.probe_hashes.size} replay probes render to other pixels"
    ]


def test_another_preset_drifts(store: LogitStore, dataset: Dataset) -> None:
    rows = join(store, dataset)
    for change in ({"size": 10}, {"resize": 16}, {"interpolation": "nearest"}):
        preset = dataclasses.replace(PRESET, **change)  # type: ignore[arg-type]
        assert drifted_probes(store, dataset, rows, preset=preset) == store.probe_hashes.size
    normalised = dataclasses.replace(PRESET, mean=(0.1, 0.2, 0.3))
    assert drifted_probes(store, dataset, rows, preset=normalised) == 0


def test_a_subset_without_probes_has_none_to_drift(store: LogitStore, dataset: Dataset) -> None:
    others = np.setdiff1d(np.arange(12), store.probe_rows)
    subset = dataset.subset(others)
    assert drifted_probes(store, subset, join(store, subset), preset=PRESET) == 0


def test_verify_counts_absent_samples(store: LogitStore, dataset: Dataset) -> None:
    faults = verify_data(store, dataset.subset(range(9)))
    assert len(faults) == 1
    assert "3 of the 12 'train' samples are not in" in faults[0]


def test_probes_are_spread_over_the_ids(dataset: Dataset) -> None:
    rows = probe_rows(dataset)
    assert len(rows) == len(set(rows.tolist())) == 8
    order = np.random.default_rng(0).permutation(12)
    shuffled = dataset.subset(order)
    assert {shuffled.keys[row] for row in probe_rows(shuffled)} == {dataset.keys[row] for row in rows}
    assert probe_rows(dataset.subset([4, 2, 9])).tolist() == [0, 1, 2]
