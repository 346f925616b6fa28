"""A consumer's dataset against a store: by id, with the same content and the same pixels."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from kdpipe.dataset import Dataset, load
from kdpipe.errors import DatasetError, StaleStoreError
from kdpipe.models import Preset
from kdpipe.pairing.join import changed_content, join, join_checked, verify_data
from kdpipe.pairing.probes import drift, probe_rows, replay
from kdpipe.store.reader import LogitStore, open_store
from kdpipe.store.sections import Recipe as StoredRecipe
from kdpipe.store.writer import build
from kdpipe.testing.stores import dataset_plan, small_store
from kdpipe.views import Geometry, Recipe, Renderer, resample
from kdpipe.views.mixing import partners, thresholds
from tests.unit.pairing.pictures import insects

PRESET = Preset(size=12, resize=14, interpolation="bilinear", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
VIEWS = 2


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return insects(tmp_path / "insects", each=6)


@pytest.fixture
def dataset(folder: Path) -> Dataset:
    return load(f"folder:{folder}", "train")


@pytest.fixture
def store(dataset: Dataset, tmp_path: Path) -> LogitStore:
    small_store(tmp_path / "insects.zarr", dataset_plan(dataset, preset=PRESET, views=VIEWS))
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
    assert drift(store, dataset, rows) is None
    assert verify_data(store, dataset) == []


@pytest.mark.parametrize("indices", [[7], [3, 1, 11], list(range(11, -1, -1))])
def test_subsets_and_other_orders_join_by_id(store: LogitStore, dataset: Dataset, indices: list[int]) -> None:
    subset = dataset.subset(indices)
    rows = join(store, subset)
    assert rows.tolist() == indices
    assert np.array_equal(store.sample_ids[rows], subset.sample_ids)
    assert changed_content(store, subset, rows) == []
    assert drift(store, subset, rows) is None


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
    drifted = drift(store, changed, join(store, changed))
    # A crop may cut the changed pixel out, the plain view does not.
    assert drifted is not None
    assert 1 <= drifted.probes <= 1 + VIEWS
    assert drifted.of == store.probe_hashes.size


def test_another_interpolation_is_named(store: LogitStore, dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    def bicubic(preset: Preset) -> Geometry:
        return Geometry(preset.size, preset.resize, "bicubic")

    monkeypatch.setattr(Geometry, "of", bicubic)
    size = store.probe_hashes.size
    line = f"{size} of {size} replay probes render to other pixels: the resize (bilinear for the teacher) gives other"
    with pytest.raises(StaleStoreError) as caught:
        join_checked(store, dataset)
    assert line in str(caught.value)
    assert "--allow-drift" in str(caught.value)
    assert [line in fault for fault in verify_data(store, dataset)] == [True]
    assert join_checked(store, dataset, allow_drift=True).tolist() == list(range(12))


def test_another_resize_kernel_is_named(store: LogitStore, dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    resize = resample.resize

    def off_by_one(images: torch.Tensor, height: int, width: int, *, kernel: str) -> torch.Tensor:
        return resize(images, height, width, kernel=kernel).clamp(max=254) + 1

    monkeypatch.setattr(resample, "resize", off_by_one)
    monkeypatch.setattr("kdpipe.views.geometry.resize", off_by_one)
    with pytest.raises(StaleStoreError, match=r"the resize .* gives other pixels here"):
        join_checked(store, dataset)


def test_another_decoder_is_named(store: LogitStore, dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    image = Dataset.image
    monkeypatch.setattr(Dataset, "image", lambda self, index: image(self, index).bitwise_xor(1))
    monkeypatch.setattr("kdpipe.pairing.probes.decoder_name", lambda: "newdecoder9")
    streamed = dataclasses.replace(dataset, buffer=None)
    with pytest.raises(StaleStoreError) as caught:
        join_checked(store, streamed)
    assert "8 of 8 images decode to other pixels (by pillow" in str(caught.value)
    assert "by newdecoder9 here)" in str(caught.value)
    assert "the resize" not in str(caught.value)


def test_an_operation_that_draws_other_pixels_is_named(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_store(
        tmp_path / "colors.zarr", dataset_plan(dataset, preset=PRESET, views=VIEWS, recipe="crop-flip+color+erase")
    )
    store = open_store(tmp_path / "colors.zarr")
    assert drift(store, dataset, join(store, dataset)) is None
    monkeypatch.setattr("kdpipe.views.erase.GRAY", 127)
    found = drift(store, dataset, join(store, dataset))
    assert found is not None
    assert found.reason == "the operation erase gives other pixels here"


def recorded(dataset: Dataset, path: Path, **changes: str) -> LogitStore:
    """Return a store whose manifest has other names or versions in its recipe."""
    plan = dataset_plan(dataset, preset=PRESET, views=VIEWS)
    recipe = plan.fingerprint.recipe.model_copy(update=changes)
    small_store(path, dataclasses.replace(plan, fingerprint=plan.fingerprint.model_copy(update={"recipe": recipe})))
    return open_store(path)


def test_another_version_of_the_recipe_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    store = recorded(dataset, tmp_path / "newer.zarr", version="crop-flip/3")
    with pytest.raises(StaleStoreError, match="recipe crop-flip/3; this kdpipe draws crop-flip/2"):
        join_checked(store, dataset)


def test_a_recipe_of_a_later_kdpipe_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    store = recorded(dataset, tmp_path / "later.zarr", name="crop-flip+fog", version="crop-flip/2+fog/1")
    with pytest.raises(StaleStoreError, match=r"recipe crop-flip/2\+fog/1, which this kdpipe cannot draw"):
        join_checked(store, dataset)


def test_a_store_that_does_not_say_what_made_its_pixels_still_drifts(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = dataclasses.replace(dataset_plan(dataset, preset=PRESET, views=VIEWS), rendering=None)
    small_store(tmp_path / "older.zarr", plan)
    store = open_store(tmp_path / "older.zarr")
    assert "rendering" not in (tmp_path / "older.zarr" / "zarr.json").read_text()
    assert drift(store, dataset, join(store, dataset)) is None
    monkeypatch.setattr(Geometry, "of", lambda preset: Geometry(preset.size, preset.resize, "nearest"))
    found = drift(store, dataset, join(store, dataset))
    assert found is not None
    assert "another image decoder, resize kernel" in found.reason


def test_a_build_does_not_go_on_with_other_pixels(
    store: LogitStore, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A top-up in another environment would pair new views with old ones that nobody can render any more."""
    monkeypatch.setattr("kdpipe.views.geometry.resize", lambda images, *_, **__: images[..., :14, :14])
    more = dataset_plan(dataset, preset=PRESET, views=VIEWS + 1)
    with pytest.raises(StaleStoreError, match="resize: gives other pixels here"), build(store.path, more):
        pass


