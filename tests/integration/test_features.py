"""Penultimate features beside the logits."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from torch import nn

from kdpipe import dataset, models, open_store
from kdpipe.pairing.join import join
from kdpipe.views import Geometry, Renderer
from tests.conftest import LIMITS, Built, Outcome

Kdpipe = Callable[..., Outcome]


PENULTIMATE = ("--signals", "features:penultimate")


def _cache(built: Built, out: Path, *extra: object) -> tuple[object, ...]:
    return (
        *("cache-teacher", *LIMITS, "--teacher", "resnet8", "--weights", built.weights, "--device", "cpu"),
        *("--out", out, *extra),
    )


def _features(store: Path, split: str) -> np.ndarray:
    return np.asarray(zarr.open_group(store, mode="r")[f"{split}/features"][...])


def test_the_store_keeps_what_the_last_layer_is_shown(built: Built, kdpipe: Kdpipe, tmp_path: Path) -> None:
    store = tmp_path / "features.zarr"
    assert kdpipe(*_cache(built, store, *PENULTIMATE, "--views", 1)).code == 0
    found = {split: _features(store, split) for split in ("train", "test")}
    assert found["train"].shape == (2, 200, 64)
    assert found["test"].shape == (1, 60, 64)
    assert found["train"].dtype == np.float16
    assert json.loads(kdpipe("inspect", store, "--json").out)["features"] == 64

    for split, limit in (("train", 200), ("test", 60)):
        data = dataset.load("digits", split, limit)
        teacher = models.load("resnet8", num_classes=10, weights=built.weights, fallback_statistics=data.statistics)
        head = teacher.module.fc
        teacher.module.fc = nn.Identity()
        renderer = Renderer(data, "crop-flip", seed=0, geometry=Geometry.of(teacher.preset))
        rows = join(open_store(store, split=split), data)
        for view, kept in enumerate(found[split][:, rows]):
            with torch.no_grad():
                expected = teacher.module(teacher.preset.normalize(renderer(range(limit), view)))
                logits = head(expected).numpy()
            assert np.abs(kept - expected.numpy()).max() <= 1e-3 * (1 + float(expected.abs().max()))
            assert np.abs(open_store(store, split=split).plane(view)[rows] - logits).max() < 0.05
    assert "nothing to do" in kdpipe(*_cache(built, store, *PENULTIMATE, "--views", 1)).err


def test_features_change_nothing_of_the_logits(built: Built, kdpipe: Kdpipe, tmp_path: Path) -> None:
    with_features = tmp_path / "features.zarr"
    assert kdpipe(*_cache(built, with_features, *PENULTIMATE, "--views", 2)).code == 0
    plain = shutil.copytree(built.store, tmp_path / "plain.zarr")
    assert open_store(plain).digest != open_store(with_features).digest
    for view in range(3):
        assert np.array_equal(open_store(plain).plane(view), open_store(with_features).plane(view))
    refused = kdpipe(*_cache(built, plain, *PENULTIMATE, "--views", 2))
    assert refused.code == 1
    assert "features:penultimate: the store has none, asked for 64" in refused.last_line


def test_teachers_without_features_are_refused(
    built: Built, kdpipe: Kdpipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pooled_teacher.py").write_text(
        "import torch\n"
        "class Pooled(torch.nn.Module):\n"
        "    def __init__(self, classes):\n"
        "        super().__init__()\n"
        "        self.conv = torch.nn.Conv2d(3, classes, 3)\n"
        "    def forward(self, x): return self.conv(x).mean((2, 3))\n"
        "def build(classes): return Pooled(classes)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    out = tmp_path / "l.zarr"
    own = ("--teacher", "pooled_teacher:build", "--statistics", "data")
    pooled = kdpipe("cache-teacher", *LIMITS, *own, *PENULTIMATE, "--out", out)
    assert pooled.code == 1
    assert "no layer of pooled_teacher:build makes its logits" in pooled.last_line
    both = kdpipe(*_cache(built, out, "--teacher", "resnet8", "--weights", built.weights, "--average", *PENULTIMATE))
    assert both.code == 1
    assert "signals of several teachers have no mean" in both.last_line
    assert not out.exists()


def test_models_shows_the_length_of_the_features(kdpipe: Kdpipe) -> None:
    for name, shown in (("resnet20", "64"), ("MobileNetV2", "1,280"), ("torchvision:squeezenet1_1", "none")):
        heading, row = kdpipe("models", name, "--size", 64).out.splitlines()[:2]
        assert heading.split()[3] == "features"
        assert row.split()[3] == shown
