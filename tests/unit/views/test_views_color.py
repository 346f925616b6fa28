"""Color steps: torchvision's operations at the drawn levels, drawn evenly, unchanged by what else is in a recipe."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy import stats  # type: ignore[import-untyped]  # scikit-learn brings it
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from kdpipe.dataset import load
from kdpipe.views import Draws, Recipe, color, render
from kdpipe.views.augment import Stream
from tests.unit.views.pictures import EQUAL, picture

SIDE = 32
TRIVIAL, RANDAUG = v2.TrivialAugmentWide(), v2.RandAugment()
NAMES = list(TRIVIAL._AUGMENTATION_SPACE)
"""In torchvision's order, which is that of the draws."""

EXACT = {"Identity", "TranslateX", "TranslateY", "Brightness", "Sharpness", "Posterize", "Equalize"}
WITHIN_A_LEVEL = {"Contrast": 1e-3, "Color": 1e-3, "AutoContrast": 1.0}
"""Shares of levels that may differ by one; see the tests of the operations."""


def some_draws(count: int, *, seed: int = 3, view: int = 2) -> Draws:
    ids = np.random.default_rng(6).integers(0, 256, (count, 16), dtype=np.uint8)
    return Draws(ids, seed, view)


def pictures(count: int, height: int = SIDE, width: int = SIDE) -> torch.Tensor:
    return torch.stack([torch.from_numpy(picture(index, height, width)).permute(2, 0, 1) for index in range(count)])


def applied(recipe: str, images: torch.Tensor, draws: Draws) -> torch.Tensor:
    (step,) = Recipe.parse(recipe).of("color")
    before = images.clone()
    result: torch.Tensor = step(images, draws)
    assert torch.equal(images, before)
    assert result.shape == images.shape
    assert result.dtype == torch.uint8
    return result


def magnitude(space: Any, name: str, level: int, sign: int, side: int) -> float:
    """Return torchvision's magnitude for an image of side ``side``, as fine as the kernels take it."""
    bins, signed = space._AUGMENTATION_SPACE[name]
    levels = bins(31, side, side)
    if levels is None:
        return 0.0
    value = float(levels[level]) * (sign if signed else 1)
    if name.startswith("Shear"):
        return round(value * 65536) / 65536
    if name.startswith("Translate"):
        # TrivialAugment's 32 pixels are meant at 224; torchvision then cuts off the fraction.
        pixels = value * side / 224 if space is TRIVIAL else value
        return math.copysign(math.floor(abs(pixels) + 0.5), pixels)
    if name in ("Brightness", "Color", "Contrast", "Sharpness"):
        return round(value * 256) / 256
    if name == "Solarize":
        return (30 - level) / 30
    return value


def check(name: str, amount: float, space: Any, image: torch.Tensor, found: torch.Tensor) -> None:
    """Compare one image with torchvision's, within the bounds that the tests of the operations state."""
    expected = space._apply_image_or_video_transform(
        image, name, amount, interpolation=space.interpolation, fill=space._fill
    )
    difference = (found.int() - expected.int()).abs()
    if name in EXACT or name == "Solarize":
        assert not difference.any(), (name, amount)
    elif name in WITHIN_A_LEVEL:
        assert difference.max() <= 1, (name, amount)
        assert (difference > 0).float().mean() <= max(WITHIN_A_LEVEL[name], 3 / difference.numel()), (name, amount)
    else:
        # A move: places halfway between two pixels may go either way.
        assert difference.any(0).float().mean() < 0.02, (name, amount)


def signs(draws: Draws, stream: int) -> npt.NDArray[np.int64]:
    return 1 - 2 * draws.integers(stream, 2)


