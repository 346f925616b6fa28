"""Boxes of views: equal to plain loops after torchvision, distributed as published, the same at any input size."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy import stats  # type: ignore[import-untyped]  # scikit-learn brings it
from torchvision.transforms.v2 import functional

from kdpipe.dataset import load
from kdpipe.views import Draws, Recipe, render
from kdpipe.views.geometry import Sources, Stream, middle
from tests.unit.views.pictures import EQUAL, MIXED, SMOOTH

SIZES = [(32, 32), (224, 224), (375, 500), (500, 333), (33, 17), (9, 400), (400, 9), (1, 1), (1, 60), (60, 1), (2, 3)]
PARAMETERS = ["", ":0.25", ":0.08,1,1,1", ":1", ":0.9,1,1.9,2", ":0.001,0.001", ":0.5,1,0.1,10", ":0.2,0.4,0.5,0.7"]
"""Of ``rrc-flip``."""


def some_draws(count: int, *, seed: int = 3, view: int = 2) -> Draws:
    ids = np.random.default_rng(5).integers(0, 256, (count, 16), dtype=np.uint8)
    return Draws(ids, seed, view)


Integers = npt.NDArray[np.int64]


def boxes_in(recipe: str, draws: Draws, sizes: Integers, *, square: bool = True) -> Integers:
    """Return the boxes ``(n, 4)`` that a recipe chooses in images of ``sizes``."""
    steps = Recipe.parse(recipe).of("box")
    places: Integers = (steps[0] if steps else middle)(Sources(sizes, square), draws)
    return places


def boxes_of(recipe: str, draws: Draws, size: tuple[int, int], *, square: bool = True) -> Integers:
    return boxes_in(recipe, draws, np.tile(np.array(size, dtype=np.int64), (len(draws.sample_ids), 1)), square=square)


def flips_of(recipe: str, draws: Draws) -> npt.NDArray[np.bool_]:
    """Return which images a recipe mirrors: those whose two pixels change places."""
    images = torch.tensor([0, 1], dtype=torch.uint8).expand(len(draws.sample_ids), 3, 1, 2)
    for step in Recipe.parse(recipe).of("flip"):
        images = step(images, draws)
    return images[:, 0, 0, 0].numpy() == 1


def rounded(value: float) -> int:
    return math.floor(value + 0.5)


def plain_box(draws: Draws, size: tuple[int, int], numbers: tuple[float, ...]) -> tuple[list[int], int]:
    """Return torchvision's ``RandomResizedCrop`` box of one sample, and the attempt that fitted, 10 for none."""
    (height, width), (scale_min, scale_max, ratio_min, ratio_max) = size, numbers
    for attempt in range(10):
        area = (
            height * width * (scale_min + float(draws.uniform(Stream.RRC_AREA, attempt)[0]) * (scale_max - scale_min))
        )
        step = math.floor(257 * float(draws.uniform(Stream.RRC_RATIO, attempt)[0]))
        ratio = math.exp(math.log(ratio_min) + step / 256 * (math.log(ratio_max) - math.log(ratio_min)))
        w, h = rounded(math.sqrt(area * ratio)), rounded(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            top = int(draws.integers(Stream.RRC_TOP, height - h + 1)[0])
            left = int(draws.integers(Stream.RRC_LEFT, width - w + 1)[0])
            return [top, left, h, w], attempt
    w, h = width, height
    if width / height < ratio_min:
        h = rounded(width / ratio_min)
    elif width / height > ratio_max:
        w = rounded(height * ratio_max)
    w, h = max(w, 1), max(h, 1)
    return [(height - h) // 2, (width - w) // 2, h, w], 10


@pytest.mark.parametrize("numbers", PARAMETERS)
@pytest.mark.parametrize("size", SIZES)
def test_equals_a_plain_loop(numbers: str, size: tuple[int, int]) -> None:
    recipe = Recipe.parse(f"rrc-flip{numbers}")
    draws = some_draws(60)
    places, flips = boxes_of(str(recipe), draws, size), flips_of(str(recipe), draws)
    for index, place in enumerate(places.tolist()):
        alone = Draws(draws.sample_ids[index : index + 1], draws.seed, draws.view)
        assert place == plain_box(alone, size, recipe.steps[0].values)[0]
        assert flips[index] == bool(alone.integers(Stream.FLIP, 2)[0])
    tops, lefts, heights, widths = places.T
    assert min(tops.min(), lefts.min()) >= 0
    assert min(heights.min(), widths.min()) >= 1
    assert (tops + heights).max() <= size[0]
    assert (lefts + widths).max() <= size[1]


def test_all_attempts_and_the_fallback_are_compared() -> None:
    """The plain loop needs any number of attempts for some of the parameters above."""
    draws = some_draws(400)
    values = Recipe.parse("rrc-flip:0.9,1,0.5,2").steps[0].values
    alone = [Draws(row[None], draws.seed, draws.view) for row in draws.sample_ids]
    expected = [plain_box(row, (40, 50), values) for row in alone]
    assert boxes_of("rrc-flip:0.9,1,0.5,2", draws, (40, 50)).tolist() == [box for box, _ in expected]
    assert {attempt for _, attempt in expected} == set(range(11))


@pytest.mark.parametrize(("size", "box"), [((9, 400), [0, 194, 9, 12]), ((400, 9), [194, 0, 12, 9])])
def test_an_image_that_fits_no_box_shows_its_middle(size: tuple[int, int], box: list[int]) -> None:
    places = boxes_of("rrc-flip:1", some_draws(50), size)
    assert (places == box).all()


@pytest.mark.parametrize("numbers", ["", ":0.25", ":0.3,0.6,0.5,0.8"])
@pytest.mark.parametrize("size", [(224, 224), (375, 500)])
def test_area_and_ratio_are_in_range(numbers: str, size: tuple[int, int]) -> None:
    scale_min, scale_max, ratio_min, ratio_max = Recipe.parse(f"rrc-flip{numbers}").steps[0].values
    height, width = boxes_of(f"rrc-flip{numbers}", some_draws(5000), size)[:, 2:].T
    total = size[0] * size[1]
    # Each side is rounded by at most half a pixel.
    assert ((height + 0.5) * (width + 0.5) >= scale_min * total).all()
    assert ((height - 0.5) * (width - 0.5) <= scale_max * total).all()
    assert ((width + 0.5) / (height - 0.5) >= ratio_min).all()
    assert ((width - 0.5) / (height + 0.5) <= ratio_max).all()


def test_area_is_uniform_ratio_log_uniform_and_place_uniform() -> None:
    """On an image so large that nothing rounds, and areas so small that every first attempt fits."""
    side, count = 8192, 20_000
    draws = some_draws(count)
    top, left, height, width = boxes_of("rrc-flip:0.08,0.5", draws, (side, side)).T
    flips = flips_of("rrc-flip:0.08,0.5", draws)
    area = (height * width / side**2 - 0.08) / 0.42
    logarithm = np.log(width / height / 0.75) / np.log((4 / 3) / 0.75)
    uniform = [area, logarithm, top / (side - height), left / (side - width)]
    for drawn in uniform:
        # The critical distance at 0.1%, and half of a step of the ratio.
        assert stats.kstest(drawn, "uniform").statistic < 1.95 / math.sqrt(count) + 0.5 / 256
    correlation = np.corrcoef([*uniform, flips])
    assert np.abs(correlation - np.eye(5)).max() < 5 / math.sqrt(count)


@pytest.mark.parametrize("recipe", ["rrc-flip", "crop-flip"])
def test_half_are_mirrored(recipe: str) -> None:
    flips = flips_of(recipe, some_draws(20_000))
    assert abs(flips.mean() - 0.5) < 5 * math.sqrt(0.25 / 20_000)


def test_boxes_do_not_depend_on_the_input_size() -> None:
    """``square`` only says what is shown where the recipe does not crop."""
    draws = some_draws(200)
    for recipe in ("rrc-flip", "rrc-flip:0.25"):
        square, oblong = (boxes_of(recipe, draws, (120, 90), square=square) for square in (True, False))
        assert np.array_equal(square, oblong)


@pytest.mark.parametrize("recipe", ["crop-flip", "rrc-flip:0.25"])
def test_models_of_224_and_160_pixels_see_the_same(recipe: str) -> None:
    smooth = load(SMOOTH, "train")
    large, small = (render(smooth, recipe, seed=1, indices=range(16), view=4, size=size) for size in (224, 160))
    shrunk = functional.resize(large, [160, 160], antialias=True)
    difference = (shrunk.int() - small.int()).abs()
    # Beside the black beyond the image, where crop-flip's edge falls within a pixel of either, levels agree.
    inside = (small > 8).all(1, keepdim=True) & (shrunk > 8).all(1, keepdim=True)
    assert difference.float().mean() < 1
    assert ((difference > 4) & inside).float().mean() < 0.01
    assert (difference[:, :, 40:-40, 40:-40] <= 4).all()
    other = render(smooth, recipe, seed=1, indices=range(16), view=5, size=160)
    assert (other.int() - small.int()).abs().float().mean() > 5


@pytest.mark.parametrize("square", [True, False])
@pytest.mark.parametrize("size", [(32, 32), (26, 38), (50, 31), (7, 9), (1, 1)])
def test_crop_flip_moves_the_image_by_up_to_an_eighth(size: tuple[int, int], square: bool) -> None:
    draws = some_draws(400)
    places = boxes_of("crop-flip", draws, size, square=square)
    height, width = (min(size), min(size)) if square else size
    assert (places[:, 2:] == [height, width]).all()
    middle = [(size[0] - height) // 2, (size[1] - width) // 2]
    reach = [size[0] // 8, size[1] // 8]
    for axis, stream in enumerate((Stream.CROP_TOP, Stream.CROP_LEFT)):
        moved = places[:, axis] - middle[axis]
        assert set(moved.tolist()) == set(range(-reach[axis], reach[axis] + 1))
        assert np.array_equal(moved, draws.integers(stream, 2 * reach[axis] + 1) - reach[axis])


@pytest.mark.parametrize("recipe", ["none", "color", "trivial+erase", "mixup:1"])
@pytest.mark.parametrize("size", [(26, 38), (41, 30), (8, 8)])
def test_without_a_crop_the_middle_square_is_shown(recipe: str, size: tuple[int, int]) -> None:
    places = boxes_of(recipe, some_draws(30), size)
    side = min(size)
    assert (places == [(size[0] - side) // 2, (size[1] - side) // 2, side, side]).all()
    assert not flips_of(recipe, some_draws(30)).any()
    whole = boxes_of(recipe, some_draws(30), size, square=False)
    assert (whole == [0, 0, *size]).all()


def test_pixels_without_a_crop_are_those_of_the_middle_square() -> None:
    unchanged = "color:0,0,0,0"
    equal, mixed = load(EQUAL, "test"), load(MIXED, "test")
    assert equal.pixels is not None
    assert torch.equal(render(equal, unchanged, seed=1, indices=range(16), view=2), equal.pixels)
    rendered = render(mixed, unchanged, seed=1, indices=range(16), view=2, size=20)
    for index, shown in enumerate(rendered):
        image = mixed.image(index)
        height, width = image.shape[1:]
        side = min(height, width)
        square = functional.crop(image, (height - side) // 2, (width - side) // 2, side, side)
        assert torch.equal(shown, functional.resize(square, [20, 20], antialias=True))


def test_boxes_do_not_depend_on_the_batch() -> None:
    draws = some_draws(40)
    sizes: npt.NDArray[np.int64] = np.array([SIZES[index % len(SIZES)] for index in range(40)])
    for recipe in ("rrc-flip", "crop-flip", "none"):
        together = boxes_in(recipe, draws, sizes)
        for index in range(40):
            row = slice(index, index + 1)
            alone = Draws(draws.sample_ids[row], 3, 2)
            assert np.array_equal(boxes_in(recipe, alone, sizes[row]), together[row])
            assert np.array_equal(flips_of(recipe, alone), flips_of(recipe, draws)[row])
