"""Every kind of image becomes three channels of eight bits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from kdpipe.dataset import Dataset, load
from kdpipe.errors import DatasetError


def only(tmp_path: Path, image: Image.Image, name: str, **options: object) -> Dataset:
    folder = tmp_path / "one/train/it"
    folder.mkdir(parents=True)
    image.save(folder / name, **options)
    return load(f"folder:{tmp_path}/one", "train")


GRAY = np.arange(0, 240, 2, dtype=np.uint8).reshape(10, 12)
RGB = np.stack([GRAY, 255 - GRAY, GRAY // 2], axis=2)


def assert_shows(found: Dataset, expected: npt.NDArray[np.uint8]) -> None:
    np.testing.assert_array_equal(found.image(0).numpy(), expected.transpose(2, 0, 1))


def test_gray_is_repeated(tmp_path: Path) -> None:
    assert_shows(only(tmp_path, Image.fromarray(GRAY), "a.png"), np.stack([GRAY] * 3, axis=2))


@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.tiff"])
def test_alpha_is_dropped(tmp_path: Path, name: str) -> None:
    image = Image.fromarray(np.dstack([RGB, GRAY]))
    assert image.mode == "RGBA"
    options = {"lossless": True, "exact": True} if name.endswith("webp") else {}
    assert_shows(only(tmp_path, image, name, **options), RGB)


def test_gray_with_alpha(tmp_path: Path) -> None:
    image = Image.merge("LA", [Image.fromarray(GRAY), Image.fromarray(255 - GRAY)])
    assert_shows(only(tmp_path, image, "a.png"), np.stack([GRAY] * 3, axis=2))


@pytest.mark.parametrize("transparency", [None, b"\x00\x80\xff"])
def test_a_palette_is_looked_up(tmp_path: Path, transparency: bytes | None) -> None:
    image = Image.fromarray(GRAY % 3).convert("P")
    image.putdata((GRAY % 3).reshape(-1).tolist())
    image.putpalette([255, 0, 0, 0, 255, 0, 9, 8, 7])
    options = {} if transparency is None else {"transparency": transparency}
    colours = np.array([[255, 0, 0], [0, 255, 0], [9, 8, 7]], dtype=np.uint8)
    assert_shows(only(tmp_path, image, "a.png", **options), colours[GRAY % 3])


@pytest.mark.parametrize("name", ["a.png", "a.tiff"])
def test_sixteen_bits_are_scaled(tmp_path: Path, name: str) -> None:
    deep = (GRAY.astype(np.uint16) * 257) + 100
    assert_shows(only(tmp_path, Image.fromarray(deep), name), np.stack([GRAY] * 3, axis=2))


def test_cmyk_is_converted(tmp_path: Path) -> None:
    image = Image.fromarray(RGB).convert("CMYK")
    found = only(tmp_path, image, "a.tiff")
    assert_shows(found, np.asarray(image.convert("RGB")))


def test_floats_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"a\.tiff cannot be decoded: its pixels are floats"):
        only(tmp_path, Image.fromarray(GRAY.astype(np.float32)), "a.tiff")


def test_exif_orientation_is_not_applied(tmp_path: Path) -> None:
    image = Image.fromarray(RGB)
    exif = image.getexif()
    exif[0x0112] = 6
    found = only(tmp_path, image, "a.png", exif=exif)
    assert found.image_size == (10, 12)
    assert_shows(found, RGB)
