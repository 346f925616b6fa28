"""Stores of which a part is here: opened, verified and described without the rest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

import kdpipe
from kdpipe.errors import CorruptStoreError, StoreError
from kdpipe.store import manifest, partial
from kdpipe.store.inspect import not_here, summary
from kdpipe.store.merging import merge
from kdpipe.store.partial import Present
from kdpipe.store.reader import open_store
from kdpipe.store.verify import verify_deep, verify_files
from kdpipe.store.writer import build
from kdpipe.testing.stores import contents, small_plan, small_store


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    path = tmp_path / "whole.zarr"
    small_store(path, small_plan(views=3))
    return path


@pytest.fixture
def part(whole: Path, tmp_path: Path) -> Callable[..., Path]:
    """Makes a store with some views of the splits."""

    def make(**views: Sequence[int]) -> Path:
        path, found = tmp_path / "part.zarr", manifest.read(whole)
        here = Present(
            checksum=found.checksum or "",
            source="https://host/cifar@v2",
            planes={split: tuple(each) for split, each in views.items()},
        )
        for name, content in contents(whole).items():
            if name == "zarr.json" or here.names(name):
                (path / name).parent.mkdir(parents=True, exist_ok=True)
                (path / name).write_bytes(content)
        partial.write(path, here)
        return path

    return make


def test_the_views_that_are_here_are_those_of_the_whole_store(part: Callable[..., Path], whole: Path) -> None:
    path = part(train=(0, 2))
    store, all_of_it = kdpipe.open_store(path), kdpipe.open_store(whole)
    assert store.digest == all_of_it.digest
    assert store.num_views == 3
    np.testing.assert_array_equal(store.labels, all_of_it.labels)
    for view in (0, 2):
        np.testing.assert_array_equal(store.plane(view), all_of_it.plane(view))
        np.testing.assert_array_equal(store.logits([3, 1], view), all_of_it.logits([3, 1], view))


def test_what_is_asked_for_and_not_here_is_named_with_the_command(part: Callable[..., Path]) -> None:
    path = part(train=(0, 1))
    store = kdpipe.open_store(path)
    with pytest.raises(StoreError) as refused:
        store.plane(3)
    assert str(refused.value) == (
        f"{path}: view 3 of train is not here. Run: kdpipe pull https://host/cifar@v2 --out {path} --split train "
        "--views 3"
    )
    with pytest.raises(StoreError, match=r"test is not here.*--split test$"):
        kdpipe.open_store(path, "test")
    with pytest.raises(StoreError, match=r"has views 0 to 3 of 'train', not 4"):
        store.plane(4)


def test_a_split_can_be_here_alone_and_without_planes(part: Callable[..., Path]) -> None:
    path = part(test=())
    assert len(kdpipe.open_store(path, "test").labels) == 6
    with pytest.raises(StoreError, match="test is not here"):
        kdpipe.open_store(path, "test").plane(0)
    with pytest.raises(StoreError, match="train is not here"):
        kdpipe.open_store(path)


def test_files_are_fetched_when_they_are_needed(part: Callable[..., Path], whole: Path) -> None:
    path, asked = part(), list[str]()

    def supply(files: Sequence[str]) -> None:
        asked.extend(files)
        for name in files:
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes((whole / name).read_bytes())

    store = open_store(path, supply=supply)
    assert not [name for name in asked if "/codes/c/" in name or name.startswith("test")]
    asked.clear()
    np.testing.assert_array_equal(store.plane(2), kdpipe.open_store(whole).plane(2))
    assert {name.split("/")[3] for name in asked} == {"2"}
    asked.clear()
    store.logits([1], 2)
    assert asked == []


def test_verify_checks_what_is_here_and_says_what_is_not(part: Callable[..., Path]) -> None:
    path = part(train=(0, 1))
    assert verify_files(path) == []
    assert verify_deep(path) == []
    assert not_here(path) == "not here: all of test, views 2 to 3 of train"
    assert summary(path)["here"] == {"train": [0, 1]}
    shard = next(path.glob("train/codes/c/1/*/*"))
    content = bytearray(shard.read_bytes())
    content[5] ^= 1
    shard.write_bytes(content)
    assert any("does not match its digest" in line for line in verify_files(path))
    shard.unlink()
    assert any("is missing" in line for line in verify_files(path))
    with pytest.raises(CorruptStoreError, match="is missing"):
        kdpipe.open_store(path)


def test_a_complete_store_has_no_list(whole: Path) -> None:
    assert not_here(whole) is None
    assert summary(whole)["here"] is None
    next(whole.glob("train/codes/c/1/*/*")).unlink()
    with pytest.raises(CorruptStoreError, match="is missing"):
        kdpipe.open_store(whole)


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b'{"format": 1}', b'{"format": 2, "checksum": "%s"}', b'{"format": 1, "checksum": "%s", "x": 1}'],
)
def test_a_damaged_list_is_refused(part: Callable[..., Path], content: bytes) -> None:
    path = part(train=(0,))
    checksum = (manifest.read(path).checksum or "").encode()
    (path / "present.json").write_bytes(content.replace(b"%s", checksum))
    with pytest.raises(CorruptStoreError, match=r"present\.json"):
        kdpipe.open_store(path)
    other = Present(checksum="00" * 16, planes={"train": (0,)})
    partial.write(path, other)
    with pytest.raises(CorruptStoreError, match="of another store"):
        kdpipe.open_store(path)


def test_nothing_is_written_into_a_part(part: Callable[..., Path], whole: Path, tmp_path: Path) -> None:
    path = part(train=(0,), test=())
    before = contents(path)
    with pytest.raises(StoreError, match="is here in part, and writing it needs all"), build(path, small_plan(views=3)):
        pass
    with pytest.raises(StoreError, match="is here in part, and merging it needs all"):
        merge([path, whole], tmp_path / "merged.zarr")
    assert contents(path) == before
    assert not (tmp_path / "merged.zarr").exists()
