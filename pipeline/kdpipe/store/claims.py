"""Comparison of a manifest's claims with the files, and with bounds before memory is taken."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping
from itertools import chain
from pathlib import Path

import numpy as np

from kdpipe.errors import CorruptStoreError, StoreError, UnsealedStoreError, did_you_mean
from kdpipe.store import arrays, manifest
from kdpipe.store.arrays import Spec
from kdpipe.store.manifest import Manifest
from kdpipe.store.partial import Absent, Supply, place_of
from kdpipe.store.plan import LIMITS


def check_store(store: Path, found: Manifest, split: str, *, supply: Supply | None) -> Absent:
    """Compare a store's files with the manifest that was read; return those of a partial store that are not here.

    Files of the split that all views need are fetched by ``supply``, or refused, where they are not here.

    Raises:
        UnsealedStoreError: the store is not sealed.
        CorruptStoreError: files are missing, extra or of another size, or metadata was changed.
        StoreError: there is no such split, or it is not here.
    """
    if found.state != "sealed":
        raise UnsealedStoreError(
            f"{store} is not sealed: its build is still running or was interrupted. Run the same "
            "kdpipe cache-teacher command again to finish it."
        )
    faults = list(chain(*manifest.missing_or_resized(store, found).values()))
    if faults:
        more = f" ({len(faults):,} faults in all)" if len(faults) > 1 else ""
        raise CorruptStoreError(f"{store}: {faults[0]}{more}. Run: kdpipe verify {shlex.quote(str(store))}")
    if split not in found.names:
        hint = did_you_mean(split, found.names)
        raise StoreError(f"{store} has no split '{split}', only {', '.join(found.names)}{hint}")
    if found.is_part:
        raise StoreError(f"{store} holds further segments of another store alone, which cannot be read by themselves.")
    absent = manifest.absent(store, found, supply=supply)
    own = found.segments(split)
    absent.require(name for name in found.files if name.split("/")[0] in own and place_of(name)[1] is None)
    metadata_faults = [
        name
        for name, file in found.files.items()
        if name.endswith("zarr.json") and not absent.has(name) and manifest.digest_file(store / name) != file.digest
    ]
    if metadata_faults:
        raise CorruptStoreError(
            f"{store}: {metadata_faults[0]} was changed. Run: kdpipe verify {shlex.quote(str(store))}"
        )
    return absent


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
        or cut.shard_rows > LIMITS.shard_rows
        or (shard_bytes > LIMITS.shard_bytes and cut.shard_rows > 1)  # one of a single row may be larger
        or chunk > arrays.MAX_CHUNK_BYTES
    ):
        raise CorruptStoreError(
            f"{store}: '{name}' claims {cut.samples} samples in chunks of {cut.chunk_rows} and shards of "
            f"{cut.shard_rows} rows, sizes that kdpipe never writes."
        )
