"""Holding out a fixed, balanced part; samples with a label; keeping a fixed choice of labels."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch

from kdpipe.dataset import Dataset, find_ids, hold_out, labeled, limit_labels, load
from kdpipe.errors import DatasetError
from kdpipe.views import Renderer

from .conftest import MakeFolder, picture


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


def test_labeled_samples_are_all_that_have_a_label_and_mix_among_themselves() -> None:
    digits = load("digits", "train", 100)
    labels = np.where(np.arange(100) % 3 == 0, digits.labels, -1).astype(np.int32)
    found = labeled(replace(digits, labels=labels))
    assert found.keys == digits.keys[::3]
    assert np.array_equal(found.labels, digits.labels[::3])
    assert found.whole is found
    with pytest.raises(DatasetError, match="no training sample of digits has a label"):
        labeled(replace(digits, labels=np.full_like(labels, -1)))


def kept_keys(dataset: Dataset) -> set[str]:
    return {key for key, label in zip(dataset.keys, dataset.labels, strict=True) if label >= 0}


@pytest.mark.parametrize("per_class", [1, 7, 10])
def test_labels_are_kept_of_the_samples_with_the_smallest_ids_of_each_class(per_class: int) -> None:
    digits = load("digits", "train", 300)
    few = load("digits", "train", 300, labels_per_class=per_class)
    by_id = sorted(zip(digits.sample_ids.tolist(), digits.labels.tolist(), digits.keys, strict=True))
    chosen = [[key for _, label, key in by_id if label == wanted][:per_class] for wanted in range(10)]
    assert kept_keys(few) == {key for keys in chosen for key in keys}
    is_kept = few.labels >= 0
    assert (few.labels[is_kept] == digits.labels[is_kept]).all()
    assert set(few.labels[~is_kept].tolist()) == {-1}
    assert few.labels.dtype == np.int32
    assert kept_keys(few) <= kept_keys(load("digits", "train", 300, labels_per_class=per_class + 5))


def test_hidden_labels_change_nothing_else() -> None:
    digits, few = load("digits", "train", 60), load("digits", "train", 60, labels_per_class=2)
    assert (few.keys, few.fingerprint, few.classes) == (digits.keys, digits.fingerprint, digits.classes)
    assert np.array_equal(few.sample_ids, digits.sample_ids)
    assert torch.equal(few.pixels, digits.pixels)  # type: ignore[arg-type]
    assert few.statistics() == digits.statistics()
    again = pickle.loads(pickle.dumps(few))
    assert again.labels.tolist() == few.labels.tolist()
    assert again.whole is again


def test_the_choice_of_labels_does_not_depend_on_the_order() -> None:
    digits = load("digits", "train", 200)
    shuffled = replace(digits.subset(np.random.default_rng(1).permutation(200)), origin=None)
    assert shuffled.keys != digits.keys
    assert kept_keys(limit_labels(shuffled, 5)) == kept_keys(limit_labels(digits, 5))
    once, twice = limit_labels(digits, 5), limit_labels(limit_labels(digits, 9), 5)
    assert once.labels.tolist() == twice.labels.tolist()


def test_labels_are_kept_within_the_limit() -> None:
    few = load("digits", "train", 100, labels_per_class=10)
    assert len(few) == 100
    assert np.bincount(few.labels).tolist() == [10] * 10
    with pytest.raises(DatasetError, match="labels_per_class is 11, but class '0' of digits has 10 labeled"):
        load("digits", "train", 100, labels_per_class=11)


def test_labels_are_kept_beside_images_without_one(make_folder: MakeFolder) -> None:
    root = make_folder(count=4)
    (root / "unlabeled").mkdir()
    for index in range(3):
        picture(100 + index).save(root / "unlabeled" / f"{index}.png")
    spec = f"folder:{root}"
    few = load(spec, "train", labels_per_class=3)
    assert few.fingerprint == load(spec, "train").fingerprint
    assert np.bincount(few.labels + 1).tolist() == [3 + 2, 3, 3]
    assert few.labels[-3:].tolist() == [-1] * 3
    ants = sorted(found for found in zip(few.sample_ids.tolist(), few.keys, strict=True) if "/ant/" in found[1])
    assert {key for key in kept_keys(few) if "/ant/" in key} == {key for _, key in ants[:3]}
    for path in sorted((root / "train" / "bee").iterdir())[2:]:
        path.unlink()
    with pytest.raises(DatasetError, match=r"class 'bee' .* has 2 labeled training samples; use a smaller number"):
        load(spec, "train", labels_per_class=3)


def test_hidden_labels_are_not_mixed_into_a_subset() -> None:
    part = load("digits", "train", 100).subset(range(0, 100, 2))
    few = limit_labels(part, 2)
    assert few.whole.fingerprint == part.whole.fingerprint
    assert kept_keys(few.whole) == kept_keys(few)
    recipe = "crop-flip+mixup:1"
    mixed = Renderer(few, recipe, seed=0, geometry=None).second_labels(range(50), 1)
    before = Renderer(part, recipe, seed=0, geometry=None).second_labels(range(50), 1)
    assert mixed is not None
    assert before is not None
    hidden = mixed.labels < 0
    assert 0 < hidden.sum() < 50
    assert (mixed.labels[~hidden] == before.labels[~hidden]).all()
    assert (find_ids(few.sample_ids, few.whole.sample_ids) >= 0).all()


def test_labels_per_class_that_make_no_sense_are_refused() -> None:
    with pytest.raises(DatasetError, match="labels_per_class is 0, expected at least 1"):
        load("digits", "train", 100, labels_per_class=0)
    with pytest.raises(DatasetError, match="labels_per_class is for the train split, found split 'test'"):
        load("digits", "test", labels_per_class=1)
