"""Checks of a sealed store against its manifest: every file, and with ``verify_deep`` every value."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from kdpipe.errors import StoreError, UnsealedStoreError
from kdpipe.progress import Progress, silent
from kdpipe.store import manifest
from kdpipe.store.manifest import Manifest, missing_or_resized
from kdpipe.store.reader import open_store


def verify_files(store: Path, *, progress: Progress = silent) -> list[str]:
    """Check every file's name, size and digest, and the shapes and ids; return one line per fault.

    Raises:
        StoreError: the manifest cannot be read, or the store is not sealed.
    """
    found = manifest.read(store)
    if found.state != "sealed":
        raise UnsealedStoreError(f"{store} is not sealed: finish its build with the same command, then verify it.")
    faults = missing_or_resized(store, found)
    present = [name for name in found.files if (store / name).is_file()]
    with (
        ThreadPoolExecutor(os.cpu_count()) as pool,
        progress("verifying", total=len(present), unit="files") as done,
    ):
        for name, digest in zip(
            present, pool.map(lambda name: manifest.digest_file(store / name), present), strict=True
        ):
            if digest != found.files[name].digest:
                faults.append(f"{name} does not match its digest")
            done(1)
    return faults or _refusals(store, found)


def _refusals(store: Path, found: Manifest) -> list[str]:
    """Open every split, which checks shapes, chunks, codecs and the side arrays; return the errors."""
    refusals = []
    for split in found.splits:
        try:
            open_store(store, split=split)
        except StoreError as error:
            refusals.append(str(error).removeprefix(f"{store}: "))
    return refusals


def verify_deep(store: Path, *, progress: Progress = silent) -> list[str]:
    """Decode every chunk of every split and check checksums, digests, row maxima and codes; return one line per fault.

    It takes the memory of one shard and of the side arrays.

    Raises:
        StoreError: the store cannot be opened.
    """
    splits = [open_store(store, split=split) for split in manifest.read(store).splits]
    views = [(opened, view) for opened in splits for view in range(opened.num_views + 1)]
    faults: list[str] = []
    with progress("decoding", total=len(views), unit="views") as done:
        for opened, view in views:
            faults += opened.faults(view)
            done(1)
    return faults
