"""Shared places that tests make by hand: the layout that every version of kdpipe has to read."""

from __future__ import annotations

import shutil
from pathlib import Path

from kdpipe.sharing import catalog
from kdpipe.sharing.catalog import Catalog
from kdpipe.store import manifest


def put(store: Path, place: Path, name: str = "cifar", version: str = "v1") -> Path:
    """Copy a store to a place, with its row in the catalog; return its folder there."""
    folder = place / name / version
    shutil.copytree(store, folder)
    index = place / "index.json"
    known = catalog.parse(index.read_bytes(), place=str(place)) if index.exists() else Catalog()
    created = f"2026-11-{len(known.versions) + 1:02}T00:00:00+00:00"
    row = catalog.row_of(manifest.read(store), name=name, version=version, created=created)
    index.write_bytes(known.with_row(row).to_bytes())
    return folder
