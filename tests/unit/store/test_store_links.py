"""Stores that hold links, FIFOs and the files of others: nothing outside is read, and nothing of others is lost."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from kdpipe.errors import CorruptStoreError, KdpipeError, StoreError
from kdpipe.store.inspect import summary
from kdpipe.store.reader import open_store
from kdpipe.store.verify import verify_deep, verify_files
from kdpipe.testing.stores import contents, small_plan, small_store, start_store


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder of the user that a link leads to."""
    folder = tmp_path / "home"
    folder.mkdir()
    (folder / "thesis.txt").write_text("all of it")
    (folder / "0").write_text("named like a chunk")
    return folder


def untouched(home: Path) -> bool:
    return contents(home) == {"thesis.txt": b"all of it", "0": b"named like a chunk"}


ODD: dict[str, Callable[[Path, Path], object]] = {
    "link to a folder": lambda place, home: place.symlink_to(home),
    "link to a file": lambda place, home: place.symlink_to(home / "thesis.txt"),
    "link to nothing": lambda place, home: place.symlink_to(home / "nothing"),
    "FIFO": lambda place, _: os.mkfifo(place),
    "socket": lambda place, _: listen(place),
    "empty folder": lambda place, _: place.mkdir(),
    "file": lambda place, _: place.write_text("notes"),
}


