"""A split's side arrays, one small entry per sample or probe: bounded, compared with their digests, and read whole."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kdpipe.errors import CorruptStoreError, StoreError
from kdpipe.store import manifest, shards
from kdpipe.store.arrays import SIDE, Spec
from kdpipe.store.manifest import Manifest

_ALWAYS_ALLOWED = 64 * 1024**2
"""Bytes of side arrays that are read whatever the memory limit: 1.8 million samples."""


def check_size(store: Path, split: str, specs: dict[str, Spec], *, memory_limit: int) -> None:
    """Refuse side arrays that claim more memory than the limit, before anything is allocated.

    Raises:
        StoreError: they do; the message names the limit.
    """
    claimed = sum(math.prod(spec.shape) * np.dtype(spec.dtype).itemsize for name, spec in specs.items() if name in SIDE)
    if claimed > max(memory_limit, _ALWAYS_ALLOWED):
        raise StoreError(
            f"{store}: the ids, digests and labels of '{split}' would take {claimed:,} bytes of memory, the limit is "
            f"{memory_limit:,}. If you trust the store, raise the memory limit."
        )


def read(store: Path, found: Manifest, split: str, name: str, spec: Spec) -> npt.NDArray[Any]:
    """Return a side array. A chunk that the manifest does not list is one of the fill value, but in ``sample_id``.

    Raises:
        CorruptStoreError: a file is damaged, or is not the one of the manifest.
    """
    rows = spec.chunks[0]
    out = np.empty(spec.shape, spec.dtype)
    for number, start in enumerate(range(0, spec.shape[0], rows or 1)):
        file = "/".join(map(str, (split, name, "c", number, *[0] * (len(spec.shape) - 1))))
        if file not in found.files and name != "sample_id":
            out[start : start + rows] = spec.fill
            continue
        chunk = np.empty(spec.chunks, spec.dtype)
        try:
            shards.read_file(store / file, chunk)
        except (ValueError, RuntimeError, OSError) as error:
            raise CorruptStoreError(f"{store}: {file} is damaged ({error}). Run: kdpipe verify {store}") from error
        if file not in found.files or manifest.digest_file(store / file) != found.files[file].digest:
            raise CorruptStoreError(f"{store}: {file} does not match its digest. Run: kdpipe verify {store}")
        out[start : start + rows] = chunk[: spec.shape[0] - start]
    return out
