"""`benchmark` of directories that `--seeds` left, against figures that the test computes from weights and store."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kdpipe import dataset, models, open_store
from kdpipe.views import Geometry, Renderer
from tests.conftest import LIMITS, Outcome, refused, run_command

Kdpipe = Callable[..., Outcome]

STUDENT = (
    *("train-student", *LIMITS, "--student", "resnet8", "--input-size", 16, "--device", "cpu"),
    *("--epochs", 6, "--batch-size", 25),
)
COMPARE = ("benchmark", "--data", "digits", "--limit-test", 60, "--rounds", 5, "--no-cold-starts", "--device", "cpu")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The logits of a teacher that is wrong on every tenth image."""
    folder = tmp_path_factory.mktemp("store")
    for split, count in (("train", 200), ("test", 60)):
        labels = dataset.load("digits", split, count).labels
        predicted = np.where(np.arange(count) % 10 == 0, (labels + 1) % 10, labels)
        noise = np.random.default_rng(count).normal(size=(count, 10))
        np.save(folder / f"{split}.npy", (noise + 8 * np.eye(10)[predicted]).astype(np.float32))
    given = ("--logits", folder / "train.npy", "--test-logits", folder / "test.npy", "--teacher-name", "oracle")
    assert run_command(None, "import-logits", *LIMITS, *given, "--out", folder / "l.zarr").code == 0
    return folder / "l.zarr"


