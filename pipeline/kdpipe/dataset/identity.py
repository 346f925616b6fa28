"""Sample ids, content digests, the fingerprint of a dataset, and the choice of samples by their ids."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from blake3 import blake3

from kdpipe.errors import DatasetError

ID_BYTES = 16


def sample_id(key: str) -> bytes:
    """Return the 16-byte BLAKE3 digest of a sample's key, encoded as UTF-8."""
    return blake3(key.encode()).digest(length=ID_BYTES)


def sample_ids(keys: Sequence[str]) -> npt.NDArray[np.uint8]:
    """Return the ids of ``keys`` as uint8 ``(n, 16)``.

    Raises:
        DatasetError: A key occurs twice, or cannot be written as UTF-8.
    """
    seen: set[str] = set()
    for key in keys:
        if key in seen:
            raise DatasetError(f"two samples have the key {key!r} (names are compared in Unicode form NFC); rename one")
        seen.add(key)
    try:
        joined = b"".join(map(sample_id, keys))
    except UnicodeEncodeError as error:
        raise DatasetError(f"the sample name {error.object!r} is not valid UTF-8; rename it") from None
    return as_digests(joined)


def find_ids(wanted: npt.NDArray[np.uint8], among: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """Return the index in ``among``, uint8 ``(m, 16)``, of each of ``wanted``, int64 ``(n,)``; -1 for none."""
    known, keys = _as_keys(among), _as_keys(wanted)
    order = np.argsort(known)
    indices: npt.NDArray[np.int64] = order[np.searchsorted(known[order], keys).clip(max=len(known) - 1)]
    return np.where(known[indices] == keys, indices, -1)


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


def ranks_in_class(ids: npt.NDArray[np.uint8], labels: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
    """Return each sample's rank within its class by the bytes of its id, from 0. No label (-1) is a class, too."""
    order = np.lexsort([*ids.T[::-1], labels])
    grouped = labels[order]
    starts = np.searchsorted(grouped, grouped, side="left")
    ranks = np.empty(len(ids), dtype=np.int64)
    ranks[order] = np.arange(len(ids)) - starts
    return ranks


def balanced_indices(
    ids: npt.NDArray[np.uint8], labels: npt.NDArray[np.int32], *, limit: int | None
) -> npt.NDArray[np.int64]:
    """Return the indices of a fixed, class-balanced subset of at most ``limit`` samples, in dataset order.

    Samples are taken by their rank within their class, then by class, so that a smaller limit gives a subset of a
    larger one. Samples without a label (-1) are a class, too.
    """
    if limit is None or limit >= len(ids):
        return np.arange(len(ids), dtype=np.int64)
    return np.sort(np.lexsort((labels, ranks_in_class(ids, labels)))[:limit]).astype(np.int64)
