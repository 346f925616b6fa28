"""What a student checks before it trusts a store, and what it then gets from it."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch

from kdpipe import dataset, open_store
from kdpipe.dataset import Dataset
from kdpipe.distil.several_stores import MixedTargets
from kdpipe.distil.targets import CachedTargets, WindowedTargets, soft_targets
from kdpipe.errors import StaleStoreError, StoreError
from kdpipe.pairing.join import join_checked
from kdpipe.store.planes import Plane
from kdpipe.store.reader import LogitStore
from kdpipe.training.schedule import Sampling
from kdpipe.views import Geometry
from tests.conftest import TIGHT, Built


@pytest.fixture
def digits() -> Dataset:
    return dataset.load("digits", "train", 200)


def test_soft_targets_follow_the_sample_and_the_view(built: Built, digits: Dataset) -> None:
    store = open_store(built.store)
    shuffled = digits.subset(np.random.default_rng(0).permutation(200)[:50])
    targets = CachedTargets(store, join_checked(store, shuffled))
    position = {bytes(sample_id): row for row, sample_id in enumerate(store.sample_ids)}
    for view, upcoming in ((1, 2), (2, 1), (1, None)):
        targets.start_epoch(view, upcoming)
        given = targets.logits(np.array([7, 3, 49]), torch.empty(3, 3, 32, 32))
        rows = [position[bytes(shuffled.sample_ids[index])] for index in (7, 3, 49)]
        assert np.array_equal(given.numpy(), store.plane(view)[rows])


def test_planes_that_do_not_fit_are_read_in_windows(chunked: Path, digits: Dataset) -> None:
    shuffled = digits.subset(np.random.default_rng(0).permutation(200)[:70])
    store = open_store(chunked, memory_limit=TIGHT)
    assert store.chunk_rows == 10
    rows = join_checked(store, shuffled)
    targets = soft_targets(store, rows)
    assert isinstance(targets, WindowedTargets)
    assert isinstance(soft_targets(open_store(chunked), rows), CachedTargets)
    for epoch, view in enumerate((1, 2, 1)):
        targets.start_epoch(view, None)
        order = targets.order(np.arange(70), data_seed=5, epoch=epoch)
        assert sorted(order) == list(range(70))
        for start in range(0, 70, 16):
            batch = order[start : start + 16]
            given = targets.logits(batch, torch.empty(len(batch), 3, 32, 32))
            assert np.array_equal(given.numpy(), open_store(chunked).plane(view)[rows[batch]])


class Watched(LogitStore):
    """A store that keeps the rows of each read."""

    gathered: ClassVar[list[np.ndarray]] = []

    def gather(self, view: int, rows: np.ndarray) -> Plane:
        self.gathered.append(rows)
        return super().gather(view, rows)


def test_drawn_samples_are_read_in_windows_within_the_limit(chunked: Path, digits: Dataset) -> None:
    """A chunk whose samples are drawn forty times as often as others fills a window no more than once."""
    whole = open_store(chunked)
    store = Watched(chunked, whole.manifest, "train", memory_limit=TIGHT)
    rows = join_checked(store, digits)
    weights = np.where(rows < 10, 40.0, np.where(rows < 50, 0.0, 1.0))
    sampling = Sampling.of(weights, digits.labels)
    targets = soft_targets(store, rows)
    for epoch in range(2):
        samples = sampling.draw(data_seed=5, epoch=epoch)
        targets.start_epoch(1, None)
        order = targets.order(samples, data_seed=5, epoch=epoch)
        assert np.array_equal(np.sort(order), samples)
        for skipped in (0, 37):
            if skipped:
                targets.skip(skipped)
            for start in range(skipped, 200, 16):
                batch = order[start : start + 16]
                given = targets.logits(batch, torch.empty(len(batch), 3, 32, 32))
                assert np.array_equal(given.numpy(), whole.plane(1)[rows[batch]])
    assert max(map(len, store.gathered)) <= 5 * 10
    assert max(len(set(part // 10)) for part in store.gathered) <= 5
    assert not {1, 2, 3, 4} & set(np.concatenate(store.gathered) // 10), "chunks of which nothing is drawn are not read"


def test_only_one_of_several_stores_may_be_read_in_windows(chunked: Path, digits: Dataset) -> None:
    tight, whole = open_store(chunked, memory_limit=TIGHT), open_store(chunked)
    rows = join_checked(whole, digits)
    mixed = MixedTargets([soft_targets(whole, rows), soft_targets(tight, rows)], (0.5, 0.5))
    mixed.start_epoch(1, 2)
    order = mixed.order(np.arange(200), data_seed=0, epoch=0)
    assert order is not None
    given = mixed.logits(order[:9], torch.empty(9, 3, 32, 32))
    assert np.allclose(given.numpy(), whole.plane(1)[rows[order[:9]]])
    both = MixedTargets([soft_targets(tight, rows), soft_targets(tight, rows)], (0.5, 0.5))
    with pytest.raises(StoreError, match=r"planes of 2 of the 2 stores do not fit.*--memory-limit"):
        both.order(np.arange(200), data_seed=0, epoch=0)


def test_other_pixels_are_refused_unless_drift_is_allowed(
    built: Built, digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Geometry, "fit", lambda self, images: images.flip(-1))
    store = open_store(built.store)
    with pytest.raises(StaleStoreError, match=r"of 24 replay probes render to other pixels: the resize"):
        join_checked(store, digits)
    assert np.array_equal(store.sample_ids[join_checked(store, digits, allow_drift=True)], digits.sample_ids)
