"""Stores that are opened at a URL: fetched when needed, kept in the cache, used offline."""

from __future__ import annotations

import pickle
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import kdpipe
from kdpipe.dataset import caching
from kdpipe.distil.targets import CachedTargets, WindowedTargets
from kdpipe.errors import RemoteError, StoreError
from kdpipe.pairing.shared import Origin
from kdpipe.testing.stores import small_plan, small_store
from tests.conftest import Outcome, refused, run_command
from tests.processes import Server
from tests.servers import Place
from tests.unit.sharing.hostile import Hostile, hostile
from tests.unit.sharing.layout import put

Run = Callable[..., Outcome]


@pytest.fixture(autouse=True)
def _own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KDPIPE_TIMEOUT", "5")
    monkeypatch.setenv("KDPIPE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    return lambda *arguments: run_command(capsys, *arguments)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    path = tmp_path / "made" / "logits.zarr"
    small_store(path, small_plan(views=3))
    return path


@pytest.fixture
def served(places: Callable[[str], Place], store: Path, tmp_path: Path) -> Iterator[Place]:
    place = places("read-only web")
    assert place.folder is not None
    folder = place.folder / tmp_path.name
    put(store, folder)
    yield Place(f"{place.url}/{tmp_path.name}", folder=folder)
    shutil.rmtree(folder, ignore_errors=True)


def requests(served: Place) -> list[str]:
    """Return the files of version 1 that were asked for, in order."""
    assert served.folder is not None
    log = (served.folder.parent.parent / "nginx" / "access.log").read_text()
    return [line.split()[6].split("/v1/")[1] for line in log.splitlines() if f"/{served.folder.name}/cifar/v1/" in line]


def test_a_store_at_a_url_is_that_of_its_files(served: Place, store: Path) -> None:
    remote, local = kdpipe.open_store(f"{served.url}/cifar@v1"), kdpipe.open_store(store)
    assert remote.digest == local.digest
    np.testing.assert_array_equal(remote.labels, local.labels)
    for view in range(4):
        np.testing.assert_array_equal(remote.plane(view), local.plane(view))
    assert remote.place == f"{served.url}/cifar@v1"


def test_a_file_is_fetched_once_and_only_if_it_is_needed(served: Place) -> None:
    store = kdpipe.open_store(f"{served.url}/cifar@v1", "train")
    store.plane(2)
    seen = requests(served)
    assert len(seen) == len(set(seen))
    assert not [name for name in seen if name.startswith("test/")]
    assert {name.split("/")[3] for name in seen if "/codes/c/" in name or "/row_max/c/" in name} == {"2"}
    again = kdpipe.open_store(f"{served.url}/cifar@v1", "train")
    again.plane(2)
    assert requests(served) == seen
    again.plane(3)
    assert {name.split("/")[3] for name in requests(served)[len(seen) :]} == {"3"}


def test_what_is_there_is_used_without_the_network(served: Place, store: Path) -> None:
    assert served.folder is not None
    for address in (f"{served.url}/cifar@v1", f"{served.url}/cifar"):
        kdpipe.open_store(address).plane(1)
    served.folder.rename(served.folder.with_name("gone"))
    try:
        opened = kdpipe.open_store(f"{served.url}/cifar@v1")
        np.testing.assert_array_equal(opened.plane(1), kdpipe.open_store(store).plane(1))
        with pytest.raises(RemoteError, match=r"does not exist|no store"):
            opened.plane(2)
    finally:
        served.folder.with_name("gone").rename(served.folder)


def test_the_newest_version_is_used_offline_too(store: Path, tmp_path: Path) -> None:
    put(store, tmp_path / "place")
    with hostile() as server:
        _serve(server, tmp_path / "place")
        kdpipe.open_store(f"{server.url}/cifar").plane(1)
        url = server.url
    kdpipe.open_store(f"{url}/cifar").plane(1)
    with pytest.raises(RemoteError, match="network"):
        kdpipe.open_store(f"{url}/other")


def _serve(server: Hostile, folder: Path) -> None:
    from tests.unit.sharing.hostile import whole

    for path in folder.rglob("*"):
        if path.is_file():
            server.answer(path.relative_to(folder).as_posix(), *whole(path.read_bytes()))


def test_another_version_at_an_address_is_noticed(served: Place, tmp_path: Path) -> None:
    assert served.folder is not None
    assert kdpipe.open_store(f"{served.url}/cifar").num_views == 3
    other = tmp_path / "made" / "other.zarr"
    small_store(other, small_plan(views=1))
    put(other, served.folder, version="v2")
    assert kdpipe.open_store(f"{served.url}/cifar").num_views == 1


def test_processes_share_the_cache(served: Place, commands: Server) -> None:
    started = [commands.start("verify", f"{served.url}/cifar@v1") for _ in range(3)]
    assert [each.wait() for each in started] == [0, 0, 0]
    fetched = [name for name in requests(served) if name not in ("zarr.json", "manifest.sig")]
    assert len(fetched) == len(set(fetched))


def test_soft_targets_in_other_processes_are_fetched_there(served: Place) -> None:
    opened = kdpipe.open_store(f"{served.url}/cifar@v1")
    origin = pickle.loads(pickle.dumps(Origin.of(opened, np.arange(4))))
    assert (origin.read(2).codes == opened.gather(2, np.arange(4)).codes).all()


def test_the_next_view_is_fetched_while_one_is_used(served: Place) -> None:
    store = kdpipe.open_store(f"{served.url}/cifar@v1")
    rows = np.arange(store.num_samples)
    for targets, view in ((CachedTargets(store, rows), 1), (WindowedTargets(store, rows), 2)):
        targets.start_epoch(view, view + 1)
        wanted = f"train/row_max/c/{view + 1}/0"
        deadline = time.monotonic() + 20
        while not (store.path / wanted).exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_inspect_and_verify_take_a_url(
    run: Run, served: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shown = run("inspect", f"{served.url}/cifar@v1")
    assert shown.code == 0, shown.err
    assert f"{served.url}/cifar@v1" in shown.out
    assert requests(served) == ["zarr.json", "manifest.sig"]
    assert run("verify", f"{served.url}/cifar@v1", "--deep").code == 0
    assert served.folder is not None
    victim = next((served.folder / "cifar/v1").glob("train/codes/c/1/*/*"))
    victim.write_bytes(b"x" * victim.stat().st_size)
    monkeypatch.setenv("KDPIPE_CACHE", str(tmp_path / "another"))
    refused(run("verify", f"{served.url}/cifar@v1"), "does not match its digest", "Tell its publisher")
    refused(run("inspect", f"{served.url}/nothing@v1"), "has no nothing")


def test_the_cache_lists_and_removes_stores_that_no_process_uses(
    run: Run, served: Place, commands: Server, tmp_path: Path
) -> None:
    assert commands.start("verify", f"{served.url}/cifar@v1").wait() == 0
    assert "cifar@v1.zarr" in run("cache").out
    (entry,) = [entry for entry in caching.entries() if entry.path.parent.name == "stores"]
    assert entry.bytes > 1000
    assert run("cache", "--all").code == 0
    assert not entry.path.exists()
    assert caching.entries() == []


def test_a_store_in_use_is_not_removed(served: Place, tmp_path: Path) -> None:
    opened = kdpipe.open_store(f"{served.url}/cifar@v1")
    caching.prune(-1)
    opened.plane(1)
    assert opened.path.exists()


@pytest.mark.parametrize("name", ["No", "cifar@v 1", "", "cifar@v9", "nothing", "cifar@v1@v2"])
def test_credentials_are_in_no_message(run: Run, served: Place, name: str) -> None:
    url = served.url.replace("//", "//someone:secret@") + f"?token=hidden/{name}"
    for outcome in (run("inspect", url), run("pull", url, "--out", "o.zarr")):
        assert outcome.code == 1
        assert "secret" not in outcome.err + outcome.out
        assert "hidden" not in outcome.err + outcome.out


def test_credentials_are_kept_nowhere(served: Place, tmp_path: Path) -> None:
    url = served.url.replace("//", "//someone:secret@")
    opened = kdpipe.open_store(f"{url}/cifar@v1")
    opened.plane(1)
    assert "secret" not in opened.place
    for path in (tmp_path / "cache").rglob("*"):
        assert "secret" not in str(path)
        if path.is_file():
            assert b"secret" not in path.read_bytes()


def test_signer_license_and_an_older_catalog_are_said_before_a_store_is_used(
    run: Run, served: Place, store: Path
) -> None:
    assert served.folder is not None
    small_store(store.with_name("more.zarr"), small_plan(views=4))
    put(store.with_name("more.zarr"), served.folder, version="v2")
    first = run("inspect", f"{served.url}/cifar")
    assert f"{served.url}/cifar@v2: random; not signed: anybody may have made it.\nLicense: none stated." in first.err
    (served.folder / "index.json").unlink()
    shutil.rmtree(served.folder / "cifar" / "v1")
    put(store, served.folder)
    older = run("inspect", f"{served.url}/cifar")
    assert older.err.startswith(f"warning: the catalog of {served.url} lacks cifar@v2, seen there before")
    assert "License: none stated." in run("verify", f"{served.url}/cifar@v1").err
    assert run("verify", f"{served.url}/cifar@v1").err == "", "it was said when it was fetched"


def test_a_version_in_a_folder_is_opened_where_it_lies(run: Run, served: Place, store: Path, tmp_path: Path) -> None:
    assert served.folder is not None
    opened = kdpipe.open_store(f"{served.folder}/cifar@v1")
    assert opened.digest == kdpipe.open_store(store).digest
    assert opened.place == str(served.folder / "cifar/v1")
    np.testing.assert_array_equal(opened.plane(2), kdpipe.open_store(store).plane(2))
    assert not (tmp_path / "cache").exists()
    assert run("verify", f"{served.folder}/cifar@v1", "--deep").code == 0
    refused(run("inspect", f"{served.folder}/cifar@v9"), "has no cifar@v9, only v1")


def test_a_path_is_opened_as_before(store: Path, tmp_path: Path) -> None:
    assert kdpipe.open_store(store).place == str(store)
    with pytest.raises(StoreError, match="holds no logit store"):
        kdpipe.open_store(tmp_path / "none.zarr")
    assert not (tmp_path / "cache").exists()
