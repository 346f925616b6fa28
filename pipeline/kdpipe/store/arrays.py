"""The arrays of one split: their names, shapes, chunks and codecs, and the decoder of their files, without Zarr.

Everything in a file is checked before it is used, since the format is fixed. A chunk is a Blosc buffer (lz4 or zstd, or
stored if that is smaller) and its crc32c, 4 bytes. A shard is a file of chunks with an index at its end: the
``(offset, size)`` of each chunk as uint64 pairs, both 2^64 - 1 for a missing chunk, and the index's own crc32c. All
numbers are little-endian. Faults raise ``ValueError``; the caller adds the rows that they affect.
"""

from __future__ import annotations

import json
import math
import os
import shlex
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal, NamedTuple

import google_crc32c
import numcodecs.blosc
import numpy as np
import numpy.typing as npt
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec, TransposeCodec

from kdpipe.encoding.base import LZ4, Compression, Encoding
from kdpipe.errors import CorruptStoreError, KdpipeError, StoreError
from kdpipe.reading import open_regular, parse_json, read_bytes
from kdpipe.store import manifest
from kdpipe.store.manifest import Manifest
from kdpipe.store.sections import Shape, Split, array_name
from kdpipe.store.tree import PIXELS, SIDE

MAX_CHUNK_BYTES = 2**31 - 1 - 16
"""Capacity of one Blosc buffer."""

_HEADER = struct.Struct("<BBBBIII")
_FORMAT = (2, 1)
"""Versions of Blosc's format and of its lz4 and zstd formats."""
_STORED = 0x02
_CODECS = (1, 4)
"""Blosc's numbers for lz4 and zstd."""
_CRC_BYTES = 4
_ENTRY_BYTES = 16
_ABSENT = 2**64 - 1

_Bytes = npt.NDArray[np.uint8]


class _Place(NamedTuple):
    offset: int
    size: int


def read_chunk(path: Path, number: int, chunks: int, out: npt.NDArray[Any]) -> None:
    """Decode chunk ``number`` of a shard of ``chunks`` into ``out``, C-contiguous and of exactly the chunk's size.

    Raises:
        ValueError: the index or the chunk is damaged or was never written; the content of ``out`` is then undefined.
        OSError: the file cannot be read.
    """
    with open_regular(path) as file:
        place = _find(file.fileno(), number, chunks)
        _decode(file.fileno(), place, out)


def read_file(path: Path, out: npt.NDArray[Any]) -> None:
    """Decode a file of one chunk into ``out``; see ``read_chunk``."""
    with open_regular(path) as file:
        _decode(file.fileno(), _Place(0, os.fstat(file.fileno()).st_size), out)


def _find(descriptor: int, number: int, chunks: int) -> _Place:
    """Look up a chunk in a shard's index, after checking the whole index."""
    length = chunks * _ENTRY_BYTES + _CRC_BYTES
    body = os.fstat(descriptor).st_size - length
    if body < 0:
        raise ValueError(f"the file is too short for the index of {chunks} chunks")
    index = _checked(_read(descriptor, _Place(body, length)), "the shard's index")
    entries = index.view("<u8").reshape(chunks, 2)
    offsets, sizes = entries[(entries != _ABSENT).any(axis=1)].T
    if (sizes > body).any() or (offsets > body - sizes).any():
        raise ValueError("the shard's index points outside the file")
    order = np.argsort(offsets)
    if (offsets[order][1:] < (offsets + sizes)[order][:-1]).any():
        raise ValueError("the shard's index has chunks that overlap")
    place = _Place(*entries[number].tolist())
    if place == (_ABSENT, _ABSENT):
        raise ValueError("the chunk is missing from its shard")
    return place


def _decode(descriptor: int, place: _Place, out: npt.NDArray[Any]) -> None:
    if place.size > out.nbytes + _HEADER.size + _CRC_BYTES:
        raise ValueError(f"a chunk of {out.nbytes} bytes takes {place.size}")
    content = _checked(_read(descriptor, place), "the chunk")
    _check_header(content, out)
    numcodecs.blosc.decompress(content, out)


def _read(descriptor: int, place: _Place) -> _Bytes:
    content = os.pread(descriptor, place.size, place.offset)
    if len(content) != place.size:
        raise ValueError("the file ends too early")
    return np.frombuffer(content, dtype=np.uint8)


def _checked(content: _Bytes, what: str) -> _Bytes:
    """Return ``content`` without the checksum at its end, after comparing them."""
    body = content[:-_CRC_BYTES]
    if google_crc32c.value(body) != int.from_bytes(content[-_CRC_BYTES:].tobytes(), "little"):
        raise ValueError(f"{what} does not match its checksum")
    return body


