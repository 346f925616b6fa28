"""The order of a store's rows: shuffled, so that any part of a view is a fair sample of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from kdpipe import attach, dataset, open_store
from kdpipe.pairing.join import join
from kdpipe.store.blocks import windows
from tests.conftest import LIMITS, TIGHT, Built, Outcome, refused

Kdpipe = Callable[..., Outcome]
STUDENT = ("train-student", *LIMITS, "--student", "resnet8", "--device", "cpu", "--epochs", 1)


@pytest.fixture
def plain(built: Built, kdpipe: Kdpipe, tmp_path: Path) -> Path:
    """The store of ``built`` in the order of the dataset."""
    asked = ("cache-teacher", *LIMITS, "--teacher", "resnet8", "--weights", built.weights, "--views", 2)
    out = tmp_path / "plain.zarr"
    assert kdpipe(*asked, "--device", "cpu", "--order", "dataset", "--out", out).code == 0
    return out


def test_rows_are_shuffled_and_joined_by_id(built: Built, plain: Path) -> None:
    for split, count in (("train", 200), ("test", 60)):
        images = dataset.load("digits", split, count)
        shuffled, ordered = open_store(built.store, split), open_store(plain, split)
        assert (shuffled.manifest.order, ordered.manifest.order) == ("shuffled", None)
        assert np.array_equal(ordered.sample_ids, images.sample_ids)
        rows = join(shuffled, images)
        # Rows that stay in their place are as many as in any permutation, about one.
        assert (rows == np.arange(count)).sum() < 8
        assert abs(np.corrcoef(rows, np.arange(count))[0, 1]) < 0.3
        for view in range(shuffled.num_views + 1):
            np.testing.assert_allclose(shuffled.plane(view)[rows], ordered.plane(view), atol=1e-4)


def test_an_existing_store_keeps_its_order(built: Built, plain: Path, kdpipe: Kdpipe) -> None:
    asked = ("cache-teacher", *LIMITS, "--teacher", "resnet8", "--weights", built.weights, "--device", "cpu")
    assert "nothing to do" in kdpipe(*asked, "--views", 2, "--out", plain).err
    refused(
        kdpipe(*asked, "--views", 2, "--order", "shuffled", "--out", plain),
        "order: the store's rows are in the order 'dataset', asked for 'shuffled'",
    )
    assert kdpipe(*asked, "--views", 3, "--out", plain).code == 0
    assert open_store(plain).manifest.order is None
    assert kdpipe(*asked, "--views", 2, "--order", "shuffled", "--overwrite", "--out", plain).code == 0
    assert open_store(plain).digest == open_store(built.store).digest


def test_by_index_a_dataset_has_the_order_that_it_had(built: Built) -> None:
    images, store = dataset.load("digits", "train", 200), open_store(built.store)

    class Listed:
        def __len__(self) -> int:
            return 200

        def __getitem__(self, index: int) -> tuple[object, int]:
            return images.image(index), int(images.labels[index])

    attached = attach(store, Listed(), by_index=True)
    rows = join(store, images)
    for index in (0, 7, 199):
        np.testing.assert_allclose(attached[index][2], store.plane(0)[rows[index]], atol=1e-6)


def test_windows_of_a_sorted_dataset_have_as_many_classes_as_a_full_shuffle(chunked: Path) -> None:
    """Sorted by class, ten windows of twenty of 200 samples have one or two classes; shuffled they have most."""
    store = open_store(chunked, memory_limit=TIGHT)
    images = dataset.load("digits", "train", 200)
    ordered = np.argsort(images.labels, kind="stable")
    rows = join(store, images)
    in_windows = [
        len(np.unique(images.labels[part[first : first + 20]]))
        for epoch in range(20)
        for part in windows(store, rows, data_seed=0, epoch=epoch)
        for first in range(0, len(part) - 19, 20)
    ]
    draws = np.random.default_rng(0)
    full = [len(np.unique(draws.choice(images.labels, 20, replace=False))) for _ in range(2_000)]
    assert np.mean(in_windows) >= 0.95 * np.mean(full)
    assert np.mean([len(np.unique(images.labels[ordered[first : first + 20]])) for first in range(0, 200, 20)]) < 3


def test_windows_of_the_order_of_the_dataset_are_warned_of(
    built: Built, plain: Path, kdpipe: Kdpipe, tmp_path: Path
) -> None:
    tight = ("--memory-limit", 8_000 / 1024**3)
    warned = kdpipe(*STUDENT, "--store", plain, "--out", tmp_path / "a", *tight)
    quiet = kdpipe(*STUDENT, "--store", built.store, "--out", tmp_path / "b", *tight)
    message = "has its rows in the order of its dataset, and --memory-limit holds a part of a view"
    assert (message in warned.err, message in quiet.err) == (True, False)
