"""Processes that write one store together: one that hangs, what each is dealt, and what a ledger of each holds."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from kdpipe.errors import StaleStoreError, StoreLockedError
from kdpipe.store.ledger import Ledger
from kdpipe.store.plan import Plan
from kdpipe.store.reader import open_store
from kdpipe.store.settings import Part
from kdpipe.store.writer import Builder, build, build_together
from kdpipe.testing.stores import SHARDS, contents, shard_logits, small_plan, small_store
from tests.unit.store.slow_build import forked


def work(builder: Builder, *, told: Connection | None = None, pause: float = 0) -> int:
    """Compute what this process leases, until all is finished; return the number of shards."""
    computed = 0
    for split in sorted(builder.manifest.splits):
        while True:
            for view in builder.views(split):
                for shard in builder.unfinished(split, view):
                    if told is not None:
                        told.send((shard.split, shard.view, shard.number))
                    time.sleep(pause)
                    builder.submit(shard, shard_logits(builder, shard))
                    computed += 1
            if builder.complete(split):
                break
    return computed


def one_of_several(store: Path, part: str, pause: float, told: Connection) -> None:
    with build_together(store, small_plan, Part.parse(part)) as builder:
        work(builder, told=told, pause=pause)
        builder.seal({"made": "for a test"})


def heard(hears: Connection) -> set[object]:
    found: set[object] = set()
    try:
        while True:
            found.add(hears.recv())
    except EOFError:
        return found


def test_each_shard_is_computed_once(tmp_path: Path, sealed_once: Path) -> None:
    store = tmp_path / "a.zarr"
    with (
        forked(one_of_several, store, "1/3", 0.05) as (_, first),
        forked(one_of_several, store, "2/3", 0.05) as (_, second),
        forked(one_of_several, store, "3/3", 0.05) as (_, third),
    ):
        computed = [heard(hears) for hears in (first, second, third)]
    assert sum(map(len, computed)) == len(set.union(*computed)) == SHARDS
    assert contents(store) == contents(sealed_once)
    assert [path.name for path in tmp_path.iterdir()] == ["a.zarr"]


def test_a_process_that_hangs_is_waited_for_within_limits(tmp_path: Path, sealed_once: Path) -> None:
    store = tmp_path / "a.zarr"
    with forked(one_of_several, store, "1/2", 0.2) as (process, hears):
        hears.recv()
        assert process.pid is not None
        os.kill(process.pid, signal.SIGSTOP)
        with (
            pytest.raises(StoreLockedError, match=r"waited 1 s for the test shards of other processes") as caught,
            build_together(store, small_plan, Part(2, 2), patience=1) as builder,
        ):
            work(builder)
        assert f"-{process.pid}" in str(caught.value)
        with (
            pytest.raises(StoreLockedError, match=f"is being written by process {process.pid}"),
            build(store, small_plan()),
        ):
            pass
        os.kill(process.pid, signal.SIGCONT)
        process.join()
        assert process.exitcode == 0
    assert contents(store) == contents(sealed_once)


def dies_at_once(store: Path, told: Connection) -> None:
    def plan() -> Plan:
        told.send("first")
        time.sleep(60)
        return small_plan()

    with build_together(store, plan, Part(1, 2)):
        pass


def test_the_first_process_dies_before_it_has_made_the_store(tmp_path: Path, sealed_once: Path) -> None:
    store = tmp_path / "a.zarr"
    with (
        forked(dies_at_once, store) as (process, hears),
        ThreadPoolExecutor(1) as pool,
    ):
        assert hears.recv() == "first"
        killed = pool.submit(lambda: (time.sleep(0.3), process.kill()))
        with build_together(store, small_plan, Part(2, 2)) as builder:
            killed.result()
            assert work(builder) == SHARDS
            builder.seal({"made": "for a test"})
    assert contents(store) == contents(sealed_once)
    assert [path.name for path in tmp_path.iterdir()] == ["a.zarr"]


def test_another_plan_is_refused_while_others_write(tmp_path: Path) -> None:
    store = tmp_path / "a.zarr"
    with (
        build_together(store, small_plan, Part(1, 2)) as builder,
        pytest.raises(StaleStoreError, match="precision"),
        build_together(store, lambda: small_plan(precision="bf16"), Part(2, 2), overwrite=True),
    ):
        pass
    assert not builder.sealed


def test_a_store_for_more_views_is_extended_together(tmp_path: Path) -> None:
    small_store(tmp_path / "a.zarr", small_plan(views=1))
    with build_together(tmp_path / "a.zarr", lambda: small_plan(views=2), Part(1, 2)) as builder:
        assert work(builder) == 3
        builder.seal({"made": "for a test"})
    small_store(tmp_path / "b.zarr", small_plan(views=2))
    assert open_store(tmp_path / "a.zarr").digest == open_store(tmp_path / "b.zarr").digest


def test_one_process_continues_what_several_began(tmp_path: Path, sealed_once: Path) -> None:
    store = tmp_path / "a.zarr"
    for part in (Part(1, 2), Part(2, 2)):
        with build_together(store, small_plan, part) as builder:
            shard = next(builder.unfinished("train", 1))
            builder.submit(shard, shard_logits(builder, shard))
            builder.drain()
    assert len(Ledger(store).read()) == 4
    with build(store, small_plan()) as builder:
        assert work(builder) == SHARDS - 2
        sealed = builder.seal({"made": "for a test", **builder.work()})
    assert sealed.about["devices"] == ["cpu"]
    assert sealed.about["seconds"] >= 0
    assert {name: content for name, content in contents(store).items() if name != "zarr.json"} == {
        name: content for name, content in contents(sealed_once).items() if name != "zarr.json"
    }
    assert [path.name for path in tmp_path.iterdir()] == ["a.zarr"]


@pytest.mark.parametrize("of", [1, 2, 3, 7, 10, 25])
def test_parts_begin_apart_and_go_all_round(of: int) -> None:
    things = list(range(10))
    orders = [Part(number, of).dealt(things) for number in range(1, of + 1)]
    assert all(sorted(order) == things for order in orders)
    assert len({order[0] for order in orders}) == min(of, len(things))
    assert Part.parse(f"{of}/{of}") == Part(of, of)
    assert str(Part(1, of)) == f"1/{of}"
