"""The sizes that a manifest claims, checked before memory is taken for them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from kdpipe.errors import CorruptStoreError
from kdpipe.store import arrays
from kdpipe.store.arrays import Spec
from kdpipe.store.manifest import Manifest
from kdpipe.store.plan import Limits

_LARGEST = Limits()
"""The largest shards of format 1; one of a single row may be larger."""


def check_arrays(
    store: Path, found: Manifest, split: str, specs: Mapping[str, dict[str, Spec]], *, memory_limit: int, chunk: int
) -> None:
    """Refuse sizes that format 1 does not have or the memory limit does not allow, and metadata that differ.

    ``specs`` are the arrays of each segment of a split, ``chunk`` the bytes of its largest chunk, decoded.

    Raises:
        CorruptStoreError: the manifest or the metadata was edited.
        StoreError: the side arrays exceed the limit.
    """
    for name, own in specs.items():
        _check_sizes(store, found, name, own, chunk=chunk)
    arrays.check_side_size(store, split, specs.values(), memory_limit=memory_limit)
    listed = Counter(path.split("/c/")[0] for path in found.files if "/codes/c/" in path)
    for name, own in specs.items():
        shards = found.splits[name].shards
        if listed[f"{name}/codes"] != shards:
            raise CorruptStoreError(
                f"{store} lists {listed[f'{name}/codes']} shards of '{name}', expected {shards}: its manifest was "
                "edited."
            )
        fault = arrays.check(store, name, own)
        if fault is not None:
            raise CorruptStoreError(f"{store}: {fault}.")


def _check_sizes(store: Path, found: Manifest, name: str, specs: Mapping[str, Spec], *, chunk: int) -> None:
    cut = found.splits[name]
    widest = max(spec.shape[2] * np.dtype(spec.dtype).itemsize for spec in specs.values() if spec.shards is not None)
    shard_bytes = cut.shard_rows * widest
    if (
        cut.chunk_rows > cut.samples
        or cut.shard_rows > _LARGEST.shard_rows
        or (shard_bytes > _LARGEST.shard_bytes and cut.shard_rows > 1)
        or chunk > arrays.MAX_CHUNK_BYTES
    ):
        raise CorruptStoreError(
            f"{store}: '{name}' claims {cut.samples} samples in chunks of {cut.chunk_rows} and shards of "
            f"{cut.shard_rows} rows, sizes that kdpipe never writes."
        )
