"""The arrays of one split: their names, shapes, chunking and codecs, for writing and for checking."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numcodecs.blosc
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec

from kdpipe.store.manifest import Split

_SIDE_ROWS = 1_048_576
"""Rows per chunk of the arrays that hold one small entry per sample."""


@dataclass(frozen=True)
class Spec:
    """What one array must look like."""

    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    shards: tuple[int, ...] | None
    dtype: str
    dimensions: tuple[str, ...]
    fill: float | int


def specs(split: Split, *, width: int, dtype: str, probes: int) -> dict[str, Spec]:
    """Return the arrays of a split by name; ``width`` is the number of codes per sample."""
    samples, planes = split.samples, split.planes
    side = min(samples, _SIDE_ROWS)
    code_fill: float | int = float("nan") if dtype.startswith("float") else 0
    return {
        "codes": Spec(
            (planes, samples, width),
            (1, split.chunk_rows, width),
            (1, split.shard_rows, width),
            dtype,
            ("view", "sample", "class"),
            code_fill,
        ),
        "row_max": Spec((planes, samples), (1, split.shard_rows), None, "float32", ("view", "sample"), float("nan")),
        "labels": Spec((samples,), (side,), None, "int32", ("sample",), -1),
        "sample_id": Spec((samples, 16), (side, 16), None, "uint8", ("sample", "byte"), 0),
        "content_digest": Spec((samples, 16), (side, 16), None, "uint8", ("sample", "byte"), 0),
        "probe_row": Spec((probes,), (probes,), None, "int64", ("probe",), -1),
        "probe_hash": Spec((planes, probes), (planes, probes), None, "uint64", ("view", "probe"), 0),
    }


def create(group: zarr.Group, expected: dict[str, Spec]) -> None:
    """Create the arrays of a split in its group."""
    for name, spec in expected.items():
        group.create_array(
            name,
            shape=spec.shape,
            chunks=spec.chunks,
            shards=spec.shards,
            dtype=spec.dtype,
            fill_value=spec.fill,
            dimension_names=spec.dimensions,
            compressors=[BloscCodec(cname="lz4", shuffle="bitshuffle", clevel=5), Crc32cCodec()],
        )


def differences(array: zarr.Array[Any], spec: Spec) -> str | None:
    """Say how an array's metadata differs from what the manifest implies, or return ``None``."""
    checks = (
        ("shape", tuple(array.shape), spec.shape),
        ("dtype", str(array.dtype), spec.dtype),
        ("chunks", tuple(array.chunks), spec.chunks),
        ("shards", None if array.shards is None else tuple(array.shards), spec.shards),
        ("codecs", [type(codec).__name__ for codec in array.compressors], ["BloscCodec", "Crc32cCodec"]),
    )
    for what, found, expected in checks:
        if found != expected:
            return f"{what} is {found}, expected {expected}"
    return None


def open_root(store: Path, *, mode: Literal["r", "r+"] = "r") -> zarr.Group:
    """Open the store's root group, Zarr format 3 only, ignoring consolidated metadata."""
    # Blosc's own threads order a chunk's blocks differently from run to run.
    numcodecs.blosc.use_threads = False
    return zarr.open_group(store, mode=mode, zarr_format=3, use_consolidated=False)


def member(root: zarr.Group, split: str, name: str) -> zarr.Array[Any]:
    """Return one of a split's arrays; raises ``KeyError`` where it is missing or no array."""
    node = root[f"{split}/{name}"]
    if not isinstance(node, zarr.Array):
        raise KeyError(f"{split}/{name} is not an array")
    return node


def code_path(split: str, view: int, shard: int) -> str:
    """Return the path of a shard of codes, relative to the store."""
    return f"{split}/codes/c/{view}/{shard}/0"


def row_max_path(split: str, view: int, shard: int) -> str:
    """Return the path of a shard's row maxima, relative to the store."""
    return f"{split}/row_max/c/{view}/{shard}"
