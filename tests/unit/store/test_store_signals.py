"""Signals of named layers beside the logits: kept, read, resumed, extended, damaged and forged."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from pydantic import ValidationError

from kdpipe.errors import CorruptStoreError, DivergedError, ModelError, StaleStoreError, StoreError
from kdpipe.store.blocks import Pool, windows
from kdpipe.store.inspect import summary
from kdpipe.store.manifest import Manifest
from kdpipe.store.plan import Plan
from kdpipe.store.planes import Plane
from kdpipe.store.reader import open_store
from kdpipe.store.verify import verify_deep, verify_files
from kdpipe.store.writer import build
from kdpipe.testing import stores
from kdpipe.testing.stores import TRAIN, contents, shard_logits, small_plan, small_store
from tests.unit.store.test_store_forged import resealed, reshaped

SHAPES = {
    "features:penultimate": (7,),
    "attention:layer2": (3, 2),
    "features:layer2": (4,),
    "features:layer2.0": (5,),
}
ARRAYS = {
    "features:penultimate": "features",
    "attention:layer2": "attention-layer2",
    "features:layer2": "features-layer2",
    "features:layer2.0": "features-layer2-0",
}


def plan(views: int = stores.VIEWS) -> Plan:
    return replace(small_plan(views=views), signals=SHAPES)


def values(name: str, split: str, view: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1000 * list(SHAPES).index(name) + 100 * view + len(split))
    samples = TRAIN if split == "train" else stores.TEST
    return torch.randn(samples, *SHAPES[name], generator=generator)


def fill(store: Path, wanted: Plan, *, at_most: int | None = None) -> Path:
    with build(store, wanted) as builder:
        waiting = [shard for shard in stores.all_shards(builder) if not builder.is_done(shard)]
        for shard in waiting[:at_most]:
            rows = slice(shard.start, shard.stop)
            signals = {name: values(name, shard.split, shard.view)[rows] for name in SHAPES}
            builder.submit(shard, shard_logits(builder, shard), signals)
        builder.drain()
        if at_most is None:
            builder.seal({"made": "for a test"})
    return store


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return fill(tmp_path / "a.zarr", plan())


def kept(name: str, split: str, view: int) -> np.ndarray:
    return np.asarray(values(name, split, view).half().numpy(), dtype=np.float32)


def test_every_view_and_split_is_kept_in_float16(store: Path) -> None:
    root = zarr.open_group(store, mode="r")
    for split, views in (("train", 2), ("test", 1)):
        for name, shape in SHAPES.items():
            array = root[f"{split}/{ARRAYS[name]}"]
            assert array.dtype == np.float16
            expected = np.stack([kept(name, split, view) for view in range(views)])
            np.testing.assert_array_equal(np.asarray(array[...], dtype=np.float32).reshape(expected.shape), expected)
            assert array.metadata.dimension_names == ("view", "sample", "feature" if len(shape) == 1 else "place")
    assert verify_files(store) == verify_deep(store) == []


def test_single_signals_are_read_as_float32_in_their_shape(store: Path) -> None:
    opened = open_store(store)
    assert opened.signals == ("features:penultimate", "attention:layer2", "features:layer2", "features:layer2.0")
    rows = [7, 0, 19, 7]
    for name in SHAPES:
        for view in range(2):
            found = opened.signal(name, rows, view=view)
            assert found.dtype == np.float32
            np.testing.assert_array_equal(found, kept(name, "train", view)[rows])
    np.testing.assert_array_equal(
        open_store(store, "test").signal("features:layer2", [5, 1]), kept("features:layer2", "test", 0)[[5, 1]]
    )
    np.testing.assert_array_equal(opened.features(rows, 1), opened.signal("features:penultimate", rows, 1))


def test_what_is_not_there_is_one_line(store: Path, tmp_path: Path) -> None:
    flag = r"--signals features:layer3"
    with pytest.raises(StoreError, match=f"has no features:layer3, only features:penultimate, .*{flag}"):
        open_store(store).signal("features:layer3", [0])
    with pytest.raises(StoreError, match=flag):
        open_store(store, beside=["features:layer3"])
    small_store(tmp_path / "plain.zarr")
    assert open_store(tmp_path / "plain.zarr").signals == ()
    with pytest.raises(StoreError, match=f"has no features:layer3. .*{flag}"):
        open_store(tmp_path / "plain.zarr").signal("features:layer3", [0])
    with pytest.raises(StoreError, match="has views 0 to 1"):
        open_store(store).signal("features:layer2", [0], view=2)
    with pytest.raises(IndexError):
        open_store(store).signal("features:layer2", [TRAIN])


BESIDE = ("attention:layer2", "features:layer2.0")


def agrees(plane: Plane, rows: np.ndarray, view: int) -> None:
    found = plane.signals(slice(None))
    assert list(found) == list(BESIDE)
    for name, signal in found.items():
        assert signal.dtype == torch.float32
        np.testing.assert_array_equal(signal.numpy(), kept(name, "train", view)[rows])


def test_planes_hold_what_was_asked_for_beside_the_logits(store: Path) -> None:
    opened, plain = open_store(store, beside=BESIDE), open_store(store)
    assert opened.row_bytes == plain.row_bytes + 2 * 6 + 2 * 5
    rows = np.array([19, 3, 3, 8])
    for view in range(2):
        plane = opened.codes(view)
        agrees(plane, np.arange(TRAIN), view)
        agrees(plane.take(torch.from_numpy(rows)), rows, view)
        agrees(plane.take(slice(2, 9)), np.arange(2, 9), view)
        agrees(opened.rows(view, 5, 14), np.arange(5, 14), view)
        agrees(opened.gather(view, rows), rows, view)
        np.testing.assert_array_equal(opened.plane(view), plain.plane(view))
        found = plane.signals(torch.from_numpy(rows))
        np.testing.assert_array_equal(found["attention:layer2"].numpy(), kept("attention:layer2", "train", view)[rows])
    assert plain.codes(0).beside == {}


def test_windows_hold_them_too(store: Path) -> None:
    opened = open_store(store, beside=BESIDE)
    opened.memory_limit = 4 * opened.chunk_rows * opened.row_bytes
    assert not opened.fits
    rows = np.random.default_rng(0).permutation(TRAIN)[:17]
    parts = windows(opened, rows, data_seed=3, epoch=1)
    assert len(parts) > 1
    pool = Pool(opened, rows, parts, view=1)
    order = np.concatenate(parts)
    for start in range(0, len(order), 5):
        batch = order[start : start + 5]
        taken = pool.take(batch)
        agrees(taken, rows[batch], 1)
        np.testing.assert_array_equal(taken.logits(slice(None)).numpy(), open_store(store).logits(rows[batch], 1))
    pool.close()


def test_they_count_against_the_memory_limit(store: Path) -> None:
    plain = open_store(store)
    limit = 2 * plain.plane_bytes
    assert open_store(store, memory_limit=limit).fits
    opened = open_store(store, memory_limit=limit, beside=["features:penultimate"])
    assert not opened.fits
    limit = plain.plane_bytes + 10
    with pytest.raises(
        StoreError, match=f"takes {TRAIN * (plain.row_bytes + 14)} bytes of memory, the limit is {limit}"
    ):
        open_store(store, memory_limit=limit, beside=["features:penultimate"]).codes(0)
    with pytest.raises(StoreError, match="attention:layer2 of 20 rows of 'train' takes 480 bytes of memory"):
        open_store(store, memory_limit=479).signal("attention:layer2", range(TRAIN))


def test_a_build_resumes_to_the_same_bytes(store: Path, tmp_path: Path) -> None:
    for done in (1, 3, stores.SHARDS - 1):
        resumed = fill(tmp_path / f"{done}.zarr", plan(), at_most=done)
        half_written = resumed / "train/features-layer2-0/c/1/2"
        half_written.mkdir(parents=True, exist_ok=True)
        (half_written / "0").write_bytes(b"half of it")
        with build(resumed, plan()):
            assert not (half_written / "0").exists()
        assert contents(fill(resumed, plan())) == contents(store)


def test_a_file_that_the_ledger_lists_and_is_gone_costs_its_shard(store: Path, tmp_path: Path) -> None:
    resumed = fill(tmp_path / "b.zarr", plan(), at_most=4)
    (resumed / "test/attention-layer2/c/0/0/0").unlink()
    with build(resumed, plan()) as builder:
        assert sum(builder.is_done(shard) for shard in stores.all_shards(builder)) == 3
    assert contents(fill(resumed, plan())) == contents(store)


def test_views_are_added_and_the_others_stay(store: Path, tmp_path: Path) -> None:
    before = contents(store)
    with build(store, plan(views=2)) as builder:
        waiting = [shard for shard in stores.all_shards(builder) if not builder.is_done(shard)]
        assert {(shard.split, shard.view) for shard in waiting} == {("train", 2)}
    fill(store, plan(views=2))
    direct = fill(tmp_path / "direct.zarr", plan(views=2))
    assert open_store(store).digest == open_store(direct).digest
    after = contents(store)
    shards = {name for name in before if "/c/" in name and "probe_hash" not in name}
    assert {name: after[name] for name in shards} == {name: before[name] for name in shards}
    np.testing.assert_array_equal(
        open_store(store).signal("features:layer2", [4], view=2)[0], kept("features:layer2", "train", 2)[4]
    )


def test_logits_are_those_of_a_store_without_signals(store: Path, tmp_path: Path) -> None:
    small_store(tmp_path / "plain.zarr")
    plain = open_store(tmp_path / "plain.zarr")
    for view in range(2):
        np.testing.assert_array_equal(open_store(store).plane(view), plain.plane(view))
    assert open_store(store).digest != plain.digest
    described = json.loads((tmp_path / "plain.zarr/zarr.json").read_bytes())["attributes"]["kdpipe"]
    assert not {"signals", "features"} & described.keys()


def test_penultimate_features_alone_make_the_store_that_they_always_made(tmp_path: Path) -> None:
    """The digest is that of the version before there were other signals."""
    only = {"features:penultimate": SHAPES["features:penultimate"]}
    with build(tmp_path / "a.zarr", replace(small_plan(), signals=only)) as builder:
        for shard in stores.all_shards(builder):
            rows = torch.arange(shard.start, shard.stop, dtype=torch.float32)
            features = (rows[:, None] + torch.arange(7) + shard.view) / 8
            builder.submit(shard, shard_logits(builder, shard), {"features:penultimate": features})
        sealed = builder.seal({})
    assert sealed.digest == "b5cdb666240e4e39b76a2a0f24fb952e"
    assert "signals" not in json.loads((tmp_path / "a.zarr/zarr.json").read_bytes())["attributes"]["kdpipe"]


def test_they_are_part_of_what_was_asked_for(store: Path) -> None:
    fewer = {name: shape for name, shape in SHAPES.items() if name != "attention:layer2"}
    with (
        pytest.raises(StaleStoreError, match="attention:layer2: the store has 3x2, asked for none"),
        build(store, replace(small_plan(), signals=fewer)),
    ):
        pass
    other = {**SHAPES, "features:layer2": (6,)}
    with (
        pytest.raises(StaleStoreError, match="features:layer2: the store has 4, asked for 6"),
        build(store, replace(small_plan(), signals=other)),
    ):
        pass


def test_shapes_and_values_are_checked_before_they_are_written(tmp_path: Path) -> None:
    with build(tmp_path / "b.zarr", plan()) as builder:
        shard = stores.all_shards(builder)[0]
        rows = slice(shard.start, shard.stop)
        given = {name: values(name, shard.split, shard.view)[rows] for name in SHAPES}
        logits = shard_logits(builder, shard)
        for wrong, message in (
            (
                {name: signal for name, signal in given.items() if name != "features:layer2"},
                "features:layer2 of shape None",
            ),
            ({**given, "features:layer9": given["features:layer2"]}, r"features:layer9 .* for a shard of None"),
            (
                {**given, "attention:layer2": given["attention:layer2"].flatten(1)},
                r"attention:layer2 of shape \(\d+, 6\)",
            ),
        ):
            with pytest.raises(ModelError, match=message):
                builder.submit(shard, logits, wrong)
        given["features:layer2.0"][2, 3] = float("nan")
        builder.submit(shard, logits, given)
        with pytest.raises(DivergedError, match=f"features:layer2.0.*row {shard.start + 2}"):
            builder.drain()
        assert not builder.is_done(shard)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[3] ^= 1
    path.write_bytes(content)


def test_damage_is_noticed_wherever_it_is_read(store: Path) -> None:
    flip(store / "train/attention-layer2/c/1/2/0")
    fault = "attention-layer2 of view 1 of 'train', rows 16 to 17"
    assert verify_files(store) == ["train/attention-layer2/c/1/2/0 does not match its digest"]
    assert [line for line in verify_deep(store) if line.startswith(fault)]
    opened = open_store(store, beside=["attention:layer2"])
    for read in (
        lambda: opened.signal("attention:layer2", [17], view=1),
        lambda: opened.codes(1),
        lambda: opened.gather(1, np.array([17])),
    ):
        with pytest.raises(CorruptStoreError, match=fault):
            read()
    opened.signal("attention:layer2", [15], view=1)
    opened.codes(0)
    open_store(store).codes(1)


def test_shards_that_changed_places_are_noticed(store: Path) -> None:
    first, second = (store / f"train/features-layer2/c/{view}/0/0" for view in (0, 1))
    shutil.copy(first, store.parent / "kept")
    shutil.copy(second, first)
    shutil.copy(store.parent / "kept", second)
    with pytest.raises(CorruptStoreError, match="features-layer2/c/0/0/0 does not match its digest"):
        open_store(store).signal("features:layer2", [0])


def test_a_missing_file_and_a_stranger_are_noticed(store: Path) -> None:
    (store / "train/features-layer2/c/0/0/0").unlink()
    with pytest.raises(CorruptStoreError, match="features-layer2/c/0/0/0 is missing"):
        open_store(store)


def test_values_that_are_not_finite_are_noticed_though_every_digest_fits(store: Path) -> None:
    array = zarr.open_group(store, mode="r+")["train/features-layer2"]
    array[1, 6, 2] = np.inf
    resealed(store)
    assert verify_files(store) == []
    assert verify_deep(store) == ["features-layer2 of view 1 of 'train', rows 6 to 7: no valid values in 1 row"]
    with pytest.raises(CorruptStoreError, match="no valid values in 1 row"):
        open_store(store).signal("features:layer2", [6], view=1)


@pytest.mark.parametrize(
    "forged",
    [
        {"features:layer2": [2**20]},
        {"attention:layer2": [2**19, 2**19]},
        {"features:layer2": [0]},
        {"features:layer2": [-4]},
        {"features:layer2": []},
        {"features:layer2": [4, 4]},
        {"attention:layer2": [4]},
        {"features:../../codes": [4]},
        {"features:layer2/0": [4]},
        {"maps:layer2": [4]},
        {"features:penultimate": [4]},
        {"features:" + "a" * 128: [4]},
        {"features:layer2": 4},
        {"features:layer2": ["4"]},
        {f"features:layer{number}": [4] for number in range(65)},
    ],
)
def test_a_manifest_may_not_claim_anything_else(store: Path, forged: dict[str, object]) -> None:
    described = json.loads((store / "zarr.json").read_bytes())["attributes"]["kdpipe"]
    Manifest.model_validate(described)
    with pytest.raises(ValidationError, match="signals"):
        Manifest.model_validate({**described, "signals": forged})


def test_a_large_claim_takes_no_memory(store: Path) -> None:
    """Every digest fits; the chunks would take 8 GiB."""
    length = 2**20 - 1
    for split, rows in (("train", 8), ("test", 8)):
        planes, samples = (2, TRAIN) if split == "train" else (1, stores.TEST)
        reshaped(store, f"{split}/features-layer2", [planes, samples, length], [1, rows, length], [1, 4, length])

    def claim(manifest: dict[str, dict[str, object]]) -> None:
        manifest["signals"]["features:layer2"] = [length]

    resealed(store, claim)
    with pytest.raises(StoreError):
        open_store(store, memory_limit=2**20).signal("features:layer2", range(TRAIN))
    with pytest.raises(StoreError):
        open_store(store, memory_limit=2**20, beside=["features:layer2"]).codes(0)


def test_shards_are_bounded_by_the_widest_signal(store: Path) -> None:
    def claim(manifest: dict[str, dict[str, Any]]) -> None:
        manifest["signals"]["features:layer2"] = [2**20 - 1]
        manifest["splits"]["train"]["shard_rows"] = 1024

    resealed(store, claim)
    with pytest.raises(CorruptStoreError, match="shards of 1024 rows, sizes that kdpipe never writes"):
        open_store(store)


def test_inspect_shows_each_with_its_size(store: Path, tmp_path: Path) -> None:
    found = summary(store)["signals"]
    rows = 2 * TRAIN + stores.TEST
    files = contents(store)
    for name, shape in SHAPES.items():
        stored = sum(len(files[file]) for file in files if f"/{ARRAYS[name]}/c/" in file)
        assert found[name] == {
            "shape": list(shape),
            "array": ARRAYS[name],
            "bytes": stored,
            "bytes_per_sample": stored / rows,
        }
    assert summary(store)["features"] == 7
    building = fill(tmp_path / "b.zarr", plan(), at_most=3)
    assert summary(building)["signals"]["features:layer2"]["bytes_per_sample"] is None
    small_store(tmp_path / "plain.zarr")
    assert summary(tmp_path / "plain.zarr")["signals"] == {}
