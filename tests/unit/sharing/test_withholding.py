"""Stores without some of their parts, derived without a teacher."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from blake3 import blake3
from scipy.special import log_softmax

import kdpipe
from kdpipe.errors import CorruptStoreError, DatasetError, ParamsError, StoreError, UnsealedStoreError
from kdpipe.sharing.settings import Withholding
from kdpipe.sharing.withholding import Derived, derive
from kdpipe.store.plan import Limits
from kdpipe.store.segments import pixel_digests
from kdpipe.store.verify import verify_deep, verify_files
from kdpipe.store.writer import build
from kdpipe.testing.stores import all_shards, contents, shard_logits, small_plan, small_store, start_store
from tests.unit.sharing.shared import assembled

SECRET = bytes(range(32))
CLASSES = 12


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store of 3 views in shards of 8 rows, as are those that are derived from it."""
    limits = Limits(shard_rows=8, chunk_bytes=4 * CLASSES * 2)
    monkeypatch.setattr("kdpipe.store.plan.LIMITS", limits)
    small_store(tmp_path / "a.zarr", small_plan(views=3, classes=CLASSES, encoding="fp32", limits=limits))
    return tmp_path / "a.zarr"


def derived(store: Path, name: str = "b", **asked: Any) -> tuple[Derived, Path]:
    found = derive(store, store.with_name(f"{name}.work"), Withholding(**asked), secret=SECRET)
    out = assembled(found, store.with_name(f"{name}.zarr"))
    assert verify_files(out) == []
    assert verify_deep(out) == []
    return found, out


def taken_over(store: Path, found: Derived) -> set[str]:
    """Return the names of the files that are the old store's."""
    return {name for name, path in found.files.items() if path == store / name}


def test_nothing_is_withheld_unless_asked(store: Path) -> None:
    found, out = derived(store)
    assert contents(out) == contents(store)
    assert found.manifest.derived_from is None
    assert taken_over(store, found) == found.manifest.files.keys()


def test_fewer_views_take_over_all_files_but_the_hashes_of_probes_and_shapes(store: Path) -> None:
    before = contents(store)
    found, out = derived(store, views=1)
    new, old = kdpipe.open_store(out), kdpipe.open_store(store)
    assert new.num_views == 1
    for view in (0, 1):
        assert np.array_equal(new.plane(view), old.plane(view))
    assert np.array_equal(new.probe_hashes, old.probe_hashes[:2])
    assert np.array_equal(new.sample_ids, old.sample_ids)
    changed = found.files.keys() - taken_over(store, found)
    arrays = ("codes", "row_max", "probe_hash")
    assert changed == {*(f"train/{each}/zarr.json" for each in arrays), "train/probe_hash/c/0/0"}
    assert new.manifest.planes == {name: digest for name, digest in old.manifest.planes.items() if name[-1] in "01"}
    origin = found.manifest.derived_from
    assert origin is not None
    assert (origin.digest, origin.withheld, origin.kl) == (old.digest, ("views",), {})
    assert found.manifest.fidelity.keys() == {"test"}, "that of all views is not that of some"
    assert contents(store) == before


def test_one_split_alone(store: Path) -> None:
    found, out = derived(store, splits="test")
    assert found.manifest.names == ("test",)
    assert taken_over(store, found) == found.files.keys()
    assert np.array_equal(kdpipe.open_store(out, "test").plane(0), kdpipe.open_store(store, "test").plane(0))
    with pytest.raises(StoreError, match="has no split 'train', only test"):
        kdpipe.open_store(out)


def test_labels_and_signals(tmp_path: Path) -> None:
    plan = replace(small_plan(), signals={"features:penultimate": (3,)})
    with build(tmp_path / "a.zarr", plan) as builder:
        for shard in all_shards(builder):
            logits = shard_logits(builder, shard)
            builder.submit(shard, logits, {"features:penultimate": logits[:, :3]})
        builder.seal({})
    found, out = derived(tmp_path / "a.zarr", no_labels=True, no_signals=True)
    new = kdpipe.open_store(out)
    assert (new.labels == -1).all()
    assert new.signals == ()
    assert not [name for name in found.files if "features" in name]
    kept, out = derived(tmp_path / "a.zarr", "c", encoding="fp32")
    again, old = (
        kdpipe.open_store(path).signal("features:penultimate", [3, 1], 1) for path in (out, tmp_path / "a.zarr")
    )
    assert np.array_equal(again, old)
    assert kept.manifest.derived_from is not None
    assert kept.manifest.derived_from.withheld == ("encoding",)


