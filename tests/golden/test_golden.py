"""Stores of every released format stay readable, and views keep their pixels."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kdpipe.store.inspect import summary
from kdpipe.store.reader import open_store
from kdpipe.store.verify import verify_files
from kdpipe.testing import stores
from tests.golden import make
from tests.unit.views import pictures


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KDPIPE_CACHE", str(tmp_path / "cache"))


def test_format_1_reads_as_it_was_written() -> None:
    expected = json.loads(make.VALUES.read_text())
    assert make.store_values(make.STORE) == expected
    assert verify_files(make.STORE) == []
    assert summary(make.STORE)["format"] == 1
    assert summary(make.STORE)["digest"] == open_store(make.STORE).digest == expected["digest"]


@pytest.mark.parametrize(
    ("store", "values"), [(make.ROTATED, make.ROTATED_VALUES), (make.WEIGHED, make.WEIGHED_VALUES)]
)
def test_a_rotated_store_reads_as_it_was_written(store: Path, values: Path) -> None:
    expected: dict[str, Any] = json.loads(values.read_text())
    found: dict[str, Any] = make.store_values(store)
    for split, wanted in expected["splits"].items():
        # A product of matrices, exact up to the rounding of its scale.
        assert np.allclose(found["splits"][split].pop("logits"), wanted.pop("logits"), rtol=0, atol=1e-6)
    assert found == expected
    assert verify_files(store) == []


def test_a_rotated_store_is_written_with_the_same_codes(tmp_path: Path) -> None:
    """Equal logits have equal codes and an equal table, on this machine and on that of the golden store."""
    stores.small_store(tmp_path / "a.zarr", make.rotated_plan())
    golden = open_store(make.WEIGHED)
    assert open_store(tmp_path / "a.zarr").encoding == golden.encoding
    for view in range(golden.num_views + 1):
        assert torch.equal(open_store(tmp_path / "a.zarr").codes(view).codes, golden.codes(view).codes)


def test_format_1_fits_a_copy(tmp_path: Path) -> None:
    """Nothing in a store depends on where it lies or on the times of its files."""
    copy = Path(shutil.copytree(make.STORE, tmp_path / "other.zarr", copy_function=shutil.copyfile))
    assert verify_files(copy) == []
    assert open_store(copy).digest == open_store(make.STORE).digest


def test_format_1_is_the_store_that_this_code_resumes() -> None:
    """The same plan today finds the old store finished."""
    planned = stores.small_plan().manifest()
    found = open_store(make.STORE).manifest
    assert found.fingerprint.differences(planned.fingerprint) == []
    assert (found.splits, found.encoding) == (planned.splits, planned.encoding)


def test_crop_flip_keeps_its_pixels() -> None:
    assert make.pixel_hashes() == json.loads(make.PIXELS.read_text())


GOLDEN = ((make.VIEWS, pictures.RECIPES), (make.ORIENTED, pictures.ORIENTED))


@pytest.mark.parametrize(("path", "recipes"), GOLDEN)
def test_views_keep_their_pixels(path: Path, recipes: tuple[str, ...]) -> None:
    assert make.view_hashes(recipes) == json.loads(path.read_text())


def test_two_operations_have_the_pixels_of_their_pair() -> None:
    golden, found = json.loads(make.VIEWS.read_text()), make.view_hashes(tuple(pictures.SAME))
    for pictured, hashes in found.items():
        prefix, _, recipe = pictured.rpartition(", ")
        assert hashes == golden[f"{prefix}, {pictures.SAME[recipe]}"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(("path", "recipes"), GOLDEN)
def test_views_have_the_same_pixels_on_a_gpu(path: Path, recipes: tuple[str, ...]) -> None:
    assert make.view_hashes(recipes, "cuda") == json.loads(path.read_text())