@pytest.mark.parametrize("side", [32, 224])
def test_trivial_is_torchvisions_operation_at_the_drawn_level(side: int) -> None:
    count = 3000 if side == 32 else 60
    draws, images = some_draws(count), pictures(count, side, side)
    found = applied("trivial", images, draws)
    operations = draws.integers(Stream.TRIVIAL_OPERATION, 14)
    levels = draws.integers(Stream.TRIVIAL_LEVEL, 31)
    for row, sign in enumerate(signs(draws, Stream.TRIVIAL_SIGN).tolist()):
        name = NAMES[operations[row]]
        check(name, magnitude(TRIVIAL, name, int(levels[row]), sign, side), TRIVIAL, images[row], found[row])


@pytest.mark.parametrize("level", [0, 1, 9, 15, 30])
def test_randaug_is_torchvisions_operation_at_its_level(level: int) -> None:
    draws, images = some_draws(400), pictures(400)
    found = applied(f"randaug:1,{level}", images, draws)
    operations = draws.integers(Stream.RANDAUG, 14)
    for row, sign in enumerate(signs(draws, Stream.RANDAUG + 1).tolist()):
        name = NAMES[operations[row]]
        check(name, magnitude(RANDAUG, name, level, sign, SIDE), RANDAUG, images[row], found[row])


@pytest.mark.parametrize("steps", [2, 3])
def test_each_further_step_of_randaug_changes_what_the_last_one_made(steps: int) -> None:
    draws, images = some_draws(400), pictures(400)
    before, after = applied(f"randaug:{steps - 1},9", images, draws), applied(f"randaug:{steps},9", images, draws)
    stream = Stream.RANDAUG + 2 * (steps - 1)
    operations = draws.integers(stream, 14)
    for row, sign in enumerate(signs(draws, stream + 1).tolist()):
        name = NAMES[operations[row]]
        check(name, magnitude(RANDAUG, name, 9, sign, SIDE), RANDAUG, before[row], after[row])


def test_units_are_as_fine_as_torchvisions_levels() -> None:
    """The comparison rounds by less than half a pixel of a shear, and half a level of a blend."""
    for space in (TRIVIAL, RANDAUG):
        for name in NAMES:
            if not name.startswith("Translate") and space._AUGMENTATION_SPACE[name][0](31, SIDE, SIDE) is not None:
                for level in range(31):
                    theirs = float(space._AUGMENTATION_SPACE[name][0](31, SIDE, SIDE)[level])
                    assert abs(magnitude(space, name, level, 1, SIDE) - theirs) <= 0.5 / 256


def evenly(drawn: npt.NDArray[np.int64], choices: int) -> bool:
    """Return whether the values 0..choices - 1 are equally frequent, by a chi-square test at 0.1%."""
    observed = np.bincount(drawn, minlength=choices)
    assert len(observed) == choices
    return float(stats.chisquare(observed).pvalue) > 1e-3


def test_operations_levels_and_signs_are_even() -> None:
    draws = some_draws(31_000)
    assert evenly(draws.integers(Stream.TRIVIAL_OPERATION, 14), 14)
    assert evenly(draws.integers(Stream.TRIVIAL_LEVEL, 31), 31)
    assert evenly(draws.integers(Stream.TRIVIAL_SIGN, 2), 2)
    for number in range(16):
        assert evenly(draws.integers(Stream.RANDAUG + 2 * number, 14), 14)
        assert evenly(draws.integers(Stream.RANDAUG + 2 * number + 1, 2), 2)
    pairs = draws.integers(Stream.RANDAUG, 14) * 14 + draws.integers(Stream.RANDAUG + 2, 14)
    assert evenly(pairs, 14 * 14)


def test_every_level_of_trivial_is_seen_in_the_pixels() -> None:
    """Brightness scales a level of 128 to 128 + sign * 127 * level / 30, which tells level and sign."""
    count = 31 * 14 * 40
    draws = some_draws(count)
    images = torch.full((count, 3, 3, 3), 128, dtype=torch.uint8)
    shown = applied("trivial", images, draws)[:, 0, 1, 1].numpy()
    chosen = draws.integers(Stream.TRIVIAL_OPERATION, 14) == NAMES.index("Brightness")
    offsets = shown[chosen].astype(int) - 128
    levels = np.rint(np.abs(offsets) / (0.99 * 128 / 30)).astype(np.int64)
    assert evenly(levels, 31)
    assert abs((offsets[levels > 0] > 0).mean() - 0.5) < 5 * math.sqrt(0.25 / chosen.sum())


