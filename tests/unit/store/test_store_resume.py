"""An interrupted build ends with the same bytes as one that was not."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from kdpipe.errors import CorruptStoreError, KdpipeError, StoreLockedError
from kdpipe.store.reader import open_store
from kdpipe.store.verify import verify_files
from kdpipe.store.writer import build
from kdpipe.testing import stores
from kdpipe.testing.stores import SHARDS, contents, fill, small_plan, small_store
from tests.unit.store.slow_build import forked, slow_build

CODES = "train/codes/c/0/1/0"
ROW_MAX = "train/row_max/c/0/1"


def ledger(store: Path) -> Path:
    return store.with_name(store.name + ".ledger")


def finish(store: Path) -> int:
    """Resume and seal; return how many shards had to be computed."""
    with build(store, small_plan()) as builder:
        computed = fill(builder)
        builder.seal({"made": "for a test"})
    return computed


@pytest.mark.parametrize("shards", range(SHARDS + 1))
def test_resumed_equals_uninterrupted(started: Callable[[int], Path], sealed_once: Path, shards: int) -> None:
    store = started(shards)
    assert finish(store) == SHARDS - shards
    assert contents(store) == contents(sealed_once)
    assert sorted(path.name for path in store.parent.iterdir() if path.name.startswith("started")) == ["started.zarr"]
    assert verify_files(store) == []


def test_resumed_again_and_again(tmp_path: Path, sealed_once: Path) -> None:
    store = tmp_path / "a.zarr"
    for _ in range(SHARDS):
        stores.start_store(store, shards=1)
    assert finish(store) == 0
    assert contents(store) == contents(sealed_once)


def test_shards_may_come_in_any_order(tmp_path: Path, sealed_once: Path) -> None:
    with build(tmp_path / "a.zarr", small_plan()) as builder:
        for shard in reversed(stores.all_shards(builder)):
            builder.submit(shard, stores.shard_logits(builder, shard))
        builder.seal({"made": "for a test"})
    assert contents(tmp_path / "a.zarr") == contents(sealed_once)


def test_times_and_notes_are_not_part_of_the_digest(tmp_path: Path, sealed_once: Path) -> None:
    with build(tmp_path / "a.zarr", small_plan()) as builder:
        fill(builder)
        sealed = builder.seal({"made": "later", "seconds": 12.5})
    assert sealed.digest == open_store(sealed_once).digest
    assert sealed.about == {"made": "later", "seconds": 12.5}


def test_other_logits_give_another_digest(tmp_path: Path, sealed_once: Path) -> None:
    with build(tmp_path / "a.zarr", small_plan()) as builder:
        for shard in stores.all_shards(builder):
            logits = stores.shard_logits(builder, shard)
            if (shard.split, shard.view, shard.number) == ("train", 1, 2):
                logits[0, 0] += 0.1
            builder.submit(shard, logits)
        assert builder.seal({}).digest != open_store(sealed_once).digest


@pytest.mark.parametrize(("messages", "pause"), [(1, 0.0), (2, 0.0), (3, 0.01), (5, 0.03), (8, 0.0)])
def test_killed_then_resumed(tmp_path: Path, sealed_once: Path, messages: int, pause: float) -> None:
    store = tmp_path / "a.zarr"
    with forked(slow_build, store, 0.02) as (process, hears):
        for _ in range(messages):
            hears.recv()
        time.sleep(pause)
        process.kill()
        process.join()
    assert process.exitcode == -signal.SIGKILL
    assert finish(store) <= SHARDS
    assert contents(store) == contents(sealed_once)
    assert open_store(store).digest == open_store(sealed_once).digest


def test_a_torn_last_line_is_not_an_entry(started: Callable[[int], Path], sealed_once: Path) -> None:
    store = started(3)
    content = ledger(store).read_bytes()
    ledger(store).write_bytes(content[:-5])
    assert finish(store) == SHARDS - 2
    assert contents(store) == contents(sealed_once)


def test_a_ledger_that_ends_in_zeros(started: Callable[[int], Path], sealed_once: Path) -> None:
    """Some file systems leave zeros where data had not reached the disk."""
    store = started(3)
    content = ledger(store).read_bytes()
    ledger(store).write_bytes(content + b"\0" * 100)
    assert finish(store) == SHARDS - 3
    assert contents(store) == contents(sealed_once)


def test_a_damaged_line_costs_its_shard_only(started: Callable[[int], Path], sealed_once: Path) -> None:
    store = started(3)
    lines = ledger(store).read_bytes().split(b"\n")
    lines[0] = b"\0" * len(lines[0])
    ledger(store).write_bytes(b"\n".join(lines))
    assert finish(store) == SHARDS - 2
    assert contents(store) == contents(sealed_once)


def test_without_its_ledger_everything_is_computed_again(started: Callable[[int], Path], sealed_once: Path) -> None:
    store = started(3)
    ledger(store).unlink()
    assert finish(store) == SHARDS
    assert contents(store) == contents(sealed_once)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def alter(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("damage", [truncate, alter, Path.unlink])
@pytest.mark.parametrize("name", [CODES, ROW_MAX])
def test_a_shard_that_is_not_as_recorded_is_computed_again(
    started: Callable[[int], Path], sealed_once: Path, name: str, damage: Callable[[Path], None]
) -> None:
    store = started(4)
    damage(store / name)
    assert finish(store) == SHARDS - 3
    assert contents(store) == contents(sealed_once)


def test_a_shard_that_is_not_in_the_ledger_is_removed(started: Callable[[int], Path], sealed_once: Path) -> None:
    store = started(2)
    strays = ["train/codes/c/1/2/0", "train/codes/c/7/7/0", "train/codes/c/0/0/0.abc.partial", "train/row_max/c/7"]
    for name in strays:
        (store / name).parent.mkdir(parents=True, exist_ok=True)
        (store / name).write_bytes(b"half a shard")
    with build(store, small_plan()) as builder:
        assert not any((store / name).exists() for name in strays)
        fill(builder)
        builder.seal({"made": "for a test"})
    assert contents(store) == contents(sealed_once)


@pytest.mark.parametrize("name", ["notes.txt", "train/labels/c/0.abc.partial", "train/.DS_Store"])
def test_a_file_that_does_not_belong_is_never_sealed_in(
    started: Callable[[int], Path], sealed_once: Path, name: str
) -> None:
    store = started(2)
    (store / name).write_bytes(b"mine")
    try:
        finish(store)
    except CorruptStoreError as error:
        assert name in str(error)  # noqa: PT017
    else:
        assert open_store(store).digest == open_store(sealed_once).digest


def test_a_store_with_a_missing_shard_cannot_be_sealed(tmp_path: Path) -> None:
    with build(tmp_path / "a.zarr", small_plan()) as builder:
        fill(builder, at_most=SHARDS - 1)
        with pytest.raises(
            CorruptStoreError, match=r"cannot be sealed: 2 files are missing, first train/codes/c/1/2/0"
        ):
            builder.seal({})
        assert not builder.sealed


def test_is_done_follows_the_disk(tmp_path: Path) -> None:
    with build(tmp_path / "a.zarr", small_plan()) as builder:
        shards = stores.all_shards(builder)
        assert len(shards) == SHARDS
        assert not any(map(builder.is_done, shards))
        fill(builder, at_most=2)
        assert [builder.is_done(shard) for shard in shards] == [True] * 2 + [False] * (SHARDS - 2)


def test_a_finished_plane_can_be_read_while_building(tmp_path: Path, sealed_once: Path) -> None:
    with build(tmp_path / "a.zarr", small_plan()) as builder:
        for shard in builder.shards("test", 0):
            builder.submit(shard, stores.shard_logits(builder, shard))
        plane = builder.plane("test", 0)
    assert (plane == open_store(sealed_once, split="test").plane(0)).all()


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    store = tmp_path / "a.zarr"
    with forked(slow_build, store, 60) as (process, hears):
        hears.recv()
        with (
            pytest.raises(StoreLockedError, match=f"being written by process {process.pid}") as caught,
            build(store, small_plan()),
        ):
            pass
        assert str(store) + " " in str(caught.value)
    assert store.with_name("a.zarr.lock").exists()
    finish(store)
    assert not store.with_name("a.zarr.lock").exists()


def test_one_writer_in_one_process(tmp_path: Path) -> None:
    with (
        build(tmp_path / "a.zarr", small_plan()),
        pytest.raises(StoreLockedError, match=str(os.getpid())),
        build(tmp_path / "a.zarr", small_plan()),
    ):
        pass
    small_store(tmp_path / "a.zarr")


def test_a_lock_of_a_dead_process_does_not_hold(tmp_path: Path) -> None:
    lock = tmp_path / "a.zarr.lock"
    lock.write_text("999999")
    small_store(tmp_path / "a.zarr")
    assert not lock.exists()


def test_an_error_in_the_block_frees_the_lock_and_keeps_what_is_done(tmp_path: Path) -> None:
    store = tmp_path / "a.zarr"
    with pytest.raises(RuntimeError, match="no power"), build(store, small_plan()) as builder:  # noqa: PT012
        fill(builder, at_most=3)
        raise RuntimeError("no power")
    assert finish(store) == SHARDS - 3


@pytest.mark.parametrize(("rows", "classes"), [(8, 4), (8, 6), (1, 5), (7, 5), (9, 5)])
def test_logits_of_another_shape_are_never_stored(tmp_path: Path, rows: int, classes: int) -> None:
    with build(tmp_path / "a.zarr", small_plan()) as builder:
        shard = builder.shards("train", 0)[0]
        assert (shard.start, shard.stop) == (0, 8)
        with pytest.raises((KdpipeError, ValueError)):  # noqa: PT012
            builder.submit(shard, torch.zeros(rows, classes))
            builder.drain()
        assert not builder.is_done(shard)
