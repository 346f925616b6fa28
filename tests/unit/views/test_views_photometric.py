"""Color operations: exact rationals, close to torchvision's, the same one by one as in a batch."""

from __future__ import annotations

import colorsys
import hashlib
import math
from collections.abc import Callable, Sequence
from fractions import Fraction

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torchvision.transforms.v2 import functional

from kdpipe.views import color

Operation = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

OPERATIONS: dict[str, tuple[Operation, Sequence[int]]] = {
    "brightness": (color.brightness, [0, 1, 77, 255, 256, 257, 400, 512]),
    "contrast": (color.contrast, [0, 1, 77, 255, 256, 257, 400, 512]),
    "saturation": (color.saturation, [0, 1, 77, 255, 256, 257, 400, 512]),
    "sharpness": (color.sharpness, [0, 1, 77, 255, 256, 257, 400, 512]),
    "hue": (color.hue, [-300, -128, -43, -1, 0, 1, 100, 128, 255]),
    "posterize": (color.posterize, list(range(9))),
    "solarize": (color.solarize, [0, 1, 100, 128, 255, 256]),
    "autocontrast": (lambda images, _: color.autocontrast(images), [0]),
    "equalize": (lambda images, _: color.equalize(images), [0]),
}
"""Each operation and values of its parameter."""

PINNED = {
    "brightness": "affadf173cdafca5",
    "contrast": "a361108efb2ccb2a",
    "saturation": "800d968d5deb951c",
    "sharpness": "5809db610e084a79",
    "hue": "976f779b650695fb",
    "posterize": "709bf941f107d7db",
    "solarize": "eed0e2e58fe02bf7",
    "autocontrast": "8007eb3f525beab9",
    "equalize": "645bb1d61020d808",
}
"""Digests of each operation's pixels. Where one changes, stores that were built before no longer match."""

IDENTITIES = {"brightness": 256, "contrast": 256, "saturation": 256, "sharpness": 256, "posterize": 8, "solarize": 256}

every_operation = pytest.mark.parametrize("name", OPERATIONS)