Kernel = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
JITTER: list[tuple[Kernel, Stream, Callable[..., torch.Tensor]]] = [
    (color.brightness, Stream.BRIGHTNESS, functional.adjust_brightness),
    (color.contrast, Stream.CONTRAST, functional.adjust_contrast),
    (color.saturation, Stream.SATURATION, functional.adjust_saturation),
    (color.hue, Stream.HUE, functional.adjust_hue),
]


def drawn_factors(draws: Draws, strengths: tuple[float, ...]) -> npt.NDArray[np.int64]:
    """Return each image's factors of brightness, contrast, saturation and hue in 1/256, ``(n, 4)``."""
    spreads = [round(256 * strength) for strength in strengths]
    return np.stack(
        [
            draws.integers(stream, 2 * spread + 1) - spread + (0 if stream == Stream.HUE else 256)
            for (_, stream, _), spread in zip(JITTER, spreads, strict=True)
        ],
        axis=1,
    )


@pytest.mark.parametrize("strengths", [(0.4, 0.4, 0.4, 0.1), (0.8, 0.8, 0.8, 0.2), (1, 1, 1, 0.5)])
def test_color_changes_one_thing_after_the_other_in_the_drawn_order(strengths: tuple[float, ...]) -> None:
    draws, images = some_draws(300), pictures(300)
    found = applied(f"color:{','.join(map(str, strengths))}", images, draws)
    factors = drawn_factors(draws, strengths)
    orders = list(itertools.permutations(range(4)))
    chosen = draws.integers(Stream.COLOR_ORDER, 24)
    assert set(chosen.tolist()) == set(range(24))
    distances = []
    for row in range(300):
        mine, theirs = images[row : row + 1], images[row]
        for place in orders[chosen[row]]:
            kernel, _, torchvisions = JITTER[place]
            mine = kernel(mine, torch.tensor([factors[row, place]], dtype=torch.int32))
            theirs = torchvisions(theirs, factors[row, place] / 256)
        assert torch.equal(found[row], mine[0])
        distances.append((mine[0].int() - theirs.int()).abs().double())
    # A level's difference in one step may grow in the next ones.
    assert torch.stack(distances).mean() < 0.3
    assert (torch.stack(distances) > 4).double().mean() < 1e-3


@pytest.mark.parametrize("only", range(4))
def test_a_single_strength_is_torchvisions_adjustment(only: int) -> None:
    strengths = tuple(0.4 if place == only else 0 for place in range(4))
    draws, images = some_draws(200), pictures(200)
    found = applied(f"color:{','.join(map(str, strengths))}", images, draws)
    factors = drawn_factors(draws, strengths)[:, only]
    for image, shown, factor in zip(images, found, factors.tolist(), strict=True):
        assert (JITTER[only][2](image, factor / 256).int() - shown.int()).abs().max() <= (0 if only == 0 else 1)


