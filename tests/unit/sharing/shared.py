"""Derived stores put together in one folder, as a receiver has them."""

from __future__ import annotations

import shutil
from pathlib import Path

from kdpipe.sharing.withholding import Derived
from kdpipe.store import manifest


def assembled(derived: Derived, out: Path) -> Path:
    """Copy the files of a derived store to ``out``, and return it."""
    for name, path in derived.files.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, out / name)
    (out / "zarr.json").write_bytes(manifest.document(derived.manifest))
    return out
