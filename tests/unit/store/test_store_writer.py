"""Which store is built, kept, refused or replaced."""

from __future__ import annotations

import dataclasses
import shutil
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import zarr

from kdpipe.errors import DivergedError, KdpipeError, StaleStoreError, StoreError
from kdpipe.store.inspect import summary
from kdpipe.store.plan import Plan
from kdpipe.store.reader import open_store
from kdpipe.store.sections import Recipe, Teacher
from kdpipe.store.writer import build
from kdpipe.testing import stores
from kdpipe.testing.stores import contents, fill, small_plan, small_store


def times(store: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in store.rglob("*")}


def teacher(**changes: Any) -> Teacher:
    return small_plan().fingerprint.teacher.model_copy(update=changes)


def other_classes() -> Plan:
    plan = small_plan()
    return dataclasses.replace(plan, classes=plan.classes[::-1])


DIFFERENT: dict[str, tuple[Plan, str]] = {
    "teacher digest": (small_plan(teacher=teacher(digest="cd" * 16)), "teacher.digest"),
    "teacher name": (small_plan(teacher=teacher(name="resnet110")), "teacher.name"),
    "teacher preset": (
        small_plan(teacher=teacher(preset={**stores.PRESET.describe(), "size": 24})),
        "teacher.preset.size: the store has 32, asked for 24",
    ),
    "dataset": (small_plan(dataset={"train": "ff" * 16, "test": "23" * 16}), "dataset.train"),
    "recipe": (
        small_plan(recipe=Recipe(name="none", version="none/1", seed=3)),
        "recipe.name: the store has crop-flip, asked for none",
    ),
    "recipe version": (
        small_plan(recipe=Recipe(name="crop-flip", version="crop-flip/2", seed=3)),
        "recipe.version",
    ),
    "seed": (
        small_plan(recipe=Recipe(name="crop-flip", version="crop-flip/1", seed=4)),
        "recipe.seed: the store has 3, asked for 4",
    ),
    "precision": (small_plan(precision="bf16"), "precision: the store has fp32, asked for bf16"),
    "batch size": (small_plan(batch_size=8), "batch_size: the store has 4, asked for 8"),
    "device": (small_plan(device="cuda"), "device: the store has cpu, asked for cuda"),
    "memory format": (
        small_plan(memory_format="channels_last"),
        "memory_format: the store has nothing, asked for channels_last",
    ),
    "classes": (other_classes(), "classes: the names or their order differ"),
    "views": (small_plan(views=0), "train views: the store has 1, asked for 0"),
    "teacher's code": (
        dataclasses.replace(small_plan(), teacher_probe=(0.25, -1.5, 3.5)),
        "its logits for the fixed probe input differ",
    ),
}


@pytest.mark.parametrize("part", DIFFERENT)
def test_another_plan_is_refused_and_names_the_part(sealed: Path, part: str) -> None:
    plan, words = DIFFERENT[part]
    before = contents(sealed)
    with pytest.raises(StaleStoreError) as caught:
        small_store(sealed, plan)
    message = str(caught.value)
    assert words in message
    assert str(sealed) in message
    assert "--overwrite" in message
    assert message.count(": the store has ") <= (2 if part == "recipe" else 1)
    assert contents(sealed) == before


@pytest.mark.parametrize("part", ["seed", "views", "classes"])
def test_another_plan_is_refused_while_building(started: Callable[[int], Path], part: str) -> None:
    store = started(3)
    before = contents(store)
    with pytest.raises(StaleStoreError):
        small_store(store, DIFFERENT[part][0])
    assert contents(store) == before
    assert summary(store)["shards_done"] == 3


@pytest.mark.parametrize("part", ["seed", "views", "classes", "teacher digest"])
def test_overwrite_replaces_another_store(sealed: Path, tmp_path: Path, part: str) -> None:
    plan, _ = DIFFERENT[part]
    small_store(sealed, plan, overwrite=True)
    small_store(tmp_path / "fresh.zarr", plan)
    assert contents(sealed) == contents(tmp_path / "fresh.zarr")


