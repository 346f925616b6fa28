"""The command `stores`: what is at a place, and how much of a dataset each store covers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from kdpipe.dataset import load
from kdpipe.models import Preset
from kdpipe.testing.stores import PRESET, dataset_plan, small_plan, small_store, start_store
from tests import servers
from tests.conftest import Outcome, refused, run_command

Command = Callable[..., Outcome]
SAID = ("--license", "CC0-1.0", "--contact", "a@b.example")
EVIL = "\x1b[31m\u202e[link](x)"


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KDPIPE_CONFIG", str(tmp_path / "config"))
    monkeypatch.setenv("KDPIPE_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three stores: of no digits, of half of them twice, the second time with hidden names."""
    base = tmp_path_factory.mktemp("published")
    preset: Preset = PRESET
    digits = load("digits", "train", limit=100)
    small_store(base / "half.zarr", dataset_plan(digits, preset=preset, views=1))
    small_store(base / "none.zarr", small_plan(views=2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KDPIPE_CONFIG", str(base / "config"))
        for store, address, *flags in (
            ("none", "a-none@v1", "--title", EVIL),
            ("half", "half@v1"),
            ("half", "hidden@v1", "--hide-names"),
        ):
            outcome = run_command(None, "publish", base / f"{store}.zarr", base / "place" / address, *SAID, *flags)
            assert outcome.code == 0
    return base / "place"


@pytest.fixture
def place(published: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(published, tmp_path / "place"))


def names(outcome: Outcome) -> list[str]:
    return [each["name"] for each in json.loads(outcome.out)]


def test_what_is_at_a_place_is_listed(place: Path, kdpipe: Command) -> None:
    outcome = kdpipe("stores", place)
    assert outcome.code == 0
    lines = outcome.out.splitlines()
    assert lines[0].split()[:2] == ["Store", "Teacher"]
    assert [line.split()[0] for line in lines[1:] if "@v1" in line] == ["a-none@v1", "half@v1", "hidden@v1"]
    for part in ("CC0-1.0", "unsigned", "fp16", "crop-flip", "20 train + 6 test"):
        assert part in " ".join(outcome.out.split())
    listed = json.loads(kdpipe("stores", place, "--json").out)
    assert [each["place"] for each in listed] == [f"{place}/{name}@v1" for name in ("a-none", "half", "hidden")]
    assert (listed[0]["title"], listed[0]["samples"]) == (EVIL, {"test": 6, "train": 20})
    assert "share" not in listed[0]
    assert "\x1b" not in outcome.out + outcome.err


def test_stores_that_have_my_images_come_first(place: Path, kdpipe: Command) -> None:
    outcome = kdpipe("stores", place, "--data", "digits", "--json")
    assert outcome.code == 0
    listed = json.loads(outcome.out)
    assert [each["name"] for each in listed] == ["half", "a-none", "hidden"]
    images = {split: len(load("digits", split)) for split in ("train", "test")}
    assert listed[0]["covered"] == {"train": 100, "test": 0}
    assert listed[0]["of"] == images
    assert listed[0]["share"] == pytest.approx(100 / sum(images.values()))
    assert listed[1]["share"] == 0
    assert "share" not in listed[2], "nothing can be told where names are hidden"
    printed = kdpipe("stores", place, "--data", "digits")
    assert f"100 of {images['train']:,} train" in " ".join(printed.out.split())
    assert f"Next: kdpipe pull {place}/half@v1 --data digits" in printed.out


def test_of_a_server_only_ids_are_fetched_and_kept(
    place: Path, tmp_path: Path, kdpipe: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    with servers.nginx(tmp_path / "server") as server, servers.environment(server, monkeypatch):
        assert server.folder is not None
        shutil.copytree(place, server.folder, dirs_exist_ok=True)
        first = kdpipe("stores", server.url, "--data", "digits", "--json")
        assert first.code == 0, first.err
        assert names(first) == ["half", "a-none", "hidden"]
        fetched = [path for path in (tmp_path / "cache/stores").rglob("*") if "/codes/c/" in str(path)]
        assert fetched == []
        for path in server.folder.rglob("sample_id"):
            shutil.rmtree(path)
        again = kdpipe("stores", server.url, "--data", "digits", "--json")
        assert json.loads(again.out)[0]["share"] == json.loads(first.out)[0]["share"]


def test_a_folder_of_local_stores_is_listed_by_path(tmp_path: Path, kdpipe: Command) -> None:
    small_store(tmp_path / "here/a.zarr")
    small_store(tmp_path / "here/deep/b.zarr", small_plan(views=2))
    start_store(tmp_path / "here/half.zarr", shards=2)
    (tmp_path / "here/bad.zarr").mkdir()
    (tmp_path / "here/bad.zarr/zarr.json").write_text("{")
    (tmp_path / "here/link.zarr").symlink_to(tmp_path / "here/a.zarr")
    outcome = kdpipe("stores", tmp_path / "here", "--json")
    assert outcome.code == 0
    assert [each["place"] for each in json.loads(outcome.out)] == [
        str(tmp_path / "here/a.zarr"),
        str(tmp_path / "here/deep/b.zarr"),
    ]
    assert "half.zarr is not sealed, and left out" in outcome.err
    assert "bad.zarr" in outcome.err


def test_refusals(tmp_path: Path, kdpipe: Command) -> None:
    (tmp_path / "empty").mkdir()
    refused(kdpipe("stores", tmp_path / "empty"), "neither index.json nor a sealed store")
    (tmp_path / "empty/index.json").write_text('{"format": 1, "versions": [{"name": "\x1b"}]}')
    refused(kdpipe("stores", tmp_path / "empty"), "index.json is damaged")


def test_an_older_catalog_is_told_and_a_replaced_version_refused(place: Path, tmp_path: Path, kdpipe: Command) -> None:
    index = place / "index.json"
    assert kdpipe("stores", place).code == 0
    newest = json.loads(index.read_text())
    index.write_text(json.dumps(newest | {"versions": newest["versions"][:2]}))
    outcome = kdpipe("stores", place)
    assert outcome.code == 0
    assert "lacks hidden@v1, seen there before: it is an older one" in outcome.err
    newest["versions"][0]["checksum"] = "0" * 32
    index.write_text(json.dumps(newest))
    refused(kdpipe("stores", place), "a-none@v1 has another manifest than when it was seen first")
