"""Builders, toppers, readers, verifiers, killers and stoppers on one store, for ten minutes.

    python benchmarks/soak.py --seconds 600

Two generations of one small store, of other logits and other recipe seeds, replace each other. The model of what must
hold: a reader is refused, or sees the logits of the generation and view that the manifest names; ``verify`` finds no
fault, or is told that a writer changed the store meanwhile; no store is called damaged; every process ends by itself,
by the signal that it was sent, or with one of the errors that its role may meet; and in the end the same command
finishes what was left, byte for byte what an undisturbed build gives, with nothing beside it. Writes
benchmarks/results/soak.json: counts of every outcome, and the violations, of which there must be none.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import torch

from kdpipe.errors import (
    KdpipeError,
    StaleStoreError,
    StoreLockedError,
    StoreNotFoundError,
    UnsealedStoreError,
)
from kdpipe.store import manifest
from kdpipe.store.plan import Limits, Plan
from kdpipe.store.reader import open_store
from kdpipe.store.sections import Recipe
from kdpipe.store.verify import verify_files
from kdpipe.store.writer import build
from kdpipe.testing.stores import CLASSES, all_shards, contents, random_logits, shard_logits, small_plan

RESULT = Path(__file__).parent / "results" / "soak.json"
TRAIN, TEST, MOST_VIEWS = 400, 60, 4
GENERATIONS = (1, 2)
LIMITS = Limits(shard_rows=80, chunk_bytes=20 * CLASSES * 2)
Role = Callable[[Path, random.Random], str]


def plan(generation: int, views: int) -> Plan:
    """Return the plan of a generation; the recipe's seed is its number."""
    recipe = Recipe(name="crop-flip", version="crop-flip/1", seed=generation)
    return small_plan(train=TRAIN, test=TEST, views=views, limits=LIMITS, recipe=recipe)


def write(store: Path, generation: int, views: int, *, overwrite: bool, pause: float = 0.0) -> str:
    """Build, finish or extend the store; pauses between shards leave time to be killed in."""
    with build(store, plan(generation, views), overwrite=overwrite) as builder:
        if builder.sealed:
            return "nothing to do"
        for shard in all_shards(builder):
            if not builder.is_done(shard):
                builder.submit(shard, generation * shard_logits(builder, shard))
                time.sleep(pause)
        builder.seal({"made": "for the soak"})
    return "sealed"


def builder(store: Path, draw: random.Random) -> str:
    """Replace what is there by a generation, or finish it."""
    return write(store, draw.choice(GENERATIONS), draw.randint(0, 2), overwrite=True, pause=draw.uniform(0, 0.02))


def topper(store: Path, draw: random.Random) -> str:
    """Add a view to what is there."""
    found = manifest.read(store)
    views = min(found.splits["train"].planes, MOST_VIEWS)
    return write(store, found.fingerprint.recipe.seed, views, overwrite=False, pause=draw.uniform(0, 0.02))


def reader(store: Path, draw: random.Random) -> str:
    """Read every view, in a random order, and compare each value."""
    opened = open_store(store)
    generation = opened.manifest.fingerprint.recipe.seed
    for view in draw.sample(range(opened.num_views + 1), opened.num_views + 1):
        plane = np.asarray(opened.plane(view))
        expected = generation * random_logits("train", view, samples=TRAIN)
        assert plane.shape == expected.shape, f"view {view} has the shape {plane.shape}"
        expected = expected - expected.max(axis=1, keepdims=True)
        plane = plane - plane.max(axis=1, keepdims=True)
        wrong = int((np.abs(plane - expected) > 1e-2 + np.abs(expected) * 2**-10).any(axis=1).sum())
        assert not wrong, f"view {view} of generation {generation} has {wrong} wrong rows"
        time.sleep(draw.uniform(0, 0.02))
    return "read"


def verifier(store: Path, _draw: random.Random) -> str:
    """Verify the store, in which there are no faults but what a writer changes meanwhile."""
    faults = verify_files(store)
    if not faults:
        return "verified"
    raise AssertionError(f"verify: {faults[0]}")