def test_overwrite_replaces_another_unfinished_store(started: Callable[[int], Path], tmp_path: Path) -> None:
    store, plan = started(3), DIFFERENT["seed"][0]
    small_store(store, plan, overwrite=True)
    small_store(tmp_path / "fresh.zarr", plan)
    assert contents(store) == contents(tmp_path / "fresh.zarr")


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_sealed_store_of_the_same_plan_is_left_alone(sealed: Path, overwrite: bool) -> None:
    before = times(sealed)
    with build(sealed, small_plan(), overwrite=overwrite) as builder:
        assert builder.sealed
        assert all(builder.is_done(shard) for shard in stores.all_shards(builder))
    assert times(sealed) == before
    assert [path.name for path in sealed.parent.iterdir() if path.name != "cache"] == [sealed.name]


def test_overwrite_resumes_a_store_of_the_same_plan(started: Callable[[int], Path]) -> None:
    with build(started(3), small_plan(), overwrite=True) as builder:
        assert fill(builder) == stores.SHARDS - 3


def test_a_probe_within_rounding_is_the_same_teacher(sealed: Path) -> None:
    plan = dataclasses.replace(small_plan(), teacher_probe=(0.2501, -1.5002, 3.0003))
    with build(sealed, plan) as builder:
        assert builder.sealed


@pytest.mark.parametrize("overwrite", [False, True])
def test_something_else_at_the_path_is_never_touched(tmp_path: Path, overwrite: bool) -> None:
    folder = tmp_path / "photos"
    (folder / "2024").mkdir(parents=True)
    (folder / "2024" / "a.jpg").write_bytes(b"precious")
    with pytest.raises(StoreError, match="is not a logit store"):
        small_store(folder, overwrite=overwrite)
    assert contents(folder) == {"2024/a.jpg": b"precious"}
    file = tmp_path / "file"
    file.write_bytes(b"precious")
    with pytest.raises(StoreError, match="is not a logit store"):
        small_store(file, overwrite=overwrite)
    assert file.read_bytes() == b"precious"


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_zarr_store_of_others_is_never_touched(tmp_path: Path, overwrite: bool) -> None:
    path = tmp_path / "measurements.zarr"
    group = zarr.open_group(path, mode="w", zarr_format=3, attributes={"of": "the weather"})
    group.create_array("rain", data=torch.arange(10).numpy())
    before = contents(path)
    with pytest.raises(StoreError):
        small_store(path, overwrite=overwrite)
    assert contents(path) == before


def test_overwrite_replaces_a_damaged_store(sealed: Path, sealed_once: Path) -> None:
    root = sealed / "zarr.json"
    root.write_bytes(root.read_bytes().replace(b'"class 1"', b'"class X"'))
    with pytest.raises(StoreError):
        small_store(sealed)
    small_store(sealed, overwrite=True)
    assert contents(sealed) == contents(sealed_once)


def test_an_empty_directory_is_as_good_as_none(tmp_path: Path, sealed_once: Path) -> None:
    (tmp_path / "a.zarr").mkdir()
    small_store(tmp_path / "a.zarr")
    assert contents(tmp_path / "a.zarr") == contents(sealed_once)


def test_leftovers_of_an_interrupted_start_do_no_harm(tmp_path: Path, sealed_once: Path) -> None:
    leftover = tmp_path / ".a.zarr.new" / "train" / "labels"
    leftover.mkdir(parents=True)
    (leftover / "zarr.json").write_bytes(b"half")
    small_store(tmp_path / "a.zarr")
    assert contents(tmp_path / "a.zarr") == contents(sealed_once)
    assert not leftover.exists()


