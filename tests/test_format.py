"""The documented format: the page's code decodes a store, without kdpipe."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from kdpipe import dataset, models, open_store
from kdpipe.dataset import find_ids
from kdpipe.encoding.registry import get_encoding
from kdpipe.testing import stores
from kdpipe.views import Geometry, Renderer
from tests.conftest import ROOT, Built
from tests.unit.store.growths import further, grown, ids

CODE = re.findall(
    r"```python\n(.*?)```", (ROOT / "docs" / "reference" / "format.md").read_text(encoding="utf-8"), flags=re.DOTALL
)


def test_the_documented_script_decodes_the_teacher_s_logits(built: Built, tmp_path: Path) -> None:
    script = tmp_path / "decode.py"
    script.write_text("import sys\nsys.modules['kdpipe'] = None\n" + CODE[0])
    subprocess.run([sys.executable, script, built.store, tmp_path / "logits.npz"], check=True)
    decoded = np.load(tmp_path / "logits.npz")

    train = dataset.load("digits", "train", 200)
    teacher = models.load("resnet8", num_classes=10, weights=built.weights, fallback_statistics=train.statistics)
    renderer = Renderer(train, "crop-flip", seed=0, geometry=Geometry.of(teacher.preset))
    rows = find_ids(train.sample_ids, decoded["train_sample_id"])
    assert sorted(rows) == list(range(200))
    for view in range(3):
        with torch.inference_mode():
            logits = teacher.module(teacher.preset.normalize(renderer(range(200), view))).numpy()
        shifted = logits - logits.max(axis=1, keepdims=True)
        half_step = np.spacing(np.abs(shifted).astype(np.float16)).astype(np.float32) / 2
        assert (np.abs(decoded["train_logits"][view][rows] - logits) <= half_step + 1e-4).all()


def test_the_documented_script_decodes_a_store_that_has_grown(tmp_path: Path) -> None:
    store = tmp_path / "a.zarr"
    stores.small_store(store)
    first = open_store(store).sample_ids
    grown(store, further(store, np.concatenate([first[[2, 9]], ids(4, seed=1)]), replaces=2))
    grown(store, further(store, first[[3]], replaces=1))
    script = tmp_path / "decode.py"
    script.write_text("import sys\nsys.modules['kdpipe'] = None\n" + CODE[0])
    subprocess.run([sys.executable, script, store, tmp_path / "logits.npz"], check=True)
    decoded = np.load(tmp_path / "logits.npz")
    for split in ("train", "test"):
        opened = open_store(store, split)
        assert np.array_equal(decoded[f"{split}_sample_id"], opened.sample_ids)
        assert np.array_equal(decoded[f"{split}_labels"], opened.labels)
        expected = np.stack([opened.plane(view) for view in range(opened.num_views + 1)])
        assert np.array_equal(decoded[f"{split}_logits"], expected)


@pytest.mark.parametrize(
    "name", ["fp32", "fp16r3", "sqrtp8@4", "sqrtp5@2", "tailp4@2", "tailp8@0.5", "topk4", "klt0.4", "peaks1@2"]
)
def test_the_documented_function_decodes_every_encoding(name: str) -> None:
    scope: dict[str, Callable[..., np.ndarray]] = {}
    exec(CODE[1], scope)
    logits = 5 * torch.randn(64, 12, generator=torch.Generator().manual_seed(0))
    chosen = get_encoding(name).calibrate(logits)
    encoded = chosen.encode(logits)
    described = json.loads(json.dumps(chosen.describe()))
    decoded = scope["shifted_logits"](described, encoded.codes, 12) + encoded.row_max[:, None]
    ours = chosen.decode(torch.from_numpy(encoded.codes), torch.from_numpy(encoded.row_max), 12)
    assert np.array_equal(decoded, ours.numpy())
