"""Training on planes that do not fit: every sample once, the right logits, the same order, within the limit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from kdpipe.errors import CorruptStoreError, StoreError
from kdpipe.store.blocks import Pool, windows
from kdpipe.store.reader import LogitStore, open_store
from kdpipe.testing import stores

ROW_BYTES = stores.CLASSES * 2 + 4
CHUNK_BYTES = 4 * ROW_BYTES
SAMPLES = 103
"""In 26 chunks, the last of which has three rows."""


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("blocks") / "a.zarr"
    stores.small_store(path, stores.small_plan(train=SAMPLES))
    return path


def opened(path: Path, *, chunks: float) -> LogitStore:
    """Open the store with windows of so many chunks."""
    return open_store(path, memory_limit=int(2 * chunks * CHUNK_BYTES))


def subset(size: int) -> npt.NDArray[np.int64]:
    return np.random.default_rng(size).permutation(SAMPLES)[:size]


ALL = np.arange(SAMPLES)


@pytest.mark.parametrize("chunks", [1, 1.9, 5, 13, 25])
@pytest.mark.parametrize("rows", [ALL, ALL[::-1], subset(60), subset(3), subset(1)], ids=len)
def test_every_sample_once_with_its_logits(path: Path, chunks: float, rows: npt.NDArray[np.int64]) -> None:
    store, whole = opened(path, chunks=chunks), open_store(path).plane(1)
    assert not store.fits
    parts = windows(store, rows, data_seed=0, epoch=3)
    order = np.concatenate(parts)
    assert sorted(order) == list(range(len(rows)))
    touched = [set((rows[part] // 4).tolist()) for part in parts]
    assert all(len(chunks_of_part) <= chunks for chunks_of_part in touched)
    assert sum(map(len, touched)) == len(set.union(*touched)), "a chunk is decoded twice in an epoch"
    pool = Pool(store, rows, parts, view=1)
    for start in range(0, len(order), 7):
        batch = order[start : start + 7]
        assert np.array_equal(pool.logits(batch).numpy(), whole[rows[batch]])
    with pytest.raises(ValueError, match="were taken"):
        pool.logits(order[:1])
    pool.close()


def test_samples_of_a_window_are_mixed(path: Path) -> None:
    """Within a window of 5 chunks, neighbours in the order come from the same chunk about one time in five."""
    store = opened(path, chunks=5)
    pairs = []
    for epoch in range(40):
        for part in windows(store, ALL, data_seed=1, epoch=epoch):
            assert sorted(part) != part.tolist()
            pairs += (part[1:] // 4 == part[:-1] // 4).tolist()
    assert np.mean(pairs) == pytest.approx(3 / 19, abs=0.03)


def test_every_chunk_visits_every_window(path: Path) -> None:
    store = opened(path, chunks=7)
    parts = [windows(store, ALL, data_seed=2, epoch=epoch) for epoch in range(200)]
    first = np.concatenate([epoch[0] // 4 for epoch in parts])
    counts = np.bincount(first, minlength=26)[:25] / (4 * len(parts))
    assert len(parts[0]) == 4
    assert counts.min() > 0.1
    assert counts.max() < 0.4


GOLDEN_LENGTHS = [51, 52]
GOLDEN_START = [98, 101, 97, 24, 25, 42, 81, 6]
"""The start of the order on any machine, as of the first version."""


def test_the_order_is_a_function_of_seed_and_epoch(path: Path) -> None:
    def order(seed: int, epoch: int) -> list[int]:
        parts = windows(opened(path, chunks=4), ALL, data_seed=seed, epoch=epoch)
        return np.concatenate(parts).tolist()

    assert order(5, 2) == order(5, 2)
    assert len({tuple(order(seed, epoch)) for seed in range(4) for epoch in range(4)}) == 16
    golden = windows(opened(path, chunks=13), ALL, data_seed=0, epoch=0)
    assert [len(part) for part in golden] == GOLDEN_LENGTHS
    assert golden[0][:8].tolist() == GOLDEN_START


def test_another_order_is_refused(path: Path) -> None:
    store = opened(path, chunks=4)
    parts = windows(store, ALL, data_seed=0, epoch=0)
    pool = Pool(store, ALL, parts, view=0)
    with pytest.raises(ValueError, match="in the order of the windows"):
        pool.logits(parts[0][1:3])


def test_less_than_two_chunks_is_refused(path: Path) -> None:
    store = open_store(path, memory_limit=2 * CHUNK_BYTES - 1)
    with pytest.raises(StoreError, match=r"two chunks of 'train' take 112 bytes .* limit is 111.*--memory-limit"):
        windows(store, ALL, data_seed=0, epoch=0)


def test_damage_reaches_the_batch(path: Path, sealed: Path) -> None:
    store = open_store(sealed, memory_limit=4 * CHUNK_BYTES)
    file = sealed / "train/codes/c/1/2/0"
    content = bytearray(file.read_bytes())
    content[-30] ^= 1
    file.write_bytes(content)
    rows = np.arange(stores.TRAIN)
    parts = windows(store, rows, data_seed=0, epoch=0)
    with pytest.raises(CorruptStoreError, match=r"view 1 of 'train', rows 16 to 19"):
        Pool(store, rows, parts, view=1).logits(np.concatenate(parts))
