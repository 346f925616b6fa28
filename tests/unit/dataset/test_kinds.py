"""Every kind of dataset passes the suite that is given to people who write their own."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest

from kdpipe import dataset
from kdpipe.dataset import Dataset
from kdpipe.testing import datasets
from kdpipe.testing.datasets import DatasetSuite, assert_same
from tests.images import WRITERS
from tests.unit.dataset.conftest import MakeFolder, picture
from tests.unit.dataset.test_published import write_cifar, write_idx


class TestDigits(DatasetSuite):
    @pytest.fixture
    def spec(self) -> str:
        return "digits"


class TestFolder(DatasetSuite):
    @pytest.fixture
    def spec(self, make_folder: MakeFolder) -> str:
        return f"folder:{make_folder()}"


class TestFolderWithImagesWithoutALabel(DatasetSuite):
    all_labeled = False

    @pytest.fixture
    def spec(self, make_folder: MakeFolder) -> str:
        root = make_folder()
        (root / "unlabeled").mkdir()
        picture(100, height=7).save(root / "unlabeled" / "large.png")
        return f"folder:{root}"


class TestCifar(DatasetSuite):
    @pytest.fixture(params=["cifar10", "cifar100"])
    def spec(self, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
        write_cifar(tmp_path / "c", monkeypatch, fine=request.param == "cifar100")
        return f"{request.param}:{tmp_path}/c"


class TestTorchvision(DatasetSuite):
    @pytest.fixture
    def spec(self, tmp_path: Path) -> str:
        write_idx(tmp_path / "f", count=6)
        return f"torchvision:FashionMNIST:{tmp_path}/f"


class TestArrays(DatasetSuite):
    @pytest.fixture(params=[np.savez, np.savez_compressed])
    def spec(self, request: pytest.FixtureRequest, tmp_path: Path) -> str:
        draw = np.random.default_rng(0)
        request.param(
            tmp_path / "shapes.npz",
            train_images=draw.integers(0, 256, (5, 7, 9, 3), dtype=np.uint8),
            train_labels=np.array([0, 1, 1, 0, 1]),
            test_images=draw.integers(0, 256, (2, 7, 9), dtype=np.uint8),
            test_labels=np.array([[1], [0]], dtype=np.uint8),
        )
        return f"npz:{tmp_path}/shapes.npz"


class TestOtherForms(DatasetSuite):
    @pytest.fixture(params=["webdataset", "parquet", "hf"])
    def spec(self, request: pytest.FixtureRequest, tmp_path: Path, make_folder: MakeFolder) -> str:
        return WRITERS[request.param](make_folder(), tmp_path / "other")


class TestNamesOfAColumn(DatasetSuite):
    @pytest.fixture(params=["parquet", "hf"])
    def spec(self, request: pytest.FixtureRequest, tmp_path: Path, make_folder: MakeFolder) -> str:
        return f"{WRITERS[request.param](make_folder(), tmp_path / 'other')},key=name"


class TestCallable(DatasetSuite):
    @pytest.fixture
    def spec(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
        (tmp_path / "some_images.py").write_text(
            "import numpy as np\n"
            "class Images(list):\n"
            "    classes = ('dark', 'bright')\n"
            "def build(split):\n"
            "    shape = (5 if split == 'train' else 2, 6, 7, 3)\n"
            "    images = np.random.default_rng(len(split)).integers(0, 256, shape, dtype=np.uint8)\n"
            "    return Images((image, index % 2) for index, image in enumerate(images))\n"
        )
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "some_images", raising=False)
        return "some_images:build"


def _with_other_labels(found: Dataset) -> Dataset:
    return dataclasses.replace(found, labels=(found.labels + 1) % 2)


def _with_equal_keys(found: Dataset) -> Dataset:
    return dataclasses.replace(found, keys=found.keys[:1] * len(found))


def _with_one_class(found: Dataset) -> Dataset:
    return dataclasses.replace(found, classes=found.classes[:1])


def _with_other_ids(found: Dataset) -> Dataset:
    return dataclasses.replace(found, sample_ids=found.sample_ids[::-1].copy())


def _with_other_sizes(found: Dataset) -> Dataset:
    return dataclasses.replace(found, sizes=found.sizes + 1)


@pytest.mark.parametrize(
    ("fault", "test"),
    [
        (_with_equal_keys, DatasetSuite.test_samples_are_named_and_labeled),
        (_with_one_class, DatasetSuite.test_samples_are_named_and_labeled),
        (_with_other_ids, DatasetSuite.test_ids_are_those_of_the_keys),
        (_with_other_sizes, DatasetSuite.test_images_are_of_the_sizes_that_were_surveyed),
    ],
)
def test_a_fault_is_found(
    fault: object, test: object, make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert callable(fault)
    assert callable(test)
    monkeypatch.setattr(datasets, "load", lambda *given, **named: fault(dataset.load(*given, **named)))
    with pytest.raises(AssertionError):
        test(DatasetSuite(), f"folder:{make_folder()}")


def test_other_samples_are_not_the_same(make_folder: MakeFolder) -> None:
    found = dataset.load(f"folder:{make_folder()}", "train")
    assert_same(found.subset([2, 0]), found, [2, 0])
    for other in (found.subset([0, 2]), _with_other_labels(found).subset([2, 0])):
        with pytest.raises(AssertionError):
            assert_same(other, found, [2, 0])
    turned = dataclasses.replace(found, buffer_indices=np.roll(found.buffer_indices, 1))
    with pytest.raises(AssertionError, match=r"other pixels of train/ant/0\.png"):
        assert_same(turned, found)
