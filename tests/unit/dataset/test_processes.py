"""Worker processes: what they share, and that none is left behind."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from kdpipe.dataset import Shared, worker_context
from kdpipe.dataset.workers import in_processes, look_at
from tests.conftest import ROOT

MEGABYTES = 200
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
    connection.recv()


def test_workers_map_one_copy_of_the_arrays() -> None:
    array = np.full(MEGABYTES * 10**6, 3, dtype=np.uint8)
    shared = Shared((array, ["a", "b"]))
    context = worker_context()
    pipes = [context.Pipe() for _ in range(2)]
    processes = [context.Process(target=describe, args=(theirs, shared)) for _, theirs in pipes]  # type: ignore[attr-defined]
    for process in processes:
        process.start()
    try:
        # Both have read all of it before either measures, and neither ends before the other has.
        assert [ours.recv() for ours, _ in pipes] == [(3 * array.size, ["a", "b"], False)] * 2
        for ours, _ in pipes:
            ours.send(None)
        used = [ours.recv() for ours, _ in pipes]
    finally:
        for (ours, _), process in zip(pipes, processes, strict=True):
            ours.send(None)
            process.join()
    assert max(used) < (MEGABYTES - 50) * 10**6


def test_a_plain_pickle_is_whole() -> None:
    again = pickle.loads(pickle.dumps(Shared(np.arange(5_000))))
    assert again.value.tolist() == list(range(5_000))
    again.value[0] = 7


def slow_at_first(values: npt.NDArray[np.int64], index: int, flag: bool) -> tuple[int, int, bool]:
    """Seem to need processes, and then be quick."""
    time.sleep(0.07 if index < 32 else 0)
    return os.getpid(), int(values[index]), flag


def dies_in_a_process(values: npt.NDArray[np.int64], index: int, flag: bool) -> tuple[int, int, bool]:
    if index == 900 and multiprocessing.parent_process() is not None:
        os._exit(3)
    return slow_at_first(values, index, flag)


@pytest.mark.parametrize("function", [slow_at_first, dies_in_a_process])
def test_long_work_moves_to_processes(function: Callable[..., tuple[int, int, bool]]) -> None:
    """In order, each with the flag of its block; where a process dies, this one does the rest."""
    values = np.random.default_rng(0).integers(0, 1000, 2_000)
    found: list[tuple[int, int, bool]] = []

    def flag() -> bool:
        return len(found) > 100

    for block, flagged in look_at(function, values, 2_000, flag=flag, processes=2):
        assert all(each == flagged for *_, each in block)
        found += block
    assert [value for _, value, _ in found] == values.tolist()
    flags = [flag for *_, flag in found]
    assert flags == sorted(flags)
    assert flags[0] < flags[-1]
    processes = {process for process, *_ in found}
    assert os.getpid() in processes
    assert len(processes) > 1
    assert (found[-1][0] == os.getpid()) == (function is dies_in_a_process)


def test_short_work_stays_in_this_process() -> None:
    values = np.arange(3_000)
    found = [
        each
        for block, _ in look_at(lambda v, i, _: (os.getpid(), int(v[i])), values, 3_000, processes=2)
        for each in block
    ]
    assert found == [(os.getpid(), value) for value in range(3_000)]


def fail(value: int, task: int) -> int:
    if task == 3:
        raise KeyError("lost")
    return value + task


def test_errors_come_back_and_end_the_processes() -> None:
    assert list(in_processes(fail, 10, range(3), processes=2)) == [10, 11, 12]
    with pytest.raises(KeyError, match="lost"):
        list(in_processes(fail, 10, range(9), processes=2))


ENDLESS = """
import os, sys, time
from kdpipe.dataset.workers import in_processes

def work(value, task):
    print(os.getpid(), flush=True)
    time.sleep(0.5)

if __name__ == "__main__":
    for _ in in_processes(work, None, range(10**6), processes=2):
        pass
"""


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT])
def test_worker_processes_end_with_their_parent(tmp_path: Path, sent: signal.Signals) -> None:
    script = tmp_path / "endless.py"
    script.write_text(ENDLESS)
    process = subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": f"{ROOT}/pipeline"},
    )
    assert process.stdout is not None
    try:
        workers: set[int] = set()
        while len(workers) < 2:
            workers.add(int(process.stdout.readline()))
        if sent == signal.SIGINT:
            os.killpg(process.pid, sent)  # as a terminal does
        else:
            process.kill()
        _, errors = process.communicate(timeout=120)  # until all have closed their output
    finally:
        process.kill()
        process.communicate()
    assert errors.count("Traceback") == (sent == signal.SIGINT)
    until = time.monotonic() + 60
    while any(Path(f"/proc/{worker}").exists() for worker in workers):
        assert time.monotonic() < until
        time.sleep(0.05)
