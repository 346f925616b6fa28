"""The command `publish`: withholding, signatures, refusals, and resumption after a kill."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from blake3 import blake3

from kdpipe import open_store
from kdpipe.sharing import catalog, published
from kdpipe.sharing.remote import connect
from kdpipe.store import manifest
from kdpipe.store.verify import verify_deep, verify_files
from kdpipe.testing.stores import contents, small_plan, small_store
from tests.conftest import LIMITS, Built, Outcome, refused
from tests.processes import Server

Command = Callable[..., Outcome]
SAID = ("--license", "cc-by-4.0", "--contact", "a@b.example")


@pytest.fixture(autouse=True)
def _own_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KDPIPE_CONFIG", str(tmp_path / "config"))


@pytest.fixture
def store(tmp_path: Path) -> Path:
    small_store(tmp_path / "a.zarr", small_plan(views=3, classes=12))
    return tmp_path / "a.zarr"


def versions(place: Path) -> dict[str, catalog.Row]:
    return {row.address: row for row in catalog.read(connect(str(place))).versions}


def test_a_store_is_published_with_what_its_makers_say(store: Path, tmp_path: Path, kdpipe: Command) -> None:
    before = contents(store)
    told = (*SAID, "--title", "Flowers", "--cite", "Doe 2026", "--notes", "none", "--allowed-use", "research")
    outcome = kdpipe("publish", store, tmp_path / "place/flowers@v1", *told)
    assert outcome.code == 0, outcome.err
    assert "MB uploaded" in outcome.out
    assert "not signed" in outcome.out
    assert contents(store) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zarr", "config", "place"]
    row = versions(tmp_path / "place")["flowers@v1"]
    assert (row.title, row.license, row.contact) == ("Flowers", "CC-BY-4.0", "a@b.example")
    assert row.digest == manifest.read(store).digest
    there = tmp_path / "place/flowers/v1"
    assert verify_files(there) == []
    assert manifest.read(there).provenance.citation == "Doe 2026"
    again = kdpipe("publish", store, tmp_path / "place/flowers@v1", *told)
    assert again.code == 0
    assert "MB there already" in again.out


def test_less_than_everything_is_published_and_said(store: Path, tmp_path: Path, kdpipe: Command) -> None:
    place = tmp_path / "place"
    less = ("--views", 1, "--max-temperature", 1, "--max-kl", 0.01, "--no-labels")
    outcome = kdpipe("publish", store, place / "flowers@v1", *SAID, *less)
    assert outcome.code == 0, outcome.err
    assert "Withheld: views, encoding, labels." in outcome.err
    assert "mean KL against the store" in outcome.err
    there = place / "flowers/v1"
    assert verify_deep(there) == []
    row = versions(place)["flowers@v1"]
    assert row.withheld == ("views", "encoding", "labels")
    assert row.derived_from == manifest.read(store).digest
    assert "Precision: the logits were encoded again" in (there / "README.md").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zarr", "config", "place"]
    again = kdpipe("publish", store, place / "flowers@v1", *SAID, *less)
    assert again.code == 0, again.err
    assert "MB there already" in again.out


def test_a_version_is_not_published_again_with_other_parts(store: Path, tmp_path: Path, kdpipe: Command) -> None:
    there, key = tmp_path / "place/flowers@v1", tmp_path / "names.key"
    assert kdpipe("publish", store, there, *SAID, "--views", 2).code == 0
    before = contents(tmp_path / "place")
    for other in (("--views", 1), ("--views", 2, "--hide-names", "--names-key", key), ("--views", 2, "--notes", "new")):
        refused(kdpipe("publish", store, there, *SAID, *other), "published already", "another manifest")
    assert contents(tmp_path / "place") == before
    assert not list(tmp_path.glob(".a.zarr*"))


@pytest.mark.parametrize("other", [("--encoding", "topk:3"), ("--no-labels", "--hide-names"), ("--title", "Other")])
def test_a_version_is_not_taken_for_one_of_which_other_parts_are_withheld(
    store: Path, tmp_path: Path, kdpipe: Command, other: tuple[str, ...]
) -> None:
    version = tmp_path / "place/flowers@v1"
    assert kdpipe("publish", store, version, *SAID, "--encoding", "topk:5").code == 0
    before = contents(tmp_path / "place")
    less = ("--encoding", "topk:5") if "--title" in other else ()
    refused(kdpipe("publish", store, version, *SAID, *less, *other), "published already, with another manifest")
    assert contents(tmp_path / "place") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zarr", "config", "place"]


def test_a_student_learns_from_less_than_everything(built: Built, tmp_path: Path, kdpipe: Command) -> None:
    place = tmp_path / "place"
    less = ("--views", 1, "--max-temperature", 1, "--no-labels")
    assert kdpipe("publish", built.store, place / "digits@v1", *SAID, *less).code == 0
    pulled = tmp_path / "digits.zarr"
    outcome = kdpipe("pull", place / "digits@v1", "--out", pulled, "--data", "digits")
    assert outcome.code == 0, outcome.err
    outcome = kdpipe("verify", pulled, "--data", "digits", "--deep")
    assert outcome.code == 0, outcome.err
    train = ("train-student", *LIMITS, "--store", pulled, "--student", "resnet8", "--epochs", 1, "--device", "cpu")
    outcome = kdpipe(*train, "--out", tmp_path / "student", "--temperature", 1)
    assert outcome.code == 0, outcome.err
    assert "other labels" not in outcome.err
    refused(kdpipe(*train, "--out", tmp_path / "other", "--temperature", 4), "temperature")


def test_hidden_names_are_keyed_by_a_secret_that_stays_at_home(store: Path, tmp_path: Path, kdpipe: Command) -> None:
    key = tmp_path / "names.key"
    outcome = kdpipe("publish", store, tmp_path / "place/flowers@v1", *SAID, "--hide-names", "--names-key", key)
    assert outcome.code == 0, outcome.err
    assert key.stat().st_mode & 0o077 == 0
    secret = bytes.fromhex(key.read_text().strip())
    there = tmp_path / "place/flowers/v1"
    assert ids(there) == {blake3(each, key=secret).digest(length=16) for each in ids(store)}
    raw = key.read_text().strip().encode()
    assert not [name for name, content in contents(tmp_path / "place").items() if raw in content or secret in content]
    key.write_text("?")
    refused(
        kdpipe("publish", store, tmp_path / "place/flowers@v2", *SAID, "--hide-names", "--names-key", key),
        "holds no secret of 64 hexadecimal digits",
    )


def test_hidden_names_are_said_before_images_are_compared(store: Path, tmp_path: Path, kdpipe: Command) -> None:
    version, out = tmp_path / "place/flowers@v1", tmp_path / "o.zarr"
    outcome = kdpipe("publish", store, version, *SAID, "--hide-names")
    assert outcome.err.rstrip().endswith(f"Next: kdpipe pull {version}")
    refused(kdpipe("pull", version, "--data", "digits", "--out", out), "hides the names", "without --data")
    assert not out.exists()
    pulled = kdpipe("pull", version, "--out", out)
    assert pulled.code == 0
    assert "train-student" not in pulled.err
    verified = kdpipe("verify", out, "--data", "digits")
    assert verified.code == 1
    assert "have hidden names, which cannot be compared with digits" in verified.err


def ids(store: Path) -> set[bytes]:
    return {each.tobytes() for each in open_store(store).sample_ids}


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="there is no ssh-keygen")
def test_a_signed_store_stays_signed_by_the_same_key(store: Path, tmp_path: Path, kdpipe: Command) -> None:
    place = tmp_path / "place"
    for name in ("mine", "other"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / name], check=True)
    assert kdpipe("publish", store, place / "flowers@v1", *SAID, "--sign", tmp_path / "mine").code == 0
    signer = versions(place)["flowers@v1"].signer
    listed = subprocess.run(["ssh-keygen", "-l", "-f", tmp_path / "mine"], capture_output=True, text=True, check=True)
    assert signer == listed.stdout.split()[1]
    found = published.find(f"{place}/flowers@v1")
    check = ["ssh-keygen", "-Y", "check-novalidate", "-n", "kdpipe", "-s", place / "flowers/v1/manifest.sig"]
    checked = subprocess.run(check, input=found.manifest.checksum, capture_output=True, text=True, check=True)
    assert str(signer) in checked.stdout
    assert f"every file matches the manifest, signed by {signer}" in kdpipe("verify", place / "flowers/v1").out
    shutil.copytree(place / "flowers/v1", tmp_path / "b.zarr")
    assert kdpipe("describe", tmp_path / "b.zarr", "--license", "MIT").code == 0
    refused(kdpipe("verify", tmp_path / "b.zarr"), "manifest.sig is no signature of this manifest")
    shutil.rmtree(tmp_path / "b.zarr")
    refused(
        kdpipe("publish", store, place / "flowers@v2", *SAID, "--views", 1, "--sign", tmp_path / "other"),
        "was signed by",
    )
    unsigned = kdpipe("publish", store, place / "flowers@v2", *SAID, "--views", 1)
    refused(unsigned, "is not signed, and was signed by", "pass --sign KEY")
    assert not list(tmp_path.glob(".*"))
    assert versions(place).keys() == {"flowers@v1"}
    assert not (place / "flowers/v2").exists()
    refused(kdpipe("publish", store, place / "cars@v1", *SAID, "--sign", tmp_path / "none"), "there is no such key")


@pytest.mark.parametrize(
    ("place", "flags", "parts"),
    [
        ("flowers", SAID, ("has no version", "flowers@v1")),
        ("Flowers@v1", SAID, ("'Flowers' is no name",)),
        ("flowers@v1", (), ("license and contact",)),
        ("flowers@v1", ("--license", "CC BY", "--contact", "x"), ("no SPDX license",)),
        ("flowers@v1", (*SAID, "--views", -1), ("--views", "expected a whole number of 0 or more, found -1")),
        ("flowers@v1", (*SAID, "--views", 4), ("has 3 augmented views, not 4",)),
        ("flowers@v1", (*SAID, "--encoding", "topk:20"), ("needs more than 20 classes",)),
        ("flowers@v1", (*SAID, "--max-temperature", 0), ("--max-temperature",)),
        ("flowers@v1", (*SAID, "--max-kl", 0.1), ("--max-kl is for", "--max-temperature")),
        ("flowers@v1", (*SAID, "--names-key", "mine"), ("--names-key is for --hide-names",)),
    ],
)
def test_refusals_leave_nothing(
    store: Path, tmp_path: Path, kdpipe: Command, place: str, flags: tuple[object, ...], parts: tuple[str, ...]
) -> None:
    refused(kdpipe("publish", store, tmp_path / "place" / place, *flags), *parts)
    assert not (tmp_path / "place").exists()
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "config") == ["a.zarr"]


def test_a_part_of_a_store_is_neither_published_nor_described(store: Path, tmp_path: Path, kdpipe: Command) -> None:
    assert kdpipe("publish", store, tmp_path / "place/flowers@v1", *SAID).code == 0
    part = tmp_path / "part.zarr"
    assert kdpipe("pull", tmp_path / "place/flowers@v1", "--out", part, "--split", "test").code == 0
    refused(kdpipe("publish", part, tmp_path / "place/part@v1"), "is here in part, and publishing it needs all of it")
    refused(kdpipe("describe", part, "--title", "x"), "is here in part, and describing it needs all of it")
    assert kdpipe("verify", part).code == 0


def test_another_manifest_under_a_published_version_is_refused(store: Path, tmp_path: Path, kdpipe: Command) -> None:
    assert kdpipe("publish", store, tmp_path / "place/flowers@v1", *SAID).code == 0
    refused(
        kdpipe("publish", store, tmp_path / "place/flowers@v1", *SAID, "--title", "Other"),
        "flowers@v1 is published already, with another manifest",
    )


def test_a_killed_publication_goes_on(tmp_path: Path, commands: Server) -> None:
    store, place = tmp_path / "a.zarr", tmp_path / "place"
    small_store(store, small_plan(train=400, views=5, classes=30))
    arguments = ("publish", store, f"{place}/flowers@v1", *SAID, "--encoding", "topk:5")
    kills = 0
    for seconds in (0.2, 0.4, 0.6, 0.8, 1.2, 60.0):
        process = commands.start(*arguments)
        try:
            assert process.wait(timeout=seconds) == 0
        except TimeoutError:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
        if (place / "index.json").exists() and versions(place):
            break
    assert kills
    assert verify_deep(place / "flowers/v1") == []
    old, new = open_store(store), open_store(place / "flowers/v1")
    assert np.array_equal(old.plane(5).argmax(axis=1), new.plane(5).argmax(axis=1))
    assert json.loads((place / "index.json").read_text())["versions"][0]["withheld"] == ["encoding"]


def test_two_publishers_at_once(tmp_path: Path, commands: Server) -> None:
    place = tmp_path / "place"
    for views in (1, 2):
        small_store(tmp_path / f"{views}.zarr", small_plan(views=views))
    for name in ("own", "same"):
        addresses = [f"{place}/{name if name == 'same' else f'own{views}'}@v1" for views in (1, 2)]
        running = [
            commands.start("publish", tmp_path / f"{views}.zarr", address, *SAID)
            for views, address in zip((1, 2), addresses, strict=True)
        ]
        ended = [process.communicate() for process in running]
        codes = sorted(process.wait() for process in running)
        assert codes == ([0, 0] if name == "own" else [0, 1]), ended
    listed = versions(place)
    assert listed.keys() == {"own1@v1", "own2@v1", "same@v1"}
    assert listed["same@v1"].views in (1, 2)
    assert verify_files(place / "same/v1") == []
    (refusal,) = [err for _, err in ended if "kdpipe: " in err]
    assert "A version never changes" in refusal or "published already, with another manifest" in refusal
    assert "same@v1" in (place / "index.html").read_text()
