"""Folders whose splits are incomplete: no test images at all, none of a class, or one training image of a class."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import refused, run_command

SMALL = ("--epochs", 2, "--batch-size", 4, "--device", "cpu")


def folder(root: Path, **counts: int) -> Path:
    """Write this many random images into each folder SPLIT_CLASS."""
    random = np.random.default_rng(0)
    for place, count in counts.items():
        target = root / place.replace("_", "/")
        target.mkdir(parents=True)
        for index in range(count):
            Image.fromarray(random.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(target / f"{index}.png")
    return root


def test_all_stages_work_without_a_test_split(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = ("--data", f"folder:{folder(tmp_path / 'data', train_ant=6, train_bee=6)}")

    def kdpipe(*arguments: object) -> str:
        outcome = run_command(capsys, *arguments)
        assert outcome.code == 0, outcome.err
        return outcome.err

    teacher, store, student = tmp_path / "teacher", tmp_path / "t.zarr", tmp_path / "student"
    err = kdpipe("train-teacher", *data, "--model", "resnet8", "--out", teacher, "--validation", 0.34, *SMALL)
    assert err.count("no test figures") == 1
    assert "no test split after 2 epochs" in err
    metrics = json.loads((teacher / "metrics.json").read_text())
    assert metrics["test"]["top1"] is None
    assert metrics["best_on_validation"]["validation"]["top1"] is not None
    err = kdpipe("cache-teacher", *data, "--teacher", f"run:{teacher}", "--out", store, "--views", 1, "--device", "cpu")
    assert err.count("no test figures") == 1
    kdpipe("verify", store, *data, "--deep")
    kdpipe("inspect", store)
    kdpipe("train-student", *data, "--store", store, "--student", "resnet8", "--out", student, *SMALL)
    refused(run_command(capsys, "benchmark", *data, "--run", student, "--out", tmp_path / "r"), "has no test split")


def test_a_class_without_test_images_is_absent_from_the_test(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = folder(tmp_path / "data", train_ant=4, train_bee=4, train_cow=4, test_ant=2, test_cow=2, test_bee=0)
    outcome = run_command(
        capsys, "train-teacher", "--data", f"folder:{root}", "--model", "resnet8", "--out", tmp_path / "run", *SMALL
    )
    assert outcome.code == 0, outcome.err
    assert outcome.err.count("the class 'bee' of train without test images") == 1


def test_a_class_with_one_image_stays_in_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = folder(tmp_path / "data", train_ant=8, train_bee=8, train_cow=1)
    for number, fraction in enumerate((0.15, 0.4)):
        out = tmp_path / f"run{number}"
        arguments = ("--data", f"folder:{root}", "--model", "resnet8", "--out", out, "--validation", fraction, *SMALL)
        outcome = run_command(capsys, "train-teacher", *arguments)
        assert outcome.code == 0, outcome.err
        assert "1 classes with one training image ('cow') keep it in training" in outcome.err