@pytest.mark.parametrize("first", ["zarr.json", "train/codes/c/0/0/0"])
def test_an_overwrite_interrupted_while_deleting_can_be_run_again(
    sealed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    delete = shutil.rmtree

    def interrupted(path: Path, *arguments: Any, **options: Any) -> None:
        if (Path(path) / first).exists() and Path(path).name != ".small.zarr.new":
            (Path(path) / first).unlink()
            raise KeyboardInterrupt
        delete(path, *arguments, **options)

    plan = DIFFERENT["seed"][0]
    monkeypatch.setattr(shutil, "rmtree", interrupted)
    with pytest.raises(KeyboardInterrupt):
        small_store(sealed, plan, overwrite=True)
    monkeypatch.setattr(shutil, "rmtree", delete)
    small_store(sealed, plan, overwrite=True)
    small_store(tmp_path / "fresh.zarr", plan)
    assert contents(sealed) == contents(tmp_path / "fresh.zarr")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_never_written(tmp_path: Path, value: float) -> None:
    store = tmp_path / "a.zarr"
    with build(store, small_plan()) as builder:
        first, second, _ = builder.shards("train", 1)
        builder.submit(first, stores.shard_logits(builder, first))
        logits = stores.shard_logits(builder, second)
        logits[3, 2] = logits[5, 0] = value
        with pytest.raises(DivergedError, match=r"train row 11, view 1 are not finite"):  # noqa: PT012
            builder.submit(second, logits)
            builder.drain()
        assert builder.is_done(first)
        assert not builder.is_done(second)
    ledger = store.with_name("a.zarr.ledger").read_text()
    assert "train/codes/c/1/0/0" in ledger
    assert "train/codes/c/1/1/0" not in ledger
    assert summary(store)["shards_done"] == 1
    small_store(store)
    assert open_store(store).plane(1).shape == (stores.TRAIN, stores.CLASSES)


def test_an_error_of_the_writer_is_raised_by_a_later_submit(tmp_path: Path) -> None:
    with build(tmp_path / "a.zarr", small_plan()) as builder:
        shards = stores.all_shards(builder)
        with pytest.raises(DivergedError):  # noqa: PT012
            for shard in shards:
                builder.submit(shard, torch.full((shard.stop - shard.start, 5), torch.nan))
            builder.drain()
        assert not any(map(builder.is_done, shards))


def test_an_unknown_encoding_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    with pytest.raises(KdpipeError, match="fp16"):
        small_store(tmp_path / "a.zarr", small_plan(encoding="fp61"))
    assert not (tmp_path / "a.zarr").exists()


KEYS = (
    *("format", "state", "shards_done", "shards_total", "samples", "classes", "views", "encoding", "bytes"),
    *("bytes_per_sample", "digest", "teacher", "dataset", "recipe", "splits"),
)


def test_summary_of_a_sealed_store(sealed_once: Path) -> None:
    found = summary(sealed_once)
    assert found.keys() >= set(KEYS)
    assert found["format"] == 1
    assert found["state"] == "sealed"
    assert found["shards_done"] == found["shards_total"] == stores.SHARDS
    assert (found["samples"], found["classes"], found["views"]) == (20, 5, 1)
    assert found["encoding"] == "fp16"
    assert found["digest"] == open_store(sealed_once).digest
    assert found["teacher"]["name"] == "teacher"
    assert found["dataset"] == {"name": "random", "fingerprint": small_plan().fingerprint.dataset}
    assert found["recipe"] == {"name": "crop-flip", "version": "crop-flip/1", "seed": 3}
    assert found["splits"].keys() == {"train", "test"}
    files = contents(sealed_once)
    assert found["bytes"] == sum(map(len, files.values()))
    labels = sum(len(files[name]) for name in files if name.startswith(("train/codes/c", "train/row_max/c")))
    assert found["bytes_per_sample"] == labels / (20 * 2)


@pytest.mark.parametrize("shards", [0, 2, stores.SHARDS])
def test_summary_of_an_unsealed_store(started: Callable[[int], Path], shards: int) -> None:
    found = summary(started(shards))
    assert found.keys() >= set(KEYS)
    assert found["state"] == "building"
    assert found["shards_done"] == shards
    assert found["shards_total"] == stores.SHARDS
    assert found["digest"] is None
    assert (found["bytes_per_sample"] is None) == (shards < stores.SHARDS)


@pytest.mark.parametrize(("limit", "kept"), [(1, 0), (2 * 8 * 5 * 4, 1), (2**30, 2)])
def test_no_more_logits_are_in_memory_than_the_limit_allows(limit: int, kept: int, tmp_path: Path) -> None:
    with build(tmp_path / "small.zarr", small_plan(train=24)) as builder:
        builder.memory_limit = limit
        submitted = []
        for shard in (*builder.shards("train", 0), *builder.shards("train", 1)):
            logits = torch.randn(shard.stop - shard.start, 5)
            submitted.append(weakref.ref(logits))
            builder.submit(shard, logits)
            del logits
            assert kept or builder.is_done(shard)
            deadline = time.monotonic() + 5  # the writer's thread may still be leaving its last shard
            while sum(reference() is not None for reference in submitted) > kept:
                assert time.monotonic() < deadline
