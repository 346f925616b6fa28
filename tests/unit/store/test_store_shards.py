"""Shards decoded without Zarr: what Zarr itself reads, and nothing but a ValueError from what it never wrote."""

from __future__ import annotations

import contextlib
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import google_crc32c
import numcodecs.blosc
import numpy as np
import numpy.typing as npt
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from kdpipe.errors import StoreError
from kdpipe.store import arrays
from kdpipe.store.plan import Limits
from kdpipe.store.reader import open_store
from kdpipe.testing import stores

ENCODINGS = ("fp32", "fp16", "fp16r5", "sqrtp8@4", "sqrtp2@1", "topk1", "topk3", "tailp5@4")
ROWS, WIDTH = 4, 500


@pytest.fixture(scope="module", params=ENCODINGS)
def encoded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of each encoding; planes of 23 rows end within a chunk, within a shard."""
    path = tmp_path_factory.mktemp("encoded") / "a.zarr"
    stores.small_store(path, stores.small_plan(train=23, encoding=request.param))
    return path


@pytest.mark.parametrize("split", ["train", "test"])
def test_equals_what_zarr_reads(encoded: Path, split: str) -> None:
    store = open_store(encoded, split=split)
    group = zarr.open_group(encoded / split, mode="r")
    for view in range(store.num_views + 1):
        plane = store.codes(view)
        for name, found in (("codes", plane.codes), ("row_max", plane.row_max)):
            expected = np.asarray(group[name][view])  # type: ignore[index]
            assert found.numpy().dtype == expected.dtype
            assert found.numpy().tobytes() == expected.tobytes()
    sides = {
        "labels": store.labels,
        "sample_id": store.sample_ids,
        "content_digest": store.content_digests,
        "probe_row": store.probe_rows,
        "probe_hash": store.probe_hashes,
    }
    for name, values in sides.items():
        assert np.array_equal(values, group[name][...])  # type: ignore[index]


@pytest.mark.parametrize(("start", "stop"), [(0, 23), (0, 0), (23, 23), (5, 5), (3, 4), (4, 8), (2, 17), (20, 23)])
def test_ranges(encoded: Path, start: int, stop: int) -> None:
    store = open_store(encoded)
    whole, part = store.codes(1), store.rows(1, start, stop)
    assert part.codes.numpy().tobytes() == whole.codes[start:stop].numpy().tobytes()
    assert part.row_max.numpy().tobytes() == whole.row_max[start:stop].numpy().tobytes()
    assert np.array_equal(part.logits(slice(None)), store.plane(1)[start:stop])


@pytest.mark.parametrize("rows", [[], [22], [3, 3, 0, 22, 7, 8], range(23)], ids=len)
def test_rows_of_planes_that_do_not_fit(encoded: Path, rows: list[int]) -> None:
    whole = open_store(encoded).plane(1)
    tight = open_store(encoded, memory_limit=open_store(encoded).plane_bytes)
    assert not tight.fits
    assert np.array_equal(tight.logits(list(rows), 1), whole[list(rows)])


@pytest.mark.parametrize(("start", "stop"), [(-1, 3), (0, 24), (5, 4)])
def test_ranges_beyond_the_plane_are_refused(encoded: Path, start: int, stop: int) -> None:
    with pytest.raises(IndexError, match=r"0\.\.23"):
        open_store(encoded).rows(0, start, stop)


def test_what_is_too_large_is_refused_with_the_limit(sealed_once: Path) -> None:
    bytes_of_plane = stores.TRAIN * (stores.CLASSES * 2 + 4)
    assert open_store(sealed_once).plane_bytes == bytes_of_plane
    assert open_store(sealed_once, memory_limit=2 * bytes_of_plane).fits
    assert not open_store(sealed_once, memory_limit=2 * bytes_of_plane - 1).fits
    one = open_store(sealed_once, memory_limit=bytes_of_plane)
    assert np.array_equal(one.codes(0).codes, open_store(sealed_once).codes(0).codes)
    assert one.codes(1) is one.codes(1)
    assert len(one._planes) == 1
    none = open_store(sealed_once, memory_limit=bytes_of_plane - 1)
    for read in (none.codes, none.plane, lambda view: none.rows(view, 0, stores.TRAIN)):
        with pytest.raises(StoreError, match=r"takes 280 bytes .* limit is 279.*--memory-limit.*rows\(\)|takes 680"):
            read(0)
    assert none.rows(0, 0, 19).codes.shape == (19, 5)


def chunk(values: npt.NDArray[Any], **options: Any) -> bytes:
    return bytes(numcodecs.blosc.compress(values, **{"cname": b"lz4", "clevel": 5, "shuffle": 2, **options}))


def signed(content: bytes) -> bytes:
    """Add the checksum, as somebody could who makes a bad file on purpose."""
    return content + struct.pack("<I", google_crc32c.value(content))


def header(content: bytes, *, at: int, value: int, size: str = "<I") -> bytes:
    changed = bytearray(content)
    struct.pack_into(size, changed, at, value)
    return bytes(changed)


VALUES = np.arange(ROWS * WIDTH, dtype=np.float16).reshape(ROWS, WIDTH)
BOMB = chunk(np.zeros((ROWS, WIDTH * 10_000), dtype=np.float16))

FORGED: dict[str, Callable[[], bytes]] = {
    "a bomb": lambda: BOMB,
    "a bomb that claims to be small": lambda: header(BOMB, at=4, value=VALUES.nbytes),
    "more than it decodes to": lambda: header(chunk(VALUES), at=4, value=2**31),
    "less than it decodes to": lambda: header(chunk(VALUES), at=4, value=VALUES.nbytes - 2),
    "more than it has": lambda: header(chunk(VALUES), at=12, value=2**30),
    "a huge block": lambda: header(chunk(VALUES), at=8, value=2**31 - 1),
    "no block": lambda: header(chunk(VALUES), at=8, value=0),
    "another item size": lambda: chunk(VALUES.view(np.uint8)),
    "zlib": lambda: chunk(np.zeros_like(VALUES), cname=b"zlib"),
    "blosclz": lambda: chunk(np.zeros_like(VALUES), cname=b"blosclz"),
    "another version": lambda: header(chunk(VALUES), at=0, value=3, size="<B"),
    "half a header": lambda: chunk(VALUES)[:9],
    "nothing": lambda: b"",
    "longer than it could be": lambda: chunk(VALUES) + bytes(100),
}


@pytest.mark.parametrize("forged", FORGED)
def test_a_forged_chunk_is_refused(tmp_path: Path, forged: str) -> None:
    path = tmp_path / "0"
    path.write_bytes(signed(FORGED[forged]()))
    out = np.full_like(VALUES, 7)
    with pytest.raises(ValueError):
        arrays.read_file(path, out)
    assert (out == 7).all(), "nothing is decoded before the header is believed"


def shard(*places: tuple[int, int], body: bytes) -> bytes:
    index = np.array(places, dtype="<u8").tobytes()
    return body + signed(index)


GOOD = signed(chunk(VALUES))
NONE = (2**64 - 1, 2**64 - 1)
INDEXES: dict[str, tuple[tuple[int, int], ...]] = {
    "missing": (NONE, (0, len(GOOD))),
    "outside": ((0, len(GOOD)), (1, len(GOOD) + 100)),
    "far outside": ((0, len(GOOD)), (2**63, 8)),
    "around the end": ((0, len(GOOD)), (2**64 - 4, 8)),
    "huge": ((0, 2**64 - 1), NONE),
    "overlap": ((0, len(GOOD)), (len(GOOD) - 1, 1)),
    "the same chunk twice": ((0, len(GOOD)), (0, len(GOOD))),
}


@pytest.mark.parametrize("index", INDEXES)
def test_a_forged_index_is_refused(tmp_path: Path, index: str) -> None:
    path = tmp_path / "0"
    path.write_bytes(shard(*INDEXES[index], body=GOOD))
    with pytest.raises(ValueError, match=r"shard|missing"):
        arrays.read_chunk(path, 0, 2, np.empty_like(VALUES))


def test_a_well_made_shard_is_read(tmp_path: Path) -> None:
    path = tmp_path / "0"
    path.write_bytes(shard((0, len(GOOD)), NONE, body=GOOD))
    out = np.empty_like(VALUES)
    arrays.read_chunk(path, 0, 2, out)
    assert np.array_equal(out, VALUES)


def test_a_shard_shorter_than_its_index_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "0"
    path.write_bytes(shard((0, len(GOOD)), NONE, body=GOOD))
    with pytest.raises(ValueError, match="too short"):
        arrays.read_chunk(path, 0, 2**40, np.empty_like(VALUES))


@given(content=st.binary(max_size=120), keep_header=st.booleans())
@settings(max_examples=400, deadline=None)
def test_garbage_with_a_right_checksum_never_crashes(
    content: bytes, keep_header: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Blosc sees it only under a header that fits; what it then decodes is of the right size, or an error."""
    path = tmp_path_factory.getbasetemp() / "garbage"
    values = np.zeros((64, WIDTH), dtype=np.float16)
    if keep_header:
        content = header(chunk(values)[:16] + content, at=12, value=16 + len(content))
    path.write_bytes(signed(content))
    out = np.empty((66, WIDTH), dtype=np.float16)
    out[64:] = 7
    with contextlib.suppress(ValueError, RuntimeError):
        arrays.read_file(path, out[:64])
    assert (out[64:] == 7).all()