def listen(place: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        at = Path.cwd()
        os.chdir(place.parent)  # a socket's path is short
        made.bind(place.name)
        os.chdir(at)


def put(store: Path, name: str, odd: str, home: Path) -> None:
    place = store / name
    place.parent.mkdir(parents=True, exist_ok=True)
    ODD[odd](place, home)


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("name", ["train/x/c", "notes", "train/codes/c/9", "train/codes/c/0/0/0.old"])
def test_strangers_are_seen_and_never_followed_or_lost(sealed: Path, home: Path, odd: str, name: str) -> None:
    """The reported case is ``train/x/c``, a link to a home directory."""
    put(sealed, name, odd, home)
    faults = verify_files(sealed)
    assert len(faults) == 1
    assert faults[0].startswith(name)
    assert faults[0].endswith("does not belong to the store")
    with pytest.raises(CorruptStoreError, match="does not belong"):
        open_store(sealed)
    assert summary(sealed)["state"] == "sealed"
    for plan, overwrite in ((small_plan(views=2), False), (small_plan(batch_size=9), True)):
        if odd in ("empty folder", "file") and name == "train/codes/c/9":
            continue  # a name of kdpipe's: it is removed
        with pytest.raises(StoreError, match=name):
            small_store(sealed, plan, overwrite=overwrite)
        assert os.path.lexists(sealed / name)
        assert untouched(home)
    assert verify_files(sealed) == faults, "and the store is as it was"


@pytest.mark.parametrize("name", ["train", "train/codes", "train/codes/c/0", "train/labels/c", "test/codes/c/0/0/0"])
def test_a_part_of_a_store_that_is_a_link_elsewhere_is_refused(sealed: Path, tmp_path: Path, name: str) -> None:
    elsewhere = tmp_path / "elsewhere"
    (sealed / name).rename(elsewhere)
    (sealed / name).symlink_to(elsewhere)
    before = contents(elsewhere) if elsewhere.is_dir() else elsewhere.read_bytes()
    assert any(f"{name} (link) does not belong" in fault for fault in verify_files(sealed))
    with pytest.raises(CorruptStoreError):
        open_store(sealed)
    for plan, overwrite in ((small_plan(views=2), False), (small_plan(batch_size=9), True)):
        with pytest.raises(StoreError):
            small_store(sealed, plan, overwrite=overwrite)
    assert (contents(elsewhere) if elsewhere.is_dir() else elsewhere.read_bytes()) == before


@pytest.mark.parametrize("odd", ["link to a file", "link to nothing", "FIFO", "socket", "empty folder"])
def test_a_manifest_that_is_no_file_is_refused(sealed: Path, home: Path, odd: str) -> None:
    (sealed / "zarr.json").unlink()
    put(sealed, "zarr.json", odd, home)
    for read in (open_store, verify_files, verify_deep, summary, small_store):
        with pytest.raises(StoreError, match=r"small\.zarr"):
            read(sealed)
    assert untouched(home)


@pytest.mark.parametrize("odd", ["link to a folder", "link to a file", "link to nothing", "FIFO", "empty folder"])
@pytest.mark.parametrize("name", ["{}.lock", "{}.ledger"])
def test_lock_and_ledger_are_files_of_kdpipe(tmp_path: Path, home: Path, odd: str, name: str) -> None:
    store = tmp_path / "a.zarr"
    start_store(store, shards=2)
    (tmp_path / name.format("a.zarr")).unlink(missing_ok=True)
    put(tmp_path, name.format("a.zarr"), odd, home)
    before = contents(store)
    with pytest.raises(KdpipeError, match=r"a\.zarr"):
        small_store(store)
    if "ledger" in name:
        with pytest.raises(StoreError, match=r"a\.zarr\.ledger cannot be read"):
            summary(store)
    assert contents(store) == before
    assert untouched(home)


@pytest.mark.parametrize("ending", ["new", "old", "manifest", "ledger"])
@pytest.mark.parametrize("odd", ["link to a folder", "link to a file", "link to nothing", "FIFO"])
def test_a_leftover_that_is_a_link_is_removed_alone(
    tmp_path: Path, home: Path, sealed_once: Path, odd: str, ending: str
) -> None:
    put(tmp_path, f".a.zarr.{ending}", odd, home)
    small_store(tmp_path / "a.zarr")
    assert contents(tmp_path / "a.zarr") == contents(sealed_once)
    assert not os.path.lexists(tmp_path / f".a.zarr.{ending}")
    assert untouched(home)


@pytest.mark.parametrize("odd", ["link to a folder", "FIFO", "file"])
def test_a_leftover_with_the_files_of_others_is_refused(tmp_path: Path, home: Path, odd: str) -> None:
    put(tmp_path, ".a.zarr.new/train/mine", odd, home)
    with pytest.raises(CorruptStoreError, match=r"\.a\.zarr\.new holds train/mine.* Move them elsewhere"):
        small_store(tmp_path / "a.zarr")
    assert os.path.lexists(tmp_path / ".a.zarr.new/train/mine")
    assert untouched(home)


def test_a_ledger_names_nothing_outside_the_store(tmp_path: Path, home: Path, sealed_once: Path) -> None:
    store = tmp_path / "a.zarr"
    start_store(store, shards=2)
    os.mkfifo(tmp_path / "fifo")
    ledger = tmp_path / "a.zarr.ledger"
    outside = '{"path": "../fifo", "size": 0, "digest": "' + "0" * 32 + '"}\n'
    deep = "[" * 100_000 + "\n"
    ledger.write_text(ledger.read_text() + outside + deep)
    small_store(store)
    assert contents(store) == contents(sealed_once)


def test_a_hundred_thousand_strangers_take_a_handful_of_lines(sealed: Path) -> None:
    for number in range(2000):
        (sealed / f"{number:04}").touch()
    assert verify_files(sealed) == [
        *(f"{number:04} does not belong to the store" for number in range(5)),
        "and 1,995 more do not belong to the store",
    ]
    with pytest.raises(StoreError, match=r"holds 0000, 0001, 0002, 0003, 0004 and 1,995 more, not written by kdpipe"):
        small_store(sealed, small_plan(views=2))


def test_many_missing_and_changed_files_take_a_handful_of_lines(tmp_path: Path) -> None:
    store = tmp_path / "a.zarr"
    small_store(store, small_plan(views=11))
    for shard in range(12):
        (store / f"train/codes/c/{shard}/0/0").unlink()
        path = store / f"train/row_max/c/{shard}/1"
        path.write_bytes(bytes(path.stat().st_size))
    faults = verify_files(store)
    assert len(faults) == 12
    assert faults[5] == "and 7 more files are missing"
    assert faults[11] == "and 7 more do not match their digests"


def test_a_store_may_be_read_through_a_link_and_not_be_written(sealed: Path, tmp_path: Path) -> None:
    (tmp_path / "shortcut.zarr").symlink_to(sealed)
    (tmp_path / "folder").symlink_to(tmp_path)
    assert open_store(tmp_path / "shortcut.zarr").digest == open_store(sealed).digest
    assert verify_files(tmp_path / "shortcut.zarr") == []
    with pytest.raises(StoreError, match=r"shortcut\.zarr is a link, and a store is written to a folder"):
        small_store(tmp_path / "shortcut.zarr", small_plan(views=2))
    small_store(tmp_path / "folder" / "small.zarr", small_plan(views=2))
    assert open_store(sealed).num_views == 2


def test_a_folder_that_is_left_over_from_a_killed_write_goes(sealed_once: Path, tmp_path: Path) -> None:
    store = tmp_path / "a.zarr"
    start_store(store, shards=2)
    (store / "train/codes/c/7/7").mkdir(parents=True)
    (store / "train/codes/c/7/7/0.0123abcd.partial").write_bytes(b"half")
    small_store(store)
    assert not (store / "train/codes/c/7").exists()
    assert verify_files(store) == []
    shutil.rmtree(store)
