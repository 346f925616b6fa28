"""Shears, translations and rotations: exact, close to torchvision's, the same one by one as in a batch."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from fractions import Fraction

import numpy as np
import pytest
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from kdpipe.views import affine

Move = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Place = tuple[int, int]

ONE = 1 << 16
SHEARS = [-ONE, -40_000, -19_661, -1, 0, 1, 333, 9_831, 19_661, 64_881, ONE]
FRACTIONS = [-3 * ONE, -29_699, -8192, -1, 0, 1, 5000, 8192, 32_768, ONE]
HALF_DEGREES = [-720, -270, -61, -1, 0, 1, 59, 60, 90, 180, 271, 360, 540, 719, 1441]

MOVES: dict[str, tuple[Move, Sequence[int]]] = {
    "shear_x": (affine.shear_x, SHEARS),
    "shear_y": (affine.shear_y, SHEARS),
    "translate_x": (affine.translate_x, FRACTIONS),
    "translate_y": (affine.translate_y, FRACTIONS),
    "rotate": (affine.rotate, HALF_DEGREES),
}
"""Each move and values of its parameter."""

PINNED = {
    "shear_x": "3ba437c9c2774202",
    "shear_y": "68f4adac396633bc",
    "translate_x": "c54179c3c4b32ac4",
    "translate_y": "b44d6bbfaf5ebb31",
    "rotate": "33b65c3e970d15e3",
}
"""Digests of each move's pixels. Where one changes, stores that were built before no longer match."""

SHAPES = [(32, 32), (31, 31), (20, 33), (33, 20), (7, 50), (1, 9), (9, 1), (1, 1)]

every_move = pytest.mark.parametrize("name", MOVES)
every_shape = pytest.mark.parametrize("shape", SHAPES)


def noise(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(5), dtype=torch.uint8)


def parameters(values: Sequence[int] | int, images: torch.Tensor) -> torch.Tensor:
    """Deal the values out to the images."""
    return torch.tensor(np.resize(np.atleast_1d(values), len(images)), dtype=torch.int32)


def chart(height: int, width: int) -> torch.Tensor:
    """Return one image whose channels say row, column and "not outside"."""
    rows, columns = torch.arange(height).view(-1, 1), torch.arange(width).view(1, -1)
    image = torch.stack([rows.expand(height, width), columns.expand(height, width), torch.ones(height, width)])
    return image.to(torch.uint8)[None]


def near_tie(place: Fraction | float) -> bool:
    """Return whether a source coordinate is within float32's doubt of the border between two pixels."""
    return abs(float(place) % 1 - 0.5) < 1e-4


def source(name: str, value: int, pixel: Place, shape: Place) -> tuple[float, float]:
    """Return the exact source row and column of an output pixel; whole numbers are pixel centers."""
    (row, column), (height, width) = pixel, shape
    if name == "shear_x":
        return row, column + value / ONE * (row + 0.5)
    if name == "shear_y":
        return row + value / ONE * (column + 0.5), column
    down, right = row - (height - 1) / 2, column - (width - 1) / 2
    cosine, sine = math.cos(math.radians(value / 2)), math.sin(math.radians(value / 2))
    return sine * right + cosine * down + (height - 1) / 2, cosine * right - sine * down + (width - 1) / 2


def torchvisions(name: str, image: torch.Tensor, value: int) -> torch.Tensor:
    nearest = InterpolationMode.NEAREST
    moved: torch.Tensor
    if name == "rotate":
        moved = functional.rotate_image(image, value / 2, nearest, fill=0)
    else:
        degrees = math.degrees(math.atan(value / ONE))
        shear = [degrees, 0.0] if name == "shear_x" else [0.0, degrees]
        moved = functional.affine_image(image, 0.0, [0, 0], 1.0, shear, nearest, fill=0, center=[0, 0])
    return moved


def cases(name: str) -> list[int]:
    if name == "rotate":
        return [*range(-180, 181, 13), *HALF_DEGREES]
    return [*range(-ONE, ONE + 1, 7919), *SHEARS]


@pytest.mark.parametrize("name", ["shear_x", "shear_y", "rotate"])
@every_shape
def test_each_pixel_comes_from_the_nearest_one(name: str, shape: Place) -> None:
    image = chart(*shape)
    for value in cases(name):
        moved = MOVES[name][0](image, parameters(value, image))[0]
        for row in range(shape[0]):
            for column in range(shape[1]):
                exact = source(name, value, (row, column), shape)
                if any(near_tie(place) for place in exact):
                    continue
                there = [math.floor(place + 0.5) for place in exact]
                inside = all(0 <= place < side for place, side in zip(there, shape, strict=True))
                assert moved[:, row, column].tolist() == ([*there, 1] if inside else [0, 0, 0])


