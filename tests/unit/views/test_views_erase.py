"""Erasing: torchvision's ``erase`` of the drawn boxes and patches, in the same places at any input size."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional

from kdpipe.dataset import load
from kdpipe.views import Draws, Recipe, render
from kdpipe.views.erase import Stream
from tests.unit.views.pictures import EQUAL

GRAY = torch.full((3, 1, 1), 128, dtype=torch.uint8)
SIZES = [(32, 32), (224, 224), (26, 38), (33, 20), (7, 50)]


def some_draws(count: int, *, seed: int = 3, view: int = 2) -> Draws:
    ids = np.random.default_rng(7).integers(0, 256, (count, 16), dtype=np.uint8)
    return Draws(ids, seed, view)


def one_by_one(draws: Draws) -> list[Draws]:
    return [Draws(row[None], draws.seed, draws.view) for row in draws.sample_ids]


def noise(count: int, height: int, width: int) -> torch.Tensor:
    """Return images without a level of 128, so that what is erased shows."""
    generator = torch.Generator().manual_seed(height)
    return torch.randint(0, 128, (count, 3, height, width), generator=generator, dtype=torch.uint8)


def applied(recipe: str, images: torch.Tensor, draws: Draws) -> torch.Tensor:
    (step,) = Recipe.parse(recipe).of("erase")
    before = images.clone()
    result: torch.Tensor = step(images, draws)
    assert torch.equal(images, before)
    assert result.shape == images.shape
    assert result.dtype == torch.uint8
    return result


def border(cell: int, side: int) -> int:
    return math.floor(cell * side / 32 + 0.5)


def blot(image: torch.Tensor, top: int, left: int, height: int, width: int) -> torch.Tensor:
    """Erase a box of cells with torchvision."""
    rows, columns = image.shape[-2:]
    first, before = border(top, rows), border(left, columns)
    sides = border(top + height, rows) - first, border(left + width, columns) - before
    blotted: torch.Tensor = functional.erase(image, first, before, *sides, GRAY)
    return blotted


def plain_box(draws: Draws, numbers: tuple[float, ...]) -> tuple[int, int, int, int] | None:
    """Return torchvision's ``RandomErasing`` box of one sample, in 32 x 32 cells."""
    probability, scale_min, scale_max, ratio_min, ratio_max = numbers
    if draws.uniform(Stream.ERASE)[0] >= probability:
        return None
    for attempt in range(10):
        area = 1024 * (scale_min + float(draws.uniform(Stream.ERASE_AREA, attempt)[0]) * (scale_max - scale_min))
        step = math.floor(257 * float(draws.uniform(Stream.ERASE_RATIO, attempt)[0]))
        ratio = math.exp(math.log(ratio_min) + step / 256 * (math.log(ratio_max) - math.log(ratio_min)))
        height, width = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if height < 32 and width < 32:
            top = int(draws.integers(Stream.ERASE_TOP, 33 - height)[0])
            return top, int(draws.integers(Stream.ERASE_LEFT, 33 - width)[0]), height, width
    return None


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("recipe", ["erase", "erase:1", "erase:0.7,0.1,1,0.2,5", "erase:1,0.3,0.3,1,1"])
def test_erase_is_torchvisions_erase_of_the_drawn_box(recipe: str, size: tuple[int, int]) -> None:
    draws, images = some_draws(120), noise(120, *size)
    numbers = Recipe.parse(recipe).steps[0].values
    for image, shown, alone in zip(images, applied(recipe, images, draws), one_by_one(draws), strict=True):
        box = plain_box(alone, numbers)
        assert torch.equal(shown, image if box is None else blot(image, *box)), box


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("ratio", [0, 0.01, 0.5, 0.75, 1])
def test_mask_is_torchvisions_erase_of_the_patches_with_the_smallest_words(ratio: float, size: tuple[int, int]) -> None:
    draws, images = some_draws(30), noise(30, *size)
    for image, shown, alone in zip(images, applied(f"mask:{ratio}", images, draws), one_by_one(draws), strict=True):
        words = [int(word[0]) for block in range(16) for word in alone.words(Stream.MASK, block)]
        expected = image
        for patch in sorted(range(64), key=words.__getitem__)[: round(64 * ratio)]:
            expected = blot(expected, patch // 8 * 4, patch % 8 * 4, 4, 4)
        assert torch.equal(shown, expected)


@pytest.mark.parametrize("probability", [0, 0.25, 0.5, 1])
def test_erasing_happens_with_its_probability(probability: float) -> None:
    images = torch.zeros(10_000, 3, 32, 32, dtype=torch.uint8)
    erased = applied(f"erase:{probability}", images, some_draws(10_000)).flatten(1).any(1)
    assert abs(float(erased.double().mean()) - probability) <= 5 * math.sqrt(probability * (1 - probability) / 10_000)


def test_erased_shares_are_those_of_the_recipe() -> None:
    images = torch.zeros(10_000, 3, 32, 32, dtype=torch.uint8)
    shares = (applied("erase:1", images, some_draws(10_000))[:, 0] == 128).double().mean((1, 2))
    # Rounding both sides to cells moves the area by up to half of their sum.
    assert 0.01 < shares.min() < 0.03
    assert 0.31 < shares.max() < 0.37
    assert abs(float(shares.mean()) - 0.175) < 0.01


@pytest.mark.parametrize("recipe", ["erase:1", "mask:0.5"])
def test_the_same_is_erased_at_224_and_160_pixels(recipe: str) -> None:
    """Cells of 7 and of 5 pixels."""
    draws = some_draws(50)
    large, small = (applied(recipe, noise(50, side, side), draws)[:, 0] == 128 for side in (224, 160))
    cells = large[:, ::7, ::7]
    assert torch.equal(cells, small[:, ::5, ::5])
    assert torch.equal(cells.repeat_interleave(7, 1).repeat_interleave(7, 2), large)
    assert torch.equal(cells.repeat_interleave(5, 1).repeat_interleave(5, 2), small)
    assert cells.any((1, 2)).all()


def test_a_batch_equals_its_images_one_by_one() -> None:
    draws, images = some_draws(40), noise(40, 26, 38)
    for recipe in ("erase", "mask:0.3"):
        parts = [applied(recipe, images[[row]], alone) for row, alone in enumerate(one_by_one(draws))]
        assert torch.equal(torch.cat(parts), applied(recipe, images, draws))


def test_what_else_is_in_a_recipe_does_not_change_what_is_erased() -> None:
    dataset = load(EQUAL, "train")
    rows = np.arange(80)
    draws = Draws(dataset.sample_ids[rows], 5, 1)

    def shown(recipe: str) -> torch.Tensor:
        return render(dataset, recipe, seed=5, indices=rows, view=1, size=40)

    for before in ("crop-flip", "rrc-flip", "rrc-flip+color", "crop-flip+trivial"):
        for step in ("erase", "mask:0.5"):
            assert torch.equal(shown(f"{before}+{step}"), applied(step, shown(before), draws)), before
        both = applied("mask:0.5", applied("erase", shown(before), draws), draws)
        assert torch.equal(shown(f"{before}+erase+mask:0.5"), both), before
