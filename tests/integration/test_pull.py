"""`kdpipe pull`, and `--store URL`: matches with a dataset, training while streaming, and kills of both sides."""

from __future__ import annotations

import itertools
import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kdpipe.store.verify import verify_deep
from kdpipe.testing.stores import contents
from tests import servers
from tests.conftest import LIMITS, TIGHT, Built, Outcome, refused
from tests.processes import Server
from tests.servers import Place
from tests.unit.sharing.layout import put

Kdpipe = Callable[..., Outcome]


@pytest.fixture(autouse=True)
def _own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KDPIPE_TIMEOUT", "10")
    monkeypatch.setenv("KDPIPE_CONFIG", str(tmp_path / "config"))


@pytest.fixture
def served(places: Callable[[str], Place], tmp_path: Path) -> Iterator[Place]:
    place = places("read-only web")
    assert place.folder is not None
    folder = place.folder / tmp_path.name
    folder.mkdir()
    yield Place(f"{place.url}/{tmp_path.name}", folder=folder)
    shutil.rmtree(folder, ignore_errors=True)


def trained(kdpipe: Kdpipe, store: object, out: Path, *more: object) -> bytes:
    outcome = kdpipe(
        *("train-student", *LIMITS, "--store", store, "--student", "resnet8", "--out", out, "--epochs", 3),
        *("--device", "cpu", *more),
    )
    assert outcome.code == 0, outcome.err
    return (out / "model.safetensors").read_bytes()


def test_streaming_trains_the_same_weights(
    kdpipe: Kdpipe, built: Built, served: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KDPIPE_CACHE", str(tmp_path / "cache"))
    assert served.folder is not None
    put(built.store, served.folder)
    url = f"{served.url}/cifar@v1"
    local = trained(kdpipe, built.store, tmp_path / "local")
    assert trained(kdpipe, url.replace("//", "//someone:secret@"), tmp_path / "streamed") == local
    record = json.loads((tmp_path / "streamed" / "run.json").read_text())
    assert record["lineage"]["stores"][0]["path"] == url
    assert "secret" not in (tmp_path / "streamed" / "run.json").read_text()
    compared = kdpipe(
        *("benchmark", *LIMITS, "--run", tmp_path / "streamed", "--out", tmp_path / "report", "--device", "cpu"),
        *("--rounds", 1, "--no-cold-starts"),
    )
    assert compared.code == 0, compared.err
    shutil.rmtree(served.folder / "cifar")
    (served.folder / "index.json").unlink()
    assert trained(kdpipe, url, tmp_path / "offline") == local


def test_a_store_that_exceeds_the_memory_is_streamed_in_windows(
    kdpipe: Kdpipe, chunked: Path, served: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KDPIPE_CACHE", str(tmp_path / "cache"))
    assert served.folder is not None
    put(chunked, served.folder)
    tight = ("--memory-limit", TIGHT / 1024**3)
    local = trained(kdpipe, chunked, tmp_path / "local", *tight)
    assert trained(kdpipe, f"{served.url}/cifar@v1", tmp_path / "streamed", *tight) == local


def test_the_match_comes_before_the_first_view(kdpipe: Kdpipe, built: Built, served: Place, tmp_path: Path) -> None:
    assert served.folder is not None
    put(built.store, served.folder)
    out = tmp_path / "out.zarr"
    outcome = kdpipe("pull", f"{served.url}/cifar", "--out", out, "--split", "test", "--data", "digits")
    assert outcome.code == 0, outcome.err
    assert "60 of 359 test images match; lacking: digits/test/" in outcome.err
    assert "and 297 more; " in outcome.err
    assert " to fetch." in outcome.err
    assert outcome.err.index("License: none stated") < outcome.err.index("images match")
    for view in (served.folder / "cifar/v1/train/codes").rglob("c/*/*/*"):
        view.unlink()
    images = tmp_path / "images" / "train" / "zero"
    images.mkdir(parents=True)
    from PIL import Image

    Image.new("RGB", (8, 8), "red").save(images / "0.png")
    other = kdpipe(
        "pull", f"{served.url}/cifar", "--out", tmp_path / "o.zarr", "--split", "train", "--data",
        f"folder:{tmp_path / 'images'}",
    )  # fmt: skip
    refused(other, "no image of", "no view was fetched")
    assert "0 of 1 train images match; lacking: train/zero/0.png; the classes have other names" in other.err
    assert not [path for path in tmp_path.iterdir() if "o.zarr" in path.name]


def test_a_pull_whose_two_sides_are_killed_goes_on(
    commands: Server, built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KDPIPE_TIMEOUT", "0.5")
    base, port, out = tmp_path / "server", servers.free_port(), tmp_path / "out.zarr"
    put(built.store, base / "served")
    url = f"http://127.0.0.1:{port}/cifar@v1"
    for number in itertools.count():
        assert number < 100
        with servers.nginx(base, rate="2k", port=port):
            pull = commands.start("pull", url, "--out", out)
            time.sleep(0.2 + 0.1 * number)
            if number % 2:
                pull.kill()
        _, said = pull.communicate()
        if pull.returncode == 0:
            break
        assert pull.returncode < 0 or "Traceback" not in said, said
        assert not out.exists()
        if number >= 3:
            break
    with servers.nginx(base, port=port):
        assert commands.start("pull", url, "--out", out).wait() == 0
    assert contents(out) == contents(built.store)
    assert verify_deep(out) == []
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
