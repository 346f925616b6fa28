"""`kdpipe pull`, and `--store URL`: matches with a dataset, training while streaming, and kills of both sides."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
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
    lacking = kdpipe("train-student", *LIMITS, "--store", f"{served.url}/cars", "--student", "resnet8", "--out", "x")
    refused(lacking, f"{served.url} has no cars")
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
    refused(other, "no image of", "no view was fetched", "lossy copies")
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


def test_a_version_of_another_signer_is_refused(
    kdpipe: Kdpipe, built: Built, served: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keygen = servers.program("ssh-keygen")
    monkeypatch.setenv("KDPIPE_CACHE", str(tmp_path / "cache"))
    assert served.folder is not None
    for name in ("first", "second"):
        subprocess.run([keygen, "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / name)], check=True)
    said = ("--license", "CC-BY-4.0", "--contact", "a@b.example")
    for version, key in (("v1", ("--sign", tmp_path / "first")), ("v2", ())):
        monkeypatch.setenv("KDPIPE_CONFIG", str(tmp_path / f"publisher {version}"))
        outcome = kdpipe("publish", built.store, f"{served.folder}/cifar@{version}", *said, *key)
        assert outcome.code == 0, outcome.err
    monkeypatch.setenv("KDPIPE_CONFIG", str(tmp_path / "receiver"))
    pull = ("pull", f"{served.url}/cifar@v1", "--out", tmp_path / "out.zarr")
    refused(kdpipe(*pull, "--signer", "SHA256:" + "A" * 43), "is signed by SHA256:", "--signer asks for SHA256:AAA")
    assert not (tmp_path / "out.zarr").exists()
    outcome = kdpipe(*pull)
    assert outcome.code == 0, outcome.err
    assert "signed by SHA256:" in outcome.err
    assert "License: CC-BY-4.0" in outcome.err
    unsigned = f"{served.url}/cifar@v2"
    refused(kdpipe("pull", unsigned, "--out", tmp_path / "two.zarr"), "is not signed, and was signed by")
    refused(kdpipe("inspect", unsigned), "is not signed, and was signed by")
    there = served.folder / "cifar" / "v1"
    again = (*pull[:3], tmp_path / "again.zarr")
    good = (there / "manifest.sig").read_bytes()
    (there / "manifest.sig").write_bytes(good.replace(b"U1NI", b"U1NJ", 1))
    refused(kdpipe(*again), "is no signature of this manifest")
    (there / "manifest.sig").unlink()
    refused(kdpipe(*again), "is not signed, and was signed by")
    checksum = json.loads((there / "zarr.json").read_text())["attributes"]["kdpipe"]["checksum"]
    other = subprocess.run(
        [keygen, "-Y", "sign", "-n", "kdpipe", "-f", str(tmp_path / "second")],
        input=checksum.encode(),
        capture_output=True,
        check=True,
    )
    (there / "manifest.sig").write_bytes(other.stdout)
    refused(kdpipe(*again), "and was signed by", "when it was seen first")
    (there / "manifest.sig").write_bytes(good)
    assert kdpipe(*again).code == 0