BOUNDED = """
import resource, sys
import numpy as np
from kdpipe.store.blocks import Pool, windows
from kdpipe.store.reader import open_store

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

open_store(sys.argv[1], split="test").plane(0)
peaks = [peak()]
store = open_store(sys.argv[1], memory_limit=2**20)
for row in range(0, store.num_samples, 5000):
    store.logits([row])
peaks.append(peak())
store = open_store(sys.argv[1], memory_limit=10 * 2**20)
rows = np.arange(store.num_samples)
parts = windows(store, rows, data_seed=0, epoch=0)
pool = Pool(store, rows, parts, view=0)
for part in parts:
    for start in range(0, len(part), 256):
        pool.logits(part[start : start + 256])
peaks.append(peak())
print(len(parts), *np.diff(peaks), store.plane_bytes / 2**20)
"""


def test_reading_stays_within_its_limit(tmp_path: Path) -> None:
    """Planes of 24 MiB in chunks of 1 MiB, read in a process whose peak memory is measured."""
    limits = Limits(chunk_bytes=2**20, split_rows=65_536)
    plan = stores.small_plan(train=49_152, test=16, views=0, classes=254, limits=limits)
    stores.small_store(tmp_path / "a.zarr", plan)
    ran = subprocess.run(
        [sys.executable, "-c", BOUNDED, str(tmp_path / "a.zarr")], check=True, capture_output=True, text=True
    )
    parts, rows, pooled, plane = map(float, ran.stdout.split())
    assert plane == 24
    assert parts >= 5
    assert rows < 8, "a few chunks, not the plane"
    assert pooled < 10 + 6, "two windows of 5 MiB and a few chunks"
