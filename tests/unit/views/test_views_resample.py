"""Cutting and resizing: against torchvision, against plain loops of integers, and the same in every batch."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from kdpipe.views import resample

KERNELS = ("bilinear", "bicubic")


def pictures(height: int, width: int, *, count: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(height * 1000 + width)
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=generator)


def plain_line(line: list[int], target: int, kernel: str) -> list[int]:
    """Resize one line of pixels with integers and plain floats, as Pillow documents its 8-bit scheme."""
    source = len(line)
    scale = source / target
    stretch = max(1.0, scale)
    reach = {"bilinear": 1.0, "bicubic": 2.0}[kernel] * stretch
    rows = []
    for i in range(target):
        center = scale * (i + 0.5)
        first, last = max(int(center - reach + 0.5), 0), min(int(center + reach + 0.5), source)
        weights = []
        for j in range(first, last):
            x = abs((j - first + first - center + 0.5) * (1.0 / stretch))
            if kernel == "bilinear":
                weights.append(1 - x if x < 1 else 0.0)
            elif x < 1:
                weights.append((1.5 * x - 2.5) * x * x + 1)
            else:
                weights.append((((x - 5) * x + 8) * x - 4) * -0.5 if x < 2 else 0.0)
        total = 0.0
        for weight in weights:
            total += weight
        rows.append((first, [weight / total for weight in weights]))
    largest = max(weight for _, weights in rows for weight in weights)
    bits = 0
    while bits < 22 and int(0.5 + largest * 2 ** (bits + 1)) < 2**15:
        bits += 1
    out = []
    for first, weights in rows:
        whole = [math.trunc(weight * 2**bits + math.copysign(0.5, weight)) for weight in weights]
        total_level = sum(weight * line[first + k] for k, weight in enumerate(whole)) + 2 ** (bits - 1)
        out.append(min(max(total_level >> bits, 0), 255))
    return out


def plainly(image: npt.NDArray[np.uint8], height: int, width: int, kernel: str) -> npt.NDArray[np.uint8]:
    """Resize ``(3, H, W)``: columns first, then rows."""
    wide = np.array([[plain_line(line.tolist(), width, kernel) for line in channel] for channel in image])
    tall = np.array([[plain_line(line.tolist(), height, kernel) for line in channel.T] for channel in wide])
    return tall.transpose(0, 2, 1).astype(np.uint8)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("size", [(9, 14, 5, 23), (7, 5, 7, 12), (20, 3, 4, 3), (6, 6, 17, 1), (1, 1, 3, 4)])
def test_equals_plain_integers(kernel: str, size: tuple[int, int, int, int]) -> None:
    height, width, to_height, to_width = size
    image = pictures(height, width, count=1)
    expected = plainly(image[0].numpy(), to_height, to_width, kernel)
    for resized in (
        resample.resize(image, to_height, to_width, kernel=kernel),
        resample.exactly(image, to_height, to_width, kernel=kernel),
    ):
        assert np.array_equal(resized[0].numpy(), expected)


@pytest.mark.parametrize("kernel", KERNELS)
def test_equals_torchvision_up_and_down(kernel: str) -> None:
    mode = InterpolationMode(kernel)
    sizes = [(32, 32, 224, 224), (300, 500, 224, 224), (500, 311, 32, 32), (33, 17, 40, 12), (900, 37, 20, 37)]
    for height, width, to_height, to_width in sizes:
        images = pictures(height, width)
        expected = functional.resize(images, [to_height, to_width], interpolation=mode, antialias=True)
        assert torch.equal(resample.resize(images, to_height, to_width, kernel=kernel), expected)
        assert torch.equal(resample.exactly(images, to_height, to_width, kernel=kernel), expected)


def test_the_native_kernel_is_in_use_here() -> None:
    assert resample.native_agrees()


def random_boxes(rng: np.random.Generator, count: int, height: int, width: int) -> npt.NDArray[np.int64]:
    sides = np.stack([rng.integers(1, height + 1, count), rng.integers(1, width + 1, count)], axis=1)
    corners = np.stack([rng.integers(0, height - sides[:, 0] + 1), rng.integers(0, width - sides[:, 1] + 1)], axis=1)
    return np.concatenate([corners, sides], axis=1)


@pytest.mark.parametrize("kernel", [*KERNELS, "nearest"])
@pytest.mark.parametrize("native", [True, False])
def test_boxes_equal_torchvisions_resized_crop(kernel: str, native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resample, "native_agrees", lambda: native)
    images = pictures(23, 31, count=40)
    rng = np.random.default_rng(0)
    places = random_boxes(rng, 40, 23, 31)
    mode = InterpolationMode(kernel)
    for batch in (images, list(images)):
        cut = resample.cut(batch, places, height=16, width=12, kernel=kernel)
        for image, place, found in zip(images, places.tolist(), cut, strict=True):
            expected = functional.resized_crop(image, *place, [16, 12], interpolation=mode, antialias=True)
            assert torch.equal(found, expected), place


def test_boxes_of_images_of_different_sizes() -> None:
    images = [pictures(20, 30)[0], pictures(41, 9)[0], pictures(5, 5)[0]]
    places = np.array([[3, 4, 10, 20], [0, 0, 41, 9], [1, 1, 3, 3]])
    cut = resample.cut(images, places, height=8, width=8, kernel="bilinear")
    for image, place, found in zip(images, places.tolist(), cut, strict=True):
        expected = functional.resized_crop(image, *place, [8, 8], antialias=True)
        assert torch.equal(found, expected)


@pytest.mark.parametrize("size", [(10, 12), (20, 24), (7, 5)])
@pytest.mark.parametrize("native", [True, False])
def test_beyond_the_image_is_black(size: tuple[int, int], native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resample, "native_agrees", lambda: native)
    images = pictures(10, 12, count=5)
    places = np.array([[-3, -2, 10, 12], [2, 1, 10, 12], [0, 0, 10, 12], [-1, 4, 10, 12], [3, -4, 10, 12]])
    padded = torch.nn.functional.pad(images, (4, 4, 4, 4))
    for batch in (images, list(images)):
        cut = resample.cut(batch, places, height=size[0], width=size[1], kernel="bicubic")
        for image, (top, left, height, width), found in zip(padded, places.tolist(), cut, strict=True):
            window = image[:, top + 4 : top + 4 + height, left + 4 : left + 4 + width]
            expected = functional.resize(window, list(size), InterpolationMode.BICUBIC, antialias=True)
            assert torch.equal(found, expected)


@pytest.mark.parametrize("native", [True, False])
def test_a_batch_is_cut_as_its_images_are(native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resample, "native_agrees", lambda: native)
    images = pictures(32, 32, count=60)
    rng = np.random.default_rng(1)
    places = random_boxes(rng, 60, 32, 32)
    whole = resample.cut(images, places, height=32, width=32, kernel="bilinear")
    for index in range(60):
        one = slice(index, index + 1)
        alone = resample.cut(images[one], places[one], height=32, width=32, kernel="bilinear")
        assert torch.equal(alone, whole[one])


def test_nearest_takes_the_floor() -> None:
    image = pictures(9, 13, count=1)
    rows = [i * 9 // 5 for i in range(5)]
    columns = [j * 13 // 30 for j in range(30)]
    assert torch.equal(resample.resize(image, 5, 30, kernel="nearest"), image[:, :, rows][:, :, :, columns])


def test_no_weights_are_too_fine_for_floating_point() -> None:
    """Large reductions have weights of up to 22 bits; their sums must still be exact."""
    image = torch.full((1, 3, 3000, 40), 255, dtype=torch.uint8)
    assert (resample.exactly(image, 4, 3, kernel="bicubic") == 255).all()
    noisy = pictures(3000, 40, count=1)
    expected = functional.resize(noisy, [4, 3], InterpolationMode.BICUBIC, antialias=True)
    assert torch.equal(resample.exactly(noisy, 4, 3, kernel="bicubic"), expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_gives_the_same_bits() -> None:
    images = pictures(41, 57, count=30)
    rng = np.random.default_rng(2)
    places = random_boxes(rng, 30, 41, 57)
    for kernel in (*KERNELS, "nearest"):
        for batch in (images, list(images)):
            there = [image.cuda() for image in batch] if isinstance(batch, list) else batch.cuda()
            theirs = resample.cut(there, places, height=24, width=24, kernel=kernel).cpu()
            ours = resample.cut(batch, places, height=24, width=24, kernel=kernel)
            assert torch.equal(theirs, ours), f"{kernel} of a {type(batch).__name__} differs on a GPU"
