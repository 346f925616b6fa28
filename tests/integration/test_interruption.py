"""Real signals to a real `cache-teacher`: what is finished stays, and the end is the same to the byte."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kdpipe import open_store
from tests.conftest import LIMITS, ROOT, Built, Outcome, run_command
from tests.processes import Server, Started

VIEWS = 12


def _arguments(built: Built, out: Path) -> tuple[object, ...]:
    return (
        *("cache-teacher", *LIMITS, "--teacher", "resnet8", "--weights", built.weights, "--out", out),
        *("--views", VIEWS, "--batch-size", 20, "--device", "cpu"),
    )


def _command(built: Built, out: Path) -> list[str]:
    return [sys.executable, "-m", "kdpipe", *map(str, _arguments(built, out))]


def _finished(out: Path) -> int:
    ledger = out.with_name(out.name + ".ledger")
    return ledger.read_bytes().count(b"\n") // 2 if ledger.exists() else 0


def _wait_for(out: Path, shards: int, process: Started) -> None:
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
    assert run_command(None, *_arguments(built, out)).code == 0
    return out


def test_killed_again_and_again(built: Built, uninterrupted: Path, tmp_path: Path, commands: Server) -> None:
    out = tmp_path / "logits.zarr"
    kills = 0
    for shards in (0, 1, 4, 5, 9):
        process = commands.start(*_arguments(built, out))
        _wait_for(out, shards, process)
        process.kill()
        kills += process.wait() == -signal.SIGKILL
        if shards:
            assert out.exists()
    assert kills == 5
    assert commands.start(*_arguments(built, out)).wait() == 0
    assert open_store(out).digest == open_store(uninterrupted).digest
    assert _content(out) == _content(uninterrupted)
    assert [path.name for path in tmp_path.iterdir()] == ["logits.zarr"]


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_asked_to_stop(
    built: Built,
    uninterrupted: Path,
    tmp_path: Path,
    commands: Server,
    kdpipe: Callable[..., Outcome],
    sent: signal.Signals,
    code: int,
) -> None:
    out = tmp_path / "logits.zarr"
    process = commands.start(*_arguments(built, out))
    _wait_for(out, 2, process)
    process.send_signal(sent)
    _, errors = process.communicate()
    assert process.returncode == code
    assert "Traceback" not in errors
    assert errors.splitlines()[-1].startswith("kdpipe: ")
    found = json.loads(kdpipe("inspect", out, "--json").out)
    assert found["state"] == "building"
    assert 2 <= found["shards_done"] < found["shards_total"] == VIEWS + 2
    assert kdpipe(*_arguments(built, out)).code == 0
    assert open_store(out).digest == open_store(uninterrupted).digest


def test_two_writers_at_once(built: Built, uninterrupted: Path, tmp_path: Path, commands: Server) -> None:
    out = tmp_path / "logits.zarr"
    first = commands.start(*_arguments(built, out))
    _wait_for(out, 1, first)
    second = commands.start(*_arguments(built, out))
    _, errors = second.communicate()
    assert first.wait() == 0
    if second.returncode == 0:
        assert "nothing to do" in errors
    else:
        assert second.returncode == 1
        assert f"being written by process {first.pid}" in errors
    assert open_store(out).digest == open_store(uninterrupted).digest


def _shards_in(store: Path) -> list[str]:
    """Return the files that the ledger beside ``store`` lists; a last line that was cut short is none."""
    lines = store.with_name(store.name + ".ledger").read_bytes().split(b"\n")[:-1]
    return [json.loads(line)["path"] for line in lines]


_FULL_THEN_ROOM = """
{fill}
"$@" 2> {out}/first.err; echo $? > {out}/first.code
{free}
cp -a {disk}/logits.zarr {disk}/logits.zarr.ledger {out}
"$@" 2> {out}/second.err; echo $? > {out}/second.code
mkdir {out}/second && cp -a {disk}/. {out}/second
"""


def _full_disk(built: Built, whole: Path, folder: Path) -> Path:
    """Fill a disk half-way through a build, make room and build again, in one mount namespace; return what came out.

    Where no file system may be mounted, a limit on the size of files stands for the full disk.
    """
    disk, out = folder / "disk", folder / "out"
    disk.mkdir()
    out.mkdir()
    pages = {path: -(-path.stat().st_size // 4096) for path in whole.rglob("*") if path.is_file()}
    shards = sum(size for path, size in pages.items() if {"codes", "row_max"} & set(path.parts) and "c" in path.parts)
    room = 4096 * (sum(pages.values()) - shards // 2)
    mount = f"mount -t tmpfs -o size=16m tmpfs {disk} && head -c $((16777216 - {room})) /dev/zero > {disk}/ballast"
    if subprocess.run(["unshare", "-rm", "sh", "-c", mount], capture_output=True).returncode == 0:
        shell, fill, free = ["unshare", "-rm", "sh", "-c"], mount, f"rm {disk}/ballast"
    else:
        shell, fill, free = ["sh", "-c"], "ulimit -S -f 12", "ulimit -S -f unlimited"
    script = _FULL_THEN_ROOM.format(disk=disk, out=out, fill=fill, free=free)
    subprocess.run([*shell, script, "sh", *_command(built, disk / "logits.zarr")], cwd=ROOT, check=True)
    return out


def test_the_disk_is_full_until_there_is_room(built: Built, uninterrupted: Path, tmp_path: Path) -> None:
    out = _full_disk(built, uninterrupted, tmp_path)
    assert (out / "first.code").read_text() == "1\n"
    errors = (out / "first.err").read_text()
    assert "Traceback" not in errors
    assert "logits.zarr cannot be written: its disk is full (" in errors.splitlines()[-1]
    assert f"Make room in {tmp_path / 'disk'} and run this again" in errors.splitlines()[-1]
    kept = _shards_in(out / "logits.zarr")
    assert kept
    assert (out / "second.code").read_text() == "0\n"
    store = out / "second" / "logits.zarr"
    assert all((store / name).stat().st_mtime_ns == (out / "logits.zarr" / name).stat().st_mtime_ns for name in kept)
    assert open_store(store).digest == open_store(uninterrupted).digest
    assert _content(store) == _content(uninterrupted)
    assert [path.name for path in store.parent.iterdir()] == ["logits.zarr"]


def test_a_read_only_directory(built: Built, uninterrupted: Path, tmp_path: Path) -> None:
    shutil.copytree(uninterrupted, tmp_path / "shared" / "logits.zarr")
    (tmp_path / "shared").chmod(0o555)
    drop = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if os.geteuid() == 0 else []
    try:
        command = [*drop, *_command(built, tmp_path / "shared" / "new.zarr")]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
        assert done.returncode == 1
        assert "Traceback" not in done.stderr
        last = done.stderr.splitlines()[-1]
        assert last.startswith(f"kdpipe: {tmp_path / 'shared' / 'new.zarr'}")
        assert "Make it writable, or pass another path." in last
        look = [*drop, sys.executable, "-m", "kdpipe", "verify", str(tmp_path / "shared" / "logits.zarr")]
        assert subprocess.run(look, cwd=ROOT, capture_output=True, timeout=120).returncode == 0
    finally:
        (tmp_path / "shared").chmod(0o755)
    assert [path.name for path in (tmp_path / "shared").iterdir()] == ["logits.zarr"]
