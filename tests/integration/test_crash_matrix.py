"""What can happen to a build, and what is left: killed anywhere, watched by readers, locked, broken.

The stores are small and their logits random, so that each process is killed within a fraction of a second. What the
command line says is in ``test_interruption.py``; docs/reference/format.md has the table.
"""

from __future__ import annotations

import fcntl
import os
import random
import shutil
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from kdpipe.errors import (
    KdpipeError,
    StaleStoreError,
    StoreLockedError,
    StoreNotFoundError,
    UnsealedStoreError,
)
from kdpipe.store import manifest
from kdpipe.store.inspect import summary
from kdpipe.store.manifest import Manifest
from kdpipe.store.reader import open_store
from kdpipe.store.sections import Recipe
from kdpipe.store.verify import verify_files
from kdpipe.store.writer import build
from kdpipe.testing.stores import all_shards, contents, fill, shard_logits, small_plan, small_store
from tests.unit.store.slow_build import forked, slow_build, slow_top_up, whole_life

KILLS = 10
RENAMES, SEALING = 7, 3
"""Building and adding a view put this many things in their place, see ``whole_life``; this one seals the first time."""
OTHER = Recipe(name="crop-flip", version="crop-flip/1", seed=4)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the flushes to disk: no test cuts the power."""
    monkeypatch.setattr(os, "fsync", lambda _descriptor: None)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """A store that was built and topped up in one go, and the seconds that took."""
    store = tmp_path_factory.mktemp("undisturbed") / "a.zarr"
    with forked(whole_life, store, 0) as (_, hears):
        assert [hears.recv(), hears.recv()] == ["begins", "sealed"]
        seconds, renames = hears.recv()
    assert renames == RENAMES
    return store, seconds


@pytest.fixture
def sealed(undisturbed: tuple[Path, float], tmp_path: Path) -> Path:
    """A sealed store with one augmented view."""
    small_store(tmp_path / "a.zarr")
    return tmp_path / "a.zarr"


def heard(hears: Connection) -> list[Any]:
    """Return what a process that has ended had told."""
    told = []
    with suppress(EOFError):
        while True:
            told.append(hears.recv())
    return told


def check_reader(store: Path, whole: Path) -> None:
    """A reader is refused, or sees what an undisturbed build holds."""
    try:
        opened = open_store(store)
    except (UnsealedStoreError, StoreNotFoundError):
        return
    expected = open_store(whole)
    assert opened.num_views in (1, 2)
    for view in range(1 + opened.num_views):
        assert (opened.plane(view) == expected.plane(view)).all()


def check_resumed(store: Path, whole: Path, *, views: int) -> None:
    """The same command computes what is not finished, and all ends as if nothing had happened."""
    done = summary(store)["shards_done"] if store.exists() else 0
    with build(store, small_plan(views=views)) as builder:
        computed = 0 if builder.sealed else fill(builder)
        assert done + computed == len(all_shards(builder))
        if not builder.sealed:
            builder.seal({"made": "for a test"})
    small_store(store, small_plan(views=2))
    assert contents(store) == contents(whole)
    assert open_store(store).digest == open_store(whole).digest
    assert [path.name for path in store.parent.iterdir()] == [store.name]


@pytest.mark.parametrize("kill", range(KILLS))
def test_killed_at_a_random_instant(undisturbed: tuple[Path, float], tmp_path: Path, kill: int) -> None:
    whole, seconds = undisturbed
    instant = (kill + random.random()) / KILLS * seconds
    for attempt in range(20):
        store = tmp_path / str(attempt) / "a.zarr"
        with forked(whole_life, store, 0) as (process, hears):
            assert hears.recv() == "begins"
            process.join(instant)
            process.kill()
            process.join()
            told = heard(hears)
        if process.exitcode == -signal.SIGKILL:
            break
        instant *= 0.8  # this run was quicker than the one that was measured
    assert process.exitcode == -signal.SIGKILL
    check_reader(store, whole)
    check_resumed(store, whole, views=2 if "sealed" in told else 1)


@pytest.mark.parametrize("rename", range(1, RENAMES + 1))
def test_killed_just_before_something_is_put_in_its_place(
    undisturbed: tuple[Path, float], tmp_path: Path, rename: int
) -> None:
    whole, _ = undisturbed
    store = tmp_path / "a.zarr"
    with forked(whole_life, store, rename) as (process, hears):
        process.join(60)
        told = heard(hears)
    assert process.exitcode == -signal.SIGKILL
    assert ("sealed" in told) == (rename > SEALING)
    if rename in (SEALING + 1, SEALING + 2):  # before the first step of adding a view that a reader could notice
        assert verify_files(store) == []
    check_reader(store, whole)
    check_resumed(store, whole, views=2 if "sealed" in told else 1)


def test_a_kill_leaves_nothing_that_a_sealed_store_would_keep(sealed: Path) -> None:
    """Also where the next command finds nothing to do."""
    before = contents(sealed)
    for ending in ("manifest", "ledger"):
        sealed.with_name(f".{sealed.name}.{ending}").write_bytes(b"half")
    for ending in ("new", "old"):
        shutil.copytree(sealed, sealed.with_name(f".{sealed.name}.{ending}"))
    small_store(sealed)
    assert contents(sealed) == before
    assert [path.name for path in sealed.parent.iterdir()] == [sealed.name]


def test_a_fresh_store_of_all_views_is_the_same_work(undisturbed: tuple[Path, float], tmp_path: Path) -> None:
    assert small_store(tmp_path / "a.zarr", small_plan(views=2)).digest == open_store(undisturbed[0]).digest


def test_two_readers_during_a_build(sealed: Path, tmp_path: Path) -> None:
    store = tmp_path / "building" / "a.zarr"

    def read(split: str) -> set[str]:
        seen = set()
        while process.is_alive():
            for look in (lambda: open_store(store, split), lambda: summary(store)):
                try:
                    look()
                except (UnsealedStoreError, StoreNotFoundError) as error:
                    seen.add(type(error).__name__)
        return seen

    with forked(slow_build, store, 0.05) as (process, _), ThreadPoolExecutor(2) as pool:
        seen = [reader.result(timeout=60) for reader in [pool.submit(read, split) for split in ("train", "test")]]
    assert all("UnsealedStoreError" in kinds for kinds in seen)
    assert contents(store) == contents(sealed)


def test_readers_while_a_view_is_added(sealed: Path) -> None:
    """Who has opened the store goes on reading the planes it knows; who comes now has to wait."""
    expected = [open_store(sealed).plane(view) for view in (0, 1)]
    opened = [open_store(sealed) for _ in range(6)]
    with forked(slow_top_up, sealed, 0.05) as (process, hears):
        assert hears.recv() == "open"
        with pytest.raises(UnsealedStoreError):
            open_store(sealed)
        for reader in opened[:-1]:
            assert all((reader.plane(view) == expected[view]).all() for view in (0, 1))
            hears.poll(0.05)
        process.join(60)
    assert process.exitcode == 0
    assert all((opened[-1].plane(view) == expected[view]).all() for view in (0, 1))
    assert opened[-1].num_views == 1
    assert open_store(sealed).num_views == 2


@pytest.mark.parametrize("shards", [0, 4, None])
def test_readers_while_the_store_is_replaced(sealed: Path, shards: int | None) -> None:
    reader = open_store(sealed)
    reader.rows(1, 0, reader.num_samples)
    with build(sealed, small_plan(recipe=OTHER), overwrite=True) as builder:
        for shard in all_shards(builder)[:shards]:
            builder.submit(shard, -shard_logits(builder, shard))
        builder.drain()
    for view in (0, 1):
        with pytest.raises(StaleStoreError, match="was replaced by another store since it was opened"):
            reader.plane(view)


@pytest.mark.parametrize("look", [open_store, verify_files])
def test_a_store_that_is_replaced_while_it_is_checked_is_not_called_damaged(
    sealed: Path, monkeypatch: pytest.MonkeyPatch, look: Callable[[Path], object]
) -> None:
    read = manifest.read

    def overtaken(store: Path) -> Manifest:
        found = read(store)
        monkeypatch.setattr(manifest, "read", read)
        small_store(sealed, small_plan(recipe=OTHER, views=0), overwrite=True)
        return found

    monkeypatch.setattr(manifest, "read", overtaken)
    with pytest.raises(StaleStoreError, match="was changed by another process"):
        look(sealed)


def test_a_reader_whose_store_is_deleted(sealed: Path) -> None:
    reader = open_store(sealed)
    shutil.rmtree(sealed)
    with pytest.raises(KdpipeError):
        reader.plane(0)


@pytest.mark.parametrize("content", [b"", b"999999", b"\xff\xfe not a number", b"0" * 4096])
def test_a_stale_lock_does_not_hold(sealed: Path, tmp_path: Path, content: bytes) -> None:
    store = tmp_path / "new" / "a.zarr"
    lock = store.with_name("a.zarr.lock")
    store.parent.mkdir()
    lock.write_bytes(content)
    small_store(store)
    assert not lock.exists()
    assert contents(store) == contents(sealed)


def test_a_lock_that_is_held_says_so_whatever_is_in_it(tmp_path: Path) -> None:
    with (tmp_path / "a.zarr.lock").open("wb") as stream:
        stream.write(b"\xff\xfe")
        stream.flush()
        fcntl.flock(stream, fcntl.LOCK_EX)
        with pytest.raises(StoreLockedError, match="is being written by process"):
            small_store(tmp_path / "a.zarr")
    assert not (tmp_path / "a.zarr").exists()


@pytest.mark.parametrize("views", [1, 2])
@pytest.mark.parametrize("content", [b"", b"\0" * 100, b'{"path": "train/codes/c/1/0/0", "size": 1, "digest": "00"}\n'])
def test_a_ledger_left_beside_a_sealed_store(
    undisturbed: tuple[Path, float], sealed: Path, content: bytes, views: int
) -> None:
    ledger = sealed.with_name("a.zarr.ledger")
    ledger.write_bytes(content)
    assert open_store(sealed).num_views == 1
    before = contents(sealed)
    small_store(sealed, small_plan(views=views))
    assert contents(sealed) == (before if views == 1 else contents(undisturbed[0]))
    assert not ledger.exists()


def test_a_failing_writer_thread_stops_the_run_with_its_own_error(tmp_path: Path) -> None:
    def run() -> None:
        with build(tmp_path / "a.zarr", small_plan()) as builder:
            (tmp_path / "a.zarr" / "train" / "codes" / "c").write_bytes(b"a file in the way")
            for shard in all_shards(builder) * 50:
                builder.submit(shard, shard_logits(builder, shard))

    with ThreadPoolExecutor(1) as pool, pytest.raises(OSError, match="train/codes/c"):
        pool.submit(run).result(timeout=60)
    (tmp_path / "a.zarr" / "train" / "codes" / "c").unlink()
    small_store(tmp_path / "a.zarr")
    assert verify_files(tmp_path / "a.zarr") == []
