"""Content digests that a build learns in the pass, because its images were not read before it.

They come with the shards of the plain view, and are kept in the ledger. Before the store is sealed they become its side
array, as if they had been known from the start.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import zarr

from kdpipe import durable
from kdpipe.errors import CorruptStoreError
from kdpipe.store import arrays
from kdpipe.store.ledger import Entry
from kdpipe.store.manifest import Manifest
from kdpipe.store.plan import Shard
from kdpipe.store.tree import CONTENTS

Ids = npt.NDArray[np.uint8]


def learned(done: Mapping[str, Entry], shards: Sequence[Shard], samples: int) -> Ids:
    """Return the content digests of the finished shards of a plane, ``(n, 16)``; zeros for the others.

    Raises:
        CorruptStoreError: the ledger has other digests than those of the shard.
    """
    found = np.zeros((samples, 16), dtype=np.uint8)
    for shard in shards:
        entry = done.get(shard.paths[0])
        if entry is not None and entry.contents is not None:
            try:
                digests = np.frombuffer(base64.b64decode(entry.contents, validate=True), dtype=np.uint8)
                found[shard.start : shard.stop] = digests.reshape(shard.stop - shard.start, 16)
            except (binascii.Error, ValueError):
                raise CorruptStoreError(
                    f"the ledger has no content digests of {shard.paths[0]}: it was damaged. Rebuild the store with "
                    "--overwrite."
                ) from None
    return found


def stale(done: Mapping[str, Entry], shards: Iterable[Shard], split: str, rows: npt.NDArray[np.int64]) -> list[Shard]:
    """Return the shards of a split, of all views, of which files are finished and that have some of ``rows``."""
    return [
        shard
        for shard in shards
        if shard.split == split
        and any(path in done for path in shard.paths)
        and ((shard.start <= rows) & (rows < shard.stop)).any()
    ]


def settled(
    path: Path, root: zarr.Group, found: Manifest, contents: Mapping[str, Ids], dataset: Mapping[str, str]
) -> Manifest:
    """Write the content digests of each split, and return the manifest of a store that knows them.

    The manifest is not written: until the store is sealed, the ledger has the digests.
    """
    for split, digests in contents.items():
        arrays.member(root, split, CONTENTS)[...] = digests
        for file in sorted((path / split / CONTENTS).rglob("*")):
            if file.is_file():
                durable.fsync_file(file, up_to=path)
    fingerprint = found.fingerprint.model_copy(update={"dataset": dict(dataset)})
    return found.model_copy(update={"fingerprint": fingerprint, "unread": False})
