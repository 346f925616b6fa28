"""Objects whose arrays worker processes share, in real processes."""

from __future__ import annotations

import pickle
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kdpipe.dataset import Shared, worker_context

MEGABYTES = 60
Pair = tuple[npt.NDArray[np.uint8], list[str]]


def private_bytes() -> int:
    """Return the memory that this process shares with no other."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private_"))


def describe(connection: Connection, shared: Shared[Pair]) -> None:
    """Send what a worker sees, while it sees it."""
    array, words = shared.value
    connection.send((int(array.sum()), words, array.flags.writeable))
    connection.recv()
    connection.send(private_bytes())


def test_workers_map_one_copy_of_the_arrays() -> None:
    array = np.full(MEGABYTES * 10**6, 3, dtype=np.uint8)
    shared = Shared((array, ["a", "b"]))
    context = worker_context()
    pipes = [context.Pipe() for _ in range(2)]
    processes = [context.Process(target=describe, args=(theirs, shared)) for _, theirs in pipes]  # type: ignore[attr-defined]
    for process in processes:
        process.start()
    try:
        # Both have read all of it before either measures.
        assert [ours.recv() for ours, _ in pipes] == [(3 * array.size, ["a", "b"], False)] * 2
        for ours, _ in pipes:
            ours.send(None)
        used = [ours.recv() for ours, _ in pipes]
    finally:
        for process in processes:
            process.join()
    assert max(used) < 40 * 10**6 < MEGABYTES * 10**6


def test_a_plain_pickle_is_whole() -> None:
    again = pickle.loads(pickle.dumps(Shared(np.arange(5_000))))
    assert again.value.tolist() == list(range(5_000))
    again.value[0] = 7
