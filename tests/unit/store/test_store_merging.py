"""The union of stores that differ in their samples alone."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdpipe.errors import CorruptStoreError, ParamsError, StaleStoreError, StoreError, StoreLockedError
from kdpipe.stages.merging import merge_stores
from kdpipe.store import manifest
from kdpipe.store.ledger import lock
from kdpipe.store.merging import merge
from kdpipe.store.plan import Plan
from kdpipe.store.reader import open_store
from kdpipe.store.sections import Recipe
from kdpipe.store.settings import Provenance
from kdpipe.store.verify import verify_deep, verify_files
from kdpipe.testing import stores
from tests.unit.store.growths import further, grown, ids
from tests.unit.store.test_store_damage import signed


def half(number: int, *, samples: int = 12, **ingredients: Any) -> Plan:
    """Return the plan of a store of other training samples, and of the same test split."""
    plan = stores.small_plan(train=samples, dataset={"train": f"{number:032x}", "test": "23" * 16}, **ingredients)
    train = replace(plan.splits["train"], sample_ids=ids(samples, seed=number))
    return replace(plan, splits=plan.splits | {"train": train})


@pytest.fixture
def halves(tmp_path: Path) -> tuple[Path, Path]:
    paths = tmp_path / "first.zarr", tmp_path / "second.zarr"
    for number, path in enumerate(paths):
        stores.small_store(path, half(number + 1, samples=12 + number))
    return paths


def test_the_union_has_the_files_of_both(halves: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "all.zarr"
    merged = merge(halves, out)
    assert manifest.read(out) == merged
    assert verify_files(out) == []
    assert verify_deep(out) == []
    first, second, union = map(stores.contents, (*halves, out))
    expected = {name: content for name, content in first.items() if name != "zarr.json"}
    expected |= {
        name.replace("train/", "train.1/"): content for name, content in second.items() if name.startswith("train/")
    }
    assert {name: content for name, content in union.items() if name != "zarr.json"} == expected
    opened, parts = open_store(out), [open_store(path) for path in halves]
    assert np.array_equal(opened.sample_ids, np.concatenate([part.sample_ids for part in parts]))
    for view in (0, 1):
        assert np.array_equal(opened.plane(view), np.concatenate([part.plane(view) for part in parts]))
    assert sorted(each.name for each in tmp_path.iterdir()) == ["all.zarr", "first.zarr", "second.zarr"]


def test_the_same_again_is_nothing_to_do(halves: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "all.zarr"
    digest = merge(halves, out).digest
    before = (out / "zarr.json").stat().st_mtime_ns
    assert merge(halves, out).digest == digest
    assert (out / "zarr.json").stat().st_mtime_ns == before
    with pytest.raises(StoreError, match="is not the union of these stores"):
        merge(halves[::-1], out)


def test_a_union_grows_and_is_merged_further(halves: tuple[Path, Path], tmp_path: Path) -> None:
    out, third, more = tmp_path / "all.zarr", tmp_path / "third.zarr", tmp_path / "more.zarr"
    merge(halves, out)
    grown(out, further(out, np.concatenate([open_store(out).sample_ids[[3]], ids(4, seed=9)]), replaces=1))
    stores.small_store(third, half(7))
    merge([out, third], more)
    assert [each.name for each in open_store(more).segments] == ["train", "train.1", "train.2", "train.3"]
    assert open_store(more).num_samples == 12 + 13 + 4 + 12
    assert verify_files(more) == []


def test_growths_of_one_store_share_its_segments(halves: tuple[Path, Path], tmp_path: Path) -> None:
    first, out = halves[0], tmp_path / "all.zarr"
    other = Path(shutil.copytree(first, tmp_path / "other.zarr"))
    grown(first, further(first, np.concatenate([open_store(first).sample_ids[[3]], ids(4, seed=9)]), replaces=1))
    grown(other, further(other, ids(5, seed=10), seed=99))
    merge([first, other], out)
    assert [len(each.sample_ids) for each in open_store(out).segments] == [12, 5, 5]
    assert open_store(out).num_samples == 12 + 4 + 5


def test_overlapping_samples_are_refused(halves: tuple[Path, Path], tmp_path: Path) -> None:
    grown(halves[1], further(halves[1], open_store(halves[0]).sample_ids[:2]))
    with pytest.raises(StoreError, match=r"both have 2 'train' samples, in segments that differ"):
        merge(halves, tmp_path / "all.zarr")
    assert not (tmp_path / "all.zarr").exists()


DIFFERENT: dict[str, tuple[Callable[[], Plan], str]] = {
    "seed": (lambda: half(2, recipe=Recipe(name="crop-flip", version="crop-flip/1", seed=4)), "recipe.seed"),
    "precision": (lambda: half(2, precision="bf16"), "precision"),
    "encoding": (lambda: half(2, encoding="fp32"), "encoding"),
    "views": (lambda: half(2, views=2), "train views: the first has 1, the second 2"),
    "classes": (lambda: replace(half(2), classes=tuple("abcde")), "classes"),
    "probe": (lambda: replace(half(2), teacher_probe=(9.0, 9.0, 9.0)), "teacher: its logits"),
}


@pytest.mark.parametrize(("plan", "part"), DIFFERENT.values(), ids=DIFFERENT)
def test_another_ingredient_is_refused(
    halves: tuple[Path, Path], tmp_path: Path, plan: Callable[[], Plan], part: str
) -> None:
    stores.small_store(tmp_path / "other.zarr", plan())
    with pytest.raises(StaleStoreError, match="cannot be merged") as caught:
        merge([halves[0], tmp_path / "other.zarr"], tmp_path / "all.zarr")
    assert part in str(caught.value)


def test_a_damaged_file_is_not_copied(halves: tuple[Path, Path], tmp_path: Path) -> None:
    shard = halves[1] / "train" / "codes" / "c" / "1" / "0" / "0"
    content = bytearray(shard.read_bytes())
    content[5] ^= 1
    shard.write_bytes(content)
    with pytest.raises(CorruptStoreError, match="train/codes/c/1/0/0 does not match its digest"):
        merge(halves, tmp_path / "all.zarr")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["first.zarr", "second.zarr"]


@pytest.mark.parametrize(
    "edit",
    [lambda found: found["planes"].pop("train/1"), lambda found: found["fingerprint"]["dataset"].pop("train")],
    ids=["planes", "dataset"],
)
def test_a_manifest_without_digests_is_refused(
    halves: tuple[Path, Path], tmp_path: Path, edit: Callable[[dict[str, Any]], object]
) -> None:
    signed(halves[1], edit)
    with pytest.raises(CorruptStoreError, match="lists no digests of 'train'"):
        merge(halves, tmp_path / "all.zarr")


def test_the_union_is_written_by_one_process(halves: tuple[Path, Path], tmp_path: Path) -> None:
    with lock(tmp_path / "all.zarr"), pytest.raises(StoreLockedError):
        merge(halves, tmp_path / "all.zarr")


def test_statements_of_all_makers_are_kept(tmp_path: Path) -> None:
    said = (Provenance(title="A", license="MIT"), Provenance(title="B", license="MIT", notes="half"))
    paths = [tmp_path / "first.zarr", tmp_path / "second.zarr"]
    for number, (path, provenance) in enumerate(zip(paths, said, strict=True)):
        stores.small_store(path, replace(half(number + 1), provenance=provenance))
    assert merge(paths, tmp_path / "all.zarr").provenance == Provenance(title="A; B", license="MIT", notes="half")


def test_what_is_no_merge_is_refused(halves: tuple[Path, Path], tmp_path: Path) -> None:
    for given, out, match in (
        (halves[:1], tmp_path / "all.zarr", "two or more"),
        ((halves[0], halves[0]), tmp_path / "all.zarr", "two or more"),
        (halves, tmp_path / "all", r"must end in \.zarr"),
        (halves, halves[1], "which is read"),
    ):
        with pytest.raises(ParamsError, match=match):
            merge_stores(given, out)
