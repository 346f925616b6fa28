"""The images and the test of an export, against counts by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load, save
from torch import nn

from kdpipe import dataset
from kdpipe.dataset import Dataset
from kdpipe.errors import AccuracyLossError
from kdpipe.export.checks import Figures, measure, refuse_losses
from kdpipe.export.formats import Artifact, Precision, with_header
from kdpipe.export.images import calibration_images, example, plain_batches
from kdpipe.export.readme import preparation
from kdpipe.models import Model, Preset

PRESET = Preset(8, 8, "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@pytest.fixture(scope="module")
def samples() -> Dataset:
    return dataset.load("digits", "test", 100)


class Brightness(nn.Module):
    """Two classes: the mean of the left half of an image against that of the right half."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([x[..., :4].mean(dim=(1, 2, 3)), x[..., 4:].mean(dim=(1, 2, 3))], dim=1)


MODEL = Model("brightness", Brightness().eval(), PRESET, "flags", None, "0" * 32)


def artifact(predict: Callable[[np.ndarray], np.ndarray], precision: Precision = "fp32") -> Artifact:
    return Artifact("onnx", precision, {"model.onnx": b""}, predict, "", ())


def exact(images: np.ndarray) -> np.ndarray:
    scaled = images.astype(np.float32) / 127.5 - 1
    return np.stack([scaled[..., :4].mean(axis=(1, 2, 3)), scaled[..., 4:].mean(axis=(1, 2, 3))], axis=1)


def test_counts_by_hand() -> None:
    figures = Figures()
    run = np.array([[3, 1, 0], [0, 2, 1], [1, 0, 4], [1, 1.0001, 0]], dtype=np.float32)
    logits = np.array([[3, 1, 0], [0, 1, 2], [1, 0, 4.5], [1.0001, 1, 0]], dtype=np.float32)
    figures.add(logits[:2], run[:2], np.array([0, 1], dtype=np.int32))
    figures.add(logits[2:], run[2:], np.array([-1, 0], dtype=np.int32))
    assert (figures.images, figures.labeled, figures.hits, figures.same) == (4, 3, 2, 2)
    assert figures.changed == 1  # the last image is a tie
    assert (figures.top1, figures.agreement, figures.difference) == (2 / 3, 1 / 2, 1)
    assert Figures(images=2, same=1).top1 is None


def test_same_network_passes(samples: Dataset) -> None:
    tested = measure([artifact(exact), artifact(exact, "int8")], MODEL, samples)
    labels = samples.labels
    expected = exact(np.concatenate(list(plain_batches(samples, PRESET)))).argmax(axis=1)
    assert tested.run.images == 100
    assert tested.run.top1 == (expected == labels).mean()
    for _, figures in tested.artifacts:
        assert figures.difference < 1e-6
        assert tested.drop(figures) == 0
    assert refuse_losses(tested, max_drop=0, allow_drop=False) == []


def test_another_class_in_fp32_is_refused_whatever_is_allowed(samples: Dataset) -> None:
    tested = measure([artifact(lambda images: -exact(images))], MODEL, samples)
    with pytest.raises(AccuracyLossError, match=r"model.onnx is not the run's network: it gives \d+ of 100 images"):
        refuse_losses(tested, max_drop=100, allow_drop=True)


def test_int8_may_lose_what_is_allowed(samples: Dataset) -> None:
    right = samples.subset(np.flatnonzero(samples.labels == samples.labels[0])[:10])
    pixels = np.concatenate(list(plain_batches(right, PRESET)))
    own = exact(pixels).argmax(axis=1)
    labeled = Dataset(**{**vars(right), "labels": own.astype(np.int32)})
    swapped = [0]  # of ten images, the first has the other class: 10 points

    def predict(images: np.ndarray) -> np.ndarray:
        logits = exact(images)
        logits[swapped] = logits[swapped, ::-1]
        return logits

    tested = measure([artifact(predict, "int8")], MODEL, labeled)
    assert tested.drop(tested.artifacts[0][1]) == pytest.approx(10)
    assert refuse_losses(tested, max_drop=10, allow_drop=False) == []
    with pytest.raises(AccuracyLossError, match=r"loses 10.00 points of top-1 \(90.00%, in fp32 100.00%\), more than"):
        refuse_losses(tested, max_drop=9.9, allow_drop=False)
    (warning,) = refuse_losses(tested, max_drop=9.9, allow_drop=True)
    assert warning.startswith("warning: model.onnx loses 10.00 points")
    unlabeled = Dataset(**{**vars(right), "labels": np.full(10, -1, dtype=np.int32)})
    tested = measure([artifact(predict, "int8")], MODEL, unlabeled)
    assert tested.drop(tested.artifacts[0][1]) == pytest.approx(10)  # of agreement


def test_calibration_images_are_a_seeded_choice_of_the_plain_view(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)
    for split in ("train", "test"):
        (tmp_path / split / "a").mkdir(parents=True)
        for index, image in enumerate(images):
            Image.fromarray(image).save(tmp_path / split / "a" / f"{index:02}.png")
    train = dataset.load(f"folder:{tmp_path}", "train")
    first, again, other = (calibration_images(train, PRESET, count=5, seed=seed) for seed in (0, 0, 1))
    assert (first.shape, first.dtype) == ((5, 3, 8, 8), np.uint8)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    known = {image.transpose(2, 0, 1).tobytes() for image in images}
    assert len({image.tobytes() for image in first} & known) == 5
    assert len(calibration_images(train, PRESET, count=50, seed=0)) == 12


@pytest.mark.parametrize("preset", [PRESET, Preset(24, 32, "bicubic", PRESET.mean, PRESET.std)])
@pytest.mark.parametrize("shape", [(37, 50), (61, 40), (8, 8), (32, 47)])
def test_preparation_in_the_readme_is_the_plain_view(preset: Preset, shape: tuple[int, int], tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    for split in ("train", "test"):
        (tmp_path / split / "a").mkdir(parents=True)
        Image.fromarray(pixels).save(tmp_path / split / "a" / "0.png")
    names = {"Image": Image, "np": np}
    exec("\n".join(preparation(preset, f"{tmp_path}/test/a/0.png")), names)
    (expected,) = plain_batches(dataset.load(f"folder:{tmp_path}", "test"), preset)
    assert names["images"].dtype == np.uint8
    np.testing.assert_allclose(names["images"].astype(int), expected.astype(int), atol=1)


def test_example_is_its_formula() -> None:
    image = example(5)
    assert (image.shape, image.dtype) == ((1, 3, 5, 5), np.uint8)
    assert image[0, 2, 3, 4] == (4 * 4 + 3 * 9 + 7 * 12 + 11 * 4 + 5 * 3 + 85 * 2) % 256


def test_header_of_safetensors_is_added_to() -> None:
    tensors = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(1, dtype=np.float32)}
    content = with_header(save(tensors, {"architecture": "resnet8"}), {"license": "π", "architecture": "other"})
    for name, value in load(content).items():
        np.testing.assert_array_equal(value, tensors[name])
    length = int.from_bytes(content[:8], "little")
    assert length % 8 == 0
    assert json.loads(content[8 : 8 + length])["__metadata__"] == {"architecture": "resnet8", "license": "π"}
