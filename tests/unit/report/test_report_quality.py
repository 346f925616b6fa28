"""Predictions and quality of a report, read back by numpy, scikit-learn and json alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import confusion_matrix, recall_score

from kdpipe.benchmark.quality import Quality, Samples
from kdpipe.benchmark.results import BenchmarkResult, StudentResult, TeacherResult, average
from kdpipe.metrics import measure
from kdpipe.report import write

CLASSES = ("cat", "dog", "<b>", "absent")
LABELS = np.where(np.arange(300) % 10, np.arange(300) % 3, -1).astype(np.int32)


def _logits(seed: int, *, right: float) -> np.ndarray:
    draw = np.random.default_rng(seed)
    predicted = np.where(draw.random(300) < right, LABELS % 3, (LABELS + 1) % 3)
    return (draw.standard_normal((300, 4)) + 4 * np.eye(4)[predicted]).astype(np.float32)


def _run(name: str, seed: int, *, right: float, temperature: float | None = None) -> StudentResult:
    quality = Quality(_logits(seed, right=right), LABELS, temperature, None if temperature else "no samples held out")
    return StudentResult(
        name=name,
        path=Path(name),
        architecture="resnet8",
        distill="none",
        loss="ce",
        seed=seed,
        figures=measure(quality.logits, LABELS) | quality.figures,
        parameters=1,
        file_bytes=1,
        quality=quality,
    )


@pytest.fixture
def result() -> BenchmarkResult:
    seeds = [_run(f"kd/seed-{seed}", seed, right=0.8) for seed in (1, 2)]
    teacher = _logits(9, right=0.95)
    return BenchmarkResult(
        dataset="pets",
        samples=300,
        students=(average(seeds, name="kd", path=Path("kd")), _run("labels", 5, right=0.6, temperature=1.5)),
        machine={},
        created="now",
        teacher=TeacherResult("big", measure(teacher, LABELS), quality=Quality(teacher, LABELS)),
        test=Samples(np.arange(4800, dtype=np.uint32).astype(np.uint8).reshape(300, 16), LABELS, CLASSES),
    )


def test_predictions_are_read_by_numpy_without_pickle(result: BenchmarkResult, tmp_path: Path) -> None:
    path = write(result, tmp_path / "a")["predictions.npz"]
    with np.load(path, allow_pickle=False) as found:
        assert set(found) == {"ids", "labels", "classes", "runs", "logits", "teacher_logits"}
        assert found["runs"].tolist() == ["kd/seed-1", "kd/seed-2", "labels"]
        assert found["classes"].tolist() == list(CLASSES)
        assert (found["ids"] == result.test.ids).all()
        assert (found["labels"] == LABELS).all()
        assert (found["logits"].dtype, found["logits"].shape) == (np.float32, (3, 300, 4))
        assert (found["logits"][2] == _logits(5, right=0.6)).all()
        assert (found["teacher_logits"] == _logits(9, right=0.95)).all()
    assert write(result, tmp_path / "b")["predictions.npz"].read_bytes() == path.read_bytes()


def test_quality_holds_what_scikit_learn_computes_from_the_predictions(result: BenchmarkResult, tmp_path: Path) -> None:
    paths = write(result, tmp_path)
    quality = json.loads(paths["quality.json"].read_text())
    assert quality["classes"] == list(CLASSES)
    with np.load(paths["predictions.npz"]) as predictions:
        kept = predictions["labels"] >= 0
        runs = predictions["runs"].tolist()
        found = {name: predictions["logits"][index][kept].argmax(axis=1) for index, name in enumerate(runs)}
    for name, student in quality["students"].items():
        assert student["run"] == {"kd": "kd/seed-1", "labels": "labels"}[name]
        predicted = found[student["run"]]
        assert student["samples"] == kept.sum()
        assert student["confusion"] == confusion_matrix(LABELS[kept], predicted, labels=range(4)).tolist()
        recalls = recall_score(LABELS[kept], predicted, labels=range(3), average=None)
        assert [scores["recall"] for scores in student["per_class"]] == [*map(pytest.approx, recalls), None]
        assert sum(each["samples"] for each in student["reliability"]) == kept.sum()
        curve = student["risk_coverage"]
        assert (len(curve), curve[-1]["coverage"]) == (100, 1.0)
        assert curve[-1]["risk"] == pytest.approx(np.mean(predicted != LABELS[kept]))
    assert quality["students"]["kd"]["calibrated_reliability"] is None
    assert quality["students"]["kd"]["temperature_note"] == "no samples held out"
    assert quality["students"]["labels"]["temperature"] == 1.5
    assert quality["teacher"]["samples"] == kept.sum()


def test_metrics_have_intervals_and_differences(result: BenchmarkResult, tmp_path: Path) -> None:
    found = json.loads(write(result, tmp_path)["metrics.json"].read_text())
    assert (found["best"], found["classes_without_test_samples"]) == ("kd", ["absent"])
    labels = found["students"]["labels"]
    hits = round(labels["top1"] * 270)
    wilson = binomtest(hits, 270).proportion_ci(method="wilson")
    assert (labels["top1_low"], labels["top1_high"]) == pytest.approx((wilson.low, wilson.high))
    assert found["students"]["kd"]["against_best"] is None
    against = labels["against_best"]
    assert against["name"] == "kd"
    assert against["difference"] == pytest.approx(labels["top1"] - found["students"]["kd"]["top1"])
    assert against["low"] < against["difference"] < against["high"] < 0
    assert against["p_value"] < 0.001
    assert 0 < against["samples_needed"] < 300
    assert labels["against_teacher"]["name"] == "big"
    assert labels["calibrated_ece"] is not None
    assert found["students"]["kd"]["calibrated_ece"] is None


def test_without_a_test_split_there_are_no_predictions(result: BenchmarkResult, tmp_path: Path) -> None:
    from dataclasses import replace

    students = tuple(replace(student, quality=None, seed_runs=()) for student in result.students)
    paths = write(replace(result, test=None, students=students, teacher=None), tmp_path)
    assert not {"predictions.npz", "quality.json"} & set(paths)
    assert {path.name for path in tmp_path.iterdir()} == set(paths)
