"""Caches: a limit to their size, files of killed processes, and what other users could have written."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kdpipe.dataset import caching, load
from tests.conftest import run_command

from .conftest import MakeFolder, Recorder, picture


def decodes(root: Path, recorder: Recorder) -> bool:
    recorder.total.clear()
    load(f"folder:{root}", "train", progress=recorder)
    return "decoding train" in recorder.total


def test_caches_are_listed_and_removed(
    make_folder: MakeFolder, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    load(f"folder:{make_folder()}", "train")
    (cache / "mine.txt").write_text("not of kdpipe")
    (row,) = json.loads(run_command(capsys, "cache", "--json").out)
    assert Path(row["path"]).parent == cache / "pixels"
    assert (row["dataset"], row["temporary"]) == ("insects train", False)
    assert "insects train" in run_command(capsys, "cache").out
    assert "Removed 0 files" in run_command(capsys, "cache", "--prune").out
    assert "Removed 1 files" in run_command(capsys, "cache", "--all").out
    assert [path for path in cache.rglob("*") if path.is_file()] == [cache / "mine.txt"]


def test_the_one_not_used_longest_is_removed_by_itself(
    make_folder: MakeFolder, cache: Path, monkeypatch: pytest.MonkeyPatch, recorder: Recorder
) -> None:
    root = make_folder()
    monkeypatch.setenv("KDPIPE_CACHE_LIMIT", str(6_000 / 1e9))  # two caches of 2,272 bytes, not three
    for seed in (100, 101, 102):
        picture(seed).save(root / "train/ant/0.png")
        before = {path: path.stat().st_mtime for path in (cache / "pixels").glob("*")}
        for path, used in before.items():
            os.utime(path, (used - 100, used - 100))
        assert decodes(root, recorder)
    assert len(list((cache / "pixels").iterdir())) == 2
    assert not decodes(root, recorder)


def test_what_exceeds_the_limit_alone_is_in_ram(
    make_folder: MakeFolder, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KDPIPE_CACHE_LIMIT", "0")
    assert load(f"folder:{make_folder()}", "train").in_memory
    assert not list(cache.rglob("*.bin"))


def test_a_limit_that_is_no_number_is_refused(
    make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for wrong in ("much", "-3", "nan", "inf"):
        monkeypatch.setenv("KDPIPE_CACHE_LIMIT", wrong)
        assert f"KDPIPE_CACHE_LIMIT is '{wrong}'" in run_command(capsys, "cache").err


def test_temporary_files_of_ended_processes_are_removed(make_folder: MakeFolder, cache: Path) -> None:
    dead, alive, young = (cache / "pixels" / f".a.bin.{name}.tmp" for name in ("dead", "alive", "young"))
    dead.parent.mkdir(parents=True)
    for path in (dead, alive, young):
        path.write_bytes(b"0" * 100)
    for path in (dead, alive):
        os.utime(path, (time.time() - 60,) * 2)
    with alive.open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        load(f"folder:{make_folder()}", "train")
        assert [path.exists() for path in (dead, alive, young)] == [False, True, True]


def writable_file(cache: Path) -> None:
    for path in cache.rglob("*.bin"):
        path.chmod(0o666)


def writable_folder(cache: Path) -> None:
    (cache / "pixels").chmod(0o777)


def link(cache: Path) -> None:
    (path,) = (cache / "pixels").iterdir()
    path.rename(cache / "elsewhere.bin")
    path.symlink_to(cache / "elsewhere.bin")


def owner(cache: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    for path in (cache / "pixels").iterdir():
        os.chown(path, 12345, 12345)


@pytest.mark.parametrize("change", [writable_file, writable_folder, link, owner])
def test_what_others_could_have_written_is_made_again(
    make_folder: MakeFolder, cache: Path, recorder: Recorder, change: Callable[[Path], None]
) -> None:
    root = make_folder()
    assert decodes(root, recorder)
    assert not decodes(root, recorder)
    change(cache)
    assert decodes(root, recorder)
    assert not decodes(root, recorder)


def test_a_cache_directory_that_others_can_write_is_not_used(make_folder: MakeFolder, cache: Path) -> None:
    cache.mkdir()
    cache.chmod(0o777)
    found = load(f"folder:{make_folder()}", "train")
    assert found.in_memory
    assert list(cache.iterdir()) == []
    assert any(f"run: chmod go-w {cache}" in note for note in found.notes)
    cache.chmod(0o755)
    assert load(found.spec, "train").notes == ()


def test_caches_work_under_an_open_umask(make_folder: MakeFolder, recorder: Recorder) -> None:
    before = os.umask(0o002)
    try:
        root = make_folder()
        assert decodes(root, recorder)
        assert not decodes(root, recorder)
    finally:
        os.umask(before)
    assert caching.distrust() is None
