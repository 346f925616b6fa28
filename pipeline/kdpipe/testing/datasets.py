"""A test suite that every kind of dataset must pass.

    class TestMine(DatasetSuite):
        @pytest.fixture
        def spec(self, tmp_path: Path) -> str:
            return f"mine:{write_some_images(tmp_path)}"

pytest collects the suite's tests for the spec that the fixture returns. It names a dataset of a few samples with at
least three training samples and one test sample, all with a label unless the suite's ``all_labeled`` is set to false.
"""

from __future__ import annotations

import pickle
import unicodedata
from collections.abc import Sequence

import numpy as np
import torch

from kdpipe.dataset import Dataset, Loading, load, sample_id

SPLITS = ("train", "test")


def assert_same(found: Dataset, expected: Dataset, indices: Sequence[int] | None = None) -> None:
    """Assert that a dataset has the samples of another, or those at ``indices`` of it, with the same pixels."""
    wanted = range(len(expected)) if indices is None else indices
    assert found.classes == expected.classes
    assert found.keys == tuple(expected.keys[index] for index in wanted)
    for name in ("labels", "sample_ids", "content_digests", "sizes"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name)[np.asarray(wanted)], name)
    for index, original in enumerate(wanted):
        assert torch.equal(found.image(index), expected.image(original)), f"other pixels of {found.keys[index]}"


class DatasetSuite:
    """The properties that ``Dataset`` promises, whatever kind it is of; subclasses define the fixture ``spec``."""

    all_labeled = True
    """Whether every sample has a label."""

    def test_samples_are_named_and_labeled(self, spec: str) -> None:
        """Keys are different, in Unicode form NFC; a label is the index of a class, or -1 where that is allowed."""
        for split in SPLITS:
            found = load(spec, split)
            assert (found.spec, found.split) == (spec, split)
            assert len(set(found.keys)) == len(found) > 0
            assert all(unicodedata.is_normalized("NFC", key) for key in found.keys)
            assert found.labels.shape == (len(found),)
            assert found.labels.dtype == np.int32
            assert found.labels.min() >= (0 if self.all_labeled else -1)
            assert found.labels.max() < len(found.classes) == len(set(found.classes))

    def test_ids_are_those_of_the_keys(self, spec: str) -> None:
        """A sample's id is a function of its key; no image is in both splits, which have the same classes."""
        train, test = (load(spec, split) for split in SPLITS)
        for found in (train, test):
            assert found.sample_ids.dtype == np.uint8
            assert found.sample_ids.tobytes() == b"".join(map(sample_id, found.keys))
        assert not set(train.keys) & set(test.keys)
        assert train.classes == test.classes

    def test_images_are_of_the_sizes_that_were_surveyed(self, spec: str) -> None:
        """Each image is uint8 ``(3, height, width)``; content digests are 16 bytes."""
        for split in SPLITS:
            found = load(spec, split)
            assert found.content_digests.shape == (len(found), 16)
            assert found.content_digests.dtype == np.uint8
            for index, size in enumerate(found.sizes.tolist()):
                image = found.image(index)
                assert image.dtype == torch.uint8
                assert image.shape == (3, *size)

    def test_it_is_the_same_each_time(self, spec: str) -> None:
        """Loading twice gives the same samples in the same order, and the same fingerprint."""
        first, second = load(spec, "train"), load(spec, "train")
        assert first.fingerprint == second.fingerprint
        assert_same(second, first)

    def test_streamed_images_are_those_in_memory(self, spec: str) -> None:
        """Images decoded at each use are those of the cache."""
        for split in SPLITS:
            memory, streamed = (load(spec, split, loading=loading) for loading in _LOADINGS)
            assert memory.in_memory
            assert not streamed.in_memory
            assert streamed.fingerprint == memory.fingerprint
            assert_same(streamed, memory)

    def test_a_subset_has_the_samples_asked_for(self, spec: str) -> None:
        """A subset keeps keys, ids, labels and pixels; its fingerprint is that of its samples in their order."""
        for loading in _LOADINGS:
            whole = load(spec, "train", loading=loading)
            indices = [len(whole) - 1, 0, 1]
            part = whole.subset(indices)
            assert_same(part, whole, indices)
            assert part.whole is whole
            assert part.subset([2, 0]).whole is whole
            assert len({whole.subset(order).fingerprint for order in (indices, indices[::-1], indices[:2])}) == 3

    def test_a_limit_takes_a_part(self, spec: str) -> None:
        """The samples that ``limit`` takes are some of all, in their order."""
        whole = load(spec, "train")
        few = load(spec, "train", 2)
        indices = [whole.keys.index(key) for key in few.keys]
        assert indices == sorted(indices)
        assert len(indices) == 2
        assert_same(few, whole, indices)

    def test_it_can_be_pickled_without_its_pixels(self, spec: str) -> None:
        """A worker process gets the same samples, from the cache or decoded again."""
        for loading in _LOADINGS:
            found = load(spec, "train", loading=loading)
            packed = pickle.dumps(found)
            assert len(packed) < 20_000 + 200 * len(found)
            again = pickle.loads(packed)
            assert again.in_memory == found.in_memory
            assert_same(again, found)

    def test_statistics_are_of_pixels_in_0_to_1(self, spec: str) -> None:
        """Each channel has a mean in 0..1, and a standard deviation above 0."""
        mean, std = load(spec, "train").statistics()
        assert all(0 <= value <= 1 for value in mean)
        assert all(0 < value <= 1 for value in std)


_LOADINGS: tuple[Loading, Loading] = ("memory", "stream")
