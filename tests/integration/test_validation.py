"""`--validation` from the command line to the run directory."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from kdpipe import dataset
from tests.conftest import LIMITS, Built, Outcome, refused

Kdpipe = Callable[..., Outcome]

STUDENT = ("train-student", *LIMITS, "--student", "resnet8", "--input-size", 16, "--device", "cpu", "--epochs", 2)
TEACHER = ("train-teacher", *LIMITS, "--model", "resnet8", "--input-size", 16, "--device", "cpu", "--epochs", 2)


def _read(run: Path, name: str) -> Any:
    return json.loads((run / name).read_text())


@pytest.mark.parametrize("command", ["train-student", "train-teacher"])
def test_last_and_best_are_beside_each_other(command: str, built: Built, tmp_path: Path, kdpipe: Kdpipe) -> None:
    stage = TEACHER if command == "train-teacher" else (*STUDENT, "--store", built.store)
    out = tmp_path / "run"
    outcome = kdpipe(*stage, "--validation", 0.25, "--out", out)
    assert outcome.code == 0
    assert {path.name for path in out.iterdir()} == {
        *("model.safetensors", "best.safetensors", "checkpoint.pt", "run.json", "history.csv", "metrics.json"),
    }
    with (out / "history.csv").open() as file:
        rows = [{name: float(text) for name, text in row.items()} for row in csv.DictReader(file)]
    metrics = _read(out, "metrics.json")
    best = max(rows, key=lambda row: row["validation_top1"])
    for name, row in (("last", rows[-1]), ("best_on_validation", best)):
        assert metrics[name]["epoch"] == row["epoch"]
        assert metrics[name]["validation"] == {"top1": row["validation_top1"], "loss": row["validation_loss"]}
        assert set(metrics[name]["test"]) == {"top1", "top5", "loss"}
    assert metrics["last"]["test"] == metrics["test"]
    train, validation = dataset.hold_out(dataset.load("digits", "train", 200), 0.25)
    lineage = _read(out, "run.json")["lineage"]["dataset"]
    assert (lineage["train"], lineage["validation"]) == (train.fingerprint, validation.fingerprint)
    assert "Training resnet8 (78,042 parameters) on 150 samples" in outcome.err


def test_both_files_are_models_that_test_as_the_metrics_say(tmp_path: Path, kdpipe: Kdpipe) -> None:
    from kdpipe import models
    from kdpipe.training.evaluation import predict
    from kdpipe.views import Geometry, Renderer

    out = tmp_path / "run"
    flags = ("--lr", 0.05, "--lr-schedule", "constant", "--batch-size", 16, "--epochs", 6, "--channels-last")
    assert kdpipe(*TEACHER, *flags, "--validation", 0.25, "--out", out).code == 0
    metrics = _read(out, "metrics.json")
    assert metrics["best_on_validation"]["epoch"] < 6
    test = dataset.load("digits", "test", 60)
    for file, name in (("model", "last"), ("best", "best_on_validation")):
        weights = out / f"{file}.safetensors"
        model = models.load("resnet8", num_classes=10, weights=weights, fallback_statistics=test.statistics)
        renderer = Renderer(test, "none", seed=0, geometry=Geometry.of(model.preset))
        top1 = (predict(model.module, renderer, preset=model.preset).argmax(axis=1) == test.labels).mean()
        assert top1 == pytest.approx(metrics[name]["test"]["top1"])
    checkpoint = torch.load(out / "checkpoint.pt", weights_only=True)
    for name, value in load_file(out / "best.safetensors").items():
        assert torch.equal(value, checkpoint["best"]["weights"][name])


def test_a_resumed_run_must_hold_the_same_out(tmp_path: Path, kdpipe: Kdpipe) -> None:
    run = (*TEACHER, "--epochs", 1, "--out", tmp_path / "run")
    assert kdpipe(*run, "--validation", 0.25).code == 0
    before = _read(tmp_path / "run", "metrics.json")
    assert kdpipe(*run, "--validation", 0.25, "--resume").code == 0
    assert _read(tmp_path / "run", "metrics.json") == before
    refused(kdpipe(*run, "--resume"), "validation: 0.25 then, 0.0 now")
    assert kdpipe(*run, "--overwrite").code == 0
    assert not (tmp_path / "run" / "best.safetensors").exists()


def test_what_cannot_be_held_out_is_refused(tmp_path: Path, kdpipe: Kdpipe) -> None:
    out = tmp_path / "run"
    refused(kdpipe(*TEACHER, "--validation", 0.02, "--out", out), "without samples to validate with")
    refused(kdpipe(*TEACHER, "--validation", 0.99, "--out", out), "without samples to train on")
    line = "--validation: expected a number of 0 or more and below 1, found '1'"
    refused(kdpipe(*TEACHER, "--validation", 1, "--out", out), line)
    assert not out.exists()


def test_a_store_that_mixes_needs_all_samples(built: Built, tmp_path: Path, kdpipe: Kdpipe) -> None:
    teacher = ("--teacher", "resnet8", "--weights", built.weights)
    recipe = ("--recipe", "crop-flip+mixup:0.4")
    store, out = tmp_path / "mixed.zarr", tmp_path / "run"
    assert (
        kdpipe("cache-teacher", *LIMITS, *teacher, *recipe, "--views", 1, "--device", "cpu", "--out", store).code == 0
    )
    command = (*STUDENT, "--epochs", 1, "--validation", 0.25, "--out", out)
    for mode in ((), ("--distill", "live", *teacher)):
        refused(kdpipe(*command, "--store", store, *mode), "crop-flip+mixup:0.4", "needs all of them", "--validation 0")
    assert not out.exists()
    assert kdpipe(*command, "--store", store, "--distill", "none").code == 0
    assert kdpipe(*command, *teacher, *recipe, "--overwrite").code == 0


@pytest.mark.parametrize("command", ["train-student", "train-teacher"])
def test_held_out_samples_are_mixed_into_no_other(
    command: str, tmp_path: Path, kdpipe: Kdpipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    digits = dataset.load("digits", "train", 100)
    _, held_out = dataset.hold_out(digits, 0.2)
    held = [digits.keys.index(key) for key in held_out.keys]
    trained_on = next(index for index in range(100) if index not in held)
    (tmp_path / "blackened.py").write_text(
        "from pathlib import Path\nfrom kdpipe import dataset\n\nclass Digits(list):\n    pass\n\n"
        "def load(split):\n"
        "    black = Path(__file__).with_name('black').read_text().split()\n"
        "    digits = dataset.load('digits', split, 100)\n"
        "    found = Digits((digits.image(i) * (str(i) not in black), int(digits.labels[i])) for i in range(100))\n"
        "    found.classes, found.keys = digits.classes, digits.keys\n"
        "    return found\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "blackened", raising=False)

    def weights(*black: int) -> bytes:
        (tmp_path / "black").write_text(" ".join(map(str, black)))
        outcome = kdpipe(
            *(command, "--data", "blackened:load", "--student" if command == "train-student" else "--model", "resnet8"),
            *("--input-size", 16, "--device", "cpu", "--epochs", 2, "--recipe", "crop-flip+mixup:1"),
            *("--validation", 0.2, "--out", tmp_path / "run", "--overwrite"),
        )
        assert outcome.code == 0
        return (tmp_path / "run" / "model.safetensors").read_bytes()

    assert weights() == weights(*held) != weights(trained_on)
