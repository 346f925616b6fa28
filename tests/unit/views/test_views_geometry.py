"""Fitting images to a model's square input, against torchvision's resize and center crop."""

from __future__ import annotations

import pytest
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from kdpipe.models import Preset
from kdpipe.views import Geometry


def pictures(height: int, width: int, *, count: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(height * 1000 + width)
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=generator)


def by_torchvision(images: torch.Tensor, geometry: Geometry) -> torch.Tensor:
    mode = InterpolationMode(geometry.interpolation)
    resized = functional.resize(images, [geometry.resize], interpolation=mode, antialias=True)
    return functional.center_crop(resized, [geometry.size])


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest"])
@pytest.mark.parametrize(("size", "resize"), [(32, 32), (32, 36), (31, 36), (30, 36), (24, 28), (28, 33)])
def test_equals_torchvision(interpolation: str, size: int, resize: int) -> None:
    geometry = Geometry(size, resize, interpolation)
    for height, width in [(32, 32), (64, 64), (60, 60), (28, 28), (7, 7), (33, 33)]:
        images = pictures(height, width)
        fitted = geometry.fit(images)
        assert fitted.shape == (3, 3, size, size)
        assert fitted.dtype == torch.uint8
        assert torch.equal(fitted, by_torchvision(images, geometry)), (height, width)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest"])
@pytest.mark.parametrize(("size", "resize"), [(32, 32), (32, 36)])
def test_equals_torchvision_on_oblong_images(interpolation: str, size: int, resize: int) -> None:
    geometry = Geometry(size, resize, interpolation)
    for height, width in [(60, 40), (40, 60), (100, 33), (17, 90), (36, 40), (7, 5), (47, 62)]:
        images = pictures(height, width)
        short, long = min(height, width), max(height, width)
        # A surplus of 3, 7, 11, ... pixels is the next test's.
        if (resize * long // short - size) % 4 != 3:
            assert torch.equal(geometry.fit(images), by_torchvision(images, geometry)), (height, width)


@pytest.mark.parametrize("surplus", [3, 7, 11])
def test_equals_torchvision_where_half_a_surplus_rounds_up(surplus: int) -> None:
    images = pictures(20 + surplus, 20 + surplus)
    geometry = Geometry(20, 20 + surplus, "bilinear")
    assert torch.equal(geometry.fit(images), by_torchvision(images, geometry))


def test_identity_when_the_sides_match() -> None:
    images = pictures(32, 32)
    assert torch.equal(Geometry(32, 32, "bicubic").fit(images), images)


def test_only_crops_when_the_shorter_side_matches() -> None:
    images = pictures(32, 40)
    assert torch.equal(Geometry(32, 32, "bilinear").fit(images), images[..., 4:36])
    assert torch.equal(Geometry(28, 32, "bilinear").fit(images), images[..., 2:30, 6:34])


@pytest.mark.parametrize("count", [1, 2, 17])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest"])
def test_a_batch_is_fitted_as_its_images_are(count: int, interpolation: str) -> None:
    images = pictures(45, 37, count=count)
    geometry = Geometry(24, 28, interpolation)
    alone = torch.cat([geometry.fit(image[None]) for image in images])
    assert torch.equal(geometry.fit(images), alone)


def test_of_a_preset() -> None:
    preset = Preset(size=24, resize=28, interpolation="bicubic", mean=(0.5,) * 3, std=(0.5,) * 3)  # type: ignore[arg-type]
    assert Geometry.of(preset) == Geometry(24, 28, "bicubic")
