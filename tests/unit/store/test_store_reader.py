"""What was submitted is what is read, with kdpipe and without."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
import zarr

from kdpipe.encoding.registry import get_encoding
from kdpipe.errors import CorruptStoreError, StoreError, StoreNotFoundError, UnsealedStoreError
from kdpipe.store.reader import open_store
from kdpipe.store.verify import verify_files
from kdpipe.testing import stores


def submitted(split: str, view: int) -> npt.NDArray[np.float32]:
    samples = {"train": stores.TRAIN, "test": stores.TEST}[split]
    return stores.random_logits(split, view, samples=samples)


def stored(split: str, view: int) -> npt.NDArray[np.float32]:
    """Return the logits after the rounding that the encoding allows itself."""
    encoded = get_encoding("fp16").encode(torch.from_numpy(submitted(split, view)))
    return encoded.codes.astype(np.float32) + encoded.row_max[:, None]


@pytest.mark.parametrize(("split", "view"), [("train", 0), ("train", 1), ("test", 0)])
def test_round_trip(sealed_once: Path, split: str, view: int) -> None:
    store = open_store(sealed_once, split=split)
    plane = store.plane(view)
    assert plane.dtype == np.float32
    assert np.array_equal(plane, stored(split, view))
    assert np.abs(plane - submitted(split, view)).max() < 0.03
    rows = [3, 0, 5, 3]
    assert np.array_equal(store.logits(rows, view), plane[rows])
    assert store.logits([], view).shape == (0, stores.CLASSES)
    assert np.array_equal(store.logits(np.arange(store.num_samples), view), plane)
    gathered = store.codes(view).logits(torch.tensor(rows))
    assert np.array_equal(gathered.numpy(), plane[rows])


def test_what_a_store_knows(sealed_once: Path) -> None:
    plan = stores.small_plan()
    for split, planned in plan.splits.items():
        store = open_store(str(sealed_once), split=split)
        assert store.num_samples == len(planned.sample_ids)
        assert store.num_classes == stores.CLASSES
        assert store.num_views == planned.planes - 1
        assert store.classes == plan.classes
        assert np.array_equal(store.labels, planned.labels)
        assert store.labels.dtype == np.int32
        assert np.array_equal(store.sample_ids, planned.sample_ids)
        assert np.array_equal(store.content_digests, planned.content_digests)
        assert np.array_equal(store.probe_rows, planned.probe_rows)
        assert np.array_equal(store.probe_hashes, planned.probe_hashes)
        assert store.manifest.fingerprint == plan.fingerprint
        assert store.digest == store.manifest.digest
    assert verify_files(sealed_once) == []


def test_default_split_and_view(sealed_once: Path) -> None:
    store = open_store(sealed_once)
    assert store.split == "train"
    assert np.array_equal(store.logits([1]), stored("train", 0)[[1]])


def test_decoded_with_zarr_and_numpy_alone(sealed_once: Path, tmp_path: Path) -> None:
    script = Path(__file__).with_name("decode_alone.py")
    out = tmp_path / "decoded.npz"
    subprocess.run([sys.executable, str(script), str(sealed_once), str(out)], check=True)
    plan = stores.small_plan()
    with np.load(out) as decoded:
        assert tuple(decoded["classes"]) == plan.classes
        for split, planned in plan.splits.items():
            assert np.array_equal(decoded[f"{split} ids"], planned.sample_ids)
            assert np.array_equal(decoded[f"{split} labels"], planned.labels)
            for view in range(planned.planes):
                logits = submitted(split, view)
                top = logits.max(axis=1, keepdims=True)
                half_step = np.spacing(np.abs(logits - top).astype(np.float16)).astype(np.float32) / 2
                error = np.abs(decoded[f"{split} logits"][view] - logits)
                assert (error <= half_step + np.spacing(np.abs(logits))).all()


def test_zarr_itself_lists_the_arrays(sealed_once: Path) -> None:
    root = zarr.open_group(sealed_once, mode="r")
    assert sorted(root.group_keys()) == ["test", "train"]
    codes = root["train/codes"]
    assert isinstance(codes, zarr.Array)
    assert codes.metadata.zarr_format == 3
    assert codes.shape == (2, stores.TRAIN, stores.CLASSES)
    assert codes.chunks == (1, 4, stores.CLASSES)
    assert codes.shards == (1, 8, stores.CLASSES)
    assert codes.metadata.dimension_names == ("view", "sample", "class")  # type: ignore[union-attr]
    assert "numcodecs" not in (sealed_once / "train/codes/zarr.json").read_text()


def test_unlabelled_samples_stay_unlabelled(tmp_path: Path) -> None:
    plan = stores.small_plan()
    for planned in plan.splits.values():
        planned.labels[:] = -1
    stores.small_store(tmp_path / "a.zarr", plan)
    assert (open_store(tmp_path / "a.zarr").labels == -1).all()
    assert verify_files(tmp_path / "a.zarr") == []


@pytest.mark.parametrize("view", [-1, 2, 100])
def test_an_absent_view_is_refused(sealed_once: Path, view: int) -> None:
    with pytest.raises(StoreError, match=f"views 0 to 1 of 'train', not {view}"):
        open_store(sealed_once).plane(view)


@pytest.mark.parametrize("indices", [[-1], [stores.TRAIN], [0, 10**9]])
def test_an_absent_sample_is_refused(sealed_once: Path, indices: list[int]) -> None:
    with pytest.raises(IndexError, match=r"0\.\.19"):
        open_store(sealed_once).logits(indices)


@pytest.mark.parametrize("indices", [[0.5], np.array([1.0]), np.zeros(stores.TRAIN, dtype=bool)])
def test_positions_are_integers(sealed_once: Path, indices: object) -> None:
    with pytest.raises((IndexError, TypeError)):
        open_store(sealed_once).logits(indices)


def test_an_absent_split_is_refused(sealed_once: Path) -> None:
    with pytest.raises(StoreError, match=r"no split 'tests', only train, test|no split 'tests', only test, train"):
        open_store(sealed_once, split="tests")


def test_at_most_two_planes_are_kept(tmp_path: Path) -> None:
    stores.small_store(tmp_path / "a.zarr", stores.small_plan(train=4, test=2, views=3))
    store = open_store(tmp_path / "a.zarr")
    first = store.codes(0)
    assert store.codes(0) is first
    store.codes(1)
    assert store.codes(0) is first
    store.codes(2)
    assert store.codes(0) is not first
    assert len(store._planes) == 2


def test_nothing_there(tmp_path: Path) -> None:
    for path in (tmp_path / "none.zarr", tmp_path):
        with pytest.raises(StoreNotFoundError, match="kdpipe cache-teacher"):
            open_store(path)
        assert issubclass(StoreNotFoundError, FileNotFoundError)


def test_a_store_of_zarr_2_is_refused(tmp_path: Path) -> None:
    zarr.open_group(tmp_path / "old.zarr", mode="w", zarr_format=2)
    with pytest.raises(StoreNotFoundError, match="Zarr v2 store"):
        open_store(tmp_path / "old.zarr")


def test_a_group_of_others_is_refused(tmp_path: Path) -> None:
    zarr.open_group(tmp_path / "other.zarr", mode="w", zarr_format=3, attributes={"mine": 1})
    with pytest.raises(CorruptStoreError, match="no manifest of kdpipe"):
        open_store(tmp_path / "other.zarr")


@pytest.mark.parametrize("shards", [0, 3, stores.SHARDS])
def test_an_unsealed_store_is_refused(tmp_path: Path, shards: int) -> None:
    stores.start_store(tmp_path / "a.zarr", shards=shards)
    with pytest.raises(UnsealedStoreError, match="same kdpipe cache-teacher command again"):
        open_store(tmp_path / "a.zarr")
    with pytest.raises(UnsealedStoreError):
        verify_files(tmp_path / "a.zarr")
