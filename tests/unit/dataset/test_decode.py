"""Every kind of image becomes three channels of eight bits."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, features

from kdpipe.dataset import Dataset, load
from kdpipe.dataset.decode import check, decode, decoder_name, describe, from_pillow
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
    colors = np.array([[255, 0, 0], [0, 255, 0], [9, 8, 7]], dtype=np.uint8)
    assert_shows(only(tmp_path, image, "a.png", **options), colors[GRAY % 3])


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


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (7, 1), (2, 3), (33, 17)])
def test_pixels_are_writable(tmp_path: Path, size: tuple[int, int]) -> None:
    levels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    found = from_pillow(Image.fromarray(levels))
    np.testing.assert_array_equal(found, np.moveaxis(levels, 2, 0))
    assert found.flags.writeable
    assert_shows(only(tmp_path, Image.fromarray(levels), "a.png"), levels)


def photograph() -> Image.Image:
    """Smooth colors with an edge and some noise; neither side is a multiple of 8."""
    row, column = np.mgrid[:61, :85]
    levels = np.stack([row * 4, column * 3, 255 - row - column], axis=2) + 40 * (column > row)[..., None]
    noise = np.random.default_rng(0).integers(-9, 10, levels.shape)
    return Image.fromarray(np.clip(levels + noise, 0, 255).astype(np.uint8))


def jpeg(image: Image.Image, *, kind: str = "JPEG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("options", [{"progressive": True}, {"restart_marker_blocks": 2}, {"optimize": True}])
def test_jpeg_pixels_do_not_depend_on_how_coefficients_are_written(
    subsampling: int, options: dict[str, object]
) -> None:
    image = photograph()
    plain = jpeg(image, subsampling=subsampling)
    other = jpeg(image, subsampling=subsampling, **options)
    assert plain != other
    np.testing.assert_array_equal(decode(other, "a.jpg"), decode(plain, "a.jpg"))


@pytest.mark.parametrize("options", [{"subsampling": 0}, {"keep_rgb": True}])
def test_a_jpeg_shows_what_was_written(options: dict[str, object]) -> None:
    image = photograph()
    found = decode(jpeg(image, quality=98, **options), "a.jpg")
    assert np.abs(found.astype(int) - np.asarray(image).transpose(2, 0, 1)).max() < 12


def test_a_gray_jpeg_is_repeated() -> None:
    content = jpeg(photograph().convert("L"))
    gray = np.asarray(Image.open(io.BytesIO(content)))
    np.testing.assert_array_equal(decode(content, "a.jpg"), np.stack([gray] * 3))


def test_a_cmyk_jpeg_is_converted() -> None:
    content = jpeg(photograph().convert("CMYK"), quality=98)
    ink = np.asarray(Image.open(io.BytesIO(content))).astype(int)
    expected = (255 - ink[..., :3]) * (255 - ink[..., 3:]) / 255
    assert np.abs(decode(content, "a.jpg") - expected.transpose(2, 0, 1)).max() <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_of_a_jpeg_is_not_applied(orientation: int) -> None:
    image = photograph()
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = jpeg(image, exif=exif)
    assert describe(turned, "a.jpg")[:2] == (61, 85)
    np.testing.assert_array_equal(decode(turned, "a.jpg"), decode(jpeg(image), "a.jpg"))


def test_the_first_of_several_pictures_is_read() -> None:
    image = photograph()
    several = jpeg(image, kind="MPO", save_all=True, append_images=[image.rotate(180)])
    assert Image.open(io.BytesIO(several)).format == "MPO"
    np.testing.assert_array_equal(decode(several, "a.jpg"), decode(jpeg(image), "a.jpg"))


@pytest.mark.parametrize("progressive", [False, True])
def test_a_truncated_jpeg_is_refused(progressive: bool) -> None:
    content = jpeg(photograph(), progressive=progressive)
    for kept in (2, 100, content.rindex(b"\xff\xda") + 20, len(content) - 40):
        with pytest.raises(DatasetError, match=r"^a\.jpg cannot be decoded: "):
            decode(content[:kept], "a.jpg")


def test_a_damaged_jpeg_is_refused_or_has_its_size() -> None:
    content = jpeg(photograph())
    generator = np.random.default_rng(0)
    scan = content.index(b"\xff\xda")
    for place in generator.integers(scan, len(content), 300):
        damaged = bytearray(content)
        damaged[place] ^= 1 << generator.integers(8)
        try:
            found = decode(bytes(damaged), "a.jpg")
        except DatasetError:
            continue
        assert found.shape == (3, 61, 85)
        np.testing.assert_array_equal(found, decode(bytes(damaged), "a.jpg"))


def by_pillow(content: bytes) -> np.ndarray | None:
    """Return the pixels by Pillow alone; None for a file that it refuses."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            return from_pillow(image)
    except Exception:
        return None


def by_kdpipe(content: bytes) -> np.ndarray | None:
    try:
        return decode(content, "a.jpg")
    except DatasetError:
        return None


def passes(content: bytes) -> bool:
    try:
        check(content, "a.jpg")
    except DatasetError:
        return False
    return True


def same(content: bytes) -> bool:
    """Return whether a file has Pillow's pixels, or is refused as by Pillow, and its check says so."""
    found, expected = by_kdpipe(content), by_pillow(content)
    if passes(content) != (expected is not None):
        return False
    return found is expected if found is None or expected is None else np.array_equal(found, expected)


VARIANTS = [
    {"quality": quality, "subsampling": subsampling, "progressive": progressive, "restart_marker_blocks": restart}
    for quality in (5, 75, 100)
    for subsampling in (0, 1, 2)
    for progressive in (False, True)
    for restart in (0, 3)
]


@pytest.mark.parametrize("size", [(1, 1), (9, 7), (16, 16), (33, 17), (3, 200)])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpeg_files_have_the_pixels_of_pillow(mode: str, size: tuple[int, int]) -> None:
    """Also where the optional decoder is installed, which decodes most of them."""
    image = photograph().resize(size).convert(mode)
    for variant in VARIANTS:
        assert same(jpeg(image, **variant))
    if mode == "RGB":
        assert same(jpeg(image, keep_rgb=True))


def test_damaged_jpeg_files_are_refused_where_pillow_refuses_them() -> None:
    content = jpeg(photograph())
    generator = np.random.default_rng(1)
    assert all(same(content[:kept]) for kept in range(0, len(content), 23))
    for place in generator.integers(2, len(content), 300):
        damaged = bytearray(content)
        damaged[place] ^= 1 << generator.integers(8)
        assert same(bytes(damaged))


def test_the_optional_decoder_is_recorded() -> None:
    simplejpeg = pytest.importorskip("simplejpeg")
    assert decoder_name().endswith(f"-simplejpeg{simplejpeg.__version__}")


def test_the_decoder_is_named_after_what_decodes(monkeypatch: pytest.MonkeyPatch) -> None:
    turbo = features.version_feature("libjpeg_turbo")
    assert str(turbo or features.version("jpg")) in decoder_name()
    names = set()
    for version in (None, "2.1.5", "3.2.0"):
        monkeypatch.setattr(features, "version_feature", lambda _, version=version: version)
        names.add(decoder_name.__wrapped__())
    assert len(names) == 3
    assert all(name.replace(".", "").replace("-", "").isalnum() for name in names)
