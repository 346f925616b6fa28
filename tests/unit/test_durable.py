"""Files are there whole or not at all."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from kdpipe import durable
from kdpipe.errors import RunError, UnwritableError


def test_writes_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "file.json"
    durable.write_text(path, "öld")
    assert path.read_bytes() == "öld".encode()
    durable.write_json(path, {"b": [1, 2.5], "a": "é"})
    assert json.loads(path.read_text("utf-8")) == {"b": [1, 2.5], "a": "é"}
    assert path.read_text("utf-8").endswith("}\n")
    durable.write_bytes(path, b"\0\xff")
    assert path.read_bytes() == b"\0\xff"
    assert [entry.name for entry in path.parent.iterdir()] == ["file.json"]


@pytest.mark.parametrize("error", [ValueError, OSError, KeyboardInterrupt])
def test_an_error_keeps_what_was_there(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def fail(temporary: Path) -> None:
        temporary.write_text("half of the n")
        assert path.read_text() == "old"
        raise error

    with pytest.raises(error):
        durable.replace(path, fail)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_leaves_nothing_where_nothing_was(tmp_path: Path) -> None:
    def fail(temporary: Path) -> None:
        temporary.write_text("half")
        raise ValueError

    with pytest.raises(ValueError):
        durable.replace(tmp_path / "file", fail)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [float("nan"), float("inf"), [1, -float("inf")]])
def test_json_refuses_what_is_not_a_number(tmp_path: Path, value: object) -> None:
    path = tmp_path / "file.json"
    path.write_text("old")
    with pytest.raises(ValueError):
        durable.write_json(path, {"value": value})
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_content_is_flushed_before_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    flush, rename = os.fsync, Path.replace

    def fsync(descriptor: int) -> None:
        events.append("flush")
        flush(descriptor)

    def replace(self: Path, target: Path) -> Path:
        events.append("rename")
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", replace)
    durable.write_text(tmp_path / "file", "new")
    assert events[0] == "flush"
    assert events[-1] == "flush"
    assert events.count("rename") == 1


def test_a_killed_writer_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    script = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from kdpipe import durable\n"
        "def die(temporary):\n"
        "    temporary.write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "durable.replace(Path(sys.argv[1]), die)\n"
    )
    finished = subprocess.run([sys.executable, "-c", script, str(path)], check=False)
    assert finished.returncode == -signal.SIGKILL
    assert path.read_text() == "old"


def test_a_lock_that_is_another_name_of_a_file_leaves_the_file_alone(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("precious")
    (tmp_path / "a.lock").hardlink_to(precious)
    with pytest.raises(UnwritableError, match="no lock file of kdpipe"), durable.locked(tmp_path / "a.lock", RunError):
        pass
    assert precious.read_text() == "precious"
    assert (tmp_path / "a.lock").exists()


def test_a_lock_is_waited_for_with_patience(tmp_path: Path) -> None:
    def refuse(holder: str) -> RunError:
        return RunError(f"held by {holder}")

    lock = tmp_path / "a.lock"
    with durable.locked(lock, refuse):
        with pytest.raises(RunError, match=f"held by {os.getpid()}"), durable.locked(lock, refuse):
            pass
        entered = threading.Event()

        def wait() -> None:
            with durable.locked(lock, refuse, patience=30):
                entered.set()

        waiting = threading.Thread(target=wait)
        waiting.start()
        assert not entered.wait(0.1)
    waiting.join()
    assert entered.is_set()
    assert not lock.exists()
