"""`kdpipe verify --teacher`: logits of a store, recomputed by its teacher."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from kdpipe import dataset, models, open_store
from kdpipe.teacher.forward import Forward
from kdpipe.teacher.recompute import recompute
from kdpipe.views import Geometry, Renderer
from tests.conftest import LIMITS, Built, Outcome
from tests.integration.test_ensemble import save_teacher

Kdpipe = Callable[..., Outcome]

VERIFY = ("--data", "digits", "--device", "cpu", "--teacher", "resnet8", "--weights")


def _cache(out: Path, *teacher: object) -> tuple[object, ...]:
    return ("cache-teacher", *LIMITS, "--device", "cpu", "--views", 1, "--out", out, "--teacher", *teacher)


def test_the_right_teacher_passes_and_is_compared_with_all_views(built: Built, kdpipe: Kdpipe) -> None:
    outcome = kdpipe("verify", built.store, *VERIFY, built.weights, "--rows", 100)
    assert outcome.code == 0
    assert "100 recomputed rows" in outcome.err
    assert "fp16 explains that" in outcome.err


@pytest.mark.parametrize("encoding", ["fp16r1", "sqrtp3@1", "topk3"])
def test_no_encoding_is_mistaken_for_another_teacher(
    built: Built, kdpipe: Kdpipe, tmp_path: Path, encoding: str
) -> None:
    store = tmp_path / "l.zarr"
    assert kdpipe(*_cache(store, "resnet8", "--weights", built.weights, "--encoding", encoding)).code == 0
    assert kdpipe("verify", store, *VERIFY, built.weights).code == 0


def test_one_perturbed_weight_is_another_teacher(built: Built, kdpipe: Kdpipe, tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    content = bytearray(built.weights.read_bytes())
    content[-1] ^= 1
    other.write_bytes(content)
    outcome = kdpipe("verify", built.store, *VERIFY, other)
    assert outcome.code == 1
    assert "it was written by resnet8@" in outcome.last_line
    assert "not by resnet8@" in outcome.last_line
    assert len(outcome.err.strip().splitlines()) == 1


def test_a_teacher_whose_code_has_changed_is_found_by_its_logits(
    kdpipe: Kdpipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = (
        "import torch\n"
        "SCALE = 1.0\n"
        "class Own(torch.nn.Module):\n"
        "    def __init__(self, classes):\n"
        "        super().__init__()\n"
        "        self.fc = torch.nn.Linear(3 * 32 * 32, classes)\n"
        "    def forward(self, x): return 10 * SCALE * self.fc(x.flatten(1))\n"
        "def build(classes): return Own(classes)\n"
    )
    (tmp_path / "own_teacher.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    store = tmp_path / "l.zarr"
    normalized = ("--mean", "0.5,0.5,0.5", "--std", "0.5,0.5,0.5")
    assert kdpipe(*_cache(store, "own_teacher:build", *normalized)).code == 0
    verify = ("verify", store, "--data", "digits", "--device", "cpu", "--teacher", "own_teacher:build")
    assert kdpipe(*verify).code == 0
    import own_teacher

    monkeypatch.setattr(own_teacher, "SCALE", 1.001)
    outcome = kdpipe(*verify)
    assert outcome.code == 1
    assert "of their spread unexplained" in outcome.last_line


def test_the_figures_are_those_of_all_pairs(built: Built) -> None:
    stores = {split: open_store(built.store, split=split) for split in ("train", "test")}
    datasets = {"train": dataset.load("digits", "train", 200), "test": dataset.load("digits", "test", 60)}
    statistics = datasets["train"].statistics
    model = models.load("resnet8", num_classes=10, weights=built.weights, fallback_statistics=statistics)
    forward = Forward(model, device=torch.device("cpu"))
    everything = recompute(stores, datasets, forward, rows=10_000, seed=0)
    assert everything.rows == 3 * 200 + 60
    assert everything.unexplained < 1e-5
    assert 0 < everything.mean < everything.largest < 0.05
    few = recompute(stores, datasets, forward, rows=5, seed=0)
    assert few.rows == 5
    assert (
        few
        == recompute(stores, datasets, forward, rows=5, seed=0)
        != recompute(stores, datasets, forward, rows=5, seed=1)
    )

    stored = []
    for split, store in stores.items():
        order = {bytes(sample_id): row for row, sample_id in enumerate(store.sample_ids)}
        rows = [order[bytes(sample_id)] for sample_id in datasets[split].sample_ids]
        stored += [store.plane(view)[rows] for view in range(store.num_views + 1)]
    logits = _all_logits(forward, datasets)
    difference = np.abs(np.concatenate(stored) - logits)
    assert everything.mean == pytest.approx(difference.mean(), rel=1e-2)
    assert everything.largest == pytest.approx(difference.max(), rel=1e-2)


def _all_logits(forward: Forward, datasets: dict[str, dataset.Dataset]) -> np.ndarray:
    logits = []
    for split, views in (("train", 3), ("test", 1)):
        data = datasets[split]
        renderer = Renderer(data, "crop-flip", seed=0, geometry=Geometry.of(forward.preset))
        logits += [forward(renderer(np.arange(len(data)), view)).numpy() for view in range(views)]
    return np.concatenate(logits)


def test_an_average_is_recomputed_by_all_its_teachers(built: Built, kdpipe: Kdpipe, tmp_path: Path) -> None:
    other = save_teacher(tmp_path / "other.safetensors")
    store = tmp_path / "mean.zarr"
    both = ("resnet8", "--weights", built.weights, "--teacher", "resnet14", "--weights", other)
    assert kdpipe(*_cache(store, *both, "--average")).code == 0
    assert kdpipe("verify", store, "--data", "digits", "--device", "cpu", "--teacher", *both).code == 0
    alone = kdpipe("verify", store, *VERIFY, built.weights)
    assert alone.code == 1
    assert "written by average(resnet8, resnet14), 2 teachers; --teacher names 1" in alone.last_line


def test_what_cannot_be_recomputed_is_refused(built: Built, kdpipe: Kdpipe, tmp_path: Path) -> None:
    without_data = kdpipe("verify", built.store, "--teacher", "resnet8", "--weights", built.weights)
    assert without_data.code == 1
    assert "needs --data" in without_data.last_line
    miscounted = kdpipe("verify", built.store, *VERIFY, built.weights, "--weights", built.weights)
    assert miscounted.code == 1
    assert "2 weights for 1 teachers" in miscounted.last_line
    damaged = shutil.copytree(built.store, tmp_path / "damaged.zarr")
    (damaged / "train" / "codes" / "c" / "1" / "0" / "0").write_bytes(b"")
    outcome = kdpipe("verify", damaged, *VERIFY, built.weights)
    assert outcome.code == 1
    assert "train/codes/c/1/0/0 has 0 bytes" in outcome.err


def test_imported_logits_have_no_teacher_to_recompute_them(built: Built, kdpipe: Kdpipe, tmp_path: Path) -> None:
    np.save(tmp_path / "train.npy", open_store(built.store).plane(0))
    store = tmp_path / "l.zarr"
    imported = ("import-logits", *LIMITS, "--teacher-name", "theirs", "--logits", tmp_path / "train.npy")
    assert kdpipe(*imported, "--out", store).code == 0
    outcome = kdpipe("verify", store, *VERIFY, built.weights)
    assert outcome.code == 1
    assert "there is no teacher to recompute them with" in outcome.last_line
