"""Students that learn from several stores at once."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from kdpipe import dataset, models, open_store
from kdpipe.dataset import Dataset
from kdpipe.distil.several_stores import MixedTargets, drawn, refuse_mixture
from kdpipe.distil.targets import CachedTargets
from kdpipe.errors import StaleStoreError, StoreError
from kdpipe.pairing.join import join_checked
from kdpipe.pairing.probes import replay
from kdpipe.store.reader import LogitStore
from kdpipe.views import Geometry, Renderer
from tests.conftest import LIMITS, Built, Outcome, refused, run_command

Kdpipe = Callable[..., Outcome]

STUDENT = ("train-student", *LIMITS, "--student", "resnet8", "--input-size", 16, "--epochs", 1, "--device", "cpu")
MORE = ("--data", "digits", "--limit-train", 300, "--limit-test", 100)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of an untrained resnet14 with one augmented view; it holds more digits, so its rows are others."""
    path = tmp_path_factory.mktemp("other") / "other.zarr"
    command = ("cache-teacher", *MORE, "--teacher", "resnet14", "--views", 1, "--device", "cpu", "--out", path)
    assert run_command(None, *command).code == 0
    return path


@pytest.fixture
def digits() -> Dataset:
    return dataset.load("digits", "train", 200)


def _expected(store: LogitStore, data: Dataset, view: int) -> np.ndarray:
    position = {bytes(sample_id): row for row, sample_id in enumerate(store.sample_ids)}
    return store.plane(view)[[position[bytes(sample_id)] for sample_id in data.sample_ids]].astype(np.float64)


def test_targets_are_the_weighted_mean_of_each_sample_s_logits(built: Built, other: Path, digits: Dataset) -> None:
    stores = [open_store(built.store), open_store(other)]
    data = digits.subset(np.random.default_rng(1).permutation(200)[:40])
    targets = MixedTargets([CachedTargets(store, join_checked(store, data)) for store in stores], (0.7, 0.3))
    indices = np.array([9, 0, 39, 9])
    for view, upcoming in ((1, 0), (0, 1), (1, None)):
        targets.start_epoch(view, upcoming)
        given = targets.logits(indices, torch.empty(4, 3, 32, 32))
        means = 0.7 * _expected(stores[0], data, view) + 0.3 * _expected(stores[1], data, view)
        assert given.dtype == torch.float32
        assert np.abs(given.numpy() - means[indices]).max() < 1e-5


@pytest.mark.parametrize("mix", ["mean", "confidence", "draw"])
def test_the_loss_of_the_first_batch(
    mix: str, built: Built, other: Path, digits: Dataset, kdpipe: Kdpipe, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    mixed = ("--store", built.store, "--store-weight", 3, "--store", other, "--store-weight", 1, "--store-mix", mix)
    assert kdpipe(*STUDENT, *mixed, "--batch-size", 200, "--temperature", 2, "--out", run).code == 0
    history = (run / "history.csv").read_text().splitlines()
    row = dict(zip(history[0].split(","), map(float, history[1].split(",")), strict=True))
    assert json.loads((run / "run.json").read_text())["parameters"]["store_mix"] == mix

    stores = [open_store(built.store), open_store(other)]
    torch.manual_seed(0)
    student = models.load("resnet8", num_classes=10, size=16, fallback_statistics=digits.statistics)
    renderer = Renderer(digits, "crop-flip", seed=0, geometry=Geometry.of(student.preset))
    with torch.no_grad():
        logits = student.module.train()(student.preset.normalize(renderer(range(200), 1))).double().numpy()
    planes = [_expected(store, digits, 1) for store in stores]
    right = np.array([0.75, 0.25])[:, None] * [_probabilities(plane)[range(200), digits.labels] for plane in planes]
    teacher = {
        "mean": 0.75 * planes[0] + 0.25 * planes[1],
        "confidence": sum(
            share[:, None] * plane for share, plane in zip(right / right.sum(axis=0), planes, strict=True)
        ),
        "draw": planes[drawn((0.75, 0.25), data_seed=0, epoch=0, first=0)],
    }[mix]
    assert row["view"] == 1
    assert row["kd"] == pytest.approx(4 * _mean_kl(teacher / 2, logits / 2), rel=1e-4)


def _probabilities(logits: np.ndarray) -> np.ndarray:
    return np.asarray(np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True))


def _mean_kl(reference: np.ndarray, other: np.ndarray) -> float:
    logs = [logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)) for logits in (reference, other)]
    return float((np.exp(logs[0]) * (logs[0] - logs[1])).sum(axis=1).mean())


