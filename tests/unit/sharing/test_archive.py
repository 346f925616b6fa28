"""Stores in .zip and .tar files: read as they are, and nothing but their files unpacked."""

from __future__ import annotations

import io
import os
import tarfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import kdpipe
from kdpipe.errors import CorruptStoreError, StoreError
from kdpipe.sharing.streaming import open_store
from kdpipe.store.verify import verify_files
from kdpipe.testing.stores import contents, small_plan, small_store
from tests.conftest import Outcome, refused

Change = Callable[[dict[str, bytes]], None]


@pytest.fixture(autouse=True)
def _own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KDPIPE_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("made") / "logits.zarr"
    small_store(path, small_plan(views=2))
    return path


def packed(path: Path, files: dict[str, bytes], *, prefix: str = "") -> Path:
    """Write an archive of the kind that its name says."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in files.items():
                archive.writestr(prefix + name, content)
    else:
        with tarfile.open(path, "w") as archive:
            for name, content in files.items():
                info = tarfile.TarInfo(prefix + name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return path


@pytest.mark.parametrize("name", ["a.zip", "a.zarr.zip", "a.tar", "a.zarr.tar"])
@pytest.mark.parametrize("prefix", ["", "logits.zarr/", "./", "some/where/"])
def test_a_store_is_read_out_of_an_archive(store: Path, tmp_path: Path, name: str, prefix: str) -> None:
    if prefix == "./" and "zip" in name:
        pytest.skip("zip has no such names")
    archive = packed(tmp_path / name, contents(store), prefix=prefix)
    opened, local = kdpipe.open_store(archive), kdpipe.open_store(store)
    assert opened.digest == local.digest
    for view in range(3):
        np.testing.assert_array_equal(opened.plane(view), local.plane(view))
    assert opened.path.name == "a.zarr"
    assert verify_files(opened.path) == []


def test_an_archive_that_tar_made_is_read(store: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(store, "logits.zarr")
    assert kdpipe.open_store(tmp_path / "a.tar").num_views == 2


def test_it_is_unpacked_once(store: Path, tmp_path: Path) -> None:
    archive = packed(tmp_path / "a.zip", contents(store))
    first = kdpipe.open_store(archive).path
    stamp = (first / "zarr.json").stat().st_mtime_ns
    assert kdpipe.open_store(archive, "test").path == first
    assert (first / "zarr.json").stat().st_mtime_ns == stamp
    small_store(tmp_path / "other.zarr", small_plan(views=1))
    packed(archive, contents(tmp_path / "other.zarr"))
    os.utime(archive, (time.time() + 5, time.time() + 5))
    assert kdpipe.open_store(archive).num_views == 1


def shard(files: dict[str, bytes]) -> str:
    return next(name for name in files if "/codes/c/1/" in name)


def _missing(files: dict[str, bytes]) -> None:
    del files[shard(files)]


def _longer(files: dict[str, bytes]) -> None:
    files[shard(files)] += b"0"


def _other(files: dict[str, bytes]) -> None:
    files[shard(files)] = b"0" * len(files[shard(files)])


def _bomb(files: dict[str, bytes]) -> None:
    files[shard(files)] = bytes(50_000_000)


def _edited(files: dict[str, bytes]) -> None:
    files["zarr.json"] = files["zarr.json"].replace(b"random", b"rindom")


def _empty(files: dict[str, bytes]) -> None:
    files.clear()
    files["notes.txt"] = b"?"


@pytest.mark.parametrize("name", ["a.zip", "a.tar"])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_missing, "is missing"),
        (_longer, "expected"),
        (_other, "does not match its digest"),
        (_bomb, "has 50000000 bytes"),
        (_edited, "checksum"),
        (_empty, r"there is no zarr\.json in it"),
    ],
)
def test_a_damaged_archive_is_refused(store: Path, tmp_path: Path, name: str, change: Change, said: str) -> None:
    files = dict(contents(store))
    change(files)
    archive = packed(tmp_path / name, files)
    with pytest.raises(StoreError, match=said):
        kdpipe.open_store(archive)
    assert not list((tmp_path / "cache").rglob("*.zarr"))


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_damaged_compression_is_refused(store: Path, tmp_path: Path, method: int) -> None:
    archive, files = tmp_path / "a.zip", contents(store)
    with zipfile.ZipFile(archive, "w", method) as written:
        for name, content in files.items():
            written.writestr(name, content)
    assert kdpipe.open_store(archive).num_views == 2
    with zipfile.ZipFile(archive) as written:
        member = written.getinfo(shard(files))
    content = bytearray(archive.read_bytes())
    start = member.header_offset + 30 + len(member.filename)
    content[start + 12 : start + member.compress_size] = bytes(member.compress_size - 12)
    archive.write_bytes(content)
    os.utime(archive, (time.time() + 5, time.time() + 5))
    with pytest.raises(CorruptStoreError, match=r"a\.zip(:| is damaged)"):
        kdpipe.open_store(archive)


@pytest.mark.parametrize("name", ["a.zip", "a.tar"])
def test_nothing_else_is_unpacked(store: Path, tmp_path: Path, name: str) -> None:
    files = {"../escaped": b"x", "/escaped": b"x", "train/../../escaped": b"x", "notes.txt": b"x"}
    archive = packed(tmp_path / name, files | contents(store))
    opened = kdpipe.open_store(archive)
    assert contents(opened.path) == contents(store)
    assert not list(tmp_path.rglob("escaped"))


def test_a_link_in_an_archive_is_no_file(store: Path, tmp_path: Path) -> None:
    files = dict(contents(store))
    victim = shard(files)
    (tmp_path / "secret").write_bytes(files.pop(victim))
    for target in (str(tmp_path / "secret"), "zarr.json"):
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
            archive = packed(tmp_path / "a.tar", files)
            with tarfile.open(archive, "a") as opened:
                info = tarfile.TarInfo(victim)
                info.type, info.linkname = kind, target
                opened.addfile(info)
            with pytest.raises(CorruptStoreError, match="is missing"):
                kdpipe.open_store(archive)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as zipped:
        for name, content in files.items():
            zipped.writestr(name, content)
        link = zipfile.ZipInfo(victim)
        link.external_attr = 0o120777 << 16
        zipped.writestr(link, str(tmp_path / "secret"))
    with pytest.raises(CorruptStoreError, match="is missing"):
        kdpipe.open_store(tmp_path / "a.zip")


@pytest.mark.parametrize("name", ["a.zip", "a.tar"])
def test_what_is_no_archive_is_said(store: Path, tmp_path: Path, name: str, kdpipe: Callable[..., Outcome]) -> None:
    refused(kdpipe("inspect", tmp_path / name), f"{name} does not exist")
    for content in (b"", b"no archive at all" * 100, packed(tmp_path / name, contents(store)).read_bytes()[:-9000]):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(StoreError, match=f"{name}"):
            open_store(tmp_path / name)
