"""Datasets joined by position: images in another order are refused, also where all labels agree."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import ImageFolder
from torchvision.transforms.functional import to_tensor

from kdpipe.dataset import Dataset, load
from kdpipe.errors import StoreError
from kdpipe.models import Preset
from kdpipe.pairing.attach import attach
from kdpipe.store.reader import LogitStore, open_store
from kdpipe.testing.stores import dataset_plan, small_store
from tests.unit.pairing.pictures import insects

PRESET = Preset(size=12, resize=14, interpolation="bilinear", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
EACH = 40


class Listed:
    """Images of a dataset in some order, as another library might give them; no file is listed."""

    def __init__(self, dataset: Dataset, order: list[int], form: Callable[[torch.Tensor], Any]) -> None:
        self.dataset, self.order, self.form = dataset, order, form
        self.targets = dataset.labels[order].tolist()

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.form(self.dataset.image(self.order[index])), self.targets[index]


FORMS: dict[str, Callable[[torch.Tensor], Any]] = {
    "uint8 tensor": lambda image: image,
    "array": lambda image: image.permute(1, 2, 0).numpy(),
    "PIL": lambda image: Image.fromarray(image.permute(1, 2, 0).numpy()),
    "ToTensor": lambda image: to_tensor(Image.fromarray(image.permute(1, 2, 0).numpy())),
}
REVERSED = [*range(EACH - 1, -1, -1), *range(2 * EACH - 1, EACH - 1, -1)]
"""Within each class: no label tells."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return insects(tmp_path_factory.mktemp("insects"), each=EACH, size=(14, 14), name="{:02}.png")


@pytest.fixture
def dataset(folder: Path) -> Dataset:
    return load(f"folder:{folder}", "train")


@pytest.fixture
def store(dataset: Dataset, tmp_path: Path) -> LogitStore:
    small_store(tmp_path / "a.zarr", dataset_plan(dataset, preset=PRESET, views=1))
    return open_store(tmp_path / "a.zarr")


@pytest.mark.parametrize("form", FORMS)
def test_images_reversed_within_each_class_are_refused(store: LogitStore, dataset: Dataset, form: str) -> None:
    attach(store, Listed(dataset, list(range(2 * EACH)), FORMS[form]), by_index=True)
    with pytest.raises(StoreError, match=r"Listed has at index \d+ the image that .* has at index \d+: it is in"):
        attach(store, Listed(dataset, REVERSED, FORMS[form]), by_index=True)


def test_files_reversed_within_each_class_are_refused(store: LogitStore, folder: Path) -> None:
    images = ImageFolder(str(folder / "train"))
    attach(store, images, by_index=True)
    images.samples = [images.samples[index] for index in REVERSED]
    with pytest.raises(StoreError, match="ImageFolder has at index 0 the image that"):
        attach(store, images, by_index=True)


def test_another_image_among_those_of_the_store_is_refused(store: LogitStore, folder: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(folder, tmp_path / "copied"))
    Image.new("RGB", (14, 14)).save(copied / "train/ant/05.png")
    images = ImageFolder(str(copied / "train"))
    with pytest.raises(StoreError, match=r"has at index 5 an image that .* lacks"):
        attach(store, images, by_index=True)


def test_arrays_are_compared_by_their_pixels(tmp_path: Path) -> None:
    digits = load("digits", "train").subset(range(300))
    small_store(tmp_path / "a.zarr", dataset_plan(digits, preset=PRESET, views=1))
    store = open_store(tmp_path / "a.zarr")
    attach(store, Listed(digits, list(range(300)), FORMS["uint8 tensor"]), by_index=True)
    order = np.lexsort((-np.arange(300), digits.labels))
    within = np.empty(300, dtype=np.int64)
    within[np.argsort(digits.labels, kind="stable")] = order
    assert (digits.labels[within] == digits.labels).all()
    with pytest.raises(StoreError, match="another order"):
        attach(store, Listed(digits, within.tolist(), FORMS["uint8 tensor"]), by_index=True)


def test_normalized_images_cannot_be_compared(store: LogitStore, dataset: Dataset) -> None:
    """As the docstring of ``attach`` says."""
    normalized = Listed(dataset, REVERSED, lambda image: (image.float() / 255 - 0.5) / 0.2)
    assert len(attach(store, normalized, by_index=True)) == 2 * EACH
