"""One small sealed store for all tests to copy, and fast builds."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from kdpipe.testing import stores


@pytest.fixture(autouse=True)
def quickly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the flushes to disk, which take most of a small store's time; no test cuts the power."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    monkeypatch.setenv("KDPIPE_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def sealed_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sealed store that nobody changes."""
    path = tmp_path_factory.mktemp("sealed") / "small.zarr"
    stores.small_store(path)
    return path


@pytest.fixture
def sealed(sealed_once: Path, tmp_path: Path) -> Path:
    """A copy of the sealed store, to be damaged."""
    return Path(shutil.copytree(sealed_once, tmp_path / "small.zarr"))


@pytest.fixture
def started(tmp_path: Path) -> Callable[[int], Path]:
    """Start a store and stop after so many shards."""

    def make(shards: int) -> Path:
        path = tmp_path / "started.zarr"
        stores.start_store(path, shards=shards)
        return path

    return make
