"""Builds the small store slowly, in a process that can be killed."""

from __future__ import annotations

import time
from multiprocessing.connection import Connection
from pathlib import Path

from kdpipe.store import build
from tests.unit.store.small_store import all_shards, make_plan, shard_logits, small_layout


def slow_build(store: Path, seconds: float, told: Connection) -> None:
    """Sleep before and after each shard; tell ``told`` when the store is open and at each shard."""
    with small_layout(), build(store, make_plan()) as builder:
        told.send("open")
        time.sleep(seconds)
        for shard in all_shards(builder):
            if not builder.is_done(shard):
                builder.submit(shard, shard_logits(builder, shard))
                told.send("submitted")
                time.sleep(seconds)
        builder.drain()
        builder.seal({"made": "for a test"})
