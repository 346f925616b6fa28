"""Boxes on the grid: equal to plain loops, tiling the image, with the published distributions."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdpipe.views import Draws
from kdpipe.views.erase import CELLS, edge, enlarge, erasing_boxes, inside, patches
from kdpipe.views.mixing import cut_boxes, lambda_steps, thresholds
from kdpipe.views.philox import log_uniform

SIDES = [1, 7, 32, 33, 160, 224, 1000]
SCALE, RATIO = (0.02, 0.33), (0.3, 1 / 0.3)
STREAMS = (11, 12, 13, 14, 15)


def some_draws(count: int, *, seed: int = 0, view: int = 1) -> Draws:
    ids = np.random.default_rng(8).integers(0, 256, (count, 16), dtype=np.uint8)
    return Draws(ids, seed, view)


def rows_of(draws: Draws) -> list[Draws]:
    return [Draws(draws.sample_ids[row : row + 1], draws.seed, draws.view) for row in range(len(draws.sample_ids))]


def erase_defaults(draws: Draws, probability: float = 1.0) -> npt.NDArray[np.int64]:
    return erasing_boxes(draws, STREAMS, probability=probability, scale=SCALE, ratio=RATIO)


@pytest.mark.parametrize("side", SIDES)
def test_cells_tile_the_image(side: int) -> None:
    borders = edge(np.arange(CELLS + 1), side)
    assert borders[0] == 0
    assert borders[-1] == side
    lengths = np.diff(borders)
    assert set(lengths.tolist()) <= {side // CELLS, side // CELLS + 1}
    assert np.abs(borders - np.arange(CELLS + 1) * side / CELLS).max() <= 0.5
    numbers = np.arange(CELLS**2)
    cells = np.stack([numbers // CELLS, numbers % CELLS, np.ones_like(numbers), np.ones_like(numbers)], axis=1)
    assert (inside(cells, side, 7).sum(0) == 1).all()


@given(st.tuples(st.integers(0, 32), st.integers(0, 32)), st.tuples(st.integers(0, 32), st.integers(0, 32)))
@settings(max_examples=50, deadline=None)
def test_mask_equals_a_loop_over_pixels(rows: tuple[int, int], columns: tuple[int, int]) -> None:
    top, left = min(rows), min(columns)
    box = np.array([[top, left, max(rows) - top, max(columns) - left]])
    marked = inside(box, 33, 20)
    assert marked.dtype == torch.bool
    for y in range(33):
        for x in range(20):
            inside_rows = (min(rows) * 33 + 16) // 32 <= y < (max(rows) * 33 + 16) // 32
            inside_columns = (min(columns) * 20 + 16) // 32 <= x < (max(columns) * 20 + 16) // 32
            assert bool(marked[0, y, x]) == (inside_rows and inside_columns)


def test_an_empty_box_marks_nothing_and_a_full_one_everything() -> None:
    marked = inside(np.array([[0, 0, 0, 0], [5, 7, 0, 9], [0, 0, 32, 32]]), 40, 50)
    assert marked.shape == (3, 40, 50)
    assert marked.sum((1, 2)).tolist() == [0, 0, 2000]


@pytest.mark.parametrize(("height", "width"), [(160, 160), (224, 224), (33, 70)])
def test_a_box_is_the_same_share_of_every_image(height: int, width: int) -> None:
    boxes = erase_defaults(some_draws(300))
    covered = inside(boxes, height, width).sum((1, 2)).numpy()
    for (_, _, tall, wide), pixels in zip(boxes, covered, strict=True):
        # Each of the two sides is off by less than a pixel.
        exact_height, exact_width = tall * height / CELLS, wide * width / CELLS
        assert (exact_height - 1) * (exact_width - 1) < pixels < (exact_height + 1) * (exact_width + 1)
        if height % CELLS == width % CELLS == 0:
            assert pixels * CELLS**2 == tall * wide * height * width


@pytest.mark.parametrize(("height", "width"), [(7, 7), (32, 32), (33, 160), (224, 100)])
def test_enlarged_cells_are_the_masks_of_their_boxes(height: int, width: int) -> None:
    boxes = np.concatenate([erase_defaults(some_draws(50)), [[0, 0, 32, 32], [31, 31, 1, 1], [0, 0, 0, 0]]])
    assert torch.equal(enlarge(inside(boxes, CELLS, CELLS), height, width), inside(boxes, height, width))


@pytest.mark.parametrize(("low", "high"), [(0.3, 1 / 0.3), (0.75, 4 / 3), (1.0, 1.0), (1e-3, 1e3)])
def test_log_uniform_is_geometric_from_end_to_end(low: float, high: float) -> None:
    table = log_uniform(low, high)
    assert table.dtype == np.float64
    assert table.shape == (257,)
    assert (table[0], table[-1]) == (low, high)
    assert np.allclose(table, np.geomspace(low, high, 257), rtol=1e-14, atol=0)


def test_log_uniform_of_powers_of_two_is_exact() -> None:
    assert log_uniform(0.25, 4.0)[::64].tolist() == [0.25, 0.5, 1.0, 2.0, 4.0]
    assert log_uniform(2.0**-128, 2.0**128).tolist() == [2.0**k for k in range(-128, 129)]


@pytest.mark.parametrize(("probability", "scale", "ratio"), [(1.0, SCALE, RATIO), (0.5, (0.3, 1.0), (0.2, 5.0))])
def test_erasing_equals_a_plain_loop(
    probability: float, scale: tuple[float, float], ratio: tuple[float, float]
) -> None:
    draws = some_draws(300, seed=5, view=6)
    boxes = erasing_boxes(draws, STREAMS, probability=probability, scale=scale, ratio=ratio)
    attempts = []
    for box, row in zip(boxes.tolist(), rows_of(draws), strict=True):
        expected = [0, 0, 0, 0]
        if row.uniform(11)[0] < probability:
            for attempt in range(10):
                area = 1024 * (scale[0] + float(row.uniform(12, attempt)[0]) * (scale[1] - scale[0]))
                aspect = float(log_uniform(*ratio)[math.floor(row.uniform(13, attempt)[0] * 257)])
                height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
                if height < 32 and width < 32:
                    top, left = row.integers(14, 33 - height)[0], row.integers(15, 33 - width)[0]
                    expected = [int(top), int(left), height, width]
                    attempts.append(attempt)
                    break
        assert box == expected
    if scale != SCALE:
        assert max(attempts) > 2


def test_erasing_keeps_to_its_bounds_and_uses_them() -> None:
    boxes = erase_defaults(some_draws(20_000))
    top, left, height, width = boxes.T
    assert boxes.min() >= 0
    assert (top + height).max() == CELLS
    assert (left + width).max() == CELLS
    assert max(height.max(), width.max()) < CELLS
    area = height * width / CELLS**2
    # Rounding both sides to cells moves the area by at most half a cell along each.
    slack = (height + width + 0.5) / 2 / CELLS**2
    assert (area + slack >= SCALE[0]).all()
    assert (area - slack <= SCALE[1]).all()
    assert area.min() < 0.025
    assert area.max() > 0.32
    assert abs(area.mean() - np.mean(SCALE)) < 0.01
    assert abs(np.log(height / width).mean()) < 0.05


@pytest.mark.parametrize("probability", [0.0, 0.25, 0.9, 1.0])
def test_erasing_happens_with_its_probability(probability: float) -> None:
    count = 20_000
    boxes = erase_defaults(some_draws(count), probability)
    erased = boxes.any(axis=1)
    assert abs(erased.mean() - probability) <= 5 * math.sqrt(probability * (1 - probability) / count)
    assert np.array_equal(boxes[erased], erase_defaults(some_draws(count))[erased])


def test_a_box_that_never_fits_erases_nothing() -> None:
    boxes = erasing_boxes(some_draws(50), STREAMS, probability=1.0, scale=(1.0, 1.0), ratio=(1.0, 1.0))
    assert not boxes.any()


def test_boxes_do_not_depend_on_the_batch() -> None:
    draws = some_draws(64)
    drawn = np.arange(64) * 4
    boxes, kept = cut_boxes(draws, (21, 22), drawn)
    alone = rows_of(draws)
    assert np.array_equal(erase_defaults(draws), np.concatenate([erase_defaults(row) for row in alone]))
    assert torch.equal(patches(draws, 3, ratio=0.5), torch.cat([patches(row, 3, ratio=0.5) for row in alone]))
    one_by_one = [cut_boxes(row, (21, 22), drawn[[index]]) for index, row in enumerate(alone)]
    assert np.array_equal(boxes, np.concatenate([box for box, _ in one_by_one]))
    assert np.array_equal(kept, np.concatenate([left for _, left in one_by_one]))


@pytest.mark.parametrize("ratio", [0.0, 0.01, 0.25, 0.5, 0.7, 1.0])
def test_patches_mask_an_exact_share(ratio: float) -> None:
    cells = patches(some_draws(200), 4, ratio=ratio)
    assert cells.shape == (200, CELLS, CELLS)
    assert cells.dtype == torch.bool
    assert (cells.sum((1, 2)) == round(ratio * 64) * 16).all()
    corners = cells[:, ::4, ::4]
    assert torch.equal(cells, corners.repeat_interleave(4, 1).repeat_interleave(4, 2))


@pytest.mark.parametrize("per_side", [2, 4, 8, 16])
def test_patches_equal_a_plain_sort(per_side: int) -> None:
    draws, count = some_draws(20), per_side**2
    cells = patches(draws, 4, ratio=0.3, per_side=per_side)
    for found, row in zip(cells, rows_of(draws), strict=True):
        word = [int(row.words(4, number // 4)[number % 4][0]) for number in range(count)]
        expected = torch.zeros(CELLS, CELLS, dtype=torch.bool)
        size = CELLS // per_side
        for number in sorted(range(count), key=word.__getitem__)[: round(0.3 * count)]:
            top, left = number // per_side * size, number % per_side * size
            expected[top : top + size, left : left + size] = True
        assert torch.equal(found, expected)


def test_every_patch_is_masked_equally_often() -> None:
    count, masked = 8000, 24
    often = patches(some_draws(count), 4, ratio=masked / 64)[:, ::4, ::4].sum(0).flatten().numpy()
    expected = count * masked / 64
    # The shares are exchangeable with variance p (1 - p) and sum to a constant: a chi-square of 63 degrees.
    statistic = ((often - expected) ** 2).sum() / (expected * (1 - masked / 64)) * 63 / 64
    assert statistic < 63 + 6 * math.sqrt(2 * 63) + 12


def test_cutmix_equals_a_plain_loop() -> None:
    draws = some_draws(257 * 3)
    drawn = np.arange(257 * 3) % 257
    boxes, kept = cut_boxes(draws, (21, 22), drawn)
    for row, step, box, left_over in zip(rows_of(draws), drawn.tolist(), boxes.tolist(), kept.tolist(), strict=True):
        side = round(32 * math.sqrt(1 - step / 256))
        covered = []
        for stream in (21, 22):
            # Twice the coordinate of the center: odd sides on the middle of a cell, even sides on a border.
            odd = side % 2
            center = 2 * int(row.integers(stream, 32 if odd else 33)[0]) + odd
            covered.append([cell for cell in range(32) if abs(2 * cell + 1 - center) < side])
        rows, columns = covered
        assert box[2:] == [len(rows), len(columns)]
        assert left_over == 1024 - len(rows) * len(columns)
        if left_over < 1024:
            assert box[:2] == [rows[0], columns[0]]


def test_cutmix_ends() -> None:
    draws = some_draws(500)
    nothing, kept = cut_boxes(draws, (21, 22), np.full(500, 256))
    assert not nothing[:, 2:].any()
    assert (kept == 1024).all()
    most, kept = cut_boxes(draws, (21, 22), np.zeros(500, dtype=np.int64))
    assert most[:, 2:].min() >= CELLS // 2
    assert (kept == 1024 - inside(most, CELLS, CELLS).sum((1, 2)).numpy()).all()


def test_opposite_borders_are_cut_equally_often() -> None:
    count = 50_000
    draws = some_draws(count)
    drawn = lambda_steps(draws.words(20)[0], thresholds(1.0))
    boxes, _ = cut_boxes(draws, (21, 22), drawn)
    covered = np.zeros(CELLS)
    for top, _, height, width in boxes:
        if width:
            covered[top : top + height] += 1
    assert np.abs(covered - covered[::-1]).max() < 6 * math.sqrt(2 * count / 4)


@pytest.mark.parametrize("alpha", [0.3, 1.0])
def test_cutmix_areas_follow_the_published_rule(alpha: float) -> None:
    count = 40_000
    draws = some_draws(count)
    boxes, kept = cut_boxes(draws, (21, 22), lambda_steps(draws.words(20)[0], thresholds(alpha)))
    assert np.array_equal(kept, 1024 - boxes[:, 2] * boxes[:, 3])

    random = np.random.default_rng(1)
    half = np.sqrt(1 - random.beta(alpha, alpha, count)) / 2
    center = random.random((2, count))
    sides = np.minimum(center + half, 1) - np.maximum(center - half, 0)
    expected = 1 - sides.prod(axis=0)
    assert abs((kept / 1024).mean() - expected.mean()) < 0.01
    quantiles = np.linspace(0.05, 0.95, 19)
    assert np.abs(np.quantile(kept / 1024, quantiles) - np.quantile(expected, quantiles)).max() < 0.025


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_cutmix_boxes_inside_the_image_have_the_drawn_area(alpha: float) -> None:
    draws = some_draws(20_000)
    drawn = lambda_steps(draws.words(20)[0], thresholds(alpha))
    (top, left, height, width), kept = (result.T for result in cut_boxes(draws, (21, 22), drawn))
    inside = (top > 0) & (left > 0) & (top + height < CELLS) & (left + width < CELLS)
    assert inside.sum() > 2000
    # A side rounded by at most half a cell moves the area by at most side + 1/4 cells.
    assert (np.abs(kept - 4 * drawn)[inside] <= (height + 0.25)[inside]).all()


def test_known_answers() -> None:
    ids = np.arange(48, dtype=np.uint8).reshape(3, 16)
    draws = Draws(ids, seed=2, view=3)
    boxes, kept = cut_boxes(draws, (21, 22), np.array([3, 128, 250]))
    assert erase_defaults(draws).tolist() == [[4, 10, 12, 16], [4, 13, 26, 13], [1, 21, 3, 9]]
    assert boxes.tolist() == [[14, 9, 18, 23], [20, 12, 12, 20], [2, 9, 5, 5]]
    assert kept.tolist() == [610, 784, 999]
    masked = patches(draws, 4, ratio=0.1)[0, ::4, ::4].flatten().nonzero().flatten()
    assert masked.tolist() == [17, 21, 37, 52, 57, 60]
    assert [float(value).hex() for value in log_uniform(0.3, 1 / 0.3)[[1, 100, 255]]] == [
        "0x1.361a69269e776p-2",
        "0x1.89735beaebcc0p-1",
        "0x1.a6ac17dffb45fp+1",
    ]
