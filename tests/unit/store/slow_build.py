"""Builds of the small store in a process that can be killed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from kdpipe.store.writer import build
from kdpipe.testing.stores import all_shards, shard_logits, small_plan, small_store


@contextmanager
def forked(target: Callable[..., None], *arguments: Any) -> Iterator[tuple[BaseProcess, Connection]]:
    """Run ``target(*arguments, told)`` in a process forked from one that has imported everything and done nothing."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    hears, told = context.Pipe(duplex=False)
    process = context.Process(target=target, args=(*arguments, told))
    process.start()
    told.close()
    try:
        yield process, hears
    finally:
        process.kill()
        process.join()
        hears.close()


def slow_build(store: Path, seconds: float, told: Connection, views: int = 1) -> None:
    """Sleep before and after each shard; tell ``told`` when the store is open and at each shard."""
    with build(store, small_plan(views=views)) as builder:
        told.send("open")
        time.sleep(seconds)
        for shard in all_shards(builder):
            if not builder.is_done(shard):
                builder.submit(shard, shard_logits(builder, shard))
                told.send("submitted")
                time.sleep(seconds)
        builder.drain()
        builder.seal({"made": "for a test"})


def slow_top_up(store: Path, seconds: float, told: Connection) -> None:
    """Add a view to the sealed small store, as ``slow_build`` does."""
    slow_build(store, seconds, told, views=2)


def whole_life(store: Path, dies_before_rename: int, told: Connection) -> None:
    """Build the store with one view, then add a second; tell ``told`` between these, and how long both took.

    Nothing is flushed to disk: a kill takes no power away. With ``dies_before_rename``, the process kills itself
    before it has put that many (from 1) finished things in their place: the empty store, a ledger, a manifest.
    """
    os.fsync = lambda _descriptor: None
    renames = 0

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal renames
        if event == "os.rename" and Path(arguments[0]).name.startswith(f".{store.name}."):
            renames += 1
            if renames == dies_before_rename:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    told.send("begins")
    began = time.perf_counter()
    small_store(store, small_plan(views=1))
    told.send("sealed")
    small_store(store, small_plan(views=2))
    told.send((time.perf_counter() - began, renames))
