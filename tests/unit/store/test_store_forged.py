"""Stores that somebody made to be believed: every digest fits, and still nothing wrong or too large comes of it."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import google_crc32c
import numcodecs.blosc
import numpy as np
import pytest

from kdpipe.errors import CorruptStoreError, KdpipeError, StoreError
from kdpipe.store import manifest as manifests
from kdpipe.store.reader import open_store
from kdpipe.store.verify import verify_deep, verify_files
from kdpipe.testing import stores
from kdpipe.testing.stores import contents
from tests.unit.store.test_store_damage import everything, signed

HUGE = 2**39


def resealed(store: Path, edit: Callable[[dict[str, Any]], object] = lambda _manifest: None) -> None:
    """Seal a store again after its files were changed, with the sizes and digests that they have now."""

    def reseal(manifest: dict[str, Any]) -> None:
        manifest["files"] = {
            name: {"size": (store / name).stat().st_size, "digest": manifests.digest_file(store / name)}
            for name in contents(store)
            if name != "zarr.json"
        }
        edit(manifest)

    signed(store, reseal)


def reshaped(store: Path, name: str, shape: list[int], chunks: list[int], inner: list[int] | None = None) -> None:
    """Rewrite the metadata of an array for another shape and grid."""
    path = store / name / "zarr.json"
    metadata = json.loads(path.read_bytes())
    metadata["shape"] = shape
    metadata["chunk_grid"]["configuration"]["chunk_shape"] = chunks
    if inner is not None:
        metadata["codecs"][0]["configuration"]["chunk_shape"] = inner
    path.write_text(json.dumps(metadata))


def enlarge(store: Path, *, samples: int, chunk_rows: int, shard_rows: int, planes: int = 2) -> None:
    """Let a split claim other sizes, in its arrays' metadata as in the manifest."""
    side, width = min(samples, 1_048_576), stores.CLASSES
    reshaped(store, "train/codes", [planes, samples, width], [1, shard_rows, width], [1, chunk_rows, width])
    reshaped(store, "train/row_max", [planes, samples], [1, shard_rows])
    for name in ("sample_id", "content_digest"):
        reshaped(store, f"train/{name}", [samples, 16], [side, 16])
    reshaped(store, "train/labels", [samples], [side])
    cut = {"samples": samples, "chunk_rows": chunk_rows, "shard_rows": shard_rows, "planes": planes}
    resealed(store, lambda manifest: manifest["splits"]["train"].update(cut))


def keep_one_shard(store: Path) -> None:
    for path in store.glob("train/*/c/*/*"):
        if path.parts[-4] in ("codes", "row_max") and path.name != "0":
            shutil.rmtree(path) if path.is_dir() else path.unlink()


GIGANTIC: dict[str, dict[str, int]] = {
    "one huge shard": {"samples": HUGE, "chunk_rows": 4, "shard_rows": HUGE},
    "one huge chunk": {"samples": HUGE, "chunk_rows": HUGE, "shard_rows": HUGE},
    "chunks as large as Blosc takes": {"samples": HUGE, "chunk_rows": 2**27, "shard_rows": HUGE},
    "few samples in huge chunks": {"samples": 20, "chunk_rows": HUGE, "shard_rows": HUGE},
    "few samples in a huge shard": {"samples": 20, "chunk_rows": 4, "shard_rows": HUGE},
    "many shards": {"samples": HUGE, "chunk_rows": 4, "shard_rows": 8},
    "many planes": {"samples": 20, "chunk_rows": 4, "shard_rows": 8, "planes": 2**20 - 1},
    "more than the limit allows": {"samples": 2**28, "chunk_rows": 4, "shard_rows": 65_536},
    "as many as the limit allows": {"samples": 2**27, "chunk_rows": 4, "shard_rows": 65_536},
    "a million samples": {"samples": 1_000_000, "chunk_rows": 4, "shard_rows": 1_000_000},
}