def test_runs_record_the_stores_and_the_benchmark_compares_with_their_mean(
    built: Built, other: Path, kdpipe: Kdpipe, tmp_path: Path
) -> None:
    mixed = ("--store", built.store, "--store-weight", 0.6, "--store", other, "--store-weight", 0.2)
    assert kdpipe(*STUDENT, *mixed, "--out", tmp_path / "mixed").code == 0
    record = json.loads((tmp_path / "mixed" / "run.json").read_text())
    assert record["views"] == 1
    assert record["lineage"]["stores"] == [
        {"path": str(built.store), "digest": open_store(built.store).digest, "weight": pytest.approx(0.75)},
        {"path": str(other), "digest": open_store(other).digest, "weight": pytest.approx(0.25)},
    ]
    assert [teacher["name"] for teacher in record["lineage"]["teachers"]] == ["resnet8", "resnet14"]

    compare = ("benchmark", "--data", "digits", "--limit-test", 60, "--rounds", 5, "--no-cold-starts")
    test = dataset.load("digits", "test", 60)
    planes = [_expected(open_store(path, split="test"), test, 0) for path in (built.store, other)]
    named = ("--store", built.store, "--store-weight", 1, "--store", other, "--store-weight", 9)
    for extra, shares in (((), (0.75, 0.25)), (named, (0.1, 0.9))):
        assert kdpipe(*compare, "--run", tmp_path / "mixed", *extra, "--out", tmp_path / "reports").code == 0
        result = json.loads((tmp_path / "reports" / "metrics.json").read_text())
        logits = shares[0] * planes[0] + shares[1] * planes[1]
        assert result["teacher"]["top1"] == pytest.approx((logits.argmax(axis=1) == test.labels).mean())
        assert result["teacher"]["name"] == f"{shares[0]:g} resnet8 + {shares[1]:g} resnet14"
        assert [store["weight"] for store in result["stores"]] == pytest.approx(shares)

    assert kdpipe(*STUDENT, "--store", built.store, "--out", tmp_path / "alone").code == 0
    both = kdpipe(*compare, "--run", tmp_path / "mixed", "--run", tmp_path / "alone", "--out", tmp_path / "reports")
    assert both.code == 1
    assert "different stores" in both.last_line


def test_stores_that_cannot_be_mixed_are_named(built: Built, other: Path, kdpipe: Kdpipe, tmp_path: Path) -> None:
    seeded = tmp_path / "seeded.zarr"
    assert (
        kdpipe(
            *("cache-teacher", *LIMITS, "--teacher", "resnet8", "--views", 1, "--seed", 3, "--device", "cpu"),
            *("--out", seeded),
        ).code
        == 0
    )
    refused = kdpipe(*STUDENT, "--store", built.store, "--store", seeded, "--out", tmp_path / "run")
    assert refused.code == 1
    for part in (str(built.store), str(seeded), "the recipe seed 0, the second 3"):
        assert part in refused.last_line
    assert not (tmp_path / "run").exists()

    more = kdpipe(*STUDENT, "--store", built.store, "--store", other, "--views", 2, "--out", tmp_path / "run")
    assert more.code == 1
    assert "other.zarr holds 1 augmented views, asked for 2" in more.last_line


def test_each_store_is_checked_on_its_own(
    built: Built, other: Path, kdpipe: Kdpipe, tmp_path: Path, digits: Dataset
) -> None:
    coarse = tmp_path / "coarse.zarr"
    cached = ("cache-teacher", *LIMITS, "--teacher", "resnet8", "--views", 1, "--device", "cpu")
    assert kdpipe(*cached, "--encoding", "topk3", "--out", coarse).code == 0
    hot = kdpipe(*STUDENT, "--store", built.store, "--store", coarse, "--temperature", 4, "--out", tmp_path / "run")
    assert hot.code == 1
    assert "coarse.zarr keeps its logits as topk3" in hot.last_line

    damaged = shutil.copytree(other, tmp_path / "damaged.zarr")
    (damaged / "train" / "codes" / "c" / "1" / "0" / "0").unlink()
    missing = kdpipe(*STUDENT, "--store", built.store, "--store", damaged, "--out", tmp_path / "run")
    assert missing.code == 1
    assert "damaged.zarr" in missing.last_line

    whole = ("train-student", *MORE, "--student", "resnet8", "--epochs", 1)
    fewer = kdpipe(*whole, "--store", other, "--store", built.store, "--out", tmp_path / "run")
    assert fewer.code == 0, fewer.err
    assert "training on 200 of 300 'train' samples of digits: there are no logits for 100 in all 2 stores" in fewer.err


