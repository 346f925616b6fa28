"""Processes that train one model: one that does not come is waited for within limits."""

from __future__ import annotations

import os
import socket
import time
from multiprocessing.connection import Connection
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist

from kdpipe.errors import RunError
from kdpipe.training.group import Group, joined
from tests.unit.store.slow_build import forked

CPU = torch.device("cpu")


def _meeting() -> dict[str, str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}


def idle(meeting: dict[str, str], told: Connection) -> None:
    """Meet the other process, and take no step."""
    os.environ.update(meeting)
    with joined(1, 2, CPU, patience=60):
        told.send("met")
        time.sleep(60)


def test_a_process_that_takes_no_step() -> None:
    meeting = _meeting()
    began = time.monotonic()
    with (
        patch.dict(os.environ, meeting),
        forked(idle, meeting) as (_, hears),
        joined(0, 2, CPU, patience=2) as group,
    ):
        assert hears.recv() == "met"
        began = time.monotonic()
        with pytest.raises(RunError, match=r"another rank has ended, or was waited for in vain: .*--resume"):
            group.whole(torch.zeros(2, 3), 4)
    assert time.monotonic() - began < 30


def test_processes_meet_again_in_the_store_of_torchrun() -> None:
    """Started again, they find there what those before have left."""
    server = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(server.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    for _ in range(2):
        with (
            patch.dict(os.environ, meeting),
            forked(idle, meeting) as (process, hears),
            joined(0, 2, CPU, patience=30),
        ):
            assert hears.recv() == "met"
            process.kill()


@pytest.mark.parametrize(("rank", "missing"), [(0, "rank 1, 2"), (1, "rank 0")])
def test_processes_that_do_not_meet(rank: int, missing: str) -> None:
    server = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(server.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    message = rf"rank {rank} waited up to 1 s to meet the other 2 at 127.0.0.1:\d+: not there: {missing}. Start all"
    with patch.dict(os.environ, meeting), pytest.raises(RunError, match=message), joined(rank, 3, CPU, patience=1):
        pass


def test_processes_without_a_place_to_meet() -> None:
    with pytest.raises(RunError, match="no MASTER_ADDR:no MASTER_PORT"), joined(0, 2, CPU, patience=1):
        pass


def test_each_sample_of_a_batch_has_one_rank() -> None:
    for world in (1, 2, 3, 8):
        for rows in range(1, 40):
            parts = [range(rows)[Group(rank, world).own(rows)] for rank in range(world)]
            assert [row for part in parts for row in part] == list(range(rows))
            assert rows == 1 or all(len(part) != 1 for part in parts), "batch normalization needs two"