ROLES: dict[str, tuple[Role, int, tuple[type[Exception], ...]]] = {
    "builder": (builder, 2, (StoreLockedError,)),
    "topper": (topper, 1, (StoreLockedError, StoreNotFoundError, StaleStoreError, UnsealedStoreError)),
    "reader": (reader, 2, (StoreNotFoundError, UnsealedStoreError, StaleStoreError)),
    "verifier": (verifier, 1, (StoreNotFoundError, UnsealedStoreError, StaleStoreError)),
}
"""Each role, the number of its processes, and the errors that others may cause it."""


def live(role: str, store: Path, log: Path, *, seed: int, until: float) -> None:
    """Act in a role again and again, and append a line for each outcome; a violation is a line as well."""
    act, _, allowed = ROLES[role]
    draw = random.Random(seed)
    torch.set_num_threads(1)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with log.open("a", buffering=1, encoding="utf-8") as stream:
        while time.monotonic() < until:
            try:
                outcome = act(store, draw)
            except allowed as error:
                outcome = type(error).__name__
            except (AssertionError, KdpipeError, OSError) as error:
                outcome = f"VIOLATION {type(error).__name__}: {error}"
            stream.write(f"{role}: {outcome}\n")
            time.sleep(draw.uniform(0, 0.05))


def main() -> None:
    """Start the processes, kill and stop them at random, and finish and compare the store."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path("benchmarks/scratch/soak"))
    options = parser.parse_args()

    shutil.rmtree(options.work, ignore_errors=True)
    store = options.work / "shared" / "a.zarr"
    store.parent.mkdir(parents=True)
    draw = random.Random(options.seed)
    context = multiprocessing.get_context("fork")
    until = time.monotonic() + options.seconds
    log = options.work / "log"

    def start(role: str) -> BaseProcess:
        process = context.Process(
            target=live, args=(role, store, log), kwargs={"seed": draw.getrandbits(32), "until": until}
        )
        process.start()
        return process

    processes = [(role, start(role)) for role, (_, number, _) in ROLES.items() for _ in range(number)]
    signals: Counter[str] = Counter()
    while time.monotonic() < until:
        time.sleep(draw.uniform(0.05, 0.6))
        place = draw.randrange(len(processes))
        role, process = processes[place]
        assert process.pid is not None
        sent = draw.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP])
        if sent == signal.SIGSTOP:
            os.kill(process.pid, sent)
            time.sleep(draw.uniform(0, 0.5))
            os.kill(process.pid, signal.SIGCONT)
        else:
            os.kill(process.pid, sent)
            process.join()
            processes[place] = role, start(role)
        signals[f"{sent.name} to {role}"] += 1
    for _, process in processes:
        process.join()

    outcomes = Counter(log.read_text(encoding="utf-8").splitlines())
    violations = [line for line in outcomes if "VIOLATION" in line]
    equal = [_ends_equal(store, options.work / f"undisturbed-{generation}", generation) for generation in GENERATIONS]
    result = {
        "command": f"python benchmarks/soak.py --seconds {options.seconds:g} --seed {options.seed}",
        "outcomes": dict(sorted((line, count) for line, count in outcomes.items() if line not in violations)),
        "signals": dict(sorted(signals.items())),
        "violations": violations,
        "equal_at_the_end": all(equal),
        "left_beside": sorted(path.name for path in store.parent.iterdir() if path != store),
    }
    RESULT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))
    sys.exit(0 if not violations and all(equal) and not result["left_beside"] else 1)


def _ends_equal(store: Path, undisturbed: Path, generation: int) -> bool:
    """Finish the store as a generation with all views, and compare it with one that nobody disturbed."""
    whole = undisturbed / store.name
    for path in (store, whole):
        write(path, generation, MOST_VIEWS, overwrite=True)
    return contents(store) == contents(whole) and verify_files(store) == []


if __name__ == "__main__":
    main()
