"""Small datasets on disk, and a cache of its own for each test."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdpipe.dataset import sources

MakeFolder = Callable[..., Path]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("KDPIPE_CACHE", str(folder))
    return folder


def picture(seed: int, *, height: int = 12, width: int = 10) -> Image.Image:
    levels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(levels)


@pytest.fixture
def make_folder(tmp_path: Path) -> MakeFolder:
    """Write ``count`` PNG files into each class of each split."""

    def make(
        *,
        classes: tuple[str, ...] = ("ant", "bee"),
        count: int = 3,
        splits: tuple[str, ...] = ("train", "test"),
    ) -> Path:
        root = tmp_path / "insects"
        seed = 0
        for split in splits:
            for name in classes:
                (root / split / name).mkdir(parents=True)
                for index in range(count):
                    seed += 1
                    picture(seed).save(root / split / name / f"{index}.png")
        return root

    return make


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the clock be 3 seconds ahead, so that digests of new files are remembered."""
    now = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: now() + 3_000_000_000)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Return the list of image files that are read from now on."""
    found: list[Path] = []
    content_of = sources.content_of

    def read(path: str) -> bytes:
        found.append(Path(path))
        return content_of(path)

    monkeypatch.setattr(sources, "content_of", read)
    return found


class Recorder:
    """A ``Progress`` that remembers each stretch of work and how much of it was done."""

    def __init__(self) -> None:
        self.total: dict[str, int] = {}
        self.done: dict[str, int] = {}
        self.unit: dict[str, str] = {}

    @contextmanager
    def __call__(self, what: str, total: int, unit: str = "images") -> Iterator[Callable[[int], None]]:
        self.total[what], self.unit[what] = total, unit
        self.done.setdefault(what, 0)

        def report(count: int) -> None:
            self.done[what] += count

        yield report


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()
