"""Planes that ranks of a machine share: one copy, by whom it is decoded, and what a killed rank leaves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from kdpipe import open_store
from kdpipe.errors import StoreError
from kdpipe.store.machine import Arrays, shared, shares
from kdpipe.testing.stores import small_store
from tests.conftest import ROOT

pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="files without a name are Linux's")

LAYOUT = (((5, 3), "float16"), ((5,), "float32"))

RANK = """
import os, sys, time
import numpy as np
from kdpipe.store.machine import shared

identity, how = sys.argv[1:3]

def fill(arrays):
    print("filling", flush=True)
    if how == "slow":
        time.sleep(60)
    for number, array in enumerate(arrays):
        array[:] = number + 1

arrays = shared([identity], [((5, 3), "float16"), ((5,), "float32")], fill, patience=30)
print("got", *(float(array.sum()) for array in arrays), flush=True)
sys.stdin.read()
"""

TRAINING = """
import sys
import torch.distributed as dist
from kdpipe import open_store

dist.init_process_group("gloo")
store = open_store(sys.argv[1])
rows = list(range(store.num_samples))
views = [store.logits(rows, view=view) for view in (0, 1)]
dist.barrier()
found = {line.split()[4] for line in open("/proc/self/maps") if "memfd:kdpipe-" in line}
print(len(found), *sorted(found), *(float(view.sum()) for view in views), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[str]]]:
    processes: list[subprocess.Popen[str]] = []
    yield processes
    for process in processes:
        process.kill()
        process.communicate()


def rank(
    started: list[subprocess.Popen[str]], *arguments: object, script: str = RANK, **place: object
) -> subprocess.Popen[str]:
    environment = os.environ | {name: str(value) for name, value in place.items()}
    command = [sys.executable, "-c", script, *map(str, arguments)]
    pipe = subprocess.PIPE
    started.append(subprocess.Popen(command, cwd=ROOT, env=environment, stdin=pipe, stdout=pipe, text=True))
    return started[-1]


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def ones(arrays: Arrays) -> None:
    for array in arrays:
        array[:] = 1


def never(arrays: Arrays) -> None:
    raise AssertionError("decoded twice")


def test_a_killed_rank_leaves_the_plane_to_the_others_and_the_last_one_nothing(
    started: list[subprocess.Popen[str]], tmp_path: Path
) -> None:
    first = rank(started, tmp_path, "quick")
    assert said(first) == "filling"
    assert said(first) == "got 15.0 10.0"
    second = rank(started, tmp_path, "quick")
    assert said(second) == "got 15.0 10.0"
    first.send_signal(signal.SIGKILL)
    first.wait()
    mine = shared([str(tmp_path)], LAYOUT, never)
    second.send_signal(signal.SIGKILL)
    second.wait()
    assert [float(array.sum()) for array in mine] == [15, 10]
    again = shared([str(tmp_path)], LAYOUT, never)
    mine[0][:] = 7
    assert float(again[0].sum()) == 15
    del mine, again
    assert float(shared([str(tmp_path)], LAYOUT, ones)[1].sum()) == 5


def test_another_rank_decodes_where_one_is_killed_while_it_does(
    started: list[subprocess.Popen[str]], tmp_path: Path
) -> None:
    slow = rank(started, tmp_path, "slow")
    assert said(slow) == "filling"
    with pytest.raises(StoreError, match=r"waited 0\.1 s for another rank"):
        shared([str(tmp_path)], LAYOUT, ones, patience=0.1)
    other = rank(started, tmp_path, "quick")
    time.sleep(0.2)
    slow.send_signal(signal.SIGKILL)
    assert [said(other), said(other)] == ["filling", "got 15.0 10.0"]


def test_an_error_is_raised_where_it_happens_and_another_may_try(tmp_path: Path) -> None:
    def fail(_arrays: Arrays) -> None:
        raise StoreError("damaged")

    with pytest.raises(StoreError, match="damaged"):
        shared([str(tmp_path)], LAYOUT, fail)
    codes, row_max = shared([str(tmp_path)], LAYOUT, ones)
    assert (codes.shape, codes.dtype, row_max.shape, row_max.dtype) == ((5, 3), np.float16, (5,), np.float32)
    other = shared([str(tmp_path), 1], LAYOUT, ones)
    assert float(other[0].sum()) == 15


def test_two_ranks_have_one_copy_of_each_plane(
    started: list[subprocess.Popen[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "small.zarr"
    small_store(path)
    here = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 20_000 + os.getpid() % 20_000, "WORLD_SIZE": 2}
    for number in (0, 1):
        rank(started, path, script=TRAINING, RANK=number, LOCAL_RANK=number, LOCAL_WORLD_SIZE=2, **here)
    lines = [said(each) for each in started]
    assert lines[0] == lines[1]
    assert lines[0].startswith("2 ")
    assert not shares()
    store = open_store(path)
    sums = [float(store.logits(list(range(store.num_samples)), view=view).sum()) for view in (0, 1)]
    assert lines[0].split()[-2:] == list(map(str, sums))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert shares()
