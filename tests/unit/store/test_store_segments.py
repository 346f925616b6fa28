"""Stores that have grown: several segments are one split, and a growth that is killed leaves the store as it was."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from kdpipe.encoding.registry import get_encoding
from kdpipe.errors import CorruptStoreError, StaleStoreError, StoreError, UnsealedStoreError
from kdpipe.stages.storing import seal
from kdpipe.store import adoption, manifest
from kdpipe.store.blocks import Pool, windows
from kdpipe.store.growing import grow
from kdpipe.store.inspect import summary
from kdpipe.store.ledger import lock
from kdpipe.store.reader import LogitStore, open_store
from kdpipe.store.verify import verify_deep, verify_files
from kdpipe.testing import stores
from tests.unit.store.growths import further, grown, growth, ids
from tests.unit.store.slow_build import forked
from tests.unit.store.test_store_damage import signed

SIGNALS = {"features:penultimate": (3,), "attention:layer2": (2, 2)}


def model(store: LogitStore, view: int) -> dict[bytes, npt.NDArray[np.float32]]:
    """Return the newest logits of each sample, from the random ones that were written."""
    found = {}
    for each in store.segments:
        logits = stores.random_logits(each.name, view, samples=len(each.sample_ids))
        encoded = get_encoding("fp16").encode(torch.from_numpy(logits))
        decoded = encoded.codes.astype(np.float32) + encoded.row_max[:, None]
        found.update({key.tobytes(): row for key, row in zip(each.sample_ids, decoded, strict=True)})
    return found


@pytest.fixture
def three(sealed: Path) -> Path:
    """A store that grew twice: by 7 new and 2 changed samples, then by one of each; the test split once."""
    first = open_store(sealed).sample_ids
    grown(sealed, further(sealed, np.concatenate([first[[4, 17]], ids(7, seed=1)]), replaces=2))
    second = open_store(sealed).sample_ids
    grown(sealed, further(sealed, np.concatenate([second[[-1]], ids(1, seed=2)]), replaces=1))
    grown(sealed, further(sealed, ids(3, seed=3), split="test"))
    return sealed


def test_rows_of_all_segments_are_one_split(three: Path) -> None:
    store = open_store(three)
    assert [each.name for each in store.segments] == ["train", "train.1", "train.2"]
    assert store.num_samples == len(store.sample_ids) == len(store.labels) == 20 + 7 + 1
    assert len({key.tobytes() for key in store.sample_ids}) == store.num_samples
    random = np.random.default_rng(0)
    for view in (0, 1):
        newest = model(store, view)
        expected = np.stack([newest[key.tobytes()] for key in store.sample_ids])
        assert np.array_equal(store.plane(view), expected)
        rows = random.integers(0, store.num_samples, 40)
        assert np.array_equal(store.logits(rows, view), expected[rows])
        assert np.array_equal(store.gather(view, rows).logits(slice(None)).numpy(), expected[rows])
        for start, stop in ((0, 28), (3, 3), (15, 21), (17, 28), (24, 27)):
            assert np.array_equal(store.rows(view, start, stop).logits(slice(None)).numpy(), expected[start:stop])
    assert open_store(three, "test").num_samples == stores.TEST + 3


def test_side_arrays_are_those_of_the_newest_rows(three: Path) -> None:
    store = open_store(three)
    newest = {}
    for each in store.segments:
        sides = zip(each.labels.tolist(), each.content_digests.tolist(), strict=True)
        newest.update({key.tobytes(): side for key, side in zip(each.sample_ids, sides, strict=True)})
    found = zip(store.labels.tolist(), store.content_digests.tolist(), strict=True)
    assert list(found) == [newest[key.tobytes()] for key in store.sample_ids]


def test_probes_are_those_of_the_newest_rows(three: Path) -> None:
    store = open_store(three)
    expected = {}
    for each in store.segments:
        for row, hashes in zip(each.probe_rows, each.probe_hashes.T.tolist(), strict=True):
            if row in each.live:
                expected[each.sample_ids[row].tobytes()] = hashes
    found = zip(store.sample_ids[store.probe_rows], store.probe_hashes.T.tolist(), strict=True)
    assert {key.tobytes(): hashes for key, hashes in found} == expected
    assert len(expected) == len(store.probe_rows) > 3


def test_signals_come_from_the_segment_of_the_row(tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"

    def signals(name: str, rows: int) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(len(name))
        return {
            signal: torch.rand((rows, *shape), generator=generator).to(torch.float16)
            for signal, shape in SIGNALS.items()
        }

    def fill(builder: Any) -> None:
        for shard in stores.all_shards(builder):
            whole = signals(shard.split, builder.manifest.splits[shard.split].samples)
            cut = {name: values[shard.start : shard.stop] for name, values in whole.items()}
            builder.submit(shard, stores.shard_logits(builder, shard), cut)
        builder.seal({})

    with stores.build(path, replace(stores.small_plan(), signals=SIGNALS)) as builder:
        fill(builder)
    first = open_store(path).sample_ids
    plan = further(path, np.concatenate([first[[0]], ids(4, seed=4)]), replaces=1)
    with grow(path, plan, onto=manifest.read(path)) as builder:
        fill(builder)
    store = open_store(path, beside=tuple(SIGNALS))
    old, new = signals("train", 20), signals("train.1", 5)
    for name in SIGNALS:
        expected = torch.cat([old[name][1:], new[name]]).float()
        rows = np.array([23, 0, 19, 18, 5])
        assert np.array_equal(store.signal(name, rows, 1), expected[rows].numpy())
        assert torch.equal(store.codes(1).signals(slice(None))[name], expected)


def test_windows_cover_each_sample_once(three: Path) -> None:
    store = open_store(three)
    expected = store.plane(1)
    store.memory_limit = 4 * store.chunk_rows * store.row_bytes
    rows = np.random.default_rng(3).permutation(store.num_samples)[:25]
    parts = windows(store, rows, data_seed=5, epoch=2)
    assert len(parts) > 2
    assert sorted(np.concatenate(parts).tolist()) == list(range(25))
    assert all(len(np.unique(store.chunks_of(rows[part]))) <= 2 for part in parts)
    pool = Pool(store, rows, parts, view=1)
    for part in parts:
        assert np.array_equal(pool.logits(part).numpy(), expected[rows[part]])
    pool.close()


def test_old_files_stay_as_they_are(sealed: Path, tmp_path: Path) -> None:
    before, old = stores.contents(sealed), manifest.read(sealed)
    grown(sealed, further(sealed, ids(5, seed=1)))
    after, found = stores.contents(sealed), manifest.read(sealed)
    assert {name: after[name] for name in before.keys() - {"zarr.json"}} == {
        name: content for name, content in before.items() if name != "zarr.json"
    }
    assert all(name.startswith("train.1/") for name in after.keys() - before.keys())
    assert found.planes.items() > old.planes.items()
    assert [each.name for each in tmp_path.iterdir()] == [sealed.name]


def test_checks_and_summaries_see_all_segments(three: Path) -> None:
    assert verify_files(three) == []
    assert verify_deep(three) == []
    found = summary(three)
    assert (found["samples"], found["views"], found["state"]) == (28, 1, "sealed")
    train = found["splits"]["train"]
    assert found["splits"].keys() == {"train", "test"}
    assert train["samples"] == 28
    assert train["fidelity"]["rows"] == 2 * (20 + 9 + 2)
    assert train["segments"] == {
        "train": {"samples": 20, "replaces": 0},
        "train.1": {"samples": 9, "replaces": 2},
        "train.2": {"samples": 2, "replaces": 1},
    }
    assert train["shards_done"] == train["shards_total"] == 2 * (3 + 2 + 1)
    assert found["about"]["seconds"] == 4.5


def test_damage_is_named_by_its_segment(three: Path) -> None:
    shard = three / "train.1" / "codes" / "c" / "1" / "0" / "0"
    content = bytearray(shard.read_bytes())
    content[5] ^= 1
    shard.write_bytes(content)
    assert "train.1/codes/c/1/0/0 does not match its digest" in verify_files(three)
    with pytest.raises(CorruptStoreError, match=r"of 'train\.1', rows 0 to"):
        open_store(three).plane(1)
    shard.unlink()
    with pytest.raises(CorruptStoreError, match=r"train\.1/codes/c/1/0/0 is missing"):
        open_store(three)


FORGED: dict[str, Callable[[dict[str, Any]], object]] = {
    "a segment is missing": lambda found: [
        found[key].pop("train.1") for key in ("splits", "fidelity") if "train.1" in found[key]
    ],
    "replaces more than there are": lambda found: found["splits"]["train.1"].update(replaces=10),
    "replaces fewer than it does": lambda found: found["splits"]["train.1"].update(replaces=1),
    "another number of planes": lambda found: found["splits"]["train.1"].update(planes=1),
    "the first segment replaces some": lambda found: found["splits"]["train"].update(replaces=1),
    "explicit zero": lambda found: found["splits"]["train"].update(replaces=0),
    "zero in its number": lambda found: found["splits"].update({"train.01": found["splits"]["train.1"]}),
}


@pytest.mark.parametrize("edit", FORGED.values(), ids=FORGED)
def test_a_forged_list_of_segments_is_refused(three: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    signed(three, edit)
    with pytest.raises(CorruptStoreError):
        open_store(three)


def test_a_segment_is_no_split(three: Path) -> None:
    with pytest.raises(StoreError, match=r"has no split 'train\.1', only"):
        open_store(three, "train.1")


def test_the_next_segment_may_be_there_already(sealed: Path, three: Path, tmp_path: Path) -> None:
    """As a kill leaves it that comes just before the manifest; no other group may."""
    other = tmp_path / "other.zarr"
    stores.small_store(other)
    shutil.copytree(three / "train.1", other / "train.1")
    assert verify_files(other) == []
    assert open_store(other).num_samples == 20
    shutil.copytree(three / "train.2", other / "train.2")
    assert any(fault.startswith("train.2/") and "does not belong" in fault for fault in verify_files(other))
    (other / "train.1" / "notes.txt").write_text("strange")
    shutil.rmtree(other / "train.2")
    assert verify_files(other) == ["train.1/notes.txt does not belong to the store"]


def test_segments_that_are_being_built_are_no_store(sealed: Path) -> None:
    with grow(sealed, further(sealed, ids(17, seed=6)), onto=manifest.read(sealed)) as builder:
        stores.fill(builder, at_most=2)
    part = adoption.part_path(sealed)
    found = summary(part)
    assert (found["state"], found["samples"], found["shards_done"]) == ("building", 17, 2)
    with pytest.raises(UnsealedStoreError):
        open_store(part)
    with grow(sealed, further(sealed, ids(17, seed=6)), onto=manifest.read(sealed)) as builder:
        stores.fill(builder)
        builder.seal({})
        with pytest.raises(StoreError, match="further segments of another store"):
            open_store(part)


def test_a_store_as_before_says_nothing_of_segments(sealed: Path) -> None:
    content = (sealed / "zarr.json").read_text()
    assert "replaces" not in content
    assert "train.1" not in content
    assert "segments" not in json.dumps(summary(sealed))


@pytest.mark.parametrize("stops", [[], [0], [2, 1], [1, 1, 1, 1]])
def test_the_digest_does_not_depend_on_interruptions(sealed: Path, tmp_path: Path, stops: list[int]) -> None:
    plan = further(sealed, ids(17, seed=6))
    other = Path(shutil.copytree(sealed, tmp_path / "other" / "small.zarr"))
    grown(other, plan)
    before = stores.contents(sealed)
    for stop in stops:
        with grow(sealed, plan, onto=manifest.read(sealed)) as builder:
            stores.fill(builder, at_most=stop)
        assert stores.contents(sealed) == before
        assert verify_files(sealed) == []
    with grow(sealed, plan, onto=manifest.read(sealed)) as builder:
        assert stores.fill(builder) == 6 - sum(stops)
        builder.seal({"seconds": 1.5, "created": "later"})
    assert stores.contents(sealed) == stores.contents(other)
    assert manifest.read(sealed).digest == manifest.read(other).digest


def test_segments_begun_for_other_samples_are_begun_again(sealed: Path) -> None:
    with grow(sealed, further(sealed, ids(17, seed=6)), onto=manifest.read(sealed)) as builder:
        stores.fill(builder, at_most=2)
    plan = further(sealed, ids(17, seed=7), seed=1)
    with grow(sealed, plan, onto=manifest.read(sealed)) as builder:
        assert stores.fill(builder) == 6
        builder.seal({})
    assert np.array_equal(open_store(sealed).sample_ids[20:], ids(17, seed=7))


def test_a_store_that_changed_meanwhile_is_not_grown(sealed: Path) -> None:
    old = manifest.read(sealed)
    plan = further(sealed, ids(5, seed=1))
    grown(sealed, plan)
    with pytest.raises(StaleStoreError, match="changed by another process"), grow(sealed, plan, onto=old):
        pass
    assert open_store(sealed).num_samples == 25


def test_a_build_removes_segments_that_were_begun(sealed: Path, tmp_path: Path) -> None:
    with grow(sealed, further(sealed, ids(17, seed=6)), onto=manifest.read(sealed)) as builder:
        stores.fill(builder, at_most=2)
    assert adoption.part_path(sealed).is_dir()
    before = stores.contents(sealed)
    stores.small_store(sealed)
    assert stores.contents(sealed) == before
    assert [each.name for each in tmp_path.iterdir()] == [sealed.name]


STEPS = 7
"""Things that a growth puts in their place or removes, see ``growth``."""


@pytest.mark.parametrize("step", range(1, STEPS + 1))
def test_killed_before_something_is_put_in_its_place(sealed: Path, tmp_path: Path, step: int) -> None:
    """The store is readable as it was, or has grown; the same growth ends with the same bytes."""
    plan = further(sealed, ids(17, seed=6))
    whole = Path(shutil.copytree(sealed, tmp_path / "whole" / "small.zarr"))
    grown(whole, plan)
    before = stores.contents(sealed)
    with forked(growth, sealed, step) as (process, _):
        process.join(60)
    assert process.exitcode == -signal.SIGKILL
    opened = open_store(sealed)
    assert verify_files(sealed) == []
    assert opened.num_samples in (20, 37)
    if opened.num_samples == 20:
        assert stores.contents(sealed).items() >= before.items()
        with lock(sealed):
            adoption.recover(sealed)
        if open_store(sealed).num_samples == 20:
            with grow(sealed, plan, onto=manifest.read(sealed)) as builder:
                stores.fill(builder)
                builder.seal({"seconds": 1.5, "created": "later"})
    else:
        with lock(sealed):
            adoption.recover(sealed)
    assert stores.contents(sealed) == stores.contents(whole)
    assert sorted(each.name for each in tmp_path.iterdir()) == [sealed.name, "whole"]


def test_what_is_left_of_a_removal_is_removed(sealed: Path) -> None:
    plan = further(sealed, ids(17, seed=6))
    with grow(sealed, plan, onto=manifest.read(sealed)) as builder:
        stores.fill(builder)
    (adoption.part_path(sealed) / "zarr.json").unlink()
    grown(sealed, plan)
    assert open_store(sealed).num_samples == 37


def test_a_growth_takes_these_steps(sealed: Path) -> None:
    with forked(growth, sealed, 0) as (process, hears):
        process.join(60)
        assert hears.recv() == STEPS
    assert open_store(sealed).num_samples == 37


def test_a_growth_that_is_complete_can_be_sealed(sealed: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(sealed, tmp_path / "other" / "small.zarr"))
    plan = further(sealed, ids(17, seed=6))
    grown(other, plan)
    with grow(sealed, plan, onto=manifest.read(sealed)) as builder:
        stores.fill(builder, at_most=3)
    with pytest.raises(CorruptStoreError, match="cannot be sealed: 6 files are missing"):
        seal(sealed)
    with grow(sealed, plan, onto=manifest.read(sealed)) as builder:
        assert stores.fill(builder) == 3
    seal(sealed)
    assert manifest.read(sealed).digest == manifest.read(other).digest
    assert sorted(each.name for each in tmp_path.iterdir()) == ["other", sealed.name]
