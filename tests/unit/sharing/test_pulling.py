"""Pulling a version of a store, whole or in part: what arrives, what is fetched again, and what is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import kdpipe
from kdpipe.store.inspect import not_here
from kdpipe.store.verify import verify_deep, verify_files
from kdpipe.testing.stores import contents, small_plan, small_store
from tests import servers
from tests.conftest import Outcome, refused, run_command
from tests.servers import Place
from tests.unit.sharing.layout import put

Run = Callable[..., Outcome]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KDPIPE_TIMEOUT", "20")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    return lambda *arguments: run_command(capsys, *arguments)


@pytest.fixture
def stores(tmp_path: Path) -> tuple[Path, Path]:
    """Two versions of a store: with two and with four augmented views."""
    first, second = tmp_path / "made" / "two.zarr", tmp_path / "made" / "four.zarr"
    small_store(first, small_plan(views=2))
    small_store(second, small_plan(views=4))
    return first, second


@pytest.fixture
def served(
    places: Callable[[str], Place], stores: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Place]:
    """A web server with both versions; ``folder`` is where its files lie."""
    place = places("read-only web")
    assert place.folder is not None
    name = tmp_path.name
    folder = place.folder / name
    put(stores[0], folder)
    put(stores[1], folder, version="v2")
    yield Place(f"{place.url}/{name}", folder=folder)
    shutil.rmtree(folder)


def test_a_version_arrives_as_it_was_published(
    run: Run, served: Place, stores: tuple[Path, Path], tmp_path: Path
) -> None:
    out = tmp_path / "out.zarr"
    outcome = run("pull", f"{served.url}/cifar@v1", "--out", out)
    assert outcome.code == 0, outcome.err
    assert "complete" in outcome.out
    assert contents(out) == contents(stores[0])
    assert verify_files(out) == []
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith((".", "out"))] == ["out.zarr"]


def test_the_newest_version_is_pulled_into_a_folder_of_its_name(
    run: Run, served: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("pull", f"{served.url}/cifar").code == 0
    assert kdpipe.open_store("cifar-v2.zarr").num_views == 4


def test_a_part_is_pulled_and_completed(run: Run, served: Place, stores: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "out.zarr"
    assert run("pull", f"{served.url}/cifar@v2", "--out", out, "--split", "test").code == 0
    assert not_here(out) == "not here: all of train"
    assert verify_files(out) == []
    kdpipe.open_store(out, "test").plane(0)
    assert run("pull", f"{served.url}/cifar@v2", "--out", out, "--split", "train", "--views", "1").code == 0
    assert not_here(out) == "not here: views 2 to 4 of train"
    assert verify_deep(out) == []
    shown = run("verify", out)
    assert shown.code == 0
    assert "not here: views 2 to 4 of train" in shown.out
    assert run("pull", f"{served.url}/cifar@v2", "--out", out).code == 0
    assert contents(out) == contents(stores[1])


def test_only_new_bytes_move(run: Run, served: Place, stores: tuple[Path, Path], tmp_path: Path) -> None:
    first, second = tmp_path / "first.zarr", tmp_path / "second.zarr"
    size = sum(len(each) for name, each in contents(stores[0]).items() if name != "zarr.json")
    outcome = run("pull", f"{served.url}/cifar@v1", "--out", first)
    assert f" {size / 1e3:.1f} kB fetched" in outcome.out
    requests = served.folder.parent.parent / "nginx" / "access.log"
    seen = len(requests.read_text().splitlines())
    assert run("pull", f"{served.url}/cifar@v2", "--out", second).code == 0
    fetched = [
        line.split()[6].split("/v2/")[1]
        for line in requests.read_text().splitlines()[seen:]
        if "/v2/" in line and " 200 " in line
    ]
    old = contents(stores[0])
    assert fetched
    for name in fetched:
        assert name == "zarr.json" or old.get(name) != contents(stores[1])[name]
    assert contents(second) == contents(stores[1])
    assert " 0 bytes fetched" in run("pull", f"{served.url}/cifar@v2", "--out", second).out
    assert " 0 bytes fetched" in run("pull", f"{served.url}/cifar@v2", "--out", first, "--overwrite").out
    assert contents(first) == contents(stores[1])


def test_another_store_is_not_replaced_unasked(
    run: Run, served: Place, stores: tuple[Path, Path], tmp_path: Path
) -> None:
    out = tmp_path / "out.zarr"
    shutil.copytree(stores[0], out)
    refused(run("pull", f"{served.url}/cifar@v2", "--out", out), "holds another store", "--overwrite")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "thesis.tex").write_text("work")
    refused(run("pull", f"{served.url}/cifar@v2", "--out", tmp_path / "notes", "--overwrite"), "not a logit store")
    assert contents(out) == contents(stores[0])


def test_damaged_files_are_fetched_again(run: Run, served: Place, stores: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "out.zarr"
    assert run("pull", f"{served.url}/cifar@v1", "--out", out).code == 0
    shard = next(out.glob("train/codes/c/1/*/*"))
    shard.write_bytes(b"x" * shard.stat().st_size)
    next(out.glob("train/codes/c/2/*/*")).unlink()
    assert run("pull", f"{served.url}/cifar@v1", "--out", out).code == 0
    assert contents(out) == contents(stores[0])


def test_a_part_that_cannot_be_completed_stays_as_it_is(run: Run, served: Place, tmp_path: Path) -> None:
    out, page = tmp_path / "out.zarr", f"{served.url}/cifar@v2"
    assert run("pull", page, "--out", out, "--split", "train", "--views", "1").code == 0
    assert served.folder is not None
    gone = next((served.folder / "cifar/v2").glob("train/codes/c/3/*/*"))
    gone.rename(gone.with_name("gone"))
    refused(run("pull", page, "--out", out), "train/codes/c/3/", "does not exist")
    assert kdpipe.open_store(out).plane(1).shape[0] == 20
    assert verify_files(out) == []
    shown = not_here(out)
    assert shown is not None
    assert " of train" in shown
    gone.with_name("gone").rename(gone)
    assert run("pull", page, "--out", out).code == 0
    assert not_here(out) is None


def test_each_file_that_is_changed_at_the_server_is_refused(
    run: Run, served: Place, stores: tuple[Path, Path], tmp_path: Path
) -> None:
    folder = served.folder / "cifar" / "v1"
    for number, (name, content) in enumerate(contents(stores[0]).items()):
        changed = bytearray(content)
        changed[len(content) // 2] ^= 1
        bad = (bytes(changed), content[:-1], content + b"0", None)[number % 4]
        out = tmp_path / f"out{number}.zarr"
        (folder / name).write_bytes(bad) if bad is not None else (folder / name).unlink()
        refused(run("pull", f"{served.url}/cifar@v1", "--out", out), name)
        assert not out.exists()
        (folder / name).write_bytes(content)
    assert run("pull", f"{served.url}/cifar@v1", "--out", tmp_path / "good.zarr").code == 0


def test_a_catalog_that_names_another_manifest_is_refused(run: Run, served: Place, tmp_path: Path) -> None:
    shutil.copy(served.folder / "cifar" / "v1" / "zarr.json", served.folder / "cifar" / "v2" / "zarr.json")
    refused(run("pull", f"{served.url}/cifar@v2", "--out", tmp_path / "o.zarr"), "names another manifest")


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("cifar@v3", "has no cifar@v3, only v1, v2"),
        ("cifer", "did you mean 'cifar'? Run:"),
        ("../x@v1", "has no"),
        ("Cifar", "is no name"),
    ],
)
def test_what_is_not_there_is_said(run: Run, served: Place, tmp_path: Path, address: str, said: str) -> None:
    refused(run("pull", f"{served.url}/{address}", "--out", tmp_path / "o.zarr"), said)
    assert not (tmp_path / "o.zarr").exists()


def test_a_version_that_is_gone_from_the_catalog_is_said_to_have_been_there(
    run: Run, served: Place, stores: tuple[Path, Path], tmp_path: Path
) -> None:
    assert run("stores", served.url).code == 0
    (served.folder / "index.json").unlink()
    shutil.rmtree(served.folder / "cifar" / "v1")
    put(stores[0], served.folder)
    refused(run("pull", f"{served.url}/cifar@v2", "--out", tmp_path / "o.zarr"), "only v1. It was there before")
    assert not (tmp_path / "o.zarr").exists()


def test_a_store_that_was_merely_copied_to_a_server_is_pulled(
    run: Run, served: Place, stores: tuple[Path, Path], tmp_path: Path
) -> None:
    shutil.copytree(stores[0], served.folder / "plain" / "logits.zarr")
    assert run("pull", f"{served.url}/plain/logits.zarr", "--out", tmp_path / "o.zarr").code == 0
    assert contents(tmp_path / "o.zarr") == contents(stores[0])


def test_an_unknown_part_is_refused(run: Run, served: Place, tmp_path: Path) -> None:
    refused(run("pull", f"{served.url}/cifar@v1", "--out", tmp_path / "o.zarr", "--views", "9"), "2 augmented views")
    refused(run("pull", f"{served.url}/cifar@v1", "--out", tmp_path / "o.zarr", "--split", "val"), "no split 'val'")
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("kind", ["disk", "bucket", "host"])
def test_every_kind_of_place_is_pulled_from(
    run: Run,
    places: Callable[[str], Place],
    kind: str,
    stores: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from kdpipe.sharing.remote import connect

    with servers.environment(places(kind), monkeypatch) as place:
        put(stores[0], tmp_path / "place")
        folder = connect(f"{place.url}/pulled", read_only=False)
        for name in contents(tmp_path / "place"):
            folder.upload(tmp_path / "place" / name, name)
        outcome = run("pull", f"{place.url}/pulled/cifar", "--out", tmp_path / "out.zarr")
        assert outcome.code == 0, outcome.err
    assert contents(tmp_path / "out.zarr") == contents(stores[0])
