"""The store over generated sizes, interruptions and manifests."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from kdpipe.encoding.registry import get_encoding
from kdpipe.errors import KdpipeError
from kdpipe.store import manifest
from kdpipe.store.manifest import Manifest
from kdpipe.store.plan import Layout, Limits
from kdpipe.store.reader import open_store
from kdpipe.store.verify import verify_files
from kdpipe.store.writer import build
from kdpipe.testing import stores

MEBIBYTE = 1024**2


@pytest.fixture(autouse=True, scope="module")
def quickly() -> Iterator[None]:
    """Leave out the flushes to disk, which take most of a small store's time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@given(
    samples=st.one_of(st.integers(1, 10_000), st.integers(1, 2_000_000)),
    row_bytes=st.one_of(st.integers(1, 5000), st.integers(1, 2**28)),
)
@example(samples=4096, row_bytes=20)
@example(samples=4097, row_bytes=20)
@example(samples=4097, row_bytes=MEBIBYTE)
@example(samples=1_281_167, row_bytes=2000)
@example(samples=1, row_bytes=2**30)
@settings(max_examples=300, deadline=None)
def test_layout(samples: int, row_bytes: int) -> None:
    chosen = Layout.choose(samples=samples, row_bytes=row_bytes)
    assert chosen.chunk_rows >= 1
    assert chosen.shard_rows % chosen.chunk_rows == 0
    assert chosen.chunk_rows * row_bytes <= 2 * MEBIBYTE or chosen.chunk_rows == 1
    assert chosen.shard_rows * row_bytes <= 128 * MEBIBYTE or chosen.shard_rows == 1
    assert chosen.shard_rows <= 65_536
    assume(samples / chosen.shard_rows < 50_000)
    shards = chosen.shards(samples)
    if samples > 4096:
        assert len(shards) >= 4
    assert shards[0][0] == 0
    assert shards[-1][1] == samples
    assert all(before[1] == after[0] for before, after in pairwise(shards))
    assert all(0 < stop - start <= chosen.shard_rows for start, stop in shards)


@given(
    train=st.integers(1, 30),
    test=st.integers(1, 12),
    views=st.integers(0, 2),
    classes=st.integers(1, 9),
    shard_rows=st.integers(1, 12),
    chunk_rows=st.integers(1, 6),
    stops=st.lists(st.integers(0, 6), max_size=3),
)
@settings(max_examples=8, deadline=None)
def test_interrupted_and_resumed_equals_uninterrupted(
    train: int, test: int, views: int, classes: int, shard_rows: int, chunk_rows: int, stops: list[int]
) -> None:
    assume((train * (1 + views) + test) / shard_rows < 25)
    limits = Limits(shard_rows=shard_rows, chunk_bytes=chunk_rows * 2 * stores.CLASSES)
    plan = stores.small_plan(train=train, test=test, views=views, classes=classes, limits=limits)
    with tempfile.TemporaryDirectory() as folder:
        whole, resumed = Path(folder, "whole.zarr"), Path(folder, "resumed.zarr")
        stores.small_store(whole, plan)
        for stop in stops:
            stores.start_store(resumed, plan, shards=stop)
        stores.small_store(resumed, plan)
        assert stores.contents(resumed) == stores.contents(whole)
        assert verify_files(resumed) == []
        for split, planned in plan.splits.items():
            store = open_store(resumed, split=split)
            assert np.array_equal(store.sample_ids, planned.sample_ids)
            for view in range(planned.planes):
                logits = stores.random_logits(split, view, samples=len(planned.sample_ids), classes=classes)
                encoded = get_encoding("fp16").encode(torch.from_numpy(logits))
                expected = encoded.codes.astype(np.float32) + encoded.row_max[:, None]
                assert np.array_equal(store.plane(view), expected)


@given(cut=st.integers(1, 400), shards=st.integers(1, stores.SHARDS))
@settings(max_examples=5, deadline=None)
def test_a_ledger_cut_anywhere_resumes(cut: int, shards: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder, "a.zarr")
        stores.start_store(store, shards=shards)
        ledger = Path(folder, "a.zarr.ledger")
        ledger.write_bytes(ledger.read_bytes()[:-cut])
        with build(store, stores.small_plan()) as builder:
            assert stores.fill(builder) >= stores.SHARDS - shards + 1
            builder.seal({"made": "for a test"})
        assert stores.small_store(Path(folder, "b.zarr")).digest == open_store(store).digest


JSON = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-5, 40),
        st.sampled_from([2**31, 2**39, 2**63, 10**30, 10**400]),
        st.floats(),
        st.text(max_size=5),
        st.sampled_from(["sealed", "building", "fp16", "fp99", "../..", "train", "\ud800", "\0"]),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=6,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every value within a JSON value."""
    if isinstance(value, dict | list):
        for key, entry in value.items() if isinstance(value, dict) else enumerate(value):
            yield (*path, key)
            yield from places(entry, (*path, key))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mutated") / "small.zarr"
    stores.small_store(path)
    return path


@given(data=st.data(), signed=st.booleans())
@settings(max_examples=150, deadline=None)
def test_a_mutated_manifest_raises_nothing_but_our_errors(small: Path, data: st.DataObject, signed: bool) -> None:
    root = small / "zarr.json"
    original = root.read_bytes()
    node = json.loads(original)
    described = node["attributes"]["kdpipe"]
    *parents, last = data.draw(st.sampled_from(list(places(described))))
    target = described
    for key in parents:
        target = target[key]
    action = data.draw(st.sampled_from(["replace", "delete", "add"]))
    if action == "replace":
        target[last] = data.draw(JSON)
    elif action == "delete":
        del target[last]
    elif isinstance(target, dict):
        target[data.draw(st.text(max_size=8))] = data.draw(JSON)
    else:
        target.append(data.draw(JSON))
    text = json.dumps(node, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    try:
        root.write_bytes(text.encode(errors="surrogatepass"))
        if signed:
            sign(small, described)
        open_store(small)
        verify_files(small)
    except KdpipeError:
        pass
    finally:
        root.write_bytes(original)


def sign(store: Path, described: Any) -> None:
    """Write a manifest with digests that fit it, if it can be one at all."""
    try:
        changed = Manifest.model_validate(described)
        changed = changed.model_copy(update={"digest": changed.content_digest()})
        manifest.write(store, changed.model_copy(update={"checksum": changed.own_checksum()}))
    except ValueError:
        pass


@given(content=st.one_of(st.binary(max_size=60), JSON.map(lambda value: json.dumps(value).encode())))
@settings(max_examples=60, deadline=None)
def test_any_root_raises_nothing_but_our_errors(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "zarr.json").write_bytes(content)
        with pytest.raises(KdpipeError):
            open_store(folder)


def test_what_was_mutated_is_whole_again(small: Path, tmp_path: Path) -> None:
    assert verify_files(Path(shutil.copytree(small, tmp_path / "copy.zarr"))) == []
