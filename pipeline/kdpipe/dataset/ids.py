"""Identity of samples: ids from their keys, digests of their content, and fingerprints of both; all by BLAKE3."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import islice

import numpy as np
import numpy.typing as npt
from blake3 import blake3

from kdpipe.dataset.names import Names
from kdpipe.errors import DatasetError

ID_BYTES = 16
_BLOCK = 65_536
"""Digests that are Python objects at a time."""


def sample_id(key: str) -> bytes:
    """Return the 16-byte BLAKE3 digest of a sample's key, encoded as UTF-8."""
    return blake3(key.encode()).digest(length=ID_BYTES)


def sample_ids(keys: Sequence[str]) -> npt.NDArray[np.uint8]:
    """Return the ids of ``keys`` as uint8 ``(n, 16)``.

    Raises:
        DatasetError: A key occurs twice, or cannot be written as UTF-8.
    """
    names = Names.of(keys)
    if (wrong := names.first_invalid()) is not None:
        raise DatasetError(f"the sample name {wrong!r} is not valid UTF-8; rename it")
    ids = digests_of(names)
    if (repeated := _repeated(ids)) is not None:
        key = names[repeated]
        raise DatasetError(f"two samples have the key {key!r} (names are compared in Unicode form NFC); rename one")
    return ids


def digests_of(names: Names) -> npt.NDArray[np.uint8]:
    """Return BLAKE3-128 of each name in UTF-8, uint8 ``(n, 16)``."""
    digests, encoded = np.empty((len(names), ID_BYTES), dtype=np.uint8), names.encoded()
    for first in range(0, len(names), _BLOCK):
        block = b"".join([blake3(name).digest(ID_BYTES) for name in islice(encoded, _BLOCK)])
        digests[first : first + _BLOCK] = np.frombuffer(block, dtype=np.uint8).reshape(-1, ID_BYTES)
    return digests


def _repeated(ids: npt.NDArray[np.uint8]) -> int | None:
    """Return the index of an id that was there before, of the first such; ``None`` if all differ."""
    heads = np.sort(_heads(ids))
    if not (heads[1:] == heads[:-1]).any():
        return None
    _, first = np.unique(_as_keys(ids), return_index=True)
    again = np.setdiff1d(np.arange(len(ids)), first)
    return int(again[0]) if len(again) else None


def find_ids(wanted: npt.NDArray[np.uint8], among: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """Return the index in ``among``, uint8 ``(m, 16)``, of each of ``wanted``, int64 ``(n,)``; -1 for none."""
    if not len(among):
        return np.full(len(wanted), -1)
    heads = _heads(among)
    order = np.argsort(heads, kind="stable")
    ordered = heads[order]
    if (ordered[1:] == ordered[:-1]).any():
        keys = _as_keys(among)
        order = np.argsort(keys, kind="stable")
        places = np.searchsorted(keys[order], _as_keys(wanted))
    else:
        places = np.searchsorted(ordered, _heads(wanted))
    indices: npt.NDArray[np.int64] = order[places.clip(max=len(among) - 1)]
    return np.where((among[indices] == wanted).all(axis=1), indices, -1)


def _heads(ids: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint64]:
    """Return the first half of each id as a number: numbers are sorted ten times faster than bytes."""
    return np.ascontiguousarray(ids).view("<u8").reshape(-1, 2)[:, 0]


def _as_keys(ids: npt.NDArray[np.uint8]) -> npt.NDArray[np.void]:
    return np.ascontiguousarray(ids).view(np.dtype((np.void, ID_BYTES))).reshape(-1)


def as_digests(joined: bytes) -> npt.NDArray[np.uint8]:
    """Return concatenated 16-byte digests as a writable uint8 ``(n, 16)`` array."""
    return np.frombuffer(joined, dtype=np.uint8).reshape(-1, ID_BYTES).copy()


def bytes_digest(content: bytes) -> bytes:
    """Return the content digest of a file: BLAKE3-128 of its bytes."""
    return blake3(content).digest(length=ID_BYTES)


def array_digest(pixels: npt.NDArray[np.uint8]) -> bytes:
    """Return the content digest of a uint8 ``(3, height, width)`` array: BLAKE3-128 of shape and pixels."""
    shape = np.asarray(pixels.shape, dtype="<u4").tobytes()
    return blake3(shape + pixels.tobytes()).digest(length=ID_BYTES)


def fingerprint(ids: npt.NDArray[np.uint8], digests: npt.NDArray[np.uint8], *, classes: Sequence[str]) -> str:
    """Return 32 hex digits over the sample ids and content digests in order, and the class names in order.

    Hard labels are not covered: correcting a label must not void a teacher pass.
    """
    names = json.dumps(list(classes), ensure_ascii=True).encode()
    head = b"kdpipe dataset 1" + len(ids).to_bytes(8, "little")
    return blake3(head + ids.tobytes() + digests.tobytes() + names).hexdigest(length=ID_BYTES)


def identity(ids: npt.NDArray[np.uint8], digests: npt.NDArray[np.uint8], *, classes: Sequence[str]) -> str:
    """Return the fingerprint, or that of the names alone where some content is unknown, a digest of zeros."""
    if digests.any(axis=1).all():
        return fingerprint(ids, digests, classes=classes)
    return names_fingerprint(ids, classes=classes)


def names_fingerprint(ids: npt.NDArray[np.uint8], *, classes: Sequence[str]) -> str:
    """Return 32 hex digits over the sample ids and the class names in order; no ``fingerprint`` is equal to it."""
    names = json.dumps(list(classes), ensure_ascii=True).encode()
    head = b"kdpipe names 1" + len(ids).to_bytes(8, "little")
    return blake3(head + ids.tobytes() + names).hexdigest(length=ID_BYTES)
