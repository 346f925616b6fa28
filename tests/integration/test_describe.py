"""The command `describe`: what a store says of itself, changed without data or teacher."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from kdpipe.store import manifest
from kdpipe.store.ledger import lock
from kdpipe.testing.stores import contents, small_store, start_store
from tests.conftest import Outcome, refused

Command = Callable[..., Outcome]


@pytest.fixture
def store(tmp_path: Path) -> Path:
    small_store(tmp_path / "a.zarr")
    return tmp_path / "a.zarr"


def test_what_a_store_says_of_itself_is_changed_and_its_digest_stays(store: Path, kdpipe: Command) -> None:
    before, sealed = contents(store), manifest.read(store)
    told = ("--title", "Flowers", "--license", "cc-by-4.0", "--contact", "a@b.example", "--cite", "Doe 2026")
    outcome = kdpipe("describe", store, *told, "--notes", "für alle", "--allowed-use", "research")
    assert outcome.code == 0
    found = manifest.read(store)
    assert found.provenance.model_dump() == {
        "title": "Flowers",
        "license": "CC-BY-4.0",
        "allowed_use": "research",
        "contact": "a@b.example",
        "citation": "Doe 2026",
        "notes": "für alle",
    }
    assert found.digest == sealed.digest
    assert found.checksum != sealed.checksum
    after = contents(store)
    assert {name for name in after if after[name] != before[name]} == {"zarr.json"}
    assert "Doe 2026" in outcome.out
    assert f"digest {sealed.digest}, as before" in outcome.err
    assert kdpipe("verify", store).code == 0
    for entry in ("title", "license", "contact", "cite", "notes", "allowed-use"):
        assert kdpipe("describe", store, f"--{entry}", "").code == 0
    assert contents(store) == before


@pytest.mark.parametrize(
    ("license_", "hint"), [("CC BY 4.0", "did you mean 'CC-BY-4.0'"), ("foo", "LicenseRef-NAME"), ("MIT AND", "SPDX")]
)
def test_a_license_is_an_spdx_expression(store: Path, kdpipe: Command, license_: str, hint: str) -> None:
    before = contents(store)
    refused(kdpipe("describe", store, "--license", license_), f"'{license_}' is no SPDX license", hint)
    assert contents(store) == before
    assert kdpipe("describe", store, "--license", "LicenseRef-Acme OR Apache-2.0").code == 0


def test_refusals(store: Path, tmp_path: Path, kdpipe: Command) -> None:
    refused(kdpipe("describe", store), "needs an entry to change")
    refused(kdpipe("describe", tmp_path / "none.zarr", "--title", "x"), "holds no logit store")
    assert not (tmp_path / "none.zarr.lock").exists()
    refused(kdpipe("describe", store, "--notes", "x" * 32769), "--notes", "at most 32,768 characters")
    start_store(tmp_path / "half.zarr", shards=2)
    refused(kdpipe("describe", tmp_path / "half.zarr", "--title", "x"), "is not sealed")
    with lock(store):
        refused(kdpipe("describe", store, "--title", "x"), "is being written by process")


def test_a_signature_of_the_former_description_is_told(store: Path, kdpipe: Command) -> None:
    (store / "manifest.sig").write_text("signed")
    assert "is of the former description" in kdpipe("describe", store, "--title", "x").err
    assert "former description" not in kdpipe("describe", store, "--title", "x").err