ATTACK = """
import pathlib, resource, sys
from kdpipe.errors import KdpipeError
from kdpipe.store.reader import open_store
from kdpipe.store.verify import verify_deep, verify_files

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

def refuse(faults):
    if faults:
        raise KdpipeError(faults[0])

small = open_store(sys.argv[1])
small.plane(0)
before = peak()
for path in sys.argv[2:]:
    for read in (
        lambda path: open_store(path).logits([0]),
        lambda path: open_store(path).plane(0),
        lambda path: refuse(verify_deep(path)),
        lambda path: refuse(verify_files(path)),
    ):
        try:
            read(pathlib.Path(path))
            print("taken", path)
        except KdpipeError as error:
            print("refused", path)
print(peak() - before)
"""


def test_gigantic_claims_take_little_memory(sealed_once: Path, tmp_path: Path) -> None:
    """Terabytes in a manifest whose digests all fit: refused, in a process whose peak hardly grows."""
    paths = []
    for name, claim in GIGANTIC.items():
        store = Path(shutil.copytree(sealed_once, tmp_path / f"{name}.zarr"))
        if claim["shard_rows"] > 8:
            keep_one_shard(store)
        enlarge(store, **claim)
        paths.append(str(store))
    command = [sys.executable, "-c", ATTACK, str(sealed_once), *paths]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    *outcomes, grown = ran.stdout.splitlines()
    assert len(outcomes) == 4 * len(paths)
    assert not [line for line in outcomes if line.startswith("taken")], outcomes
    assert float(grown) < 100, "MiB, of terabytes that were claimed"


def test_side_arrays_count_against_the_limit(sealed: Path) -> None:
    keep_one_shard(sealed)
    enlarge(sealed, samples=2**28, chunk_rows=4, shard_rows=65_536)
    with pytest.raises(StoreError, match=r"take 9,663,676,488 bytes of memory, the limit is 8,589,934,592"):
        open_store(sealed)


def test_probes_count_against_the_limit(sealed: Path) -> None:
    planes = 2**19
    reshaped(sealed, "train/probe_hash", [planes, 4096], [planes, 4096])
    reshaped(sealed, "train/probe_row", [4096], [4096])
    resealed(sealed, lambda manifest: manifest["splits"]["train"].update(planes=planes, probes=4096))
    with pytest.raises(KdpipeError):
        open_store(sealed)


def forged_chunk(store: Path, content: bytes) -> None:
    """Put a chunk with its right checksum into the store's only shard of test codes, and seal it again."""
    path = store / "test/codes/c/0/0/0"
    body = content + google_crc32c.value(content).to_bytes(4, "little")
    index = np.array([(0, len(body)), (2**64 - 1, 2**64 - 1)], dtype="<u8").tobytes()
    path.write_bytes(body + index + google_crc32c.value(index).to_bytes(4, "little"))
    resealed(store)


def test_a_bomb_that_is_sealed_in_is_not_decoded(sealed: Path) -> None:
    bomb = numcodecs.blosc.compress(np.zeros(2**27, dtype=np.float16), b"lz4", 9, 2)
    forged_chunk(sealed, bytes(bomb))
    assert verify_files(sealed) == []
    with pytest.raises(
        CorruptStoreError, match=r"codes of view 0 of 'test', rows 0 to 2: damaged \(a chunk of 30 bytes"
    ):
        open_store(sealed, split="test").plane(0)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1.0, -1.0])
def test_codes_that_no_encoder_writes_are_refused(sealed: Path, value: float) -> None:
    codes = np.zeros((3, stores.CLASSES), dtype=np.float16)
    codes[1] = value
    forged_chunk(sealed, bytes(numcodecs.blosc.compress(codes, b"lz4", 5, 2)))
    assert verify_files(sealed) == []
    faults = verify_deep(sealed)
    assert faults[0] == "codes of view 0 of 'test', rows 0 to 2: no valid values in 1 row"
    with pytest.raises(CorruptStoreError, match="no valid values in 1 row"):
        open_store(sealed, split="test").logits([0])


def test_a_hole_in_the_row_maxima_is_refused(sealed: Path) -> None:
    path = sealed / "test/row_max/c/0/0"
    values = np.array([1, np.nan, 3, 4, 5, np.inf], dtype=np.float32)
    content = bytes(numcodecs.blosc.compress(values, b"lz4", 5, 2))
    path.write_bytes(content + google_crc32c.value(content).to_bytes(4, "little"))
    resealed(sealed)
    assert verify_files(sealed) == []
    assert verify_deep(sealed) == ["row_max of view 0 of 'test', rows 0 to 5: no valid values in 2 rows"]


