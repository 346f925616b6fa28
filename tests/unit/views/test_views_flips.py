"""Crops without a mirror image, flips and rotations: torchvision's for the same draws, alone and in pairs."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy import stats  # type: ignore[import-untyped]  # scikit-learn brings it
from torchvision.transforms.v2 import functional

from kdpipe.dataset import Dataset, load
from kdpipe.errors import RecipeError
from kdpipe.views import Draws, Population, Recipe, Renderer, affine, mixing, render
from tests.unit.views.pictures import EQUAL, MIXED, SAME

FLIP, VFLIP, ROTATE = 3, 4, 8
"""The streams. A number that changes here changes the pixels of the stores that people have."""

Integers = npt.NDArray[np.int64]


def some_draws(count: int, *, seed: int = 3, view: int = 2) -> Draws:
    ids = np.random.default_rng(11).integers(0, 256, (count, 16), dtype=np.uint8)
    return Draws(ids, seed, view)


def noise(count: int, height: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(height)
    return torch.randint(1, 256, (count, 3, height, width), generator=generator, dtype=torch.uint8)


def applied(recipe: str, images: torch.Tensor, draws: Draws) -> torch.Tensor:
    before, result = images.clone(), images
    for step in Recipe.parse(recipe).of("flip", "rotate"):
        result = step(result, draws)
    assert torch.equal(images, before)
    assert result.shape == images.shape
    assert result.dtype == torch.uint8
    return result


def half_degrees(draws: Draws, degrees: float) -> Integers:
    most = round(2 * degrees)
    return draws.integers(ROTATE, 720 if degrees == 180 else 2 * most + 1) - most


def pixels(spec: str, recipe: str, *, view: int = 1, seed: int = 5) -> torch.Tensor:
    dataset = load(spec, "train")
    return render(dataset, recipe, seed=seed, indices=range(80), view=view, size=24 if spec == MIXED else None)


@pytest.mark.parametrize("rest", ["", "+vflip", "+color+erase", "+mixup:0.4+cutmix:1"])
@pytest.mark.parametrize(("two", "pair"), SAME.items())
@pytest.mark.parametrize("spec", [EQUAL, MIXED])
def test_two_operations_have_the_pixels_of_their_pair(two: str, pair: str, rest: str, spec: str) -> None:
    for view in (1, 2):
        assert torch.equal(pixels(spec, two + rest, view=view), pixels(spec, pair + rest, view=view))
    assert str(Recipe.parse(two + rest)) == two + rest


@pytest.mark.parametrize(("two", "pair"), SAME.items())
def test_a_crop_alone_is_its_pair_before_the_mirror(two: str, pair: str) -> None:
    alone, both = pixels(EQUAL, two.removesuffix("+flip")), pixels(EQUAL, pair)
    mirrored = Draws(load(EQUAL, "train").sample_ids[:80], 5, 1).integers(FLIP, 2)
    assert set(mirrored.tolist()) == {0, 1}
    for own, other, flipped in zip(alone, both, mirrored, strict=True):
        assert torch.equal(functional.horizontal_flip(own) if flipped else own, other)


@pytest.mark.parametrize("size", [(32, 32), (7, 50), (33, 20), (1, 9), (5, 1), (1, 1)])
def test_flips_are_torchvisions(size: tuple[int, int]) -> None:
    draws, images = some_draws(60), noise(60, *size)
    for name, stream, torchvisions in (
        ("flip", FLIP, functional.horizontal_flip),
        ("vflip", VFLIP, functional.vertical_flip),
    ):
        chosen = draws.integers(stream, 2)
        for image, found, flipped in zip(images, applied(name, images, draws), chosen, strict=True):
            assert torch.equal(found, torchvisions(image) if flipped else image)


@pytest.mark.parametrize("size", [(32, 32), (7, 50)])
def test_flips_undo_themselves_and_each_other(size: tuple[int, int]) -> None:
    draws, images = some_draws(60), noise(60, *size)
    for name in ("flip", "vflip"):
        assert torch.equal(applied(name, applied(name, images, draws), draws), images)
    both = applied("flip+vflip", images, draws)
    assert torch.equal(both, applied("vflip+flip", images, draws))
    turned = (draws.integers(FLIP, 2) & draws.integers(VFLIP, 2)).astype(bool)
    assert turned.any()
    assert torch.equal(both[turned], torch.rot90(images[turned], 2, (2, 3)))


def test_half_are_flipped_each_way_independently() -> None:
    count = 20_000
    draws = some_draws(count)
    images = torch.tensor([[0, 1], [2, 3]], dtype=torch.uint8).expand(count, 3, 2, 2)
    corners = np.bincount(applied("flip+vflip", images, draws)[:, 1, 0, 0].numpy(), minlength=4)
    assert stats.chisquare(corners).pvalue > 1e-3
    angles = half_degrees(draws, 180)
    drawn = np.stack([draws.integers(FLIP, 2), draws.integers(VFLIP, 2), angles])
    assert np.abs(np.corrcoef(drawn) - np.eye(3)).max() < 5 / math.sqrt(count)


@pytest.mark.parametrize("size", [(32, 32), (31, 31), (20, 33)])
@pytest.mark.parametrize("degrees", [0.5, 7.5, 15, 90, 180])
def test_rotation_is_that_by_the_drawn_angle(degrees: float, size: tuple[int, int]) -> None:
    draws, images = some_draws(60), noise(60, *size)
    found, angles = applied(f"rotate:{degrees}", images, draws), half_degrees(draws, degrees)
    assert np.abs(angles).max() <= 2 * degrees
    assert torch.equal(found, affine.rotate(images, torch.from_numpy(angles)))
    differing = []
    for image, turned, angle in zip(images, found, angles.tolist(), strict=True):
        theirs = functional.rotate(image, angle / 2)
        differing.append(float((turned != theirs).any(0).double().mean()))
    # Places halfway between two pixels may go either way in float32.
    assert np.mean(differing) < 0.01


@pytest.mark.parametrize("side", [1, 2, 7, 32])
def test_right_angles_are_exact(side: int) -> None:
    draws, images = some_draws(20_000), noise(1, side, side).expand(20_000, -1, -1, -1)
    angles = half_degrees(draws, 180)
    for quarter in (-2, -1, 0, 1):
        chosen = np.flatnonzero(angles == 180 * quarter)
        assert len(chosen)
        alone = Draws(draws.sample_ids[chosen], draws.seed, draws.view)
        found = applied("rotate:180", images[: len(chosen)], alone)
        assert torch.equal(found, torch.rot90(images[: len(chosen)], quarter, (2, 3)))


@pytest.mark.parametrize("degrees", [0.5, 2, 45, 179.5])
def test_angles_are_uniform_between_both_ends(degrees: float) -> None:
    angles = half_degrees(some_draws(80_000), degrees)
    observed = np.bincount(angles + round(2 * degrees))
    assert len(observed) == 4 * degrees + 1
    assert stats.chisquare(observed).pvalue > 1e-3


def test_a_full_turn_draws_each_angle_once() -> None:
    """-180 and 180 degrees are the same, and no likelier than any other angle."""
    angles = half_degrees(some_draws(80_000), 180)
    assert set(angles.tolist()) == set(range(-360, 360))
    assert stats.chisquare(np.bincount(angles + 360)).pvalue > 1e-3


@pytest.mark.parametrize("recipe", ["flip", "vflip", "rotate:30", "flip+vflip+rotate:180"])
def test_a_batch_equals_its_images_one_by_one(recipe: str) -> None:
    draws, images = some_draws(40), noise(40, 26, 38)
    rows = [Draws(row[None], draws.seed, draws.view) for row in draws.sample_ids]
    parts = [applied(recipe, images[[row]], alone) for row, alone in enumerate(rows)]
    assert torch.equal(torch.cat(parts), applied(recipe, images, draws))
    assert applied(recipe, images[:0], some_draws(0)).shape == (0, 3, 26, 38)


@pytest.mark.parametrize("before", ["crop", "rrc:0.25"])
def test_what_else_is_in_a_recipe_does_not_change_the_draws(before: str) -> None:
    draws = Draws(load(EQUAL, "train").sample_ids[:80], 5, 1)
    boxes = pixels(EQUAL, before)
    for recipe in ("flip", "vflip", "rotate:45", "flip+rotate:45", "flip+vflip+rotate:45"):
        turned = applied(recipe, boxes, draws)
        assert torch.equal(pixels(EQUAL, f"{before}+{recipe}"), turned)
        erased = pixels(EQUAL, f"{before}+{recipe}+erase:1")
        changed = (erased != turned).any(1, keepdim=True).expand_as(erased)
        assert (erased[changed] == 128).all()


@pytest.mark.parametrize("mixed", ["mixup:0.4", "cutmix:1", "mixup:0.4+cutmix:1"])
def test_partners_are_flipped_and_rotated_by_their_own_draws(mixed: str) -> None:
    """The partner's own view is mixed in, whatever it is mixed into."""
    dataset: Dataset = load(EQUAL, "train")
    rows, turned = np.arange(len(dataset)), "crop+flip+vflip+rotate:90"
    alone = render(dataset, turned, seed=5, indices=rows, view=3)
    partners = Population(dataset, None, seed=5).partners(rows, 3)
    amounts = mixing.amounts(Recipe.parse(mixed), Draws(dataset.sample_ids, 5, 3))
    renderer = Renderer(dataset, f"{turned}+{mixed}", seed=5, geometry=None)
    assert torch.equal(renderer(rows, 3), mixing.mix(alone, alone[partners], amounts))
    labels = renderer.second_labels(rows, 3)
    assert labels is not None
    assert np.array_equal(labels.labels, dataset.labels[partners])
    assert np.array_equal(labels.own_share, amounts.own_share)


@pytest.mark.parametrize("written", ["0", "0.25", "7.3", "180.5", "-15", "nan", "a"])
def test_other_angles_are_refused(written: str) -> None:
    with pytest.raises(RecipeError, match=f"rotate cannot take degrees={written}, expected a"):
        Recipe.parse(f"rotate:{written}")


@pytest.mark.parametrize(
    ("written", "ordered"),
    [
        ("rotate:15+flip", r"flip\+rotate:15"),
        ("vflip+rrc:0.5", r"rrc:0.5\+vflip"),
        ("color+rotate:15", r"rotate:15\+color"),
        ("crop+erase+flip", r"crop\+flip\+erase"),
    ],
)
def test_another_order_is_refused(written: str, ordered: str) -> None:
    with pytest.raises(RecipeError, match=f"Write '{ordered}'"):
        Recipe.parse(written)
