"""What a student checks before it trusts a store, and what it then gets from it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kdpipe import dataset, open_store
from kdpipe.dataset import Dataset
from kdpipe.errors import StaleStoreError
from kdpipe.store import join_checked
from kdpipe.student import CachedTargets
from kdpipe.views import geometry, recipe
from tests.conftest import Built


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


def test_another_version_of_the_recipe_is_refused(
    built: Built, digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(recipe.OPERATIONS, "crop-flip", 2)
    with pytest.raises(StaleStoreError, match="crop-flip/1; this kdpipe draws crop-flip/2"):
        join_checked(open_store(built.store), digits)


def test_other_pixels_are_refused_unless_drift_is_allowed(
    built: Built, digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(geometry.Geometry, "fit", lambda self, images: images.flip(-1))
    store = open_store(built.store)
    with pytest.raises(StaleStoreError, match=r"of the 24 replay probes .* render to other pixels"):
        join_checked(store, digits)
    assert np.array_equal(join_checked(store, digits, allow_drift=True), np.arange(200))