class TestPartners:
    RECIPE = "crop-flip+mixup:0.4"

    @pytest.fixture
    def mixed(self, dataset: Dataset, tmp_path: Path) -> LogitStore:
        small_store(tmp_path / "mixed.zarr", dataset_plan(dataset, preset=PRESET, views=VIEWS, recipe=self.RECIPE))
        return open_store(tmp_path / "mixed.zarr")

    def test_the_table_is_in_the_manifest(self, mixed: LogitStore) -> None:
        stored = mixed.manifest.fingerprint.recipe
        assert stored.name == self.RECIPE
        assert stored.thresholds == {"mixup": thresholds(0.4)}

    def test_it_is_the_manifest_s_table_that_is_drawn_from(self, dataset: Dataset, tmp_path: Path) -> None:
        """A table whose every draw is lambda = 1 mixes nothing, whatever the recipe's name says."""
        recipe = Recipe.parse(self.RECIPE, thresholds={"mixup": [0] * 256})
        small_store(tmp_path / "table.zarr", dataset_plan(dataset, preset=PRESET, views=VIEWS, recipe=recipe))
        store = open_store(tmp_path / "table.zarr")
        alone = Renderer(dataset, "crop-flip", seed=3, geometry=Geometry.of(PRESET))
        assert torch.equal(replay(store, dataset)(range(12), 1), alone(range(12), 1))
        assert verify_data(store, dataset) == []

    def test_all_samples_in_another_order_join(self, mixed: LogitStore, dataset: Dataset) -> None:
        order = np.random.default_rng(0).permutation(12)
        assert join_checked(mixed, dataset.subset(order)).tolist() == order.tolist()
        assert verify_data(mixed, dataset) == []

    def test_the_same_pixels_in_another_order(self, mixed: LogitStore, dataset: Dataset) -> None:
        order = np.random.default_rng(0).permutation(12)
        whole, shuffled = replay(mixed, dataset), replay(mixed, dataset.subset(order))
        for view in range(VIEWS + 1):
            assert torch.equal(shuffled(np.arange(12), view), whole(order, view))

    def test_a_dataset_that_lacks_partners_is_refused_with_their_number(
        self, mixed: LogitStore, dataset: Dataset, folder: Path
    ) -> None:
        seed = mixed.manifest.fingerprint.recipe.seed
        has = np.arange(6)
        needed = {
            int(partner)
            for view in range(1, VIEWS + 1)
            for partner in partners(has, population=12, seed=seed, view=view)
        }
        expected = len(needed - set(has.tolist()))
        assert expected > 0
        line = f"lacks {expected} of the 12 samples of .* that its recipe .* mixes into the 6 that it has"
        with pytest.raises(DatasetError, match=line):
            join_checked(mixed, dataset.subset(has))
        for path in (folder / "train" / "bee").iterdir():
            path.rename(folder / path.name)
        (folder / "train" / "bee" / "0.png").symlink_to(folder / "0.png")
        with pytest.raises(DatasetError, match=r"lacks \d of the 12 samples"):
            join_checked(mixed, load(f"folder:{folder}", "train"))
        assert any("mixed into those" in fault for fault in verify_data(mixed, dataset.subset(has)))

    def test_a_table_that_is_none_is_refused(self, mixed: LogitStore) -> None:
        recipe = mixed.manifest.fingerprint.recipe.model_dump()
        for broken in ([0] * 255, [5, *[0] * 255], [-1] * 256, [2**32 + 1] * 256):
            with pytest.raises(ValidationError, match="thresholds"):
                StoredRecipe.model_validate({**recipe, "thresholds": {"mixup": broken}})


def test_a_subset_without_probes_has_none_to_drift(store: LogitStore, dataset: Dataset) -> None:
    others = np.setdiff1d(np.arange(12), store.probe_rows)
    subset = dataset.subset(others)
    assert drift(store, subset, join(store, subset)) is None


def test_verify_counts_absent_samples(store: LogitStore, dataset: Dataset) -> None:
    said: list[str] = []
    assert verify_data(store, dataset.subset(range(9)), say=said.append) == []
    faults = verify_data(store, dataset.subset(range(9)), complete=True)
    for lines in (said, faults):
        assert len(lines) == 1
        assert "3 of the 12 'train' samples are not in" in lines[0]


def test_probes_are_spread_over_the_ids(dataset: Dataset) -> None:
    rows = probe_rows(dataset)
    assert len(rows) == len(set(rows.tolist())) == 8
    order = np.random.default_rng(0).permutation(12)
    shuffled = dataset.subset(order)
    assert {shuffled.keys[row] for row in probe_rows(shuffled)} == {dataset.keys[row] for row in rows}
    assert probe_rows(dataset.subset([4, 2, 9])).tolist() == [0, 1, 2]
