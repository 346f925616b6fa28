"""Plain files at a place: the same operations on every kind of real server."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from blake3 import blake3

from kdpipe.errors import ParamsError, RemoteChangedError, RemoteError, RemoteExistsError, RemoteMissingError
from kdpipe.sharing.remote import Folder, connect
from tests.servers import Place

NAME = "cifar/v1/train/codes/c/0/0/0"


@pytest.fixture
def folder(place: Place) -> Folder:
    return connect(place.url, read_only=False)


@pytest.fixture
def big(tmp_path: Path) -> Path:
    path = tmp_path / "big"
    path.write_bytes(os.urandom(1_500_000))
    return path


def digest(path: Path) -> str:
    return blake3(path.read_bytes()).hexdigest(length=16)


def test_what_is_written_can_be_read(folder: Folder) -> None:
    assert folder.size("index.json") is None
    assert folder.read_version("index.json", limit=100) is None
    folder.create("index.json", b"one")
    assert folder.size("index.json") == 3
    assert folder.read("index.json", limit=3) == b"one"
    folder.replace("index.json", b"two")
    assert folder.read("index.json", limit=3) == b"two"


def test_a_file_that_is_there_is_not_created_again(folder: Folder) -> None:
    folder.create("index.json", b"one")
    with pytest.raises(RemoteExistsError, match="exists already"):
        folder.create("index.json", b"two")
    assert folder.read("index.json", limit=3) == b"one"


def test_one_of_two_replacements_of_a_version_wins(folder: Folder, place: Place) -> None:
    if place.url.startswith("http"):
        pytest.skip("nginx compares no versions on PUT")
    folder.create("index.json", b"one")
    found = folder.read_version("index.json", limit=100)
    assert found is not None
    outcomes: list[str] = []

    def replace(content: bytes) -> None:
        try:
            connect(place.url, read_only=False).replace("index.json", content, expected=found[1])
            outcomes.append("replaced")
        except RemoteChangedError:
            outcomes.append("refused")

    threads = [threading.Thread(target=replace, args=(bytes([65 + number]) * 4,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["refused"] * 3 + ["replaced"]
    assert len(set(folder.read("index.json", limit=4))) == 1


def test_a_file_is_fetched_by_its_digest(folder: Folder, big: Path, tmp_path: Path) -> None:
    folder.upload(big, NAME)
    moved: list[int] = []
    target = tmp_path / "out" / "fetched"
    folder.fetch(NAME, target, size=1_500_000, digest=digest(big), report=moved.append)
    assert target.read_bytes() == big.read_bytes()
    assert sum(moved) == 1_500_000
    assert [path.name for path in target.parent.iterdir()] == ["fetched"]


@pytest.mark.parametrize("damaged", [False, True])
def test_a_download_goes_on_where_it_was_cut(folder: Folder, big: Path, tmp_path: Path, damaged: bool) -> None:
    folder.upload(big, NAME)
    target = tmp_path / "fetched"
    target.with_name("fetched.part").write_bytes(b"x" * 900_000 if damaged else big.read_bytes()[:900_000])
    folder.fetch(NAME, target, size=1_500_000, digest=digest(big))
    assert target.read_bytes() == big.read_bytes()
    assert not target.with_name("fetched.part").exists()


def test_a_file_of_another_size_or_digest_is_refused(folder: Folder, big: Path, tmp_path: Path) -> None:
    folder.upload(big, NAME)
    target = tmp_path / "fetched"
    for size, expected in ((1_499_999, "bytes"), (1_500_001, "bytes"), (1_500_000, "digest")):
        with pytest.raises(RemoteError, match=f"{expected}.*Tell its publisher"):
            folder.fetch(NAME, target, size=size, digest="0" * 32)
        assert not target.exists()


def test_a_file_that_is_too_large_is_not_read(folder: Folder, big: Path) -> None:
    folder.upload(big, NAME)
    with pytest.raises(RemoteError, match="larger than 1,000 bytes"):
        folder.read(NAME, limit=1000)


def test_a_missing_file_is_named(folder: Folder, tmp_path: Path) -> None:
    with pytest.raises(RemoteMissingError, match=f"{NAME} does not exist"):
        folder.read(NAME, limit=10)
    with pytest.raises(RemoteMissingError, match=f"{NAME} does not exist"):
        folder.fetch(NAME, tmp_path / "fetched", size=3, digest="0" * 32)


def test_a_file_is_copied_at_the_place(folder: Folder, big: Path) -> None:
    folder.upload(big, NAME)
    assert folder.copy(NAME, NAME.replace("v1", "v2"))
    assert folder.read(NAME.replace("v1", "v2"), limit=2_000_000) == big.read_bytes()
    assert not folder.copy("cifar/v1/absent", "cifar/v2/absent")


def test_files_are_listed(folder: Folder, place: Place) -> None:
    folder.create("cifar/v1/zarr.json", b"{}")
    folder.create("cifar/v1/train/zarr.json", b"{ }")
    if place.url.startswith("http"):
        with pytest.raises(RemoteError, match="cannot be listed"):
            folder.names("cifar")
    else:
        assert folder.names("cifar/v1") == {"cifar/v1/zarr.json": 2, "cifar/v1/train/zarr.json": 3}


@pytest.mark.parametrize("name", ["../up", "/etc/passwd", "a/../b", "a//b", ".hidden", "a/.b", "", "a\\b", "a b", "é"])
def test_no_name_leaves_the_folder(tmp_path: Path, name: str) -> None:
    folder = connect(str(tmp_path), read_only=False)
    for operation in (
        lambda: folder.read(name, limit=9),
        lambda: folder.create(name, b""),
        lambda: folder.fetch(name, tmp_path / "out", size=0, digest=""),
        lambda: folder.copy("a", name),
    ):
        with pytest.raises(RemoteError, match="no name of a file"):
            operation()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_was_opened_for_reading_takes_no_writes(tmp_path: Path) -> None:
    with pytest.raises(RemoteError, match="for reading only"):
        connect(str(tmp_path)).create("index.json", b"")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("ftp://host/x", "'ftp://' is no scheme"),
        ("http:///x", "names no host"),
        ("http://host:port/x", "malformed"),
        ("http://ho st/x", "no URL has"),
        ("s3://key:secret@bucket/x", "belong in the environment"),
        ("s3://bucket/x?token=secret", "belong in the environment"),
        ("ssh://user:secret@host/x", "ssh's own settings"),
        ("ssh://-oProxyCommand=touch/x", "names no host"),
    ],
)
def test_a_malformed_url_is_refused(url: str, said: str) -> None:
    with pytest.raises(ParamsError, match=said) as refused:
        connect(url)
    assert "secret" not in str(refused.value)


def test_a_host_without_access_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KDPIPE_SSH", "sh -c 'echo Permission denied. >&2; exit 255'")
    with pytest.raises(RemoteError, match=r"ssh://someone@host/x.*no access \(ssh: Permission denied\.\)"):
        connect("ssh://someone@host/x").size("index.json")
    monkeypatch.setenv("KDPIPE_SSH", "/no/such/program")
    with pytest.raises(RemoteError, match="needs the program ssh"):
        connect("ssh://someone@host/x").size("index.json")


def test_a_host_whose_disk_is_full_keeps_nothing_of_an_upload(
    big: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Path("/usr/lib/openssh/sftp-server")
    if not server.exists():
        pytest.skip("there is no sftp-server")
    monkeypatch.setenv("KDPIPE_SSH", f"sh -c 'trap \"\" XFSZ; ulimit -f 900; exec {server}'")
    (tmp_path / "served").mkdir()
    folder = connect(f"ssh://host{tmp_path}/served", read_only=False)
    with pytest.raises(RemoteError, match="the host refuses the operation"):
        folder.upload(big, "large")
    assert list((tmp_path / "served").iterdir()) == []
    folder.create("small", b"one")
    assert folder.names() == {"small": 3}