def test_images_that_are_mixed_themselves_are_weighed_without_labels(kdpipe: Kdpipe, tmp_path: Path) -> None:
    stores: list[object] = []
    for teacher in ("resnet8", "resnet14"):
        stores += ["--store", tmp_path / f"{teacher}.zarr"]
        cached = (
            *("cache-teacher", *LIMITS, "--teacher", teacher, "--recipe", "mixup:1", "--views", 1, "--device", "cpu"),
        )
        assert kdpipe(*cached, "--out", stores[-1]).code == 0
    run = (*STUDENT, *stores, "--store-mix", "confidence", "--ce-weight", 0, "--kd-weight", 1)
    unlabeled = (*run, "--loss", "mse", "--batch-size", 200)
    assert kdpipe(*unlabeled, "--out", tmp_path / "run").code == 0
    row = (tmp_path / "run" / "history.csv").read_text().splitlines()[1].split(",")

    digits = dataset.load("digits", "train", 200)
    opened = [open_store(path) for path in stores[1::2]]
    planes = [_expected(store, digits, 1) for store in opened]
    surprise = [np.exp((_probabilities(plane) * np.log(_probabilities(plane))).sum(axis=1)) for plane in planes]
    shares = np.array(surprise) / np.sum(surprise, axis=0)
    teacher = sum(share[:, None] * plane for share, plane in zip(shares, planes, strict=True))
    torch.manual_seed(0)
    student = models.load("resnet8", num_classes=10, size=16, fallback_statistics=digits.statistics)
    pixels = replay(opened[0], digits, geometry=Geometry.of(student.preset))(range(200), 1)
    with torch.no_grad():
        logits = student.module.train()(student.preset.normalize(pixels)).double().numpy()
    centered = [each - each.mean(axis=1, keepdims=True) for each in (logits, teacher)]
    header = (tmp_path / "run" / "history.csv").read_text().splitlines()[0].split(",")
    assert float(row[header.index("kd")]) == pytest.approx(((centered[0] - centered[1]) ** 2).mean(), rel=1e-4)


def test_one_store_is_not_mixed_and_one_made_for_a_low_temperature_not_weighed(
    built: Built, other: Path, kdpipe: Kdpipe, tmp_path: Path
) -> None:
    for mix in ("confidence", "draw"):
        lone = kdpipe(*STUDENT, "--store", built.store, "--store-mix", mix, "--out", tmp_path / "run")
        refused(lone, f"store-mix {mix} is for several stores")
    cold = tmp_path / "cold.zarr"
    cached = ("cache-teacher", *LIMITS, "--teacher", "resnet8", "--views", 1, "--device", "cpu", "--encoding")
    assert kdpipe(*cached, "sqrtp4@0.5", "--out", cold).code == 0
    both = (*STUDENT, "--store", other, "--store", cold, "--temperature", 0.5, "--out", tmp_path / "run")
    refused(kdpipe(*both, "--store-mix", "confidence"), "cold.zarr keeps its logits as sqrtp4@0.5", "reads them at 1")
    assert not (tmp_path / "run").exists()
    assert kdpipe(*both, "--store-mix", "draw").code == 0


def test_other_classes_are_refused(built: Built) -> None:
    first, second = open_store(built.store), open_store(built.store)
    refuse_mixture([first, second])
    second.manifest = second.manifest.model_copy(update={"classes": second.classes[::-1]})
    with pytest.raises(StaleStoreError, match=r"classes 0, 1, .*, the second 9, 8, "):
        refuse_mixture([first, second])


class _Ordered:
    """Targets that must be asked for in some order."""

    def __init__(self, order: np.ndarray | None) -> None:
        self._order = order

    def start_epoch(self, view: int, next_view: int | None) -> None: ...

    def order(self, samples: np.ndarray, *, data_seed: int, epoch: int) -> np.ndarray | None:
        return self._order

    def logits(self, indices: np.ndarray, pixels: torch.Tensor) -> torch.Tensor: ...


def test_one_part_may_set_the_order_of_the_samples_two_may_not() -> None:
    order = np.array([2, 0, 1])
    mixed = MixedTargets([_Ordered(None), _Ordered(order)], (0.5, 0.5))
    assert mixed.order(order, data_seed=0, epoch=0) is order
    assert MixedTargets([_Ordered(None), _Ordered(None)], (0.5, 0.5)).order(order, data_seed=0, epoch=0) is None
    with pytest.raises(StoreError, match="2 of the 3 stores do not fit in memory"):
        MixedTargets([_Ordered(order), _Ordered(None), _Ordered(order)], (0.4, 0.3, 0.3)).order(
            order, data_seed=0, epoch=0
        )