@pytest.fixture(scope="module")
def runs(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student with and without the store, of the same seeds in another order; and one of a single seed."""
    folder = tmp_path_factory.mktemp("runs")
    for name, seeds, extra in (
        ("kd", "0,1,4", ("--store", store)),
        ("labels", "4,0,1", ("--recipe", "none", "--lr", 0.003)),  # far enough below the teacher for a gap
        ("one", "3", ("--store", store)),
    ):
        assert run_command(None, *STUDENT, *extra, "--seeds", seeds, "--out", folder / name).code == 0
    return folder


def _logits(run: Path) -> np.ndarray:
    test = dataset.load("digits", "test", 60)
    model = models.load(
        "resnet8", num_classes=10, weights=run / "model.safetensors", fallback_statistics=test.statistics
    )
    renderer = Renderer(test, "none", seed=0, geometry=Geometry.of(model.preset))
    with torch.no_grad():
        return model.module.eval()(model.preset.normalize(renderer(range(60), 0))).double().numpy()


def _measured(runs: list[Path], teacher: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """Return the figures of each run, in plain numpy."""
    found: dict[str, list[float]] = {"top1": [], "top5": [], "cross_entropy": [], "agreement": []}
    for logits in map(_logits, runs):
        probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        best = np.argsort(-logits, axis=1, kind="stable")
        found["top1"].append(np.mean(best[:, 0] == labels))
        found["top5"].append(np.mean((best[:, :5] == labels[:, None]).any(axis=1)))
        found["cross_entropy"].append(-np.log(probabilities[np.arange(60), labels]).mean())
        found["agreement"].append(np.mean(best[:, 0] == teacher.argmax(axis=1)))
    return {key: np.array(values) for key, values in found.items()}


def _gap(student: float, baseline: float, teacher: float) -> float | None:
    noise = 1.96 * np.sqrt((teacher * (1 - teacher) + baseline * (1 - baseline)) / 60)
    return (student - baseline) / (teacher - baseline) if teacher - baseline > noise else None


def test_a_row_is_what_its_runs_reach_on_the_test_set(runs: Path, store: Path, kdpipe: Kdpipe, tmp_path: Path) -> None:
    # The figures of the training are made up, so that only measuring gives the right ones.
    (runs / "kd" / "seed-1" / "metrics.json").write_text('{"test": {"top1": 0.99, "top5": 1.0, "loss": 0.0}}')
    out = tmp_path / "reports"
    asked = [argument for name in ("kd", "labels", "one") for argument in ("--run", runs / name)]
    done = kdpipe(*COMPARE, *asked, "--run", runs / "kd" / "seed-4", "--out", out)
    assert done.code == 0
    assert [line for line in done.err.splitlines() if line.startswith("Timing")] == [
        "Timing 1 network: resnet8 at 16 px."
    ]

    found = json.loads((out / "metrics.json").read_text())
    assert list(found["students"]) == ["kd", "labels", "one", "seed-4"]
    labels = dataset.load("digits", "test", 60).labels
    opened = open_store(store, split="test")
    position = {bytes(sample_id): row for row, sample_id in enumerate(opened.sample_ids)}
    rows = [position[bytes(sample_id)] for sample_id in dataset.load("digits", "test", 60).sample_ids]
    teacher_logits = opened.plane(0)[rows].astype(np.float64)
    measured = {
        name: _measured([runs / name / f"seed-{seed}" for seed in seeds], teacher_logits, labels)
        for name, seeds in (("kd", (0, 1, 4)), ("labels", (0, 1, 4)), ("one", (3,)))
    }
    for name, figures in measured.items():
        row = found["students"][name]
        for key, values in figures.items():
            assert row[key] == pytest.approx(values.mean(), rel=1e-5)
            deviation = pytest.approx(values.std(ddof=1), rel=1e-4, abs=1e-9) if len(values) > 1 else None
            assert row[f"{key}_std"] == deviation
    single = found["students"]["seed-4"]
    assert (single["top1"], single["top1_std"], single["seed"]) == (measured["kd"]["top1"][2], None, 4)

    teacher = float(np.mean(teacher_logits.argmax(axis=1) == labels))
    gaps = [_gap(*pair, teacher) for pair in zip(measured["kd"]["top1"], measured["labels"]["top1"], strict=True)]
    assert [run["seed"] for run in found["students"]["kd"]["runs"]] == [0, 1, 4]
    assert teacher == pytest.approx(0.9)
    assert None not in gaps
    assert (found["students"]["kd"]["gap_note"], found["students"]["labels"]["gap_note"]) == (None, None)
    assert found["students"]["kd"]["gap_recovered"] == pytest.approx(np.mean(gaps))
    assert found["students"]["kd"]["gap_recovered_std"] == pytest.approx(np.std(gaps, ddof=1))
    baseline = measured["labels"]["top1"].mean()
    assert single["gap_recovered"] == pytest.approx(_gap(single["top1"], baseline, teacher))
    assert found["students"]["kd"]["file_bytes"] == (runs / "kd" / "seed-0" / "model.safetensors").stat().st_size

    with (out / "results.csv").open(newline="") as stream:
        by_name = {row["name"]: row for row in csv.DictReader(stream)}
    assert [by_name[name]["seeds"] for name in found["students"]] == ["3", "3", "1", "1"]
    assert float(by_name["kd"]["top1_std"]) == pytest.approx(measured["kd"]["top1"].std(ddof=1))
    assert by_name["one"]["top1_std"] == "n/a"
    chosen = found["students"][found["recommended"]]
    assert chosen["top1"] >= max(student["top1"] for student in found["students"].values()) - 0.005
    expected = {"kd": "kd/seed-0", "labels": "labels/seed-4", "one": "one/seed-3", "seed-4": "kd/seed-4"}
    assert found["recommended_run"] == str(runs / expected[found["recommended"]])


def _spoil_checkpointed(kd: Path) -> None:
    (kd / "seed-1" / "metrics.json").unlink()


def _spoil_removed(kd: Path) -> None:
    shutil.rmtree(kd / "seed-4")


def _spoil_store(kd: Path) -> None:
    record: dict[str, Any] = json.loads((kd / "seed-4" / "run.json").read_text())
    record["lineage"]["stores"][0]["digest"] = "0" * 32
    (kd / "seed-4" / "run.json").write_text(json.dumps(record))


def _spoil_epochs(kd: Path) -> None:
    record: dict[str, Any] = json.loads((kd / "seed-1" / "run.json").read_text())
    record["parameters"]["epochs"] = 9
    (kd / "seed-1" / "run.json").write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_spoil_checkpointed, "seed-1 has no metrics.json"),
        (_spoil_removed, "counts seed-4, which does not exist"),
        (_spoil_store, "lineage.stores.0.digest 0000"),
        (_spoil_epochs, "epochs 9, the first seed with 6"),
    ],
)
def test_seeds_that_are_not_whole_or_not_alike_are_refused(
    runs: Path, spoil: Callable[[Path], None], message: str, kdpipe: Kdpipe, tmp_path: Path
) -> None:
    kd = shutil.copytree(runs / "kd", tmp_path / "kd")
    spoil(kd)
    refused(kdpipe(*COMPARE, "--run", kd, "--out", tmp_path / "reports"), message, str(kd))
    assert not (tmp_path / "reports").exists()


def test_test_samples_without_labels(kdpipe: Kdpipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "unlabeled_digits.py").write_text(
        "import torch\n"
        "class Samples(list):\n"
        "    classes = ['a', 'b']\n"
        "def digits(split):\n"
        "    made = torch.Generator().manual_seed(len(split))\n"
        "    pictures = torch.randint(0, 256, (12, 3, 32, 32), dtype=torch.uint8, generator=made)\n"
        "    return Samples((picture, i % 2 if split == 'train' else -1) for i, picture in enumerate(pictures))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    data = ("--data", "unlabeled_digits:digits", "--device", "cpu")
    common = ("train-student", *data, "--student", "resnet8", "--epochs", 1, "--batch-size", 6)
    assert kdpipe(*common, "--seeds", "0,1", "--out", "several").code == 0
    assert kdpipe(*common, "--out", "single").code == 0
    asked = ("--run", "several", "--run", "single", "--rounds", 5, "--no-cold-starts", "--out", "reports")
    assert kdpipe("benchmark", *data, *asked).code == 0
    found = json.loads(Path("reports/metrics.json").read_text())["students"]
    for student in found.values():
        assert {student[key] for key in ("top1", "top1_std", "cross_entropy", "gap_recovered")} == {None}
    assert found["several"]["seeds"] == 2
