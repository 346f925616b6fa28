"""Several processes that make one store: its bytes are those of one process, whatever happens to them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest.mock import patch

import pytest

from kdpipe import open_store
from kdpipe.store.ledger import Ledger
from kdpipe.store.verify import verify_files
from kdpipe.testing import stores
from kdpipe.testing.stores import contents
from tests.conftest import LIMITS, ROOT, Built, Outcome, refused, run_command
from tests.processes import Server, Started

VIEWS = 9


def _arguments(built: Built, out: Path, *, teacher: tuple[object, ...] = ()) -> tuple[object, ...]:
    named = teacher or ("--teacher", "resnet8", "--weights", built.weights)
    return (
        *("cache-teacher", *LIMITS, *named, "--out", out),
        *("--views", VIEWS, "--batch-size", 20, "--device", "cpu"),
    )


def _files(store: Path) -> dict[str, bytes]:
    """Return the bytes of all files but the manifest, which holds times."""
    return {name: content for name, content in contents(store).items() if name != "zarr.json"}


@pytest.fixture(scope="module")
def alone(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store that one process makes."""
    out = tmp_path_factory.mktemp("alone") / "logits.zarr"
    assert run_command(None, *_arguments(built, out)).code == 0
    return out


@pytest.fixture
def ranks(built: Built, tmp_path: Path, commands: Server) -> Callable[..., list[Started]]:
    """Starts so many ranks of a job that makes the store below ``tmp_path``."""

    def start(world: int, teacher: tuple[object, ...] = ()) -> list[Started]:
        started = []
        for rank in range(world):
            place = {"RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": world}
            with patch.dict(os.environ, {name: str(value) for name, value in place.items()}):
                started.append(commands.start(*_arguments(built, tmp_path / "logits.zarr", teacher=teacher)))
        return started

    return start


def _wait_for_shards(store: Path, shards: int) -> None:
    deadline = time.monotonic() + 60
    while len(Ledger(store).read()) < 2 * shards and not _is_sealed(store):
        assert time.monotonic() < deadline
        time.sleep(0.002)


def _is_sealed(store: Path) -> bool:
    found = store / "zarr.json"
    return found.exists() and '"state": "sealed"' in found.read_text()


def _check(store: Path, alone: Path) -> None:
    """The store is that of one process, and nothing is left beside it."""
    assert open_store(store).digest == open_store(alone).digest
    assert _files(store) == _files(alone)
    assert [path.name for path in store.parent.iterdir()] == [store.name]


def test_ranks_make_the_store_of_one_process(ranks: Callable[..., list[Started]], alone: Path, tmp_path: Path) -> None:
    ended = [process.communicate() for process in ranks(3)]
    _check(tmp_path / "logits.zarr", alone)
    assert "digest" in ended[0][1]
    assert [errors for _, errors in ended[1:]] == ["", ""]


def test_the_shards_of_a_killed_rank_are_computed_by_the_others(
    ranks: Callable[..., list[Started]], alone: Path, tmp_path: Path
) -> None:
    started = ranks(3)
    _wait_for_shards(tmp_path / "logits.zarr", 3)
    started[0].kill()
    codes = [process.wait() for process in started]
    assert codes[0] in (-signal.SIGKILL, 0)
    assert codes[1:] == [0, 0]
    _check(tmp_path / "logits.zarr", alone)


def test_killed_and_continued_by_other_numbers(
    ranks: Callable[..., list[Started]], built: Built, alone: Path, tmp_path: Path
) -> None:
    store = tmp_path / "logits.zarr"
    for world, shards in ((3, 2), (2, 5)):
        started = ranks(world)
        _wait_for_shards(store, shards)
        for process in started:
            process.kill()
        for process in started:
            process.wait()
    kept = {name: (store / name).stat().st_mtime_ns for name in Ledger(store).read()}
    assert len(kept) >= 2 * 5
    assert run_command(None, *_arguments(built, store)).code == 0
    assert {name: (store / name).stat().st_mtime_ns for name in kept} == kept
    _check(store, alone)


def test_asked_to_stop_and_continued(ranks: Callable[..., list[Started]], alone: Path, tmp_path: Path) -> None:
    store = tmp_path / "logits.zarr"
    started = ranks(2)
    _wait_for_shards(store, 2)
    for process in started:
        process.send_signal(signal.SIGTERM)
    errors = [process.communicate()[1] for process in started]
    assert [process.returncode for process in started] == [143, 143]
    assert [line.splitlines()[-1].split(":")[0] for line in errors] == ["kdpipe, rank 0", "kdpipe, rank 1"]
    assert [process.wait() for process in ranks(3)] == [0, 0, 0]
    _check(store, alone)