@pytest.mark.parametrize("strength", [0.4, 0.1, 1])
def test_factors_are_uniform_in_their_range(strength: float) -> None:
    """A level of 127 is scaled to between 0 and 254, so the pixels tell the factor."""
    count = 20_000
    images = torch.full((count, 3, 1, 1), 127, dtype=torch.uint8)
    shown = applied(f"color:{strength},0,0,0", images, some_draws(count))[:, 0, 0, 0].numpy()
    reach = round(256 * strength)
    low, high = 127 * (256 - reach) // 256, 127 * (256 + reach) // 256
    assert (shown.min(), shown.max()) == (low, high)
    factors = np.arange(256 - reach, 256 + reach + 1)
    odds = np.bincount(127 * factors // 256, minlength=256)[low : high + 1] / len(factors)
    observed = np.bincount(shown, minlength=256)[low : high + 1]
    assert stats.chisquare(observed, odds * count).pvalue > 1e-3


def test_factors_and_order_are_even_and_unrelated() -> None:
    draws = some_draws(24_000)
    assert evenly(draws.integers(Stream.COLOR_ORDER, 24), 24)
    factors = drawn_factors(draws, (0.4, 0.4, 0.4, 0.1))
    assert factors.min(axis=0).tolist() == [154, 154, 154, -26]
    assert factors.max(axis=0).tolist() == [358, 358, 358, 26]
    drawn = np.column_stack([factors, draws.integers(Stream.COLOR_ORDER, 24)])
    assert np.abs(np.corrcoef(drawn.T) - np.eye(5)).max() < 5 / math.sqrt(24_000)


def test_the_order_matters() -> None:
    """Images that share their factors but not their order differ."""
    images = pictures(1).expand(2000, -1, -1, -1)
    draws = some_draws(2000)
    found = applied("color:0,1,1,0", images, draws)
    order = draws.integers(Stream.COLOR_ORDER, 2)
    factors = drawn_factors(draws, (0, 1, 1, 0))
    row = int(np.flatnonzero((np.abs(factors[:, 1] - 256) > 100) & (np.abs(factors[:, 2] - 256) > 100))[0])
    contrast, saturation = (torch.tensor([factors[row, place]], dtype=torch.int32) for place in (1, 2))
    image = images[row : row + 1]
    one = color.saturation(color.contrast(image, contrast), saturation)
    other = color.contrast(color.saturation(image, saturation), contrast)
    assert not torch.equal(one, other)
    assert torch.equal(found[row : row + 1], other if order[row] else one)


@pytest.mark.parametrize("recipe", ["color:0,0,0,0", "color:0.001,0.001,0.001,0.001"])
def test_no_strength_leaves_images_as_they_are(recipe: str) -> None:
    images = pictures(20)
    assert torch.equal(applied(recipe, images, some_draws(20)), images)


@pytest.mark.parametrize("recipe", ["color", "trivial", "randaug:2,9"])
def test_a_batch_equals_its_images_one_by_one(recipe: str) -> None:
    draws, images = some_draws(60), pictures(60, 20, 33)
    whole = applied(recipe, images, draws)
    for row in range(60):
        one = slice(row, row + 1)
        assert torch.equal(applied(recipe, images[one], Draws(draws.sample_ids[one], 3, 2)), whole[one])


@pytest.mark.parametrize("crop", ["rrc-flip", "crop-flip"])
@pytest.mark.parametrize("step", ["color", "trivial", "randaug:2,9"])
def test_what_else_is_in_a_recipe_does_not_change_the_draws(crop: str, step: str) -> None:
    dataset = load(EQUAL, "train")
    rows = np.arange(80)

    def shown(recipe: str) -> torch.Tensor:
        return render(dataset, recipe, seed=5, indices=rows, view=1, size=28)

    boxes = shown(crop)
    assert torch.equal(shown(f"{crop}+color:0,0,0,0"), boxes)
    colored = shown(f"{crop}+{step}")
    assert torch.equal(colored, applied(step, boxes, Draws(dataset.sample_ids[rows], 5, 1)))
    erased = shown(f"{crop}+{step}+erase:1")
    changed = (erased != colored).any(1, keepdim=True).expand_as(erased)
    assert (erased[changed] == 128).all()
    assert 0.05 < changed.float().mean() < 0.33
    second = "color" if step != "color" else "trivial"
    both = shown(f"{crop}+{step}+{second}")
    assert torch.equal(both, applied(second, colored, Draws(dataset.sample_ids[rows], 5, 1)))
