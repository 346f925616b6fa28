"""Holding out: a fixed, balanced, disjoint part that depends on the samples' ids alone; and what has a label."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch

from kdpipe.dataset import hold_out, labelled, load
from kdpipe.errors import DatasetError
from kdpipe.views import Renderer

from .conftest import MakeFolder


def test_the_parts_are_disjoint_complete_and_balanced() -> None:
    digits = load("digits", "train", 300)
    train, validation = hold_out(digits, 0.2)
    assert sorted(train.keys + validation.keys) == sorted(digits.keys)
    assert (len(train), len(validation)) == (240, 60)
    assert np.bincount(validation.labels).tolist() == [6] * 10
    for part in (train, validation):
        rows = [digits.keys.index(key) for key in part.keys]
        assert rows == sorted(rows)
        assert torch.equal(part.pixels, digits.pixels[rows])  # type: ignore[arg-type,index]


def test_the_choice_is_that_of_the_smallest_ids_of_each_class() -> None:
    digits = load("digits", "train", 300)
    for found in (digits, digits.subset(np.random.default_rng(0).permutation(300))):
        _, validation = hold_out(found, 0.1)
        by_id = sorted(zip(found.sample_ids.tolist(), found.labels.tolist(), found.keys, strict=True))
        chosen = [[key for _, label, key in by_id if label == wanted][:3] for wanted in range(10)]
        assert set(validation.keys) == {key for keys in chosen for key in keys}
    assert set(validation.keys) < set(hold_out(digits, 0.3)[1].keys)


def test_held_out_samples_are_not_mixed_into_the_others() -> None:
    train, _ = hold_out(load("digits", "train", 100), 0.5)
    alone = Renderer(pickle.loads(pickle.dumps(train)), "crop-flip+mixup:1", seed=0, geometry=None)
    mixed = alone.second_labels(range(len(train)), 1)
    assert mixed is not None
    assert np.bincount(mixed.labels).tolist() == np.bincount(train.labels).tolist()
    assert train.whole is train


@pytest.mark.parametrize(("fraction", "purpose"), [(0.1, "validate with; hold out more"), (0.95, "train on; hold out")])
def test_no_class_may_be_without_samples(fraction: float, purpose: str) -> None:
    with pytest.raises(DatasetError, match=f"leaves class '[0-9]' without samples to {purpose}"):
        hold_out(load("digits", "train", 40), fraction)


def test_a_rare_class_is_not_used_up(make_folder: MakeFolder) -> None:
    """Balanced means equally many of each class, however many there are."""
    root = make_folder(classes=("ant", "bee"), count=8)
    for path in sorted((root / "train" / "bee").iterdir())[2:]:
        path.unlink()
    train, validation = hold_out(load(f"folder:{root}", "train"), 0.2)
    assert (np.bincount(train.labels).tolist(), np.bincount(validation.labels).tolist()) == ([7, 1], [1, 1])
    with pytest.raises(DatasetError, match=r"holding 4 of 10 .* leaves class 'bee' without samples to train on"):
        hold_out(load(f"folder:{root}", "train"), 0.4)


def test_labelled_samples_are_all_that_have_a_label_and_mix_among_themselves() -> None:
    digits = load("digits", "train", 100)
    labels = np.where(np.arange(100) % 3 == 0, digits.labels, -1).astype(np.int32)
    found = labelled(replace(digits, labels=labels))
    assert found.keys == digits.keys[::3]
    assert np.array_equal(found.labels, digits.labels[::3])
    assert found.whole is found
    with pytest.raises(DatasetError, match="no training sample of digits has a label"):
        labelled(replace(digits, labels=np.full_like(labels, -1)))