def test_a_rank_whose_device_computes_other_logits_is_refused(
    ranks: Callable[..., list[Started]], tmp_path: Path
) -> None:
    other = ("--teacher", "tests.networks:drifting", "--input-size", 16, "--statistics", "data")
    started = ranks(2, teacher=other)
    errors = [process.communicate()[1] for process in started]
    assert sorted(process.returncode for process in started) == [0, 1]
    refusal = next(text for text, process in zip(errors, started, strict=True) if process.returncode)
    assert "its logits for the fixed probe input differ" in refusal.splitlines()[-1]
    assert verify_files(tmp_path / "logits.zarr") == []


def test_parts_of_a_job_array(
    built: Built, alone: Path, tmp_path: Path, commands: Server, kdpipe: Callable[..., Outcome]
) -> None:
    store = tmp_path / "logits.zarr"
    first = commands.start(*_arguments(built, store), "--part", "2/3")
    _wait_for_shards(store, 1)
    second = commands.start(*_arguments(built, store), "--part", "1/3")
    assert [first.wait(), second.wait()] == [0, 0]
    _check(store, alone)
    late = kdpipe(*_arguments(built, store), "--part", "3/3")
    assert late.code == 0
    assert "nothing to do" in late.err
    _check(store, alone)


def test_seal_completes_what_no_process_came_to(tmp_path: Path, kdpipe: Callable[..., Outcome]) -> None:
    store = tmp_path / "a.zarr"
    refused(kdpipe("seal", store), "a.zarr holds no logit store")
    stores.start_store(store, shards=stores.SHARDS - 1)
    refused(kdpipe("seal", store), "cannot be sealed: 2 files are missing", "Run the same cache-teacher again")
    stores.start_store(store, shards=1)
    sealed = kdpipe("seal", store)
    assert (sealed.code, "sealed, digest" in sealed.err) == (0, True)
    assert [path.name for path in tmp_path.iterdir()] == ["a.zarr"]
    assert open_store(store).digest == stores.small_store(tmp_path / "b.zarr").digest
    assert "sealed already" in kdpipe("seal", store).err


@pytest.mark.parametrize("part", ["0/3", "4/3", "3", "a/b", "1/0"])
def test_what_is_no_part_is_refused(built: Built, tmp_path: Path, kdpipe: Callable[..., Outcome], part: str) -> None:
    refused(kdpipe(*_arguments(built, tmp_path / "a.zarr"), "--part", part), "part", "such as 3/16")
    assert not list(tmp_path.iterdir())


def test_a_process_that_writes_alone_is_not_joined(
    built: Built, alone: Path, tmp_path: Path, commands: Server, kdpipe: Callable[..., Outcome]
) -> None:
    store = tmp_path / "logits.zarr"
    single = commands.start(*_arguments(built, store))
    _wait_for_shards(store, 1)
    single.send_signal(signal.SIGSTOP)
    refused(kdpipe(*_arguments(built, store), "--part", "1/2"), f"is being written by process {single.pid}")
    single.send_signal(signal.SIGCONT)
    assert single.wait() == 0
    _check(store, alone)


def _torchrun(*options: object) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", *map(str, options), "-m", "kdpipe"]


@pytest.fixture
def launch(built: Built, tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Starts torchrun with some options; what it left is killed at the end."""
    agents: list[subprocess.Popen[bytes]] = []

    def start(*options: object) -> subprocess.Popen[bytes]:
        command = [*_torchrun(*options), *map(str, _arguments(built, tmp_path / "logits.zarr"))]
        with (tmp_path.parent / f"log{len(agents)}").open("wb") as log:
            agents.append(subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, start_new_session=True))
        return agents[-1]

    yield start
    for agent in agents:
        agent.kill()
        agent.wait()


def _children(agent: subprocess.Popen[bytes]) -> list[int]:
    tasks = Path(f"/proc/{agent.pid}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


def test_torchrun_starts_a_killed_rank_again(
    launch: Callable[..., subprocess.Popen[bytes]], alone: Path, tmp_path: Path
) -> None:
    agent = launch("--nproc-per-node", 2, "--max-restarts", 1)
    _wait_for_shards(tmp_path / "logits.zarr", 2)
    os.kill(_children(agent)[-1], signal.SIGKILL)
    assert agent.wait(60) == 0
    _check(tmp_path / "logits.zarr", alone)


def test_two_nodes_and_the_death_of_the_first_agent(
    launch: Callable[..., subprocess.Popen[bytes]], alone: Path, tmp_path: Path
) -> None:
    """The ranks of a dead agent, which also held torchrun's own store, go on: no rank needs it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = ("--nnodes", 2, "--master-addr", "127.0.0.1", "--master-port", port)
    first, second = (launch(*place, "--node-rank", node, "--nproc-per-node", 1) for node in (0, 1))
    _wait_for_shards(tmp_path / "logits.zarr", 2)
    (rank,) = _children(first)
    first.kill()
    first.wait()
    second.wait(60)
    deadline = time.monotonic() + 60
    while Path(f"/proc/{rank}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    _check(tmp_path / "logits.zarr", alone)
