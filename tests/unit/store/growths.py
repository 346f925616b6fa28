"""Further segments of small stores, and a growth in a process that can be killed."""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kdpipe.store import manifest
from kdpipe.store.growing import grow
from kdpipe.store.plan import Plan, SplitPlan
from kdpipe.testing import stores


def further(store: Path, ids: npt.NDArray[np.uint8], *, split: str = "train", replaces: int = 0, seed: int = 0) -> Plan:
    """Return the plan of a further segment with these ids."""
    found = manifest.read(store)
    group = f"{split}.{len(found.segments(split))}"
    random = np.random.default_rng([len(ids), seed])
    planes, probes = found.splits[split].planes, np.arange(min(3, len(ids)))
    samples = SplitPlan(
        sample_ids=ids,
        content_digests=random.integers(0, 256, ids.shape, dtype=np.uint8),
        labels=random.integers(-1, stores.CLASSES, len(ids), dtype=np.int32),
        planes=planes,
        probe_rows=probes,
        probe_hashes=random.integers(0, 2**64, (planes, len(probes)), dtype=np.uint64),
        replaces=replaces,
    )
    plan = stores.small_plan(dataset={group: f"{seed:032x}"})
    return replace(plan, splits={group: samples}, signals=dict(found.kept))


def ids(count: int, *, seed: int) -> npt.NDArray[np.uint8]:
    return np.random.default_rng([77, seed]).integers(0, 256, (count, 16), dtype=np.uint8)


def grown(store: Path, plan: Plan) -> None:
    with grow(store, plan, onto=manifest.read(store)) as builder:
        stores.fill(builder)
        builder.seal({"seconds": 1.5, "created": "later"})


def growth(store: Path, dies_before: int, told: Connection) -> None:
    """Grow the small store by 17 samples; tell ``told`` how many things were put in their place or removed.

    With ``dies_before``, the process kills itself before that many (from 1). Nothing is flushed to disk.
    """
    os.fsync = lambda _descriptor: None
    steps = 0

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal steps
        if event in ("os.rename", "shutil.rmtree") and not str(arguments[0]).endswith(".partial"):
            steps += 1
            if steps == dies_before:
                os.kill(os.getpid(), signal.SIGKILL)

    plan = further(store, ids(17, seed=6))
    sys.addaudithook(count)
    grown(store, plan)
    told.send(steps)