def _check_header(content: _Bytes, out: npt.NDArray[Any]) -> None:
    """Check that Blosc will fill exactly ``out`` from exactly ``content``, by lz4, zstd or a plain copy."""
    if len(content) < _HEADER.size:
        raise ValueError("the chunk is shorter than a Blosc header")
    version, codec_version, flags, item_bytes, decoded, block, encoded = _HEADER.unpack(
        content[: _HEADER.size].tobytes()
    )
    if (version, codec_version) != _FORMAT or not (flags >> 5 in _CODECS or flags & _STORED):
        raise ValueError("the chunk is no Blosc buffer of lz4 or zstd")
    if (decoded, encoded) != (out.nbytes, len(content)):
        raise ValueError(f"the chunk claims {encoded} bytes for {decoded}, expected {len(content)} for {out.nbytes}")
    if not 0 < block <= decoded or item_bytes != out.itemsize:
        raise ValueError("the chunk's Blosc header contradicts itself")


_SIDE_ROWS = 1_048_576
"""Rows per chunk of the arrays that hold one small entry per sample."""


_MAX_METADATA_BYTES = 65_536
_TRANSPOSED = (0, 2, 1)
"""Order of the dimensions (view, sample, class) in a chunk of an encoding whose ``Compression`` is transposed."""


@dataclass(frozen=True)
class Spec:
    """Shape, chunks, dtype and compression of one array."""

    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    shards: tuple[int, ...] | None
    dtype: str
    dimensions: tuple[str, ...]
    fill: float | int
    compression: Compression = LZ4


def specs(
    split: Split, *, encoding: Encoding, classes: int, signals: Mapping[str, Shape] | None = None
) -> dict[str, Spec]:
    """Return the arrays of a split by name; ``signals`` are shapes by name, as ``Manifest.kept``."""
    width, dtype = encoding.width(classes), encoding.dtype
    samples, planes, probes = split.samples, split.planes, split.probes
    side = min(samples, _SIDE_ROWS)
    code_fill: float | int = float("nan") if dtype.startswith("float") else 0
    found = {
        "codes": Spec(
            (planes, samples, width),
            (1, split.chunk_rows, width),
            (1, split.shard_rows, width),
            dtype,
            ("view", "sample", "class"),
            code_fill,
            encoding.compression,
        ),
        "row_max": Spec((planes, samples), (1, split.shard_rows), None, "float32", ("view", "sample"), float("nan")),
        "labels": Spec((samples,), (side,), None, "int32", ("sample",), -1),
        "sample_id": Spec((samples, 16), (side, 16), None, "uint8", ("sample", "byte"), 0),
        "content_digest": Spec((samples, 16), (side, 16), None, "uint8", ("sample", "byte"), 0),
        "probe_row": Spec((probes,), (max(1, probes),), None, "int64", ("probe",), -1),
        "probe_hash": Spec((planes, probes), (planes, max(1, probes)), None, "uint64", ("view", "probe"), 0),
    }
    if split.pixel_digests:
        found[PIXELS] = Spec((samples, 16), (split.shard_rows, 16), None, "uint8", ("sample", "byte"), 0)
    for name, shape in (signals or {}).items():
        length = math.prod(shape)
        found[array_name(name)] = Spec(
            (planes, samples, length),
            (1, split.chunk_rows, length),
            (1, split.shard_rows, length),
            "float16",
            ("view", "sample", "feature" if len(shape) == 1 else "place"),
            float("nan"),
        )
    return found


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
            filters=[TransposeCodec(order=_TRANSPOSED)] if spec.compression.transposed else [],
            compressors=[
                BloscCodec(
                    cname=spec.compression.cname,
                    shuffle=spec.compression.shuffle,
                    clevel=spec.compression.level,
                    blocksize=spec.compression.block,
                ),
                Crc32cCodec(),
            ],
        )


def check(store: Path, split: str, expected: dict[str, Spec]) -> str | None:
    """Compare a split's metadata files with the manifest before Zarr reads them; return the first difference.

    Codecs are compared by name and position, so that only ``bytes``, ``blosc`` and ``crc32c`` ever run, and
    ``transpose`` where the encoding asks for it.
    """
    group = _document(store / split / "zarr.json")
    if group.get("zarr_format") != 3 or group.get("node_type") != "group":
        return f"{split} is no group of Zarr format 3"
    for name, spec in expected.items():
        found = _document(store / split / name / "zarr.json")
        for key, value in _metadata(spec).items():
            if _codec_names(found.get(key)) != value if key == "codecs" else found.get(key) != value:
                return f"{split}/{name}: {key} is {json.dumps(found.get(key))[:200]}, expected {json.dumps(value)}"
    return None


def _document(path: Path) -> dict[str, Any]:
    try:
        document = parse_json(read_bytes(path, limit=_MAX_METADATA_BYTES), of=path)
    except KdpipeError:
        return {}
    return document if isinstance(document, dict) else {}


def _metadata(spec: Spec) -> dict[str, Any]:
    """Return the entries of ``zarr.json`` that decoding depends on."""
    transposed = [["transpose", list(_TRANSPOSED)]] if spec.compression.transposed else []
    compressed: list[Any] = [*transposed, "bytes little", "blosc", "crc32c"]
    codecs = compressed
    if spec.shards is not None:
        codecs = [["sharding_indexed", list(spec.chunks), compressed, ["bytes little", "crc32c"], "end"]]
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(spec.shape),
        "data_type": spec.dtype,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(spec.shards or spec.chunks)}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": "NaN" if spec.fill != spec.fill else spec.fill,
        "codecs": codecs,
        "storage_transformers": [],
    }


