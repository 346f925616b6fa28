"""The pixels of a view: equal to a plain implementation, and a function of nothing but their coordinates."""

from __future__ import annotations

import gc
import multiprocessing
import time

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torchvision.transforms.v2 import functional

from kdpipe.dataset import Dataset, load
from kdpipe.errors import DatasetError, RecipeError
from kdpipe.views import Draws, Geometry, Recipe, Renderer, Renderers, render


@pytest.fixture
def digits() -> Dataset:
    return load("digits", "train", limit=300)


def plainly(image: npt.NDArray[np.uint8], sample_id: npt.NDArray[np.uint8], *, seed: int, view: int) -> object:
    """Crop and flip one image ``(3, H, W)`` with slices."""
    draws = Draws(sample_id[None], seed, view)
    _, height, width = image.shape
    rows, columns = height // 8, width // 8
    padded = np.zeros((3, height + 2 * rows, width + 2 * columns), dtype=np.uint8)
    padded[:, rows : rows + height, columns : columns + width] = image
    top = int(draws.integers(1, 2 * rows + 1)[0])
    left = int(draws.integers(2, 2 * columns + 1)[0])
    cropped = padded[:, top : top + height, left : left + width]
    return cropped[:, :, ::-1] if draws.integers(3, 2)[0] else cropped


@pytest.mark.parametrize(("seed", "view"), [(0, 1), (0, 2), (77, 1), (2**32 - 1, 50)])
def test_crop_flip_equals_a_plain_implementation(digits: Dataset, seed: int, view: int) -> None:
    rendered = render(digits, "crop-flip", seed=seed, indices=np.arange(100), view=view).numpy()
    for index in range(100):
        image = digits.image(index).numpy()
        expected = plainly(image, digits.sample_ids[index], seed=seed, view=view)
        assert np.array_equal(rendered[index], expected)


def test_crop_flip_of_oblong_images_equals_a_plain_implementation(equal_sizes: str) -> None:
    dataset = load(equal_sizes, "train")
    rendered = render(dataset, "crop-flip", seed=4, indices=range(10), view=3).numpy()
    for index in range(10):
        image = dataset.image(index).numpy()
        assert np.array_equal(rendered[index], plainly(image, dataset.sample_ids[index], seed=4, view=3))


