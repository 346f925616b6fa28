"""Views of tensors: what is masked and how noise is distributed, whatever the batch, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from kdpipe import dataset
from kdpipe.dataset import Dataset, Form
from kdpipe.errors import RecipeError
from kdpipe.views import Draws, Recipe, Renderer
from kdpipe.views.tensors import normal_levels

TOKENS = "tests.tensor_data:tokens"
TABLE = "tests.tensor_data:table"


@pytest.fixture(scope="module")
def tokens() -> Dataset:
    return dataset.load(TOKENS, "train")


@pytest.fixture(scope="module")
def table() -> Dataset:
    return dataset.load(TABLE, "train")


def view(data: Dataset, recipe: str, number: int = 1, *, seed: int = 0, rows: list[int] | None = None) -> dict:
    assert data.form is not None
    indices = range(len(data)) if rows is None else rows
    return data.form.split(Renderer(data, recipe, seed=seed, geometry=None)(indices, number))


def test_the_plain_view_is_the_item(tokens: Dataset, table: Dataset) -> None:
    from tests import tensor_data

    items = tensor_data.tokens("train").items
    found = view(tokens, "spans:2,3", 0)
    assert list(found) == ["input_ids", "attention_mask"]
    for name, values in found.items():
        assert values.dtype == torch.int64
        assert np.array_equal(values.numpy(), np.stack([item[name] for item in items]))
    rows = torch.stack(tensor_data.table("train").items)
    assert torch.equal(view(table, "none", 0)[""], rows)
    assert torch.equal(view(table, "none", 5)[""], rows)


def test_spans_are_those_of_their_definition(tokens: Dataset) -> None:
    plain, found = view(tokens, "none", 0), view(tokens, "spans:2,3,1", 4, seed=9)
    assert torch.equal(found["attention_mask"], plain["attention_mask"])
    draws = Draws(tokens.sample_ids, 9, 4)
    lengths = plain["attention_mask"].sum(1).numpy()
    expected = plain["input_ids"].numpy().copy()
    for number in range(2):
        width = np.minimum(draws.integers(256 + 2 * number, 4), lengths)
        start = draws.integers(257 + 2 * number, lengths - width + 1)
        for row in range(len(expected)):
            expected[row, start[row] : start[row] + width[row]] = 1
    assert np.array_equal(found["input_ids"].numpy(), expected)
    padding = plain["attention_mask"] == 0
    assert (found["input_ids"][padding] == 0).all()
    assert 0.05 < (found["input_ids"] != plain["input_ids"]).float().mean() < 0.4


def test_bands_lie_across_all_frames() -> None:
    form = Form.of(np.zeros((6, 8), dtype=np.float32))
    assert form is not None
    recipe = Recipe.parse("spans:1,2+bands:1,3,-7")
    packed = torch.from_numpy(np.stack([form.pack(np.ones((6, 8), dtype=np.float32))] * 200))
    from kdpipe.views import tensors

    ids = np.random.default_rng(0).integers(0, 256, (200, 16), dtype=np.uint8)
    frames = form.split(tensors.changed(packed, form, recipe, Draws(ids, 0, 1)))[""]
    bands, spans = (frames == -7).all(dim=1), (frames != 1).all(dim=2)
    expected = torch.ones(200, 6, 8).masked_fill(spans[:, :, None], 0).masked_fill(bands[:, None, :], -7)
    assert torch.equal(frames, expected)
    assert sorted(set(bands.sum(1).tolist())) == [0, 1, 2, 3]
    assert sorted(set(spans.sum(1).tolist())) == [0, 1, 2]


def test_noise_is_normal_and_rounded_once(table: Dataset) -> None:
    plain, noisy = view(table, "none", 0)[""], view(table, "noise:0.5")[""]
    levels = normal_levels()
    assert np.array_equal(levels, -levels[::-1])
    assert np.abs(levels - stats.norm.ppf((np.arange(65536) + 0.5) / 65536)).max() < 2**-18
    added = (noisy - plain).flatten().numpy()
    assert stats.kstest(added / 0.5, "norm").pvalue > 0.01
    words = Draws(table.sample_ids, 0, 1).blocks(384, 1)
    drawn = np.ascontiguousarray(words.astype("<u4")).view("<u2")[:, :5]
    assert np.array_equal(noisy.numpy(), plain.numpy() + levels[drawn] * np.float32(0.5))


def test_views_are_these(tokens: Dataset, table: Dataset) -> None:
    """Golden values: changed ones need a higher version of the operation."""
    spans = view(tokens, "spans:2,3,1", 1, rows=[0])["input_ids"][0].tolist()
    noise = [round(value, 5) for value in view(table, "noise:1", 1, rows=[0])[""][0].tolist()]
    assert (spans, noise) == (GOLDEN_SPANS, GOLDEN_NOISE)


GOLDEN_SPANS = [20, 16, 1, 1, 1, 2, 3, 2, 5, 1]
GOLDEN_NOISE = [-0.54012, -2.12243, 0.03271, 0.46162, 1.51815]


@given(st.data())
@settings(max_examples=30, deadline=None)
def test_a_view_depends_on_nothing_else(tokens: Dataset, data: st.DataObject) -> None:
    recipe = data.draw(st.sampled_from(["spans:1,4", "spans:3,2,1", "none"]))
    number, seed = data.draw(st.integers(1, 9)), data.draw(st.integers(0, 99))
    rows = data.draw(st.lists(st.integers(0, 159), min_size=1, max_size=12, unique=True))
    whole = view(tokens, recipe, number, seed=seed)["input_ids"]
    assert torch.equal(view(tokens, recipe, number, seed=seed, rows=rows)["input_ids"], whole[rows])
    part = tokens.subset(rows)
    assert torch.equal(view(part, recipe, number, seed=seed)["input_ids"], whole[rows])


def test_worker_processes_render_the_same(tokens: Dataset) -> None:
    streamed = dataset.load(TOKENS, "train", loading="stream", workers=2)
    renderer = Renderer(streamed, "spans:2,3", seed=0, geometry=None)
    batches = [np.arange(start, start + 32) for start in range(0, 160, 32)]
    assert tokens.form is not None
    found = torch.cat([tokens.form.split(each)["input_ids"] for each in renderer.batches(batches, 1)])
    assert torch.equal(found, view(tokens, "spans:2,3")["input_ids"])


@pytest.mark.parametrize(
    ("spec", "recipe", "message"),
    [
        (TOKENS, "crop-flip", "'crop-flip' changes images, the dataset has tensors"),
        (TOKENS, "flip+spans:1,2", "'flip' changes images"),
        (TOKENS, "noise:1", "'noise' is for floats, found input_ids int64"),
        (TOKENS, "spans:1,2,0.5", "replaces input_ids int64 .10. by 0.5, expected a whole number"),
        (TABLE, "bands:1,2", "'bands' needs tensors of 2 or more dimensions, found float32"),
        ("digits", "spans:1,2", "'spans' changes tensors, the dataset has images"),
    ],
)
def test_recipes_that_do_not_fit_are_refused(spec: str, recipe: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Renderer(dataset.load(spec, "train", 20), recipe, seed=0, geometry=None)
