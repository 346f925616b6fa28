"""A pixel cache of its own for each test, and a folder of small pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("KDPIPE_CACHE", str(folder))
    return folder


def write_folder(root: Path, sizes: list[tuple[int, int]]) -> Path:
    for name in ("ant", "bee"):
        folder = root / "train" / name
        folder.mkdir(parents=True)
        for index, (height, width) in enumerate(sizes):
            random = np.random.default_rng([index, len(name), ord(name[0])])
            levels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
            Image.fromarray(levels).save(folder / f"{index}.png")
    return root


@pytest.fixture
def equal_sizes(tmp_path: Path) -> str:
    """The spec of ten pictures of 20 x 24."""
    return f"folder:{write_folder(tmp_path / 'equal', [(20, 24)] * 5)}"


@pytest.fixture
def mixed_sizes(tmp_path: Path) -> str:
    """The spec of ten pictures of five sizes."""
    return f"folder:{write_folder(tmp_path / 'mixed', [(20, 24), (31, 17), (16, 16), (9, 40), (25, 8)])}"
