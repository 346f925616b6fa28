"""Subsets, limits and statistics."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kdpipe.dataset import balanced_indices, load, sample_id
from kdpipe.dataset.ids import sample_ids
from kdpipe.errors import DatasetError

from .conftest import MakeFolder


def test_a_subset_keeps_who_its_samples_are(make_folder: MakeFolder) -> None:
    found = load(f"folder:{make_folder()}", "train")
    part = found.subset([4, 1])
    assert part.keys == (found.keys[4], found.keys[1])
    np.testing.assert_array_equal(part.sample_ids, found.sample_ids[[4, 1]])
    np.testing.assert_array_equal(part.content_digests, found.content_digests[[4, 1]])
    np.testing.assert_array_equal(part.labels, found.labels[[4, 1]])
    assert part.fingerprint not in (found.fingerprint, found.subset([1, 4]).fingerprint)
    assert torch.equal(part.pixels, found.pixels[[4, 1]])  # type: ignore[arg-type,index]
    assert torch.equal(part.subset([1]).image(0), found.image(1))


def test_a_contiguous_subset_shares_the_map(make_folder: MakeFolder) -> None:
    found = load(f"folder:{make_folder()}", "train")
    part = found.subset(range(2, 5))
    assert part.pixels.data_ptr() == found.pixels[2].data_ptr()  # type: ignore[union-attr,index]
    assert part.pixels.shape == (3, 3, 12, 10)  # type: ignore[union-attr]
    assert found.subset(range(6)).fingerprint == found.fingerprint


@pytest.mark.parametrize("loading", ["memory", "stream"])
def test_a_subset_remembers_its_whole(make_folder: MakeFolder, loading: str) -> None:
    found = load(f"folder:{make_folder()}", "train", loading=loading)  # type: ignore[arg-type]
    part = found.subset([4, 1, 3])
    assert found.whole is found
    assert part.whole is found
    assert part.subset([2, 0]).whole is found
    assert part.subset([2, 0]).subset([1]).whole.keys == found.keys
    backwards = found.subset(range(5, -1, -1))
    assert backwards.whole is found
    assert backwards.subset(range(5, -1, -1)).whole is found
    assert repr(part) == f"Dataset({found.spec!r}, 'train', 3 samples, fingerprint {part.fingerprint})"


def test_a_limited_dataset_is_its_own_whole(make_folder: MakeFolder) -> None:
    spec = f"folder:{make_folder()}"
    four = load(spec, "train", 4)
    assert four.whole is four
    assert four.subset([3]).whole is four
    assert len(four.subset([3]).whole) == 4


def test_a_subset_of_nothing_or_of_repeats_is_refused(make_folder: MakeFolder) -> None:
    found = load(f"folder:{make_folder()}", "train")
    with pytest.raises(DatasetError, match="at least one index"):
        found.subset([])
    with pytest.raises(DatasetError, match="two samples have the key"):
        found.subset([1, 1])
    with pytest.raises(IndexError):
        found.subset([6])
    with pytest.raises(IndexError):
        found.image(6)


def test_a_limit_takes_ranks_then_classes_in_dataset_order() -> None:
    keys = [f"k/{index}" for index in range(60)]
    labels = np.array([index % 4 - 1 for index in range(60)], dtype=np.int32)
    ids = sample_ids(keys)
    ranked = {
        label: sorted(np.flatnonzero(labels == label), key=lambda row: sample_id(keys[row])) for label in range(-1, 3)
    }
    wanted = [ranked[label][rank] for rank in range(15) for label in range(-1, 3)]
    for limit in (1, 2, 3, 4, 7, 33, 59):
        assert balanced_indices(ids, labels, limit=limit).tolist() == sorted(wanted[:limit])
    for generous in (60, 1000, None):
        assert balanced_indices(ids, labels, limit=generous).tolist() == list(range(60))


def test_a_limit_is_filled_from_larger_classes() -> None:
    labels = np.array([0] * 2 + [1] * 20, dtype=np.int32)
    rows = balanced_indices(sample_ids([str(index) for index in range(22)]), labels, limit=10)
    assert np.bincount(labels[rows]).tolist() == [2, 8]


def test_a_limit_is_stable_and_nested(make_folder: MakeFolder) -> None:
    spec = f"folder:{make_folder(count=8)}"
    whole = load(spec, "train")
    four, six = load(spec, "train", 4), load(spec, "train", 6)
    assert np.bincount(four.labels).tolist() == [2, 2]
    assert set(four.keys) < set(six.keys) < set(whole.keys)
    rows = [whole.keys.index(key) for key in six.keys]
    assert rows == sorted(rows)
    assert whole.subset(rows).fingerprint == six.fingerprint == load(spec, "train", 6).fingerprint
    assert torch.equal(six.pixels, whole.pixels[rows])  # type: ignore[arg-type,index]
    assert load(spec, "train", 99).fingerprint == whole.fingerprint


def test_statistics_are_those_of_all_pixels(make_folder: MakeFolder) -> None:
    found = load(f"folder:{make_folder()}", "train")
    mean, deviation = found.statistics()
    levels = found.pixels.double().transpose(0, 1).flatten(1) / 255  # type: ignore[union-attr]
    assert mean == pytest.approx(levels.mean(1).tolist(), abs=5.1e-5)
    assert deviation == pytest.approx(levels.std(1, correction=0).tolist(), abs=5.1e-5)
    assert all(round(value, 4) == value for value in (*mean, *deviation))


def test_statistics_of_one_color_have_no_zero_deviation(tmp_path: Path) -> None:
    folder = tmp_path / "plain/train/it"
    folder.mkdir(parents=True)
    Image.new("RGB", (4, 4), (255, 0, 51)).save(folder / "a.png")
    mean, deviation = load(f"folder:{tmp_path}/plain", "train").statistics()
    assert mean == (1.0, 0.0, 0.2)
    assert min(deviation) > 0


class Many:
    """12,000 images of one pixel."""

    classes = ("it",)
    targets = [0] * 12_000
    levels = np.random.default_rng(0).integers(0, 256, (12_000, 1, 1), dtype=np.uint8)

    def __len__(self) -> int:
        return len(self.levels)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return self.levels[index], 0


def many(split: str) -> Many:
    return Many()


def test_statistics_of_many_samples_are_those_of_the_10_000_lowest_ids() -> None:
    found = load(f"{__name__}:many", "train")
    lowest = sorted(range(len(found)), key=lambda index: found.sample_ids[index].tobytes())[:10_000]
    levels = Many.levels[lowest].reshape(-1) / 255
    mean, deviation = found.statistics()
    assert mean == (round(float(levels.mean()), 4),) * 3
    assert deviation == (round(float(levels.std()), 4),) * 3
    assert mean != (round(float(Many.levels.mean()) / 255, 4),) * 3
    assert found.subset(range(len(found) - 1, -1, -1)).statistics() == (mean, deviation)


def test_a_folder_called_like_a_published_set_has_its_own_statistics(make_folder: MakeFolder) -> None:
    root = make_folder()
    found = load(f"folder:{root.rename(root.with_name('cifar10'))}", "train")
    levels = found.pixels.double().transpose(0, 1).flatten(1) / 255  # type: ignore[union-attr]
    assert found.statistics()[0] == pytest.approx(levels.mean(1).tolist(), abs=5.1e-5)
    assert found.published_statistics is None