def test_a_shard_without_a_chunk_is_refused(sealed: Path) -> None:
    """Zarr would read it as fill value."""
    path = sealed / "train/codes/c/1/2/0"
    index = np.full((2, 2), 2**64 - 1, dtype="<u8").tobytes()
    path.write_bytes(index + google_crc32c.value(index).to_bytes(4, "little"))
    resealed(sealed)
    fault = "codes of view 1 of 'train', rows 16 to 19: damaged (the chunk is missing from its shard)"
    assert verify_deep(sealed) == [fault]
    with pytest.raises(CorruptStoreError, match="missing from its shard"):
        open_store(sealed).plane(1)


def test_a_shard_that_the_manifest_leaves_out_is_refused(sealed: Path) -> None:
    shutil.rmtree(sealed / "train/codes/c/1/2")
    resealed(sealed)
    with pytest.raises(CorruptStoreError, match=r"lists 5 shards of 'train', expected 6"):
        open_store(sealed)


def damage_files(store: Path) -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield what can happen to whole files, by name; sizes stay as they were but for truncation."""
    first, second, third = (store / f"train/codes/c/0/{shard}/0" for shard in (0, 1, 2))
    maxima = store / "train/row_max/c/0/0", store / "train/row_max/c/1/0"
    random = np.random.default_rng(3)
    for path in sorted(path for path in store.rglob("*") if path.is_file()):
        content = path.read_bytes()
        for size in random.integers(0, len(content), 4):
            yield (
                f"{path} cut to {size}",
                lambda path=path, size=size, content=content: path.write_bytes(content[:size]),
            )
    yield "deleted", third.unlink
    yield "duplicated", lambda: second.write_bytes(first.read_bytes())
    yield "other view", lambda: maxima[0].write_bytes(maxima[1].read_bytes())
    yield "stray copy", lambda: shutil.copy(first, first.with_name("1"))
    yield "zeros", lambda: first.write_bytes(bytes(first.stat().st_size))


def test_damaged_files_are_found_by_verify_and_by_reading(sealed: Path) -> None:
    before, whole = contents(sealed), everything(sealed)
    for what, damage in damage_files(sealed):
        damage()
        with contextlib.suppress(KdpipeError):
            assert verify_files(sealed), what
        with contextlib.suppress(KdpipeError):
            assert everything(sealed) == whole, what
            pytest.fail(f"reading did not notice: {what}")
        for path in set(contents(sealed)) - set(before):
            (sealed / path).unlink()
        for name, content in before.items():
            (sealed / name).write_bytes(content)
    assert verify_files(sealed) == verify_deep(sealed) == []


@pytest.mark.parametrize("name", ["numcodecs.pickle", "pickle", "numcodecs.json2", "zstd", "gzip", "vlen-utf8"])
@pytest.mark.parametrize("array", ["codes", "row_max", "labels", "sample_id"])
def test_other_codecs_are_never_run(sealed: Path, name: str, array: str) -> None:
    path = sealed / "train" / array / "zarr.json"
    metadata = json.loads(path.read_bytes())
    chain = metadata["codecs"][0]["configuration"]["codecs"] if array == "codes" else metadata["codecs"]
    chain[1] = {"name": name, "configuration": {"protocol": 5}}
    path.write_text(json.dumps(metadata))
    resealed(sealed)
    with pytest.raises(CorruptStoreError, match=f"train/{array}: codecs is .*{name}"):
        open_store(sealed)


def test_verify_deep_finds_each_damaged_chunk_once(sealed: Path) -> None:
    for name, at in (("train/codes/c/0/0/0", 20), ("train/codes/c/1/2/0", 20), ("train/row_max/c/1/1", 20)):
        content = bytearray((sealed / name).read_bytes())
        content[at] ^= 1
        (sealed / name).write_bytes(content)
    assert [fault.split(":")[0] for fault in verify_deep(sealed)] == [
        "codes of view 0 of 'train', rows 0 to 3",
        "codes of view 1 of 'train', rows 16 to 19",
        "row_max of view 1 of 'train', rows 8 to 15",
    ]
    assert len(verify_files(sealed)) == 3
