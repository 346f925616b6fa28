"""Mixing: plain blends and pasted boxes of keyed partners, with the labels' weights to match."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy import stats  # type: ignore[import-untyped]  # scikit-learn brings it

from kdpipe.dataset import Dataset, load
from kdpipe.errors import DatasetError
from kdpipe.views import Draws, Population, Recipe, Renderer, mixing, render
from kdpipe.views.mixing import Stream, partners
from tests.unit.views.pictures import EQUAL, OBLONG

SEED, COUNT = 11, 300
BOTH = "crop-flip+mixup:0.4+cutmix:1"

Levels = npt.NDArray[np.int64]


@pytest.fixture
def dataset() -> Dataset:
    return load(EQUAL, "train")


def shown(dataset: Dataset, recipe: str, *, view: int = 1) -> Levels:
    images = render(dataset, recipe, seed=SEED, indices=range(len(dataset)), view=view)
    return images.numpy().astype(np.int64)


def met(view: int) -> npt.NDArray[np.int64]:
    return partners(np.arange(COUNT), population=COUNT, seed=SEED, view=view)


def steps_of(word: int, table: tuple[int, ...]) -> int:
    """Return lambda in 1/256."""
    return sum(threshold <= word for threshold in table)


def pasted(word: int, table: tuple[int, ...], alone: Draws) -> tuple[slice, slice, float]:
    """Return the rows and columns of CutMix's box in an image of ``OBLONG``, and the share of cells it leaves."""
    side = math.floor(32 * math.sqrt(1 - steps_of(word, table) / 256) + 0.5)
    covered = []
    for stream in (Stream.CUTMIX_TOP, Stream.CUTMIX_LEFT):
        start = int(alone.integers(stream, 33 - side % 2)[0]) - side // 2
        covered.append((max(start, 0), min(start + side, 32)))
    pixels = [
        slice(*(math.floor(cell * length / 32 + 0.5) for cell in cells))
        for cells, length in zip(covered, OBLONG, strict=True)
    ]
    (top, bottom), (left, right) = covered
    return pixels[0], pixels[1], 1 - (bottom - top) * (right - left) / 1024


@pytest.mark.parametrize("view", [1, 2])
@pytest.mark.parametrize("recipe", ["mixup:0.2", "mixup:1", "cutmix:0.3", "cutmix:1", "mixup:0.4+cutmix:1"])
def test_equals_a_plain_blend_and_paste(dataset: Dataset, recipe: str, view: int) -> None:
    source = shown(dataset, "crop-flip", view=view)
    found = shown(dataset, f"crop-flip+{recipe}", view=view)
    labels = Renderer(dataset, f"crop-flip+{recipe}", seed=SEED, geometry=None).second_labels(range(COUNT), view)
    assert labels is not None
    names = recipe.split("+")
    tables = Recipe.parse(recipe).thresholds
    used = set()
    for row, other in enumerate(met(view)):
        alone = Draws(dataset.sample_ids[[row]], SEED, view)
        name = names[int(alone.integers(Stream.CHOICE, len(names))[0])].partition(":")[0]
        expected = source[row].copy()
        if name == "mixup":
            own = steps_of(int(alone.words(Stream.MIXUP_LAMBDA)[0][0]), tables[name])
            expected = (own * source[row] + (256 - own) * source[other] + 128) >> 8
            share = own / 256
        else:
            rows, columns, share = pasted(int(alone.words(Stream.CUTMIX_LAMBDA)[0][0]), tables[name], alone)
            expected[:, rows, columns] = source[other][:, rows, columns]
        assert np.array_equal(found[row], expected), (row, name)
        assert labels.own_share[row] == np.float32(share)
        assert labels.labels[row] == dataset.labels[other]
        used.add(name)
    assert used == {name.partition(":")[0] for name in names}


def test_mixup_rounds_to_the_nearest_level() -> None:
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 1, 256).expand(257, 3, 1, 256)
    others = torch.full_like(images, 77)
    steps = np.arange(257)
    drawn = mixing.Amounts(steps, np.zeros((257, 4), dtype=np.int64), (steps / 256).astype(np.float32))
    mixed = mixing.mix(images, others, drawn)
    exact = steps[:, None] / 256 * np.arange(256) + (1 - steps[:, None] / 256) * 77
    assert np.array_equal(mixed[:, 1, 0].numpy(), np.floor(exact + 0.5))
    assert torch.equal(mixed[256], images[256])
    assert torch.equal(mixed[0], others[0])


@pytest.mark.parametrize("view", [1, 2, 49])
def test_everyone_is_a_partner_once_per_view(dataset: Dataset, view: int) -> None:
    population = Population(dataset, None, seed=SEED)
    assert len(population) == COUNT
    found = population.partners(np.arange(COUNT), view)
    assert sorted(found.tolist()) == list(range(COUNT))
    assert np.array_equal(found, met(view))
    assert not np.array_equal(found, met(view + 1))


def test_the_plain_view_mixes_nothing(dataset: Dataset) -> None:
    renderer = Renderer(dataset, BOTH, seed=SEED, geometry=None)
    assert renderer.second_labels(range(COUNT), 0) is None
    assert dataset.pixels is not None
    assert torch.equal(renderer(range(COUNT), 0), dataset.pixels)
    assert Renderer(dataset, "crop-flip", seed=SEED, geometry=None).second_labels(range(COUNT), 1) is None


