"""The form of tensor items: packed to bytes and back, and what is no item of a form."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from kdpipe import dataset
from kdpipe.dataset import Form
from kdpipe.errors import DatasetError
from tests.unit.dataset.conftest import MakeFolder, Recorder

SHAPES = arrays.array_shapes(min_dims=0, max_dims=3, max_side=4)
TYPES = st.sampled_from(["bool", "int8", "uint16", "int64", "float16", "float32", "float64"])
KEPT = {"f": torch.float32, "i": torch.int64, "u": torch.int64, "b": torch.int64}


@given(st.data(), st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_what_is_packed_comes_back(data: st.DataObject, count: int) -> None:
    drawn = data.draw(st.lists(st.tuples(TYPES, SHAPES), min_size=1, max_size=3))
    random = np.random.default_rng(0)
    made = [
        {f"x{name}": (random.random(shape) * 100).astype(dtype) for name, (dtype, shape) in enumerate(drawn)}
        for _ in range(count)
    ]
    form = Form.of(made[0])
    assert form is not None
    assert Form.parse(form.describe()) == form
    packed = torch.from_numpy(np.stack([form.pack(item) for item in made]))
    assert packed.shape == (count, 3, 1, form.width)
    found = form.unpack(packed)
    assert isinstance(found, dict)
    for name, values in found.items():
        expected = np.stack([np.asarray(item[name]) for item in made])
        assert values.dtype == KEPT[expected.dtype.kind]
        assert np.array_equal(values.numpy(), expected.astype(np.float32 if expected.dtype.kind == "f" else np.int64))
    assert torch.equal(form.join(form.split(packed)), packed)


def test_a_single_array_is_one_tensor_and_pictures_have_no_form() -> None:
    form = Form.of(torch.ones(2, 3, dtype=torch.bfloat16))
    assert form is not None
    assert str(form) == "float32 (2, 3)"
    assert torch.equal(form.unpack(torch.from_numpy(form.pack(np.ones((2, 3))))[None]), torch.ones(1, 2, 3))
    for picture in (np.zeros((3, 4, 4), dtype=np.uint8), torch.zeros(3, 4, 4, dtype=torch.uint8), "text", None):
        assert Form.of(picture) is None


BODY = """
import numpy as np
class Data(list):
    classes = ["a", "b"]
def ids(*numbers, **more): return {"ids": np.array(numbers), **more}
def build(split): return Data([ITEMS])
"""


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ("(ids(1, 2), 0), (ids(1, 2, 3), 1)", r"\[1\] cannot be used: expected ids int64 \(2\), found ids int64 \(3\)"),
        ("(ids(1, 2), 0), (ids(1.5, 2), 1)", r"\[1\] .* expected ids int64 \(2\), found ids float32 \(2\)"),
        ("(ids(1, 2), 0), (np.zeros((3, 4, 4), np.uint8), 1)", r"\[1\] .* found no tensor"),
        ("(np.array([1.0, 2.0]), 0), (np.array([1.0, np.nan]), 1)", r"\[1\] cannot be used: its array holds NaN"),
        ("(np.array([1e39]), 0)", r"\[0\] cannot be used: its array holds .* beyond float32"),
        ("(np.array([2**64 - 1], np.uint64), 0)", r"\[0\] cannot be used: its array holds a number beyond int64"),
        ("({'a': 'text'}, 0)", r"\[0\] cannot be used: its a is a str, expected an array of numbers"),
        ("({'a b': np.ones(2)}, 0)", r"\[0\] .* its key 'a b' is no keyword argument"),
        ("({}, 0)", r"\[0\] .* it has 0 arrays"),
        ("(np.empty((0, 3)), 0)", r"\[0\] .* is empty"),
        ("(ids(1), 0), (ids(1), 'b')", r"\[1\] cannot be used: its label is 'b'"),
    ],
)
def test_items_of_another_form_are_named(
    items: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    name = f"other_form_{abs(hash(request.node.name))}"
    (tmp_path / f"{name}.py").write_text(BODY.replace("ITEMS", items))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(DatasetError, match=message):
        dataset.load(f"{name}:build", "train")


@pytest.mark.parametrize(
    "described", [[], [["", "int64", [0]]], [["a", "int8", [1]]], [["a", "int64", [2**40]]], [[1]]]
)
def test_forms_that_no_file_should_hold_are_refused(described: list[list[object]]) -> None:
    with pytest.raises(ValueError):
        Form.parse(described)


def test_tensors_are_counted_in_samples_and_pictures_in_images(
    tmp_path: Path, recorder: Recorder, make_folder: MakeFolder
) -> None:
    labels = np.array([0, 1])
    np.savez(tmp_path / "x.npz", train_labels=labels, train_ids=np.ones((2, 5), dtype=np.int64))
    assert dataset.load(f"npz:{tmp_path}/x.npz", "train", progress=recorder).unit == "samples"
    assert {*recorder.unit.values()} == {"samples"}
    assert {*recorder.unit} >= {"decoding train"}
    other = Recorder()
    assert dataset.load(f"folder:{make_folder()}", "train", progress=other).unit == "images"
    assert {*other.unit.values()} == {"images"}


def test_a_loaded_dataset_knows_its_form() -> None:
    found = dataset.load("tests.tensor_data:tokens", "test")
    assert str(found.form) == "input_ids int64 (10), attention_mask int64 (10)"
    assert found.subset([3, 1]).form == found.form
    assert dataset.load("digits", "test", 5).form is None