def test_crop_flip_uses_every_shift_and_both_flips(digits: Dataset) -> None:
    assert digits.buffer is not None
    side = digits.sizes[0, 0]
    reach = side // 8
    digits.buffer.flat[:] = 0
    digits.buffer.flat.reshape(len(digits), 3, side, side)[:, :, side // 2, 5] = 255
    rendered = [render(digits, "crop-flip", seed=0, indices=range(300), view=view) for view in range(1, 4)]
    seen = {(row, column) for _, row, column in (torch.cat(rendered)[:, 0] == 255).nonzero().tolist()}
    shifts = range(-reach, reach + 1)
    unflipped = {(side // 2 - row, 5 - column) for row in shifts for column in shifts}
    expected = unflipped | {(row, side - 1 - column) for row, column in unflipped}
    assert seen == {(row, column) for row, column in expected if 0 <= column < side}


def test_view_0_is_plain_in_every_recipe(digits: Dataset) -> None:
    assert digits.pixels is not None
    for recipe in ("none", "crop-flip"):
        assert torch.equal(render(digits, recipe, seed=1, indices=range(300), view=0), digits.pixels)


def test_recipe_none_never_augments(digits: Dataset) -> None:
    assert digits.pixels is not None
    assert torch.equal(render(digits, "none", seed=1, indices=range(300), view=5), digits.pixels)


def test_views_and_seeds_differ(digits: Dataset) -> None:
    first = render(digits, "crop-flip", seed=1, indices=range(50), view=1)
    assert not torch.equal(first, render(digits, "crop-flip", seed=1, indices=range(50), view=2))
    assert not torch.equal(first, render(digits, "crop-flip", seed=2, indices=range(50), view=1))


def test_pixels_do_not_depend_on_order_or_batch_size(digits: Dataset) -> None:
    renderer = Renderer(digits, Recipe.parse("crop-flip"), seed=3, geometry=Geometry(24, 28, "bilinear"))
    whole = renderer(np.arange(300), 2)
    order = np.random.default_rng(0).permutation(300)
    assert torch.equal(renderer(order, 2), whole[order])
    assert torch.equal(torch.cat([renderer([index], 2) for index in range(300)]), whole)
    parts = [renderer(part, 2) for part in np.array_split(np.arange(300), [257])]
    assert torch.equal(torch.cat(parts), whole)


def test_pixels_do_not_depend_on_subset_or_limit(digits: Dataset) -> None:
    whole = render(digits, "crop-flip", seed=3, indices=range(300), view=1)
    rows = [250, 3, 77]
    subset = digits.subset(rows)
    assert torch.equal(render(subset, "crop-flip", seed=3, indices=range(3), view=1), whole[rows])
    fewer = load("digits", "train", limit=40)
    places = [digits.keys.index(key) for key in fewer.keys]
    assert torch.equal(render(fewer, "crop-flip", seed=3, indices=range(40), view=1), whole[places])


@pytest.mark.parametrize("geometry", [None, Geometry(16, 18, "bicubic"), Geometry(28, 30, "bilinear")])
def test_pixels_do_not_depend_on_loading(equal_sizes: str, geometry: Geometry | None) -> None:
    memory = load(equal_sizes, "train", loading="memory")
    stream = load(equal_sizes, "train", loading="stream")
    for view in (0, 1):
        rendered = [
            Renderer(dataset, "crop-flip", seed=0, geometry=geometry)(range(10), view) for dataset in (memory, stream)
        ]
        assert torch.equal(*rendered)


def test_mixed_sizes_show_the_middle_square_of_the_moved_image(mixed_sizes: str) -> None:
    dataset = load(mixed_sizes, "train", loading="memory")
    assert dataset.pixels is None
    rendered = Renderer(dataset, "crop-flip", seed=2, geometry=Geometry(12, 14, "bilinear"))(range(10), 1)
    assert rendered.shape == (10, 3, 12, 12)
    for index in range(10):
        draws = Draws(dataset.sample_ids[index : index + 1], 2, 1)
        image = dataset.image(index)
        height, width = image.shape[1:]
        reach, side = (height // 8, width // 8), min(height, width)
        top = int(draws.integers(1, 2 * reach[0] + 1)[0]) + (height - side) // 2
        left = int(draws.integers(2, 2 * reach[1] + 1)[0]) + (width - side) // 2
        padded = torch.nn.functional.pad(image, (reach[1], reach[1], reach[0], reach[0]))
        window = padded[:, top : top + side, left : left + side]
        expected = functional.resize(window, [12, 12], antialias=True)
        assert torch.equal(rendered[index], expected.flip(-1) if draws.integers(3, 2)[0] else expected)


def test_mixed_sizes_need_a_geometry(mixed_sizes: str) -> None:
    dataset = load(mixed_sizes, "train")
    with pytest.raises(DatasetError, match="different sizes: give the size"):
        render(dataset, "none", seed=0, indices=[0], view=0)
    assert render(dataset, "none", seed=0, indices=[0, 1], view=0, size=12).shape == (2, 3, 12, 12)


def test_batches_equal_calls(digits: Dataset) -> None:
    renderer = Renderer(digits, "crop-flip", seed=3, geometry=None)
    batches = [np.arange(0, 7), np.arange(20, 10, -1), np.array([299])]
    rendered = list(renderer.batches(batches, 1))
    assert len(rendered) == 3
    for rows, images in zip(batches, rendered, strict=True):
        assert torch.equal(images, renderer(rows, 1))


def test_streamed_batches_from_workers_equal_calls(mixed_sizes: str) -> None:
    dataset = load(mixed_sizes, "train", loading="stream")
    # One worker: starting it takes seconds.
    renderer = Renderer(dataset, "crop-flip", seed=3, geometry=Geometry(12, 14, "bicubic"), workers=1)
    batches = [np.arange(0, 4), np.array([9, 4, 6])]
    memory = Renderer(
        load(mixed_sizes, "train", loading="memory"),
        "crop-flip",
        seed=3,
        geometry=Geometry(12, 14, "bicubic"),
    )
    for rows, images in zip(batches, renderer.batches(batches, 1), strict=True):
        assert torch.equal(images, memory(rows, 1))
    wanted = [(rows, view) for rows in batches for view in (2, 1)]
    for (rows, view), (images,) in zip(wanted, Renderers.of([renderer]).views(wanted), strict=True):
        assert torch.equal(images, memory(rows, view))


def test_an_unknown_recipe_is_refused(digits: Dataset) -> None:
    with pytest.raises(RecipeError, match="did you mean 'crop-flip'"):
        render(digits, "crop-flop", seed=0, indices=[0], view=0)


@pytest.mark.parametrize("number", [1, 2])
def test_worker_processes_end_with_their_renderers_also_in_a_circle_of_references(number: int) -> None:
    """Not five seconds later, which is how long each waits for work before it looks around."""
    before = {each.pid for each in multiprocessing.active_children()}
    streamed = load("digits", "train", limit=8, loading="stream")
    renderers = [
        Renderer(streamed, "none", seed=0, geometry=Geometry(size, size, "bilinear"), workers=1)
        for size in (8, 16)[:number]
    ]
    together = Renderers.of(renderers)
    assert [len(images[0]) for images in together.batches([np.arange(8)], 0)] == [8]
    assert {each.pid for each in multiprocessing.active_children()} == before, "one batch is rendered by this process"
    assert [len(images[0]) for images in together.batches([np.arange(8)] * 2, 0)] == [8, 8]
    circle: list[object] = [together, renderers]
    circle.append(circle)
    workers = {each.pid for each in multiprocessing.active_children()} - before
    assert len(workers) == 1
    gc.collect()  # what other tests have left
    del together, renderers, circle
    began = time.monotonic()
    gc.collect()
    assert time.monotonic() - began < 2
    assert not workers & {each.pid for each in multiprocessing.active_children()}
