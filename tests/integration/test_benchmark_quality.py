"""`benchmark`: predictions, calibration on held-out samples, corruptions and Grad-CAM, from flags to files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from scipy.stats import binomtest
from sklearn.metrics import f1_score

from kdpipe import dataset, models
from kdpipe.benchmark.cam import explain, overlap
from kdpipe.models import Model
from kdpipe.views import Geometry, Renderer
from kdpipe.views.corruptions import corrupt
from tests.conftest import LIMITS, Built, Outcome, refused, run_command

Kdpipe = Callable[..., Outcome]

COMPARE = (
    *("benchmark", "--data", "digits", "--limit-test", 60, "--device", "cpu"),
    *("--rounds", 2, "--batch-sizes", 1, "--no-cold-starts"),
)


@pytest.fixture(scope="module")
def runs(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student of two seeds that holds samples out, and one that holds out none."""
    folder = tmp_path_factory.mktemp("runs")
    student = ("train-student", *LIMITS, "--student", "resnet8", "--input-size", 16, "--device", "cpu", "--epochs", 3)
    held = ("--store", built.store, "--validation", 0.25, "--lr-schedule", "constant", "--seeds", "0,1")
    assert run_command(None, *student, *held, "--out", folder / "kd").code == 0
    assert run_command(None, *student, "--epochs", 1, "--distill", "none", "--out", folder / "labels").code == 0
    return folder


