"""Corruptions against Pillow, scipy and closed forms; their pixels depend on the sample alone."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from blake3 import blake3
from PIL import Image
from scipy.ndimage import gaussian_filter
from scipy.stats import norm

from kdpipe.errors import ParamsError
from kdpipe.views.corruptions import CORRUPTIONS, STRENGTHS, Corruptions, corrupt

KINDS = ("noise", "blur", "contrast", "jpeg", "pixelate", "brightness")

DIGESTS = {
    "noise": "386ecba8",
    "blur": "7b176201",
    "contrast": "99861c6b",
    "jpeg": "98ad178d",
    "pixelate": "8d28ae18",
    "brightness": "756f92a0",
}
"""Of the pixels of ``test_pixels_are_the_same_on_every_machine``."""


def _images(count: int = 3, height: int = 32, width: int = 32) -> torch.Tensor:
    """Smooth colored shapes with some texture, uint8."""
    draw = np.random.default_rng(height + width)
    raw = draw.integers(0, 256, (count, 3, height, width)).astype(np.float64)
    smooth = gaussian_filter(raw, (0, 0, 3, 3))
    low, high = smooth.min(axis=(2, 3), keepdims=True), smooth.max(axis=(2, 3), keepdims=True)
    return torch.from_numpy((235 * (smooth - low) / (high - low) + 0.08 * raw).astype(np.uint8))


def _ids(count: int = 3) -> np.ndarray:
    return np.random.default_rng(7).integers(0, 256, (count, 16), dtype=np.uint8)


def _corrupt(kind: str, images: torch.Tensor, strength: int) -> torch.Tensor:
    return corrupt(kind, images, strength=strength, sample_ids=_ids(len(images)))


def test_all_kinds_are_registered() -> None:
    assert CORRUPTIONS.names == KINDS
    assert all(entry.help.endswith(".") and not entry.parameters for entry in CORRUPTIONS)


@pytest.mark.parametrize("kind", KINDS)
def test_each_strength_moves_an_image_further_and_keeps_its_type(kind: str) -> None:
    images = _images()
    before = images.clone()
    distances = []
    for strength in STRENGTHS:
        made = _corrupt(kind, images, strength)
        assert (made.dtype, made.shape) == (torch.uint8, images.shape)
        assert made.is_contiguous() or made.numel() == images.numel()
        distances.append((made.float() - images.float()).square().mean().item())
    assert distances == sorted(distances)
    assert distances[0] > 0
    assert torch.equal(images, before)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("height", "width"), [(8, 8), (33, 21), (32, 32)])
def test_pixels_depend_on_the_sample_alone(kind: str, height: int, width: int) -> None:
    images, ids = _images(4, height, width), _ids(4)
    together = corrupt(kind, images, strength=3, sample_ids=ids)
    order = [2, 0, 3, 1]
    turned = corrupt(kind, images[order], strength=3, sample_ids=ids[order])
    assert torch.equal(turned, together[order])
    assert torch.equal(corrupt(kind, images[1:2], strength=3, sample_ids=ids[1:2]), together[1:2])
    assert corrupt(kind, images[:0], strength=3, sample_ids=ids[:0]).shape == (0, 3, height, width)


def test_pixels_are_the_same_on_every_machine() -> None:
    pixels = torch.arange(2 * 3 * 24 * 24).mul(37).bitwise_right_shift(2).remainder(256).to(torch.uint8)
    images = pixels.view(2, 3, 24, 24)
    ids = np.arange(32, dtype=np.uint8).reshape(2, 16)
    found = {
        kind: blake3(corrupt(kind, images, strength=4, sample_ids=ids).numpy().tobytes()).hexdigest(length=4)
        for kind in KINDS
    }
    assert found == DIGESTS


def test_noise_is_gaussian_of_the_stated_deviation() -> None:
    gray = torch.full((4, 3, 64, 64), 128, dtype=torch.uint8)
    for strength, deviation in zip((1, 2, 3), (10, 20, 31), strict=True):
        change = _corrupt("noise", gray, strength).double() - 128
        assert change.std().item() == pytest.approx(deviation, rel=0.02)
        assert change.mean().item() == pytest.approx(0, abs=0.3)
        within = norm.cdf((deviation + 0.5) / deviation) - norm.cdf(-(deviation + 0.5) / deviation)
        assert (change.abs() <= deviation).double().mean().item() == pytest.approx(within, abs=0.01)
    first, second = (_corrupt("noise", gray, 1)[index].double().flatten() for index in (0, 1))
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.03
    row = first.view(3, 64, 64)
    assert abs(np.corrcoef(row[0].flatten(), row[1].flatten())[0, 1]) < 0.05


@pytest.mark.parametrize(("side", "strength", "deviation"), [(32, 4, 0.96), (100, 2, 1.5), (100, 5, 4.0)])
def test_blur_is_scipys(side: int, strength: int, deviation: float) -> None:
    images = _images(2, side, side)
    expected = gaussian_filter(
        images.numpy().astype(np.float64), (0, 0, deviation, deviation), mode="nearest", truncate=3
    )
    difference = np.abs(_corrupt("blur", images, strength).numpy() - expected)
    assert difference.max() < 0.6 + 0.3  # rounding, and a kernel that scipy cuts off elsewhere


@pytest.mark.parametrize(("side", "strength", "quality"), [(32, 1, 60), (48, 3, 25), (64, 4, 15), (32, 5, 8)])
def test_jpeg_is_libjpegs(side: int, strength: int, quality: int) -> None:
    images = _images(3, side, side)
    made = _corrupt("jpeg", images, strength)
    for before, after in zip(images, made, strict=True):
        file = io.BytesIO()
        Image.fromarray(before.permute(1, 2, 0).numpy()).save(file, "jpeg", quality=quality, subsampling=2)
        expected = np.asarray(Image.open(file).convert("RGB")).astype(int)
        found = after.permute(1, 2, 0).numpy().astype(int)
        own = np.abs(found - before.permute(1, 2, 0).numpy()).mean()
        assert np.abs(found - expected).mean() < 1.5
        assert np.abs(found - expected).mean() < own / 2


def test_cells_are_means() -> None:
    images = _images(2, 20, 20)
    made = _corrupt("pixelate", images, 5)  # 5 cells of 4 pixels
    means = images.view(2, 3, 5, 4, 5, 4).double().mean(dim=(3, 5))
    expected = (means + 0.5).floor().repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)
    assert torch.equal(made.double(), expected)


def test_uneven_cells_keep_the_mean_and_a_flat_image() -> None:
    flat = torch.full((1, 3, 33, 21), 77, dtype=torch.uint8)
    for strength in STRENGTHS:
        assert torch.equal(_corrupt("pixelate", flat, strength), flat)
        assert torch.equal(_corrupt("blur", flat, strength), flat)
        assert (_corrupt("contrast", flat, strength).int() - 77).abs().max() <= 1
        assert (_corrupt("jpeg", flat, strength).int() - 77).abs().max() <= 4


def test_brightness_and_contrast_are_closed_forms() -> None:
    images = _images(2)
    assert torch.equal(_corrupt("brightness", images, 3), (images.int() + 77).clamp(max=255).to(torch.uint8))
    levels = images.double()
    made = _corrupt("contrast", images, 2).double()
    gray = (0.2989 * levels[:, 0] + 0.587 * levels[:, 1] + 0.114 * levels[:, 2]).mean(dim=(1, 2)).view(-1, 1, 1, 1)
    assert (made - (levels + gray) / 2).abs().max() <= 1.5


@pytest.mark.parametrize("strength", [0, 6])
def test_strengths_are_one_to_five(strength: int) -> None:
    with pytest.raises(ValueError, match="strength of 1 to 5"):
        _corrupt("blur", _images(), strength)


def test_kinds_are_written_and_read() -> None:
    assert Corruptions.parse("all").kinds == KINDS
    assert str(Corruptions.parse("all")) == "all"
    assert Corruptions.parse("jpeg + noise").kinds == ("jpeg", "noise")
    assert str(Corruptions.parse("jpeg+noise")) == "jpeg+noise"
    for text, message in (
        ("fog", "unknown corruption 'fog'"),
        ("blur+blur", "blur twice"),
        ("blur:3", "takes no values"),
    ):
        with pytest.raises(ParamsError, match=message):
            Corruptions.parse(text)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("kind", KINDS)
def test_pixels_are_the_same_on_a_gpu(kind: str) -> None:
    images = _images(4, 48, 40)
    for strength in STRENGTHS:
        assert torch.equal(_corrupt(kind, images.cuda(), strength).cpu(), _corrupt(kind, images, strength))
