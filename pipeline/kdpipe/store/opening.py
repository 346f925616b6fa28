"""Opening a store: sealed, with the files of its manifest and its metadata unchanged, or refused."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from kdpipe.errors import CorruptStoreError, StoreError, UnsealedStoreError, did_you_mean
from kdpipe.store import manifest
from kdpipe.store.manifest import Manifest
from kdpipe.store.reader import LogitStore

MEMORY_LIMIT = 8 * 1024**3
"""Default of ``open_store``: 8 GiB hold two planes of 1.28 million samples and 1,000 classes in fp16."""


def open_store(
    path: str | Path, split: str = "train", *, memory_limit: int = MEMORY_LIMIT, beside: Sequence[str] = ()
) -> LogitStore:
    """Open one split of a sealed store, after comparing its files' names and sizes with the manifest.

    Args:
        path: the store's directory, ``NAME.zarr``.
        split: ``train`` or ``test``.
        memory_limit: bytes that planes may take; two at most are held. A buffer per thread comes on top.
        beside: signals, such as ``features:layer3``, that planes hold beside the logits, for training.

    Raises:
        StoreNotFoundError: there is no store at ``path``.
        UnsealedStoreError: it is still being built, or its build was interrupted.
        CorruptStoreError: files are missing, extra or of another size, or metadata is damaged.
        StoreError: there is no such split or signal, or the split claims more memory than the limit.
    """
    store = Path(path)
    found = manifest.read(store)
    if found.state != "sealed":
        raise UnsealedStoreError(
            f"{store} is not sealed: its build is still running or was interrupted. Run the same "
            "kdpipe cache-teacher command again to finish it."
        )
    faults = missing_or_resized(store, found)
    if faults:
        more = f" ({len(faults)} faults in all)" if len(faults) > 1 else ""
        raise CorruptStoreError(f"{store}: {faults[0]}{more}. Run: kdpipe verify {store}")
    if split not in found.splits:
        hint = did_you_mean(split, found.splits)
        raise StoreError(f"{store} has no split '{split}', only {', '.join(found.splits)}{hint}")
    metadata_faults = [
        name
        for name, file in found.files.items()
        if name.endswith("zarr.json") and manifest.digest_file(store / name) != file.digest
    ]
    if metadata_faults:
        raise CorruptStoreError(f"{store}: {metadata_faults[0]} was changed. Run: kdpipe verify {store}")
    return LogitStore(store, found, split, memory_limit=memory_limit, beside=beside)


def missing_or_resized(store: Path, found: Manifest) -> list[str]:
    """Compare names and sizes of a sealed store's files with its manifest; one line for each fault."""
    present = file_sizes(store)
    present.pop("zarr.json", None)
    faults = [f"{name} is missing" for name in sorted(found.files.keys() - present.keys())]
    faults += [f"{name} does not belong to the store" for name in sorted(present.keys() - found.files.keys())]
    faults += [
        f"{name} has {present[name]} bytes, expected {file.size}"
        for name, file in sorted(found.files.items())
        if name in present and present[name] != file.size
    ]
    return faults


def file_sizes(store: Path) -> dict[str, int]:
    """Return the bytes of every file by its path in the store, without those that a writer takes away meanwhile."""
    sizes = {}
    for path in store.rglob("*"):
        with suppress(FileNotFoundError):
            if path.is_file():
                sizes[path.relative_to(store).as_posix()] = path.stat().st_size
    return sizes