@pytest.mark.parametrize("name", ["shear_x", "shear_y", "rotate"])
@every_shape
def test_moves_equal_torchvisions_but_for_ties(name: str, shape: Place) -> None:
    image = chart(*shape)
    for value in cases(name):
        mine = MOVES[name][0](image, parameters(value, image))[0].int()
        theirs = torchvisions(name, image, value)[0].int()
        for row, column in (mine != theirs).any(0).nonzero().tolist():
            exact = source(name, value, (row, column), shape)
            assert any(near_tie(place) for place in exact)
            for pixel in (mine[:, row, column].tolist(), theirs[:, row, column].tolist()):
                assert pixel[2] == 0 or max(abs(a - b) for a, b in zip(pixel, exact, strict=False)) < 0.5002


@pytest.mark.parametrize("name", ["shear_x", "shear_y", "rotate"])
@pytest.mark.parametrize("side", [32, 160, 224])
def test_few_pixels_differ_from_torchvisions(name: str, side: int) -> None:
    images = noise(1, 3, side, side)
    shares = []
    for value in range(1, 90, 8) if name == "rotate" else range(101, 20_000, 1543):
        for signed in (value, -value):
            moved = MOVES[name][0](images, parameters(signed, images))
            differs = (moved != torchvisions(name, images, signed)).any(1)
            shares.append(float(differs.double().mean()))
    assert max(shares) < 2e-3
    assert np.mean(shares) < 2e-4


@pytest.mark.parametrize("shape", [(32, 32), (31, 31), (20, 33), (1, 9)])
def test_translations_by_whole_pixels_equal_torchvisions(shape: Place) -> None:
    images = noise(2, 3, *shape)
    height, width = shape
    for pixels in range(-40, 41):
        across = affine.translate_x(images, parameters(round(pixels * ONE / width), images))
        down = affine.translate_y(images, parameters(round(pixels * ONE / height), images))
        for mine, offset in ((across, [pixels, 0]), (down, [0, pixels])):
            theirs = functional.affine_image(images, 0.0, offset, 1.0, [0.0, 0.0], InterpolationMode.NEAREST, fill=0)
            assert torch.equal(mine, theirs)


