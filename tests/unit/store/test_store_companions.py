"""Companion files of a store, and the entries of its manifest that only shared stores have."""

from __future__ import annotations

from pathlib import Path

import pytest

import kdpipe
from kdpipe.errors import CorruptStoreError
from kdpipe.store import manifest
from kdpipe.store.sections import DerivedFrom
from kdpipe.store.verify import verify_files
from kdpipe.testing.stores import contents, small_plan, small_store

COMPANIONS = ("README.md", "croissant.json", "LICENSE", "CITATION", "CITATION.cff", "manifest.sig")


def test_companions_belong_to_a_store_and_are_not_in_its_digest(tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    sealed = small_store(path)
    for name in COMPANIONS:
        (path / name).write_text("for people\n")
    assert verify_files(path) == []
    assert kdpipe.open_store(path).digest == sealed.digest
    with_more_views = small_store(path, small_plan(views=2))
    assert verify_files(path) == []
    for name in COMPANIONS:
        (path / name).unlink()
    assert kdpipe.open_store(path).digest == with_more_views.digest


@pytest.mark.parametrize("name", ["readme.md", "train/README.md", "README.md/x", "LICENSE.txt"])
def test_nothing_else_does(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.zarr"
    small_store(path)
    (path / name).parent.mkdir(exist_ok=True)
    (path / name).write_text("?")
    with pytest.raises(CorruptStoreError, match="does not belong"):
        kdpipe.open_store(path)


def test_a_companion_is_no_link(tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    small_store(path)
    (path / "README.md").symlink_to("/etc/hostname")
    with pytest.raises(CorruptStoreError, match=r"README.md \(link\) does not belong"):
        kdpipe.open_store(path)


def test_the_origin_is_absent_unless_there_is_one_and_no_part_of_the_digest(tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    sealed = small_store(path)
    before = contents(path)["zarr.json"]
    assert b"derived_from" not in before
    assert b"citation" not in before
    origin = DerivedFrom(digest="ab" * 16, encoding="fp32", withheld=("views",), kl={"1": 0.5})
    manifest.write(path, sealed.model_copy(update={"derived_from": origin}).sealed())
    found = manifest.read(path)
    assert found.derived_from == origin
    assert found.digest == sealed.digest
    assert found.checksum != sealed.checksum
    manifest.write(path, found.model_copy(update={"derived_from": None}).sealed())
    assert contents(path)["zarr.json"] == before
