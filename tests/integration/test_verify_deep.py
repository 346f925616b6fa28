"""``kdpipe verify --deep`` finds what was wrong when a store was sealed, and prints one line for each fault."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import google_crc32c
import numcodecs.blosc
import numpy as np

from tests.conftest import Built, Outcome
from tests.unit.store.test_store_forged import resealed


def test_deep(built: Built, tmp_path: Path, kdpipe: Callable[..., Outcome]) -> None:
    store = Path(shutil.copytree(built.store, tmp_path / "copy.zarr"))
    assert kdpipe("verify", store, "--deep").code == 0
    for view, holes in ((1, [3, 5]), (2, [7])):
        values = np.ones(200, dtype=np.float32)
        values[holes] = np.nan
        content = bytes(numcodecs.blosc.compress(values, b"lz4", 5, 2))
        (store / f"train/row_max/c/{view}/0").write_bytes(content + google_crc32c.value(content).to_bytes(4, "little"))
    resealed(store)
    assert kdpipe("verify", store).code == 0
    found = kdpipe("verify", store, "--deep")
    assert found.code == 1
    assert [line.partition(": ")[2] for line in found.err.splitlines() if "row_max" in line] == [
        "row_max of view 1 of 'train', rows 0 to 199: no valid values in 2 rows",
        "row_max of view 2 of 'train', rows 0 to 199: no valid values in 1 row",
    ]
