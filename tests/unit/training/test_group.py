"""Processes that train one model: one that does not come is waited for within limits."""

from __future__ import annotations

import os
import socket
import time
from multiprocessing.connection import Connection
from unittest.mock import patch

import pytest
import torch

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


def test_processes_that_do_not_meet() -> None:
    meeting = _meeting()
    with (
        patch.dict(os.environ, meeting),
        pytest.raises(RunError, match=r"rank 0 waited up to 1 s to meet the other 1 at 127.0.0.1:\d+: "),
        joined(0, 2, CPU, patience=1),
    ):
        pass
    with pytest.raises(RunError, match="no MASTER_ADDR"), joined(0, 2, CPU, patience=1):
        pass


def test_each_sample_of_a_batch_has_one_rank() -> None:
    for world in (1, 2, 3, 8):
        for rows in range(1, 40):
            parts = [range(rows)[Group(rank, world).own(rows)] for rank in range(world)]
            assert [row for part in parts for row in part] == list(range(rows))
            assert rows == 1 or all(len(part) != 1 for part in parts), "batch normalization needs two"