@pytest.mark.parametrize("asked", [{"views": 0}, {"no_labels": True}, {"encoding": "fp32"}, {"hide_names": True}])
def test_digests_of_pixels_are_kept_unless_names_are_hidden(tmp_path: Path, asked: dict[str, Any]) -> None:
    plan = small_plan()
    plan = replace(plan, splits={name: replace(split, pixel_digests=True) for name, split in plan.splits.items()})
    digests = np.random.default_rng(5).integers(1, 256, (20, 16), dtype=np.uint8)
    with build(tmp_path / "a.zarr", plan) as builder:
        for shard in all_shards(builder):
            pixels = torch.from_numpy(digests[shard.start : shard.stop])
            builder.submit(shard, shard_logits(builder, shard), {"pixel_digest": pixels} if shard.pixels else {})
        builder.seal({})
    _, out = derived(tmp_path / "a.zarr", **asked)
    found = pixel_digests(kdpipe.open_store(out).segments)
    if "hide_names" in asked:
        assert found is None
        assert not list(out.rglob("*pixel*"))
    else:
        assert found is not None
        assert np.array_equal(found, digests)


@pytest.mark.parametrize("encoding", ["topk:3", "sqrtp:8,4", "fp16"])
def test_the_loss_of_another_encoding_is_measured_against_the_store(store: Path, encoding: str) -> None:
    found, out = derived(store, encoding=encoding, views=2)
    kl: dict[float, list[np.ndarray]] = {1.0: [], 2.0: [], 4.0: []}
    for view in range(3):
        old, new = (kdpipe.open_store(path).plane(view).astype(np.float64) for path in (store, out))
        for temperature, losses in kl.items():
            p, q = log_softmax(old / temperature, axis=1), log_softmax(new / temperature, axis=1)
            losses.append((np.exp(p) * (p - q)).sum(axis=1))
    origin = found.manifest.derived_from
    assert origin is not None
    assert origin.withheld == ("views", "encoding")
    assert origin.encoding == "fp32"
    assert origin.source_kl == pytest.approx({"1": 0, "2": 0, "4": 0}, abs=1e-14)
    for temperature, losses in kl.items():
        assert origin.kl[f"{temperature:g}"] == pytest.approx(np.concatenate(losses).mean(), rel=1e-6, abs=1e-12)
    teacher = found.manifest.fingerprint.teacher
    assert teacher == kdpipe.open_store(store).manifest.fingerprint.teacher
    assert np.array_equal(kdpipe.open_store(out).probe_hashes, kdpipe.open_store(store).probe_hashes[:3])


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
def test_the_encoding_for_low_temperatures_serves_no_higher_ones(store: Path, temperature: float) -> None:
    found, out = derived(store, max_temperature=temperature, max_kl=0.01)
    assert kdpipe.open_store(out).encoding.max_temperature == temperature
    choice = found.manifest.choice
    assert choice is not None
    assert choice.max_kl == 0.01
    within = [row for row in choice.table if row.within]
    chosen = found.manifest.fingerprint.encoding
    assert chosen == min(within, key=lambda row: row.bytes_per_sample).name
    again, _ = derived(out, "c", max_temperature=temperature)
    assert taken_over(out, again) == again.files.keys(), "it serves no higher ones already"


def test_hidden_names_are_keyed_by_the_secret_and_so_is_the_order(store: Path) -> None:
    found, out = derived(store, hide_names=True)
    for split in ("train", "test"):
        old, new = kdpipe.open_store(store, split), kdpipe.open_store(out, split)
        keyed = {blake3(each.tobytes(), key=SECRET).digest(length=16): row for row, each in enumerate(old.sample_ids)}
        rows = [keyed[each.tobytes()] for each in new.sample_ids]
        assert sorted(rows) == list(range(old.num_samples))
        assert [each.tobytes() for each in new.sample_ids] == sorted(keyed)
        assert np.array_equal(new.labels, old.labels[rows])
        for view in range(new.num_views + 1):
            assert np.array_equal(new.plane(view), old.plane(view)[rows])
        assert (new.content_digests == 0).all()
        assert new.probe_rows.size == new.probe_hashes.size == 0
        assert old.manifest.fingerprint.dataset[split] != new.manifest.fingerprint.dataset[split]
    assert found.manifest.classes == kdpipe.open_store(store).classes
    assert "random" not in found.manifest.dataset
    origin = found.manifest.derived_from
    assert origin is not None
    assert origin.withheld == ("names",)
    other = derive(store, store.with_name("c.work"), Withholding(hide_names=True), secret=SECRET[::-1])
    assert other.manifest.digest != found.manifest.digest


