"""Publishing of versions, on every kind of place."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from kdpipe.errors import CorruptStoreError, ParamsError, RemoteError, StoreError
from kdpipe.sharing import catalog, published
from kdpipe.sharing.address import Address
from kdpipe.sharing.catalog import Row
from kdpipe.sharing.publishing import Moved, enlist, publish, refuse_undescribed
from kdpipe.sharing.remote import Folder, connect
from kdpipe.sharing.settings import Withholding
from kdpipe.sharing.withholding import derive
from kdpipe.store import manifest
from kdpipe.store.settings import Provenance
from kdpipe.testing.stores import contents, small_plan, small_store
from tests.servers import Place

SAID = Provenance(title="Flowers", license="CC0-1.0", contact="a@b.example")


@pytest.fixture(autouse=True)
def _own_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KDPIPE_CONFIG", str(tmp_path / "config"))


def made(path: Path, *, views: int = 1, **ingredients: Any) -> Path:
    small_store(path, replace(small_plan(views=views, **ingredients), provenance=SAID))
    return path


def put(store: Path, url: str, folder: Folder | None = None, **asked: Any) -> tuple[Row, Moved]:
    address = Address.parse(url)
    derived = derive(store, store.with_name("work"), Withholding(**asked))
    return publish(derived, store, address, folder or connect(address.url, read_only=False))


def test_a_version_is_at_the_place_byte_by_byte_and_in_the_catalog(tmp_path: Path, place: Place) -> None:
    store = made(tmp_path / "a.zarr")
    (store / "LICENSE").write_text("CC0")
    row, moved = put(store, f"{place.url}/flowers@v1")
    folder = connect(place.url)
    for name, content in contents(store).items():
        assert folder.read(f"flowers/v1/{name}", limit=2**20) == content
    assert b"# Flowers" in folder.read("flowers/v1/README.md", limit=2**20)
    assert b"croissant" in folder.read("flowers/v1/croissant.json", limit=2**20)
    assert b"flowers@v1" in folder.read("index.html", limit=2**20)
    assert catalog.read(folder).versions == (row,)
    assert moved.uploaded == row.size == sum(file.size for file in manifest.read(store).files.values())
    again, moved = put(store, f"{place.url}/flowers@v1")
    assert (again, moved) == (row, Moved(there=row.size))


def test_an_update_moves_only_new_bytes(tmp_path: Path, place: Place) -> None:
    store = made(tmp_path / "a.zarr", views=2)
    first, _ = put(store, f"{place.url}/flowers@v1")
    before = manifest.read(store).files
    made(store, views=4)
    second, moved = put(store, f"{place.url}/flowers@v2")
    known = {file.digest for file in before.values()}
    new = sum(file.size for file in manifest.read(store).files.values() if file.digest not in known)
    if place.url.startswith("ssh"):
        assert moved.uploaded + moved.copied == second.size, "not every server copies"
    else:
        assert moved == Moved(uploaded=new, copied=second.size - new)
    folder = connect(place.url)
    assert catalog.read(folder).versions == (first, second)
    for version in ("v1", "v2"):
        found = published.find(f"{place.url}/flowers@{version}").manifest
        assert {name: len(folder.read(f"flowers/{version}/{name}", limit=2**20)) for name in found.files} == {
            name: file.size for name, file in found.files.items()
        }


def test_a_version_is_never_overwritten(tmp_path: Path, place: Place) -> None:
    put(made(tmp_path / "a.zarr"), f"{place.url}/flowers@v1")
    folder = connect(place.url)
    before = folder.read("flowers/v1/zarr.json", limit=2**20), folder.read("index.json", limit=2**20)
    with pytest.raises(StoreError, match="flowers@v1 is published already, with another manifest"):
        put(made(tmp_path / "b.zarr", views=2), f"{place.url}/flowers@v1")
    assert (folder.read("flowers/v1/zarr.json", limit=2**20), folder.read("index.json", limit=2**20)) == before


def test_two_publishers_of_different_stores_are_both_listed(tmp_path: Path, place: Place) -> None:
    rows = []
    for number in range(4):
        store = made(tmp_path / f"{number}.zarr", views=number)
        rows.append(catalog.row_of(manifest.read(store), name=f"s{number}", version="v1", created="2026-01-01"))
    failures: list[BaseException] = []

    def run(row: Row) -> None:
        try:
            enlist(connect(place.url, read_only=False), row)
        except BaseException as failure:
            failures.append(failure)

    if place.url.startswith("http"):
        pytest.skip("this server compares no versions")
    threads = [threading.Thread(target=run, args=(row,)) for row in rows]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert catalog.read(connect(place.url)).versions == tuple(rows)
    assert all(f"s{number}@v1".encode() in connect(place.url).read("index.html", limit=2**20) for number in range(4))


class KilledError(Exception):
    """Stands for a kill: nothing in kdpipe catches it."""


@dataclass(frozen=True)
class Fragile(Folder):
    """A folder at which a process is killed, before or after its n-th write."""

    left: tuple[list[int], bool] = ([0], True)

    def _counted(self, write: Callable[[], Any]) -> Any:
        left, before = self.left
        left[0] -= 1
        if left[0] < 0 and before:
            raise KilledError
        result = write()
        if left[0] < 0:
            raise KilledError
        return result

    def upload(self, path: Path, name: str) -> None:
        self._counted(lambda: Folder.upload(self, path, name))

    def create(self, name: str, content: bytes) -> None:
        self._counted(lambda: Folder.create(self, name, content))

    def replace(self, name: str, content: bytes, *, expected: str | None = None) -> None:
        self._counted(lambda: Folder.replace(self, name, content, expected=expected))

    def copy(self, name: str, new_name: str) -> bool:
        return bool(self._counted(lambda: Folder.copy(self, name, new_name)))


@pytest.mark.parametrize("before", [True, False])
def test_a_publication_killed_at_any_write_goes_on_and_is_invisible_until_it_is_whole(
    tmp_path: Path, before: bool
) -> None:
    place = tmp_path / "place"
    store = made(tmp_path / "a.zarr")
    put(store, f"{place}/flowers@v1")
    listed = catalog.read(connect(str(place)))
    made(store, views=2)
    kills, whole = 0, False
    while not whole:
        fragile = Fragile(connect(str(place)).place, read_only=False, left=([kills % 7 + (kills > 30) * 5], before))
        try:
            put(store, f"{place}/flowers@v2", fragile)
            whole = True
        except KilledError:
            kills += 1
            now = catalog.read(connect(str(place)))
            if now != listed:
                assert [row.version for row in now.versions] == ["v1", "v2"]
                assert published.find(f"{place}/flowers@v2").manifest == manifest.read(store)
        assert kills < 100
    assert kills > 5
    names = {name.removeprefix("flowers/v2/") for name in connect(str(place)).names("flowers/v2")}
    assert names == contents(store).keys() | {"README.md", "croissant.json"}
    for name, content in contents(store).items():
        assert (place / "flowers/v2" / name).read_bytes() == content
    assert [row.version for row in catalog.read(connect(str(place))).versions] == ["v1", "v2"]
    assert b"flowers@v2" in (place / "index.html").read_bytes()


def test_a_version_that_someone_else_began_is_refused(tmp_path: Path) -> None:
    place = tmp_path / "place"
    fragile = Fragile(connect(str(place)).place, read_only=False, left=([6], True))
    with pytest.raises(KilledError):
        put(made(tmp_path / "a.zarr"), f"{place}/flowers@v1", fragile)
    with pytest.raises(StoreError, match=r"was begun with another manifest.*publish another, such as flowers@v2"):
        put(made(tmp_path / "b.zarr", views=2), f"{place}/flowers@v1")
    put(tmp_path / "a.zarr", f"{place}/flowers@v1")


def test_the_place_of_a_last_version_that_is_damaged_is_not_copied_from(tmp_path: Path) -> None:
    place = tmp_path / "place"
    store = made(tmp_path / "a.zarr")
    put(store, f"{place}/flowers@v1")
    (place / "flowers/v1/zarr.json").write_text("{}")
    made(store, views=2)
    row, moved = put(store, f"{place}/flowers@v2")
    assert moved == Moved(uploaded=row.size)


def test_a_damaged_file_is_not_published(tmp_path: Path) -> None:
    store = made(tmp_path / "a.zarr")
    file = store / "train/codes/c/1/0/0"
    content = bytearray(file.read_bytes())
    content[3] ^= 1
    file.write_bytes(content)
    with pytest.raises(CorruptStoreError, match="does not match its digest"):
        put(store, f"{tmp_path}/place/flowers@v1")
    assert not (tmp_path / "place/index.json").exists()


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path, places: Callable[[str], Place]) -> None:
    store = made(tmp_path / "a.zarr")
    with pytest.raises(RemoteError):
        put(store, f"{places('read-only web').url}/flowers@v1")


def test_license_and_contact_are_needed(tmp_path: Path) -> None:
    found = manifest.read(made(tmp_path / "a.zarr"))
    refuse_undescribed(found, store=tmp_path)
    for lacking in ("license", "contact"):
        less = found.model_copy(update={"provenance": SAID.model_copy(update={lacking: None})})
        with pytest.raises(ParamsError, match=f"nothing of its {lacking}, .*Pass --{lacking}"):
            refuse_undescribed(less, store=tmp_path)


def test_an_older_catalog_is_told_to_the_publisher(tmp_path: Path) -> None:
    place = tmp_path / "place"
    put(made(tmp_path / "a.zarr"), f"{place}/flowers@v1")
    old = (place / "index.json").read_bytes()
    put(made(tmp_path / "b.zarr", views=2), f"{place}/flowers@v2")
    (place / "index.json").write_bytes(old)
    lines: list[str] = []
    address = Address.parse(f"{place}/flowers@v3")
    derived = derive(made(tmp_path / "c.zarr", views=3), tmp_path / "work", Withholding())
    publish(derived, tmp_path / "c.zarr", address, connect(address.url, read_only=False), say=lines.append)
    assert len(lines) == 1
    assert "lacks flowers@v2, seen there before" in lines[0]
