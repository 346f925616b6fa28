"""A folder of random images of two classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image


def insects(
    root: Path,
    *,
    each: int,
    size: tuple[int, int] = (16, 18),
    splits: Sequence[str] = ("train",),
    name: str = "{}.png",
) -> Path:
    """Write ``each`` images of ``ant`` and of ``bee`` into every split below ``root``, and return ``root``."""
    for split in splits:
        for kind in ("ant", "bee"):
            (root / split / kind).mkdir(parents=True)
            for index in range(each):
                levels = np.random.default_rng([index, ord(kind[0])]).integers(0, 256, (*size, 3), dtype=np.uint8)
                Image.fromarray(levels).save(root / split / kind / name.format(index))
    return root
