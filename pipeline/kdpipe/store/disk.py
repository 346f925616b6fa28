"""What a disk refuses, said in one line that a person can act on."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kdpipe.errors import UnwritableStoreError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_CLOSED = (errno.EACCES, errno.EPERM, errno.EROFS)


@contextmanager
def writing(store: Path) -> Iterator[None]:
    """Name the store and the remedy where the disk refuses to write it; other errors pass as they are.

    Raises:
        UnwritableStoreError: the disk is full, or the place is read-only or somebody else's.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise UnwritableStoreError(
                f"{store} cannot be written, its disk is full ({error.strerror}). Make room in {store.parent} and run "
                "this again: the shards that are finished are kept."
            ) from error
        if error.errno in _CLOSED:
            raise UnwritableStoreError(
                f"{store} cannot be written ({error.strerror}: {error.filename or store.parent}). Make {store.parent} "
                "writable, or pass --out another path."
            ) from error
        raise
