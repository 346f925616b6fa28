"""Real signals to a real `cache-teacher`: what is finished stays, and the end is the same to the byte."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kdpipe import open_store
from tests.conftest import LIMITS, ROOT, Built

VIEWS = 12


def _start(built: Built, out: Path) -> subprocess.Popen[str]:
    command = (
        *("cache-teacher", *LIMITS, "--teacher", "resnet8", "--weights", built.weights, "--out", out),
        *("--views", VIEWS, "--batch-size", 20, "--device", "cpu"),
    )
    return subprocess.Popen(
        [sys.executable, "-m", "kdpipe", *map(str, command)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )


def _finish(process: subprocess.Popen[str]) -> int:
    process.communicate(timeout=120)
    return process.returncode


def _finished(out: Path) -> int:
    ledger = out.with_name(out.name + ".ledger")
    return ledger.read_bytes().count(b"\n") // 2 if ledger.exists() else 0


def _wait_for(out: Path, shards: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while _finished(out) < shards and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.005)


def _content(store: Path) -> dict[str, bytes]:
    return {
        path.relative_to(store).as_posix(): path.read_bytes()
        for path in store.rglob("*")
        if path.is_file() and path != store / "zarr.json"
    }


@pytest.fixture(scope="module")
def uninterrupted(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "logits.zarr"
    assert _finish(_start(built, out)) == 0
    return out


def test_killed_again_and_again(built: Built, uninterrupted: Path, tmp_path: Path) -> None:
    out = tmp_path / "logits.zarr"
    kills = 0
    for shards in (0, 1, 4, 5, 9):
        process = _start(built, out)
        _wait_for(out, shards, process)
        process.kill()
        kills += _finish(process) == -signal.SIGKILL
        if shards:
            assert out.exists()
    assert kills == 5
    assert _finish(_start(built, out)) == 0
    assert open_store(out).digest == open_store(uninterrupted).digest
    assert _content(out) == _content(uninterrupted)
    assert [path.name for path in tmp_path.iterdir()] == ["logits.zarr"]


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_asked_to_stop(built: Built, uninterrupted: Path, tmp_path: Path, sent: signal.Signals, code: int) -> None:
    out = tmp_path / "logits.zarr"
    process = _start(built, out)
    _wait_for(out, 2, process)
    process.send_signal(sent)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code
    assert "Traceback" not in errors
    assert errors.splitlines()[-1].startswith("kdpipe: ")
    described = [sys.executable, "-m", "kdpipe", "inspect", str(out), "--json"]
    found = json.loads(subprocess.run(described, capture_output=True, text=True, check=True, cwd=ROOT).stdout)
    assert found["state"] == "building"
    assert 2 <= found["shards_done"] < found["shards_total"] == VIEWS + 2
    assert _finish(_start(built, out)) == 0
    assert open_store(out).digest == open_store(uninterrupted).digest


def test_two_writers_at_once(built: Built, uninterrupted: Path, tmp_path: Path) -> None:
    out = tmp_path / "logits.zarr"
    first = _start(built, out)
    _wait_for(out, 1, first)
    second = _start(built, out)
    _, errors = second.communicate(timeout=60)
    assert _finish(first) == 0
    if second.returncode == 0:
        assert "nothing to do" in errors
    else:
        assert second.returncode == 1
        assert f"being written by process {first.pid}" in errors
    assert open_store(out).digest == open_store(uninterrupted).digest