def parameters(values: Sequence[int] | int, images: torch.Tensor) -> torch.Tensor:
    """Deal the values out to the images."""
    return torch.tensor(np.resize(np.atleast_1d(values), len(images)), dtype=torch.int32)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def pictures() -> dict[str, torch.Tensor]:
    """Return random and structured images of different shapes."""
    ramp = torch.arange(48).view(1, 1, 1, 48) * 5 + torch.arange(20).view(1, 1, 20, 1)
    gradients = torch.cat([ramp, 255 - ramp, ramp // 2 + 60], dim=1).clamp(0, 255)
    smooth = torch.nn.functional.interpolate(noise(12, 3, 5, 5).float(), size=(33, 24), mode="bilinear")
    return {
        "random": noise(20, 3, 16, 16),
        "gradients": torch.cat([gradients, gradients.flip(1), gradients.flip(3) // 3]).to(torch.uint8),
        "smooth": smooth.to(torch.uint8),
        "saturated": (noise(12, 3, 9, 17, seed=1) > 127).to(torch.uint8) * 255,
        "few levels": noise(12, 3, 21, 20, seed=2) // 64 * 85,
        "dark": noise(12, 3, 8, 8, seed=3) // 60,
        "constant": torch.tensor([[0, 0, 0], [255, 255, 255], [13, 200, 77]], dtype=torch.uint8)[
            :, :, None, None
        ].expand(3, 3, 7, 5),
    }


PICTURES = pictures()
every_picture = pytest.mark.parametrize("images", PICTURES.values(), ids=PICTURES.keys())


def colors(step: int) -> torch.Tensor:
    """Return one image ``(1, 3, 1, k)`` of a cube of colors."""
    levels = torch.arange(0, 256, step, dtype=torch.uint8)
    return torch.cartesian_prod(levels, levels, levels).T.reshape(1, 3, 1, -1).contiguous()


def gap(mine: torch.Tensor, theirs: torch.Tensor) -> tuple[float, int]:
    """Return the share of levels that differ, and the largest difference."""
    assert mine.shape == theirs.shape
    assert mine.dtype == theirs.dtype == torch.uint8
    distance = (mine.int() - theirs.int()).abs()
    return float((distance > 0).double().mean()), int(distance.max())


def clamped(level: Fraction) -> int:
    return min(255, max(0, math.floor(level)))


def gray_of(image: torch.Tensor) -> list[int]:
    red, green, blue = image.flatten(1).tolist()
    return [(2989 * r + 5870 * g + 1140 * b) // 10000 for r, g, b in zip(red, green, blue, strict=True)]


@pytest.mark.parametrize("factor", [0, 1, 100, 255, 256, 300, 512, 1 << 15])
def test_blends_are_floored_rationals(factor: int) -> None:
    images = noise(4, 3, 5, 7)
    values = parameters(factor, images)
    weight = Fraction(factor, 256)
    results = {op: op(images, values) for op in (color.brightness, color.contrast, color.saturation)}
    for position, image in enumerate(images):
        gray = gray_of(image)
        mean = Fraction(sum(gray), len(gray))
        degenerate = {
            color.brightness: [Fraction(0)] * len(gray),
            color.contrast: [mean] * len(gray),
            color.saturation: [Fraction(level) for level in gray],
        }
        for operation, other in degenerate.items():
            expected = [
                [clamped(weight * level + (1 - weight) * base) for level, base in zip(channel, other, strict=True)]
                for channel in image.flatten(1).tolist()
            ]
            assert results[operation][position].flatten(1).tolist() == expected


def test_no_saturation_is_the_gray_level() -> None:
    cube = colors(3)
    gray = color.saturation(cube, parameters(0, cube))
    red, green, blue = cube[0, :, 0].to(torch.int64)
    expected = (2989 * red + 5870 * green + 1140 * blue) // 10000
    assert torch.equal(gray[0, :, 0].to(torch.int64), expected.expand(3, -1))


@every_picture
@pytest.mark.parametrize("factor", [0, 3, 128, 256, 301, 512])
def test_factors_mean_what_torchvisions_mean(images: torch.Tensor, factor: int) -> None:
    values = parameters(factor, images)
    ratio = factor / 256
    mine = color.brightness(images, values)
    assert torch.equal(mine, functional.adjust_brightness_image(images, ratio))
    assert torch.equal(color.sharpness(images, values), functional.adjust_sharpness_image(images, ratio))
    for operation, theirs in (
        (color.contrast, functional.adjust_contrast_image),
        (color.saturation, functional.adjust_saturation_image),
    ):
        share, largest = gap(operation(images, values), theirs(images, ratio))
        assert share < 1e-3
        assert largest <= 1


def test_nearly_all_levels_equal_torchvisions_contrast_and_saturation() -> None:
    images = noise(200, 3, 32, 32)
    for factor in (26, 205, 333, 486):
        values = parameters(factor, images)
        mine = color.contrast(images, values)
        assert gap(mine, functional.adjust_contrast_image(images, factor / 256))[0] < 1e-4
        mine = color.saturation(images, values)
        assert gap(mine, functional.adjust_saturation_image(images, factor / 256))[0] < 1e-5


def test_sharpness_rounds_the_smoothed_level_and_keeps_the_border() -> None:
    image = torch.zeros(1, 3, 5, 5, dtype=torch.uint8)
    image[:, :, 2, 2] = 100
    smooth = color.sharpness(image, parameters(0, image))
    assert smooth[0, 0, 1:-1, 1:-1].tolist() == [[8, 8, 8], [8, 38, 8], [8, 8, 8]]
    noisy = noise(3, 3, 6, 9)
    for factor in (0, 512):
        sharp = color.sharpness(noisy, parameters(factor, noisy))
        border = torch.ones(6, 9, dtype=torch.bool)
        border[1:-1, 1:-1] = False
        assert torch.equal(sharp[..., border], noisy[..., border])
        assert not torch.equal(sharp, noisy)


@pytest.mark.parametrize("shape", [(1, 1), (2, 9), (9, 2), (1, 30)])
def test_sharpness_leaves_the_smallest_images(shape: tuple[int, int]) -> None:
    images = noise(4, 3, *shape)
    sharp = color.sharpness(images, parameters([0, 512], images))
    assert torch.equal(sharp, images)
    assert sharp.data_ptr() != images.data_ptr()


def turned(pixel: list[int], turn: int) -> list[int]:
    """Turn one pixel's hue in exact rationals: value, chroma and the distance on the color hexagon."""
    red, green, blue = pixel
    value, chroma = max(pixel), max(pixel) - min(pixel)
    if chroma == 0:
        return pixel
    if value == red:
        hexagon = Fraction(green - blue, chroma)
    elif value == green:
        hexagon = Fraction(blue - red, chroma) + 2
    else:
        hexagon = Fraction(red - green, chroma) + 4
    places = [(n + hexagon + Fraction(6 * turn, 256)) % 6 for n in (5, 3, 1)]
    levels = [value - chroma * max(Fraction(0), min(k, 4 - k, Fraction(1))) for k in places]
    return [math.floor(level + Fraction(1, 2)) for level in levels]


@pytest.mark.parametrize("turn", [-1000, -129, -1, 0, 1, 37, 43, 64, 128, 200, 256, 4000])
def test_hue_is_a_rounded_rational(turn: int) -> None:
    for images in (colors(51), noise(1, 3, 1, 300), noise(1, 3, 1, 300) // 100):
        pixels = images[0, :, 0].T.tolist()
        result = color.hue(images, parameters(turn, images))
        assert result[0, :, 0].T.tolist() == [turned(pixel, turn) for pixel in pixels]


@pytest.mark.parametrize("turn", [-128, -100, -17, 0, 1, 43, 90, 128])
def test_hue_is_within_a_level_of_torchvision(turn: int) -> None:
    cube = colors(5)
    theirs = functional.adjust_hue_image(cube, turn / 256)
    share, largest = gap(color.hue(cube, parameters(turn, cube)), theirs)
    assert largest <= 1
    assert share < (1e-4 if turn % 128 == 0 else 0.08)


@pytest.mark.parametrize("turn", [-128, -17, 1, 90])
def test_hue_is_within_half_a_level_of_colorsys(turn: int) -> None:
    cube = colors(23)
    result = color.hue(cube, parameters(turn, cube))[0, :, 0].T.numpy()
    for pixel, levels in zip(cube[0, :, 0].T.tolist(), result, strict=True):
        angle, saturation, value = colorsys.rgb_to_hsv(*(level / 255 for level in pixel))
        exact = 255 * np.array(colorsys.hsv_to_rgb((angle + turn / 256) % 1, saturation, value))
        assert np.abs(exact - levels).max() < 0.5 + 1e-9


@every_picture
def test_whole_turns_of_the_hue_change_nothing(images: torch.Tensor) -> None:
    for turn in (-512, -256, 0, 256, 1 << 20):
        assert torch.equal(color.hue(images, parameters(turn, images)), images)
    once = color.hue(images, parameters(90, images))
    assert torch.equal(color.hue(images, parameters(90 - 256, images)), once)
    assert torch.equal(color.hue(images, parameters(90 + 2560, images)), once)


def test_primaries_turn_into_each_other() -> None:
    red, yellow, cyan = [255, 0, 0], [255, 255, 0], [0, 255, 255]
    images = torch.tensor([red, yellow, red], dtype=torch.uint8)[:, :, None, None]
    turns = torch.tensor([128, 128, 64], dtype=torch.int32)
    assert color.hue(images, turns)[:, :, 0, 0].tolist() == [cyan, [0, 0, 255], [128, 255, 0]]


@every_picture
def test_posterize_solarize_and_equalize_equal_torchvisions(images: torch.Tensor) -> None:
    for bits in range(9):
        mine = color.posterize(images, parameters(bits, images))
        assert torch.equal(mine, functional.posterize_image(images, bits))
    for threshold in range(256):
        mine = color.solarize(images, parameters(threshold, images))
        assert torch.equal(mine, functional.solarize_image(images, threshold))
    assert torch.equal(color.equalize(images), functional.equalize_image(images))


@every_picture
def test_equalize_equals_pillows(images: torch.Tensor) -> None:
    for image, mine in zip(images, color.equalize(images), strict=True):
        theirs = ImageOps.equalize(Image.fromarray(image.permute(1, 2, 0).numpy()))
        assert np.array_equal(mine.permute(1, 2, 0).numpy(), np.asarray(theirs))


def test_autocontrast_is_a_floored_rational_for_every_stretch() -> None:
    lower = 0
    for spread in range(1, 256):
        low = (255 - spread) // 2
        levels = torch.arange(low, low + spread + 1)
        image = levels.to(torch.uint8).expand(1, 3, 1, -1)
        expected = [math.floor(Fraction(255 * level, spread)) for level in range(spread + 1)]
        mine = color.autocontrast(image)
        assert mine[0, 1, 0].tolist() == expected
        theirs = functional.autocontrast_image(image)
        assert gap(mine, theirs)[1] <= 1
        lower += int((theirs < mine)[0, 1].sum())
    assert lower < 1000  # of 32,895 pairs of a stretch and a level


@every_picture
def test_autocontrast_is_never_below_torchvisions_nor_two_levels_above(images: torch.Tensor) -> None:
    above = color.autocontrast(images).int() - functional.autocontrast_image(images).int()
    assert int(above.min()) >= 0
    assert int(above.max()) <= 1


def test_autocontrast_stretches_each_channel_of_each_image() -> None:
    images = noise(6, 3, 8, 9) // 3 + 40
    images[0, 1] = 7
    stretched = color.autocontrast(images)
    assert torch.equal(stretched[0, 1], images[0, 1])
    stretched[0, 1, 0, :2] = torch.tensor([0, 255])
    assert (stretched.amin((-2, -1)) == 0).all()
    assert (stretched.amax((-2, -1)) == 255).all()


@every_operation
@every_picture
def test_a_batch_equals_its_images_one_by_one(images: torch.Tensor, name: str) -> None:
    operation, values = OPERATIONS[name]
    for start in range(len(values)):
        dealt = parameters([*values[start:], *values[:start]], images)
        before = images.clone()
        whole = operation(images, dealt)
        assert torch.equal(images, before)
        assert whole.shape == images.shape
        assert whole.dtype == torch.uint8
        parts = [operation(images[index : index + 1], dealt[index : index + 1]) for index in range(len(images))]
        assert torch.equal(torch.cat(parts), whole)


@every_operation
def test_memory_layout_does_not_matter(name: str) -> None:
    operation, values = OPERATIONS[name]
    images = noise(9, 3, 14, 11)
    dealt = parameters(values, images)
    expected = operation(images, dealt)
    last = images.contiguous(memory_format=torch.channels_last)
    assert torch.equal(operation(last, dealt), expected)
    wide = noise(9, 3, 28, 22)
    wide[:, :, ::2, ::2] = images
    assert torch.equal(operation(wide[:, :, ::2, ::2], dealt), expected)
    upright = images.transpose(2, 3).contiguous().transpose(2, 3)
    assert torch.equal(operation(upright, dealt), expected)
    one = images[:1].expand(9, -1, -1, -1)
    assert torch.equal(operation(one, dealt), operation(one.contiguous(), dealt))


@every_operation
@pytest.mark.parametrize("shape", [(0, 3, 8, 8), (5, 3, 1, 1), (5, 3, 1, 9), (5, 3, 40, 2)])
def test_empty_and_tiny_batches_keep_their_shape(name: str, shape: tuple[int, ...]) -> None:
    operation, values = OPERATIONS[name]
    images = noise(*shape)
    result = operation(images, parameters(values, images))
    assert result.shape == images.shape
    assert result.dtype == torch.uint8


@every_picture
@pytest.mark.parametrize(("name", "value"), IDENTITIES.items())
def test_identities_return_equal_images_in_new_memory(images: torch.Tensor, name: str, value: int) -> None:
    result = OPERATIONS[name][0](images, parameters(value, images))
    assert torch.equal(result, images)
    assert result.data_ptr() != images.data_ptr()


@pytest.mark.parametrize("name", ["contrast", "saturation", "sharpness", "hue", "autocontrast", "equalize"])
def test_a_constant_gray_image_is_kept(name: str) -> None:
    operation, values = OPERATIONS[name]
    tolerance = 1 if name in ("contrast", "saturation") else 0  # the luma weights add up to 0.9999
    images = torch.arange(256, dtype=torch.uint8)[:, None, None, None].repeat(1, 3, 4, 5)
    for value in values:
        assert gap(operation(images, parameters(value, images)), images)[1] <= tolerance


def test_one_parameter_per_image_is_required() -> None:
    images = noise(4, 3, 4, 4)
    for name in ("brightness", "contrast", "saturation", "sharpness", "hue", "posterize", "solarize"):
        with pytest.raises(RuntimeError):
            OPERATIONS[name][0](images, torch.tensor([0], dtype=torch.int32))


@every_operation
def test_pixels_are_pinned(name: str) -> None:
    operation, values = OPERATIONS[name]
    count, height, width = len(values), 23, 30
    images = (torch.arange(count * 3 * height * width) ** 2 // 7 % 251).view(count, 3, height, width).to(torch.uint8)
    digest = hashlib.sha256(operation(images, parameters(values, images)).numpy().tobytes()).hexdigest()
    assert digest[:16] == PINNED[name]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_devices_agree() -> None:
    for name, (operation, values) in OPERATIONS.items():
        for kind, images in PICTURES.items():
            dealt = parameters(values, images)
            there = operation(images.cuda(), dealt.cuda()).cpu()
            assert torch.equal(there, operation(images, dealt)), f"{name} of {kind} images differs on a GPU"