def _codec_names(codecs: Any) -> Any:
    """Reduce a list of codecs to their names, with the settings that decoding depends on."""
    if not isinstance(codecs, list):
        return codecs
    names: list[Any] = []
    for codec in codecs:
        name, settings = (codec.get("name"), codec.get("configuration")) if isinstance(codec, dict) else (codec, None)
        settings = settings if isinstance(settings, dict) else {}
        if name == "bytes":
            name = f"bytes {settings.get('endian', 'little')}"
        elif name == "transpose":
            name = [name, settings.get("order")]
        elif name == "sharding_indexed":
            chains = (_codec_names(settings.get(key)) for key in ("codecs", "index_codecs"))
            name = [name, settings.get("chunk_shape"), *chains, settings.get("index_location", "end")]
        names.append(name)
    return names


def side_files(split: str, expected: dict[str, Spec]) -> set[str]:
    """Return every path that a split may hold besides its shards; chunks of fill value may have no file."""
    paths = {f"{split}/zarr.json"}
    for name, spec in expected.items():
        paths.add(f"{split}/{name}/zarr.json")
        if name in SIDE:
            grid = [range(-(-length // chunk)) for length, chunk in zip(spec.shape, spec.chunks, strict=True)]
            paths |= {f"{split}/{name}/c/{'/'.join(map(str, place))}" for place in product(*grid)}
    return paths


def open_root(store: Path, *, mode: Literal["r", "r+"] = "r") -> zarr.Group:
    """Open the store's root group, Zarr format 3 only, ignoring consolidated metadata."""
    # Blosc's own threads order a chunk's blocks differently in each run.
    numcodecs.blosc.use_threads = False
    return zarr.open_group(store, mode=mode, zarr_format=3, use_consolidated=False)


def member(root: zarr.Group, split: str, name: str) -> zarr.Array[Any]:
    """Return one of a split's arrays; raises ``KeyError`` if it is missing or no array."""
    node = root[f"{split}/{name}"]
    if not isinstance(node, zarr.Array):
        raise KeyError(f"{split}/{name} is not an array")
    return node


def shard_path(split: str, name: str, *, view: int, shard: int) -> str:
    """Return the path of a shard of one of the arrays, relative to the store."""
    if name == PIXELS:
        return f"{split}/{name}/c/{shard}/0"
    return f"{split}/{name}/c/{view}/{shard}" + ("" if name == "row_max" else "/0")


_ALWAYS_ALLOWED = 64 * 1024**2
"""Bytes of side arrays that may be read with any memory limit: 1.8 million samples."""


def check_side_size(store: Path, split: str, specs: Iterable[dict[str, Spec]], *, memory_limit: int) -> None:
    """Compare the memory of the side arrays of a split's segments with the limit, before anything is allocated.

    Raises:
        StoreError: they exceed the limit.
    """
    claimed = sum(
        math.prod(spec.shape) * np.dtype(spec.dtype).itemsize
        for segment in specs
        for name, spec in segment.items()
        if name in SIDE
    )
    if claimed > max(memory_limit, _ALWAYS_ALLOWED):
        raise StoreError(
            f"{store}: the ids, digests and labels of '{split}' take {claimed:,} bytes of memory, the limit is "
            f"{memory_limit:,}. If you trust the store, raise memory_limit (--memory-limit)."
        )


def read_side(store: Path, found: Manifest, split: str, name: str, spec: Spec) -> npt.NDArray[Any]:
    """Return a side array. Except in ``sample_id``, a chunk that the manifest does not list holds the fill value.

    The files of a store under construction are not listed: those on disk count, and have no digests yet.

    Raises:
        CorruptStoreError: a file is damaged, or differs from the manifest.
    """
    rows, sealed = spec.chunks[0], found.state == "sealed"
    out = np.empty(spec.shape, spec.dtype)
    for number, start in enumerate(range(0, spec.shape[0], rows or 1)):
        file = "/".join(map(str, (split, name, "c", number, *[0] * (len(spec.shape) - 1))))
        if name != "sample_id" and (file not in found.files if sealed else not (store / file).is_file()):
            out[start : start + rows] = spec.fill
            continue
        chunk = np.empty(spec.chunks, spec.dtype)
        try:
            read_file(store / file, chunk)
        except (ValueError, RuntimeError, OSError) as error:
            raise CorruptStoreError(
                f"{store}: {file} is damaged ({error}). Run: kdpipe verify {shlex.quote(str(store))}"
            ) from error
        if sealed and (file not in found.files or manifest.digest_file(store / file) != found.files[file].digest):
            raise CorruptStoreError(
                f"{store}: {file} does not match its digest. Run: kdpipe verify {shlex.quote(str(store))}"
            )
        out[start : start + rows] = chunk[: spec.shape[0] - start]
    return out
