"""Decoder of a store's data files, without Zarr: everything in them is checked before it is used.

The format is fixed. A chunk is a Blosc buffer (lz4 or zstd, or stored if that is smaller) and its crc32c, 4 bytes.
A shard is a file of chunks with an index at its end: the ``(offset, size)`` of each chunk as uint64 pairs, both
2^64 - 1 for a missing chunk, and the index's own crc32c. All numbers are little-endian. Faults raise ``ValueError``;
the caller adds the rows that they affect.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any, NamedTuple

import google_crc32c
import numcodecs.blosc
import numpy as np
import numpy.typing as npt

from kdpipe.reading import open_regular

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