def test_each_sample_gets_one_of_both_operations_at_even_odds() -> None:
    draws = Draws(np.random.default_rng(9).integers(0, 256, (20_000, 16), dtype=np.uint8), SEED, 1)
    drawn = mixing.amounts(Recipe.parse("mixup:1+cutmix:1"), draws)
    blended, cut = drawn.steps < 256, drawn.boxes[:, 2:].all(axis=1)
    assert not (blended & cut).any()
    assert abs(blended.mean() - 0.5) < 0.03
    # A lambda that rounds to 1 mixes nothing, nor does a square that rounds to no cell.
    assert (blended | cut).mean() > 0.99
    assert (drawn.own_share[~blended & ~cut] == 1).all()
    for name, chosen in (("mixup", blended), ("cutmix", cut)):
        alone = mixing.amounts(Recipe.parse(f"{name}:1"), draws)
        assert np.array_equal(alone.steps[chosen], drawn.steps[chosen])
        assert np.array_equal(alone.boxes[chosen], drawn.boxes[chosen])
        assert np.array_equal(alone.own_share[chosen], drawn.own_share[chosen])


@pytest.mark.parametrize("alpha", [0.2, 1, 5])
def test_shares_of_mixup_follow_the_beta_distribution(alpha: float) -> None:
    count = 20_000
    draws = Draws(np.random.default_rng(9).integers(0, 256, (count, 16), dtype=np.uint8), SEED, 1)
    shares = mixing.amounts(Recipe.parse(f"mixup:{alpha}"), draws).own_share.astype(np.float64)
    beta = stats.beta(alpha, alpha)
    assert abs(shares.mean() - 0.5) < 5 * beta.std() / math.sqrt(count)
    assert abs(shares.std() - beta.std()) < 0.01
    borders = np.array([0, 0.5, 31.5, 127.5, 223.5, 255.5, 256])
    observed, _ = np.histogram(256 * shares, borders)
    assert stats.chisquare(observed, np.diff(beta.cdf(borders / 256)) * count).pvalue > 1e-3


@pytest.mark.parametrize("recipe", ["crop-flip+mixup:1", "crop-flip+cutmix:1", BOTH])
def test_a_subset_meets_its_partners_of_the_whole(dataset: Dataset, recipe: str) -> None:
    rows = np.random.default_rng(3).permutation(COUNT)[:40]
    part = dataset.subset(rows)
    assert np.array_equal(shown(part, recipe), shown(dataset, recipe)[rows])
    found = Renderer(part, recipe, seed=SEED, geometry=None).second_labels([7, 0], 1)
    assert found is not None
    assert found.labels.tolist() == dataset.labels[met(1)[rows[[7, 0]]]].tolist()


def test_a_given_population_decides_the_partners(dataset: Dataset) -> None:
    """A store's order may be another than the dataset's: the partners are found in the store's."""
    order = np.random.default_rng(4).permutation(COUNT)
    population = Population(dataset, dataset.sample_ids[order], seed=SEED)
    found = population.partners(order, 1)
    assert np.array_equal(found, order[met(1)])
    own = render(dataset, "crop-flip", seed=SEED, indices=range(COUNT), view=1)
    amounts = mixing.amounts(Recipe.parse(BOTH), Draws(dataset.sample_ids[order], SEED, 1))
    renderer = Renderer(dataset, BOTH, seed=SEED, geometry=None, population=dataset.sample_ids[order])
    assert torch.equal(renderer(order, 1), mixing.mix(own[order], own[found], amounts))


@pytest.fixture
def first_16(dataset: Dataset) -> Dataset:
    """The first samples of the dataset, loaded without the others."""
    found = load(EQUAL, "test")
    assert np.array_equal(found.sample_ids, dataset.sample_ids[:16])
    return found


def test_lacking_counts_the_absent_partners(dataset: Dataset, first_16: Dataset) -> None:
    population = Population(first_16, dataset.sample_ids, seed=SEED)
    assert len(population) == COUNT
    for views in ([1], [1, 2], [3, 1, 2, 3], []):
        expected = {int(met(view)[row]) for view in views for row in range(16)} - set(range(16))
        assert population.lacking(views) == len(expected)
        assert population.lacking(iter(views)) == len(expected)
    assert Population(dataset, None, seed=SEED).lacking([1, 2]) == 0


def test_a_dataset_that_lacks_partners_is_refused_with_their_number(dataset: Dataset, first_16: Dataset) -> None:
    renderer = Renderer(first_16, BOTH, seed=SEED, geometry=None, population=dataset.sample_ids)
    absent = int((met(2)[:16] >= 16).sum())
    assert absent > 0
    message = rf"^{absent} of 16 samples of {EQUAL} are mixed .* in view 2\. Use all {COUNT} samples"
    for call in (renderer, renderer.second_labels):
        with pytest.raises(DatasetError, match=message):
            call(range(16), 2)
    assert renderer(range(16), 0).shape == (16, 3, *OBLONG)