def test_positive_translations_go_right_and_down() -> None:
    images = chart(6, 10)
    across = affine.translate_x(images, parameters(ONE * 3 // 10, images))
    assert torch.equal(across[..., 3:], images[..., :-3])
    assert not across[..., :3].any()
    down = affine.translate_y(images, parameters(ONE // 3, images))
    assert torch.equal(down[..., 2:, :], images[..., :-2, :])
    assert not down[..., :2, :].any()


@pytest.mark.parametrize("side", [1, 4, 9, 32, 160, 224])
def test_translations_are_the_nearest_whole_pixel_halves_away_from_0(side: int) -> None:
    for fraction in [*range(-ONE, ONE + 1, 1571), *(ONE // (2 * 32) * odd for odd in range(-7, 8, 2))]:
        exact = Fraction(abs(fraction) * side, ONE)
        pixels = math.floor(exact + Fraction(1, 2)) * (1 if fraction > 0 else -1)
        expected = torch.zeros(1, 3, 1, side, dtype=torch.uint8)
        image = chart(1, side)
        for column in range(max(0, pixels), min(side, side + pixels)):
            expected[..., column] = image[..., column - pixels]
        assert torch.equal(affine.translate_x(image, parameters(fraction, image)), expected)
        upright = affine.translate_y(image.transpose(2, 3), parameters(fraction, image))
        assert torch.equal(upright, expected.transpose(2, 3))


@pytest.mark.parametrize("name", ["shear_x", "shear_y", "rotate"])
@pytest.mark.parametrize("scale", [3, 5])
def test_moves_mean_the_same_at_another_resolution(name: str, scale: int) -> None:
    move, values = MOVES[name]
    for shape in ((16, 16), (11, 14)):
        small = noise(len(values), 3, *shape)
        large = small.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
        dealt = parameters(values, small)
        centers = move(large, dealt)[..., scale // 2 :: scale, scale // 2 :: scale]
        assert torch.equal(centers, move(small, dealt))


def test_translations_mean_the_same_at_another_resolution() -> None:
    for side in (32, 160, 224):
        image = chart(3, side)
        moved = affine.translate_x(image, parameters(-ONE // 8, image))
        assert moved[0, 1, 0, 0] == side // 8


def test_right_angles_are_exact() -> None:
    for side in (1, 2, 7, 32):
        images = noise(2, 3, side, side)
        for quarter in range(-5, 6):
            rotated = affine.rotate(images, parameters(180 * quarter, images))
            assert torch.equal(rotated, torch.rot90(images, quarter, (2, 3)))
    for shape in ((20, 33), (8, 3)):
        images = noise(2, 3, *shape)
        assert torch.equal(affine.rotate(images, parameters(360, images)), images.flip((2, 3)))
        assert torch.equal(affine.rotate(images, parameters(-720, images)), images)
    for shape in ((20, 32), (7, 31)):
        images = noise(2, 3, *shape)
        for quarter in (-1, 1, 3):
            theirs = torchvisions("rotate", images, 180 * quarter)
            assert torch.equal(affine.rotate(images, parameters(180 * quarter, images)), theirs)


def test_a_mirrored_image_rotates_the_other_way() -> None:
    for shape in ((16, 16), (15, 22)):
        images = noise(1, 3, *shape)
        for half_degrees in range(1, 180):
            if half_degrees % 90 == 0:
                continue  # between two pixels
            forth = affine.rotate(images.flip(3), parameters(half_degrees, images)).flip(3)
            assert torch.equal(forth, affine.rotate(images, parameters(-half_degrees, images)))


def test_ties_go_right_and_down() -> None:
    image = chart(1, 6)
    sheared = affine.shear_x(image, parameters(ONE, image))
    assert sheared[0, 1, 0].tolist() == [1, 2, 3, 4, 5, 0]
    back = affine.shear_x(image, parameters(-ONE, image))
    assert back[0, 1, 0].tolist() == [0, 1, 2, 3, 4, 5]
    upright = affine.shear_y(chart(6, 1), parameters(ONE, image))
    assert upright[0, 0, :, 0].tolist() == [1, 2, 3, 4, 5, 0]
    turned = affine.rotate(chart(3, 2), parameters(180, image))  # the center is between two columns, but on a row
    expected = [[[0, 0, 0], [0, 0, 0]], [[1, 1, 1], [2, 1, 1]], [[1, 0, 1], [2, 0, 1]]]
    assert turned[0].permute(1, 2, 0).tolist() == expected


@every_move
@every_shape
def test_a_batch_equals_its_images_one_by_one(name: str, shape: Place) -> None:
    move, values = MOVES[name]
    images = noise(len(values), 3, *shape)
    before = images.clone()
    dealt = parameters(values, images)
    whole = move(images, dealt)
    assert torch.equal(images, before)
    assert whole.shape == images.shape
    assert whole.dtype == torch.uint8
    parts = [move(images[index : index + 1], dealt[index : index + 1]) for index in range(len(images))]
    assert torch.equal(torch.cat(parts), whole)


@every_move
def test_memory_layout_does_not_matter(name: str) -> None:
    move, values = MOVES[name]
    images = noise(9, 3, 14, 11)
    dealt = parameters(values, images)
    expected = move(images, dealt)
    assert torch.equal(move(images.contiguous(memory_format=torch.channels_last), dealt), expected)
    wide = noise(9, 3, 28, 22)
    wide[:, :, ::2, ::2] = images
    assert torch.equal(move(wide[:, :, ::2, ::2], dealt), expected)
    one = images[:1].expand(9, -1, -1, -1)
    assert torch.equal(move(one, dealt), move(one.contiguous(), dealt))


@every_move
@every_shape
def test_level_0_returns_equal_images_in_new_memory(name: str, shape: Place) -> None:
    images = noise(3, 3, *shape)
    result = MOVES[name][0](images, parameters(0, images))
    assert torch.equal(result, images)
    assert result.data_ptr() != images.data_ptr()


@every_move
def test_an_empty_batch_stays_empty(name: str) -> None:
    images = noise(0, 3, 8, 6)
    assert MOVES[name][0](images, parameters(0, images)).shape == images.shape


@every_move
def test_a_constant_image_shows_only_itself_and_black(name: str) -> None:
    move, values = MOVES[name]
    images = torch.full((len(values), 3, 12, 17), 90, dtype=torch.uint8)
    moved = move(images, parameters(values, images))
    assert set(moved.flatten().tolist()) == {0, 90}
    assert torch.equal(moved[:, 0], moved[:, 2])


@every_move
def test_one_parameter_per_image_is_required(name: str) -> None:
    images = noise(4, 3, 4, 4)
    for count in (1, 3, 5):
        with pytest.raises(RuntimeError):
            MOVES[name][0](images, torch.zeros(count, dtype=torch.int32))


@every_move
def test_pixels_are_pinned(name: str) -> None:
    move, values = MOVES[name]
    count, height, width = len(values), 23, 30
    images = (torch.arange(count * 3 * height * width) ** 2 // 7 % 251).view(count, 3, height, width).to(torch.uint8)
    digest = hashlib.sha256(move(images, parameters(values, images)).numpy().tobytes()).hexdigest()
    assert digest[:16] == PINNED[name]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_devices_agree() -> None:
    for name, (move, values) in MOVES.items():
        for shape in SHAPES:
            images = noise(len(values), 3, *shape)
            dealt = parameters(values, images)
            there = move(images.cuda(), dealt.cuda()).cpu()
            assert torch.equal(there, move(images, dealt)), f"{name} of {shape} images differs on a GPU"