def test_images_are_never_joined_to_hidden_names(store: Path) -> None:
    _, out = derived(store, hide_names=True)
    opened = kdpipe.open_store(out)
    items = [(torch.zeros(3, 8, 8, dtype=torch.uint8), int(label)) for label in opened.labels]
    with pytest.raises(StoreError, match="hides the names of its samples and their order"):
        kdpipe.attach(opened, items, by_index=True)
    with pytest.raises(DatasetError, match="keyed by a secret of its publisher"):
        kdpipe.attach(opened, items, keys=[f"train/{number}" for number in range(20)])


def test_hidden_names_with_another_encoding_keep_each_row_with_its_sample(store: Path) -> None:
    _, out = derived(store, hide_names=True, encoding="fp16", no_labels=True, views=0)
    old, new = kdpipe.open_store(store), kdpipe.open_store(out)
    keyed = {blake3(each.tobytes(), key=SECRET).digest(length=16): row for row, each in enumerate(old.sample_ids)}
    rows = [keyed[each.tobytes()] for each in new.sample_ids]
    assert np.allclose(new.plane(0), old.plane(0)[rows], atol=0.05)
    assert (new.labels == -1).all()


@contextmanager
def killed_after(rows: int) -> Iterator[Callable[..., Any]]:
    class KilledError(Exception):
        pass

    @contextmanager
    def progress(what: str, total: int, unit: str = "", status: object = None) -> Iterator[Callable[[int], None]]:
        seen = 0

        def done(count: int) -> None:
            nonlocal seen
            seen += count
            if seen >= rows:
                raise KilledError

        yield done

    with pytest.raises(KilledError):
        yield progress


@pytest.mark.parametrize("asked", [{"max_temperature": 2.0}, {"hide_names": True}])
def test_what_is_finished_is_not_done_again_after_a_kill(store: Path, asked: dict[str, Any]) -> None:
    whole = derive(store, store.with_name("whole"), Withholding(**asked), secret=SECRET)
    work = store.with_name("work")
    with killed_after(50) as progress:
        derive(store, work, Withholding(**asked), secret=SECRET, progress=progress)
    left = {path: path.stat().st_mtime_ns for path in work.rglob("codes/c/*/*/0")}
    assert len(left) > 3
    again = derive(store, work, Withholding(**asked), secret=SECRET)
    assert again.manifest == whole.manifest
    assert {path: path.stat().st_mtime_ns for path in left} == left
    assert {name: path.read_bytes() for name, path in again.files.items()} == {
        name: path.read_bytes() for name, path in whole.files.items()
    }
    assert derive(store, work, Withholding(**asked), secret=SECRET).manifest == whole.manifest


def test_what_was_withheld_before_is_remembered(store: Path) -> None:
    _, first = derived(store, encoding="topk:3")
    found, _ = derived(first, "c", views=1)
    assert found.manifest.derived_from is not None
    assert found.manifest.derived_from.withheld == ("encoding", "views")
    assert found.manifest.derived_from.digest == kdpipe.open_store(first).digest


@pytest.mark.parametrize(
    ("asked", "part"),
    [
        ({"views": 4}, "has 3 augmented views, not 4"),
        ({"splits": "tset"}, "has no split 'tset', only test, train; did you mean 'test'"),
        ({"encoding": "topk:50"}, "needs more than 50 classes"),
        ({"encoding": "topc:5"}, "unknown encoding"),
        ({"encoding": "fp16", "max_temperature": 1}, "give one of"),
        ({"max_temperature": 1, "max_kl": 1e-30}, "no encoding"),
    ],
)
def test_what_cannot_be_is_refused_and_leaves_nothing(store: Path, asked: dict[str, Any], part: str) -> None:
    before = sorted(store.parent.iterdir())
    with pytest.raises(ParamsError, match=part):
        derived(store, **asked)
    assert sorted(store.parent.iterdir()) == before


def test_an_unfinished_or_damaged_store_is_refused(store: Path) -> None:
    start_store(store.with_name("half.zarr"), shards=2)
    with pytest.raises(UnsealedStoreError):
        derive(store.with_name("half.zarr"), store.with_name("w"), Withholding(views=0))
    (store / "train/codes/c/1/0/0").write_bytes(b"?")
    with pytest.raises(CorruptStoreError):
        derive(store, store.with_name("w"), Withholding(encoding="fp16"))