@pytest.fixture(scope="module")
def report(runs: Path, built: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "reports"
    asked = ("--run", runs / "kd", "--run", runs / "labels", "--store", built.store, "--out", out)
    corrupted = ("--corruptions", "noise+brightness", "--corruption-samples", 30)
    assert run_command(None, *COMPARE, *asked, *corrupted).code == 0
    return out


def _read(path: Path) -> Any:
    return json.loads(path.read_text())


def _model(weights: Path) -> Model:
    test = dataset.load("digits", "test", 60)
    return models.load("resnet8", num_classes=10, weights=weights, fallback_statistics=test.statistics)


@torch.no_grad()
def _logits(model: Model, images: torch.Tensor) -> np.ndarray:
    return model.module.eval()(model.preset.normalize(images)).double().numpy()


def _images(model: Model, samples: dataset.Dataset) -> torch.Tensor:
    return Renderer(samples, "none", seed=0, geometry=Geometry.of(model.preset))(range(len(samples)), 0)


def test_predictions_are_those_of_the_weights(runs: Path, report: Path) -> None:
    test = dataset.load("digits", "test", 60)
    with np.load(report / "predictions.npz", allow_pickle=False) as found:
        assert found["runs"].tolist() == ["kd/seed-0", "kd/seed-1", "labels"]
        assert (found["ids"] == test.sample_ids).all()
        assert (found["labels"] == test.labels).all()
        for name, logits in zip(found["runs"], found["logits"], strict=True):
            model = _model(runs / name / "model.safetensors")
            assert logits == pytest.approx(_logits(model, _images(model, test)), abs=1e-4)
        assert found["teacher_logits"].shape == (60, 10)
        predicted = found["logits"].argmax(axis=2)
    students = _read(report / "metrics.json")["students"]
    expected = [f1_score(test.labels, each, average="macro", zero_division=0) for each in predicted]
    assert students["labels"]["f1_macro"] == pytest.approx(expected[2])
    assert students["kd"]["f1_macro"] == pytest.approx(np.mean(expected[:2]))
    assert students["kd"]["f1_macro_std"] == pytest.approx(np.std(expected[:2], ddof=1))


def test_students_are_compared_on_the_same_samples(report: Path) -> None:
    metrics = _read(report / "metrics.json")
    labels = dataset.load("digits", "test", 60).labels
    with np.load(report / "predictions.npz") as found:
        right = found["logits"].argmax(axis=2) == labels
        teacher = found["teacher_logits"].argmax(axis=1) == labels
    assert metrics["best"] == "kd"
    against = metrics["students"]["labels"]["against_best"]
    assert against["name"] == "kd"
    assert against["difference"] == pytest.approx(right[2].mean() - right[:2].mean())
    against = metrics["students"]["labels"]["against_teacher"]
    better, worse = int((right[2] & ~teacher).sum()), int((teacher & ~right[2]).sum())
    assert against["p_value"] == pytest.approx(binomtest(better, better + worse).pvalue)


def test_the_temperature_is_that_of_the_held_out_samples(runs: Path, report: Path) -> None:
    students = _read(report / "metrics.json")["students"]
    _, held_out = dataset.hold_out(dataset.load("digits", "train", 200), 0.25)
    fitted = []
    for seed in (0, 1):
        model = _model(runs / "kd" / f"seed-{seed}" / "model.safetensors")
        logits = _logits(model, _images(model, held_out))

        def loss(temperature: float, logits: np.ndarray = logits) -> float:
            return float(-log_softmax(logits / temperature, axis=1)[np.arange(len(logits)), held_out.labels].mean())

        fitted.append(minimize_scalar(loss, bounds=(0.01, 100), method="bounded", options={"xatol": 1e-6}).x)
    assert students["kd"]["temperature"] == pytest.approx(np.mean(fitted), rel=1e-3)
    assert 0 <= students["kd"]["calibrated_ece"] <= 1
    assert (students["labels"]["temperature"], students["labels"]["calibrated_ece"]) == (None, None)
    assert students["labels"]["temperature_note"] == "the run held no samples out (--validation)"
    best = [_read(runs / "kd" / f"seed-{seed}" / "metrics.json")["best_on_validation"] for seed in (0, 1)]
    assert students["kd"]["best_top1"] == pytest.approx(np.mean([each["test"]["top1"] for each in best]))
    assert students["labels"]["best_top1"] is None
    assert students["kd"]["gap_recovered"] is None
    assert students["kd"]["gap_note"] == "the baseline labels was trained with 200 images over 1 epoch, not 450 over 3"


def test_accuracy_under_corruptions_is_that_on_corrupted_images(runs: Path, report: Path) -> None:
    metrics = _read(report / "metrics.json")
    assert metrics["corruptions"] == {"kinds": ["noise", "brightness"], "samples": 30}
    found = metrics["students"]["labels"]
    test = dataset.load("digits", "test", 60)
    part = test.subset(dataset.balanced_indices(test.sample_ids, test.labels, limit=30))
    model = _model(runs / "labels" / "model.safetensors")
    images = _images(model, part)

    def top1(pixels: torch.Tensor) -> float:
        return float((_logits(model, pixels).argmax(axis=1) == part.labels).mean())

    for kind in ("noise", "brightness"):
        expected = [top1(corrupt(kind, images, strength=each, sample_ids=part.sample_ids)) for each in range(1, 6)]
        assert found["corrupted"][kind] == pytest.approx(expected)
        assert found[f"{kind}_drop"] == pytest.approx(top1(images) - np.mean(expected))
    every = [value for values in found["corrupted"].values() for value in values]
    assert found["corrupted_top1"] == pytest.approx(np.mean(every))
    assert found["corruption_drop"] == pytest.approx(top1(images) - np.mean(every))
    kd = metrics["students"]["kd"]
    assert kd["noise_drop"] == pytest.approx(np.mean([run["noise_drop"] for run in kd["runs"]]))


def test_corruptions_are_listed_with_their_strengths(kdpipe: Kdpipe) -> None:
    listed = kdpipe("list", "corruptions")
    assert listed.code == 0
    names = [line.split()[0] for line in listed.out.splitlines()[1:]]
    assert names == ["noise", "blur", "contrast", "jpeg", "pixelate", "brightness"]
    assert "4, 8, 12, 18 or 26 %" in listed.out


def test_held_out_samples_of_other_data_are_not_calibrated_on(runs: Path, kdpipe: Kdpipe, tmp_path: Path) -> None:
    run = shutil.copytree(runs / "kd" / "seed-0", tmp_path / "run")
    record = _read(run / "run.json")
    record["parameters"]["validation"] = 0.3
    (run / "run.json").write_text(json.dumps(record))
    (run / "best.safetensors").unlink()
    assert kdpipe(*COMPARE, "--run", run, "--out", tmp_path / "reports").code == 0
    found = _read(tmp_path / "reports" / "metrics.json")["students"]["run"]
    assert found["temperature_note"] == "the samples that the run held out are not among those of digits"
    assert "best_top1" not in found


def test_a_teacher_at_hand_is_compared_with_and_explained(
    runs: Path, built: Built, kdpipe: Kdpipe, tmp_path: Path
) -> None:
    out, teacher = tmp_path / "reports", ("--teacher", "resnet8", "--weights", built.weights)
    run = shutil.copytree(runs / "labels", tmp_path / "labels")
    assert kdpipe(*COMPARE, "--run", run, *teacher, "--cam", 4, "--out", out).code == 0
    metrics = _read(out / "metrics.json")
    test = dataset.load("digits", "test", 60)
    student, big = _model(run / "model.safetensors"), _model(built.weights)
    predicted = [_logits(model, _images(model, test)).argmax(axis=1) for model in (student, big)]
    found = metrics["students"]["labels"]
    assert metrics["teacher"]["name"] == "resnet8"
    assert found["agreement"] == pytest.approx((predicted[0] == predicted[1]).mean())
    shown = test.subset(dataset.balanced_indices(test.sample_ids, test.labels, limit=4))
    example = explain(big, Renderer(shown, "none", seed=0, geometry=Geometry.of(big.preset)))
    own = explain(student, Renderer(shown, "none", seed=0, geometry=Geometry.of(student.preset)), example.predicted)
    assert found["cam_overlap"] == pytest.approx(overlap(own.maps, example.maps))
    assert 0 <= found["cam_overlap"] <= 1
    with Image.open(out / "cams.png") as picture:
        assert picture.width > 3 * 100
        assert picture.height > 4 * 100
        assert len(np.unique(np.asarray(picture).reshape(-1, 3), axis=0)) > 100


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--corruptions", "fog"), "unknown corruption 'fog'"),
        (("--corruptions", "blur+blur"), "blur twice"),
        (("--corruption-samples", 5), "corruption-samples needs corruptions"),
        (("--cam", 3), "cam compares with a trained teacher: give --teacher"),
        (("--cam", 3, "--teacher", "resnet8"), "and --weights unless it has its own"),
    ],
)
def test_what_cannot_be_corrupted_is_refused(
    flags: tuple[object, ...], message: str, runs: Path, kdpipe: Kdpipe, tmp_path: Path
) -> None:
    refused(kdpipe(*COMPARE, "--run", runs / "labels", "--out", tmp_path / "reports", *flags), message)
    assert not (tmp_path / "reports").exists()
