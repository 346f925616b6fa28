"""Students of a part of a store's classes, and of more than it has: `--classes data`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from kdpipe.store.reader import open_store
from tests.conftest import refused
from tests.integration.test_growth import Kdpipe, cached, picture, teacher

__all__ = ["teacher"]

STUDENT = (
    *("train-student", "--student", "resnet8", "--epochs", 1, "--batch-size", 4, "--input-size", 16, "--device", "cpu"),
    *("--classes", "data"),
)
QUICK = ("--rounds", 1, "--batch-sizes", 1, "--no-cold-starts", "--device", "cpu")


@pytest.fixture
def insects(tmp_path: Path) -> Path:
    """Four training images and two test images of each of four classes."""
    root = tmp_path / "insects"
    for split, each in (("train", 4), ("test", 2)):
        for number, name in enumerate(("ant", "bee", "fly", "wasp")):
            for index in range(each):
                picture(root / split / name / f"{index}.png", seed=100 * (split == "test") + 10 * number + index)
    return root


@pytest.fixture
def store(kdpipe: Kdpipe, insects: Path, tmp_path: Path) -> Path:
    path = tmp_path / "logits.zarr"
    assert cached(kdpipe, insects, path, "--encoding", "fp32", views=1).code == 0
    return path


def part(insects: Path, *names: str) -> Path:
    target = insects.with_name("part")
    for split in ("train", "test"):
        for name in names:
            shutil.copytree(insects / split / name, target / split / name)
    return target


def test_a_student_of_a_part_of_the_classes(kdpipe: Kdpipe, insects: Path, store: Path, tmp_path: Path) -> None:
    data, run = ("--data", f"folder:{part(insects, 'bee', 'wasp')}"), tmp_path / "run"
    trained = kdpipe(*STUDENT, *data, "--store", store, "--out", run)
    assert trained.code == 0, trained.err
    assert "The student has the 2 classes of folder:" in trained.err
    assert "; soft targets are over all of them, from " in trained.err
    record = json.loads((run / "run.json").read_text())
    assert record["classes"] == ["bee", "wasp"]
    assert record["samples"] == 8
    measured = kdpipe("benchmark", *data, "--run", run, *QUICK, "--out", tmp_path / "reports")
    assert measured.code == 0, measured.err
    report = json.loads((tmp_path / "reports" / "metrics.json").read_text())
    opened = open_store(store, split="test")
    logits = opened.logits(np.arange(opened.num_samples))
    of_part = np.isin(opened.labels, [1, 3])
    right = (logits[of_part][:, [1, 3]].argmax(axis=1) == (opened.labels[of_part] == 3)).mean()
    assert report["teacher"]["top1"] == pytest.approx(right)

    whole = kdpipe(*STUDENT[:-2], *data, "--store", store, "--out", tmp_path / "whole")
    assert whole.code == 0, whole.err
    assert json.loads((tmp_path / "whole" / "run.json").read_text())["classes"] == ["ant", "bee", "fly", "wasp"]


@pytest.mark.parametrize("loss", ["kd", "dkd", "dist", "nkd", "mse"])
def test_a_student_of_more_classes_than_the_store_has(
    loss: str, kdpipe: Kdpipe, insects: Path, store: Path, tmp_path: Path
) -> None:
    for split, each in (("train", 4), ("test", 2)):
        for index in range(each):
            picture(insects / split / "beetle" / f"{index}.png", seed=500 + index)
    data = ("--data", f"folder:{insects}")
    trained = kdpipe(*STUDENT, *data, "--store", store, "--loss", loss, "--out", tmp_path / "run")
    assert trained.code == 0, trained.err
    assert "soft targets are over 4 of them" in trained.err
    assert "; 4 of 20 'train' samples have none and learn from their labels alone." in trained.err
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["classes"] == ["ant", "bee", "beetle", "fly", "wasp"]
    assert record["samples"] == 20


def test_what_cannot_leave_samples_out_is_refused(kdpipe: Kdpipe, insects: Path, store: Path, tmp_path: Path) -> None:
    picture(insects / "train" / "beetle" / "0.png", seed=500)
    picture(insects / "test" / "beetle" / "0.png", seed=501)
    data = ("--data", f"folder:{insects}", "--store", store, "--out", tmp_path / "run")
    refused(kdpipe(*STUDENT, *data, "--adversarial", "pgd:8/255,1"), "an attack needs them of all")
    live = ("--distill", "live", "--teacher", "growing_teacher:build", "--mean", "0,0,0", "--std", "1,1,1")
    refused(kdpipe(*STUDENT, *data, *live), "leave --store out")
    assert not (tmp_path / "run").exists()
