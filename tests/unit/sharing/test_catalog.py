"""Addresses and catalogs of shared stores."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from kdpipe.errors import ParamsError, StoreError
from kdpipe.sharing import catalog
from kdpipe.sharing.address import Address, version_order
from kdpipe.sharing.remote import connect
from kdpipe.store.settings import Provenance
from kdpipe.testing.stores import small_plan, small_store

MADE = "2026-01-01T00:00:00+00:00"


@pytest.mark.parametrize(
    ("text", "url", "name", "version"),
    [
        ("s3://bucket/prefix/cars@v2", "s3://bucket/prefix", "cars", "v2"),
        ("https://host:8443/a/cars", "https://host:8443/a", "cars", None),
        ("ssh://me@host/srv/cars@2026.01", "ssh://me@host/srv", "cars", "2026.01"),
        ("shared/cars@v1/", "shared", "cars", "v1"),
        ("/cars@v1", None, None, None),
        ("../cars@v1", "..", "cars", "v1"),
    ],
)
def test_an_address_has_a_place_a_name_and_a_version(
    text: str, url: str | None, name: str | None, version: str | None
) -> None:
    if url is None:
        with pytest.raises(ParamsError):
            Address.parse(text)
        return
    assert Address.parse(text) == Address(url, str(name), version)
    assert Address.parse(str(Address.parse(text))) == Address.parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "cars@v1",
        "s3:/",
        "x/Cars@v1",
        "x/cars@",
        "x/..@v1",
        "x/.cars",
        "x/cars@.",
        "x/cars@v 1",
        "x/" + "a" * 65,
        "",
    ],
)
def test_a_malformed_address_is_refused(text: str) -> None:
    with pytest.raises(ParamsError):
        Address.parse(text)


def test_no_address_shows_its_credentials() -> None:
    for text in ("https://me:secret@host/a/cars@v1", "https://host/a?token=secret/cars@v1"):
        address = Address.parse(text)
        assert "secret" not in f"{address} {address!r} {connect(address.url)!r} {connect(address.url).describe('x')}"
    with pytest.raises(ParamsError, match="'v1' is no version") as refused:
        Address.parse("https://host/a/cars@v1?token=secret")
    assert "secret" not in str(refused.value)


def test_numbered_versions_are_ordered_as_numbers() -> None:
    assert sorted(["v10", "v2", "v1", "beta"], key=version_order) == ["beta", "v1", "v2", "v10"]


def row(path: Path, version: str = "v1", *, views: int = 1, created: str = MADE) -> catalog.Row:
    plan = replace(
        small_plan(views=views), provenance=Provenance(title="Flowers", license="CC0-1.0", contact="a@b.example")
    )
    return catalog.row_of(small_store(path / f"{version}.zarr", plan), name="flowers", version=version, created=created)


def test_a_catalog_is_read_as_it_was_written_and_sorted(tmp_path: Path) -> None:
    rows = [row(tmp_path, each, views=views) for views, each in enumerate(("v2", "v10", "v1"), start=1)]
    found = catalog.Catalog()
    for each in rows:
        found = found.with_row(each)
    assert [each.version for each in found.versions] == ["v1", "v2", "v10"]
    assert catalog.parse(found.to_bytes(), place="there") == found
    listed = json.loads(found.to_bytes())["versions"][1]
    assert listed["samples"] == {"train": 20, "test": 6}
    assert (listed["views"], listed["teacher"]["name"], listed["classes"]["count"]) == (1, "teacher", 5)
    assert listed["kl"].keys() == {"1", "2", "4"}
    assert found.find("flowers", "v2") == rows[0]
    assert found.find("flowers", "v3") is None
    later = found.with_row(rows[0].model_copy(update={"version": "beta", "created": "2027-01-01T00:00:00+00:00"}))
    assert later.find("flowers", None) == later.find("flowers", "beta")


def test_a_version_never_changes(tmp_path: Path) -> None:
    first, other = row(tmp_path), row(tmp_path / "other", views=2)
    found = catalog.Catalog().with_row(first)
    assert found.with_row(first.model_copy(update={"created": "2027-01-01T00:00:00+00:00"})) == found
    with pytest.raises(StoreError, match="flowers@v1 is published already"):
        found.with_row(other)


@pytest.mark.parametrize(
    "change",
    [
        {"version": "../v1"},
        {"name": ".."},
        {"checksum": "0"},
        {"size": -1},
        {"kl": {"1": float("inf")}},
        {"surprise": 1},
        {"samples": "many"},
    ],
)
def test_a_damaged_catalog_is_refused_in_one_line(tmp_path: Path, change: dict[str, object]) -> None:
    written = json.loads(catalog.Catalog().with_row(row(tmp_path)).to_bytes())
    written["versions"][0] |= change
    with pytest.raises(StoreError) as refused:
        catalog.parse(json.dumps(written).encode(), place="https://host/stores")
    assert str(refused.value).startswith("https://host/stores: index.json is damaged")
    assert "\n" not in str(refused.value)


def test_a_version_is_listed_once(tmp_path: Path) -> None:
    written = json.loads(catalog.Catalog().with_row(row(tmp_path)).to_bytes())
    written["versions"] *= 2
    with pytest.raises(StoreError, match="listed twice"):
        catalog.parse(json.dumps(written).encode(), place="there")
