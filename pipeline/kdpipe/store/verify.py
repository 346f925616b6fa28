"""Checks of a sealed store against its manifest: every file, and with ``verify_deep`` every value."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from kdpipe.errors import StaleStoreError, StoreError, UnsealedStoreError
from kdpipe.progress import Progress, silent
from kdpipe.store import manifest, tree
from kdpipe.store.inspect import here
from kdpipe.store.manifest import Manifest, file_sizes, missing_or_resized
from kdpipe.store.reader import LogitStore, is_still, open_store
from kdpipe.store.segments import pixel_digests


def verify_files(store: Path, *, progress: Progress = silent) -> list[str]:
    """Check every file's name, size and digest, and the shapes and ids; return a few faults of each kind.

    A last line of each kind has the number of its other faults. Links are not followed, and only regular files opened.

    Raises:
        StoreError: the manifest cannot be read, or the store is not sealed.
        StaleStoreError: there are faults, and another process changed the store meanwhile.
    """
    found = manifest.read(store)
    if found.state != "sealed":
        raise UnsealedStoreError(f"{store} is not sealed: finish its build with the same command, then verify it.")
    kinds = missing_or_resized(store, found)
    changed = kinds["do not match their digests"] = []
    regular = file_sizes(store).keys()
    present = [name for name in found.files if name in regular]
    with (
        ThreadPoolExecutor(os.cpu_count()) as pool,
        progress("verifying", total=len(present), unit="files") as done,
    ):
        for name, digest in zip(present, pool.map(lambda name: _digest(store / name), present), strict=True):
            if digest != found.files[name].digest:
                changed.append(f"{name} does not match its digest")
            done(1)
    faults = [line for kind, lines in kinds.items() for line in tree.first_few(lines, more=kind)]
    faults = faults or _refusals(store, found)
    if faults and not is_still(store, found):
        raise StaleStoreError(f"{store} was changed by another process while it was verified. Verify it again.")
    return faults


def _digest(path: Path) -> str | None:
    """Return a file's digest; ``None`` where it cannot be read, or is there no more."""
    try:
        return manifest.digest_file(path)
    except OSError:
        return None


def _refusals(store: Path, found: Manifest) -> list[str]:
    """Open every split, which checks shapes, chunks, codecs and the side arrays; return the errors."""
    refusals = []
    for split in here(store, found):
        try:
            open_store(store, split=split)
        except (UnsealedStoreError, StaleStoreError):
            raise
        except StoreError as error:
            refusals.append(str(error).removeprefix(f"{store}: "))
    return refusals


def _pixel_faults(opened: LogitStore) -> list[str]:
    """Return what is wrong with the digests of a split's decoded images."""
    try:
        digests = pixel_digests(opened.segments)
    except StoreError as error:
        return [str(error).removeprefix(f"{opened.path}: ")]
    known = np.concatenate([np.full(len(each.live), each.read_pixels is not None) for each in opened.segments])
    known &= opened.content_digests.any(axis=1)  # of an image that was removed before it was read, nothing is known
    empty = 0 if digests is None else int((known & ~digests.any(axis=1)).sum())
    return [f"{empty} rows of '{opened.split}' have no pixel digest"] if empty else []


def verify_deep(store: Path, *, progress: Progress = silent) -> list[str]:
    """Decode every chunk of every split and check checksums, digests, row maxima and codes; return a few faults.

    It takes the memory of one shard and of the side arrays.

    Raises:
        StoreError: the store cannot be opened.
    """
    splits = [(open_store(store, split=split), views) for split, views in here(store, manifest.read(store)).items()]
    views = [(opened, view) for opened, present in splits for view in present]
    faults: list[str] = []
    with progress("decoding", total=len(views), unit="views") as done:
        for opened, view in views:
            faults += opened.faults(view)
            if view == 0:
                faults += _pixel_faults(opened)
            done(1)
    return tree.first_few(faults, more="faults")
