"""`--adversarial` from the command line: what it is worth, what the benchmark shows of it, and what is refused."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from safetensors.torch import load_file

from kdpipe import dataset, models
from kdpipe.views import Geometry, Renderer
from tests.conftest import LIMITS, Built, Outcome, refused, run_command

Kdpipe = Callable[..., Outcome]

STUDENT = ("train-student", *LIMITS, "--student", "resnet8", "--input-size", 16, "--device", "cpu", "--batch-size", 25)
COMPARE = ("benchmark", "--data", "digits", "--limit-test", 60, "--rounds", 5, "--no-cold-starts", "--device", "cpu")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seeds of a student that was attacked in training, and one that was not."""
    folder = tmp_path_factory.mktemp("runs")
    for name, *flags in (("robust", "--seeds", "0,1", "--adversarial", "pgd:0.1,2"), ("clean",)):
        trained = run_command(None, *STUDENT, "--epochs", 8, "--recipe", "none", *flags, "--out", folder / name)
        assert trained.code == 0
    return folder


@pytest.fixture(scope="module")
def report(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], str]:
    """The report of these runs under attack: its folder, its metrics and the table's text."""
    out = tmp_path_factory.mktemp("report")
    asked = ("--run", runs / "robust", "--run", runs / "clean", "--out", out)
    assert run_command(None, *COMPARE, *asked, "--adversarial", "pgd:0.1,5").code == 0
    return out, json.loads((out / "metrics.json").read_text()), (out / "summary.txt").read_text()


def _history(run: Path) -> list[dict[str, float]]:
    with (run / "history.csv").open() as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def _plain_attack(run: Path) -> float:
    """Return the accuracy on the test images after a plain attack, from the images themselves."""
    test = dataset.load("digits", "test", 60)
    model = models.load(
        "resnet8", num_classes=10, weights=run / "model.safetensors", fallback_statistics=test.statistics
    )
    images = Renderer(test, "none", seed=0, geometry=Geometry.of(model.preset))(range(60), 0).float() / 255
    mean, std = (torch.tensor(each).view(1, 3, 1, 1) for each in (model.preset.mean, model.preset.std))
    network, labels = model.module.eval(), torch.from_numpy(test.labels).long()
    moved = images.clone()
    for _ in range(5):
        moved.requires_grad_()
        (slope,) = torch.autograd.grad(F.cross_entropy(network((moved - mean) / std), labels), moved)
        moved = (images + (moved.detach() + 0.05 * slope.sign() - images).clamp(-0.1, 0.1)).clamp(0, 1)
    return float((network((moved - mean) / std).argmax(1) == labels).float().mean())


def test_a_student_that_was_attacked_withstands_attacks(runs: Path, report: tuple[Path, dict[str, Any], str]) -> None:
    students = report[1]["students"]
    robust, clean = students["robust"], students["clean"]
    assert robust["adversarial_top1"] > clean["adversarial_top1"] + 0.1
    assert clean["top1"] > 0.6
    assert clean["adversarial_top1"] < 0.2
    for run, found in (("robust/seed-0", robust["runs"][0]), ("robust/seed-1", robust["runs"][1]), ("clean", clean)):
        assert found["adversarial_top1"] == pytest.approx(_plain_attack(runs / run), abs=0.1)
    values = [run["adversarial_top1"] for run in robust["runs"]]
    assert robust["adversarial_top1"] == pytest.approx(np.mean(values))
    assert robust["adversarial_top1_std"] == pytest.approx(np.std(values, ddof=1))
    assert (robust["loss"], clean["loss"]) == ("ce, adversarial", "ce")
    (first, *_, last) = _history(runs / "robust" / "seed-0")
    assert last["adversarial_top1"] == last["train_top1"] > first["adversarial_top1"]


def test_every_part_of_the_report_shows_it(report: tuple[Path, dict[str, Any], str]) -> None:
    out, metrics, summary = report
    assert metrics["adversarial"] == {"attack": "pgd:0.1,5", "samples": 60}
    with (out / "results.csv").open() as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    page = (out / "report.html").read_text()
    assert "60 attacked by pgd:0.1,5" in summary
    assert [heading.strip() for heading in summary.splitlines()[2].split("┃")[3:5]] == ["top-1 %", "PGD %"]
    assert "PGD top‑1 %" in page
    assert "pgd:0.1,5 on 60 test samples" in page
    assert "An upper bound" in page
    for name, found in metrics["students"].items():
        assert float(rows[name]["adversarial_top1"]) == found["adversarial_top1"]
        share = f"{100 * found['adversarial_top1']:.2f}"
        (cells,) = [line.split("│") for line in summary.splitlines() if "│" in line and f" {name} " in line]
        assert share in cells[4]
        assert share in page
    assert rows["clean"]["adversarial_top1_std"] == "n/a"


def test_a_figure_is_the_same_again_and_without_the_flag_there_is_none(
    runs: Path, report: tuple[Path, dict[str, Any], str], tmp_path: Path, kdpipe: Kdpipe
) -> None:
    asked = ("--run", runs / "clean", "--out", tmp_path)
    assert kdpipe(*COMPARE, *asked, "--adversarial", "pgd:0.1,5").code == 0
    again = json.loads((tmp_path / "metrics.json").read_text())["students"]["clean"]
    assert again["adversarial_top1"] == report[1]["students"]["clean"]["adversarial_top1"]
    assert kdpipe(*COMPARE, *asked, "--adversarial", "pgd:0.1,5", "--adversarial-samples", 20).code == 0
    part = json.loads((tmp_path / "metrics.json").read_text())
    assert (part["adversarial"]["samples"], part["samples"]) == (20, 60)
    assert kdpipe(*COMPARE, *asked).code == 0
    for name in ("metrics.json", "results.csv", "report.html", "summary.txt"):
        text = re.sub(r"base64,[^\"]*", "", (tmp_path / name).read_text()).lower()
        assert [word for word in ("adversarial", "pgd", "attack") if word in text] == [], name


def test_students_of_a_store_learn_robustly_beside_others(built: Built, tmp_path: Path, kdpipe: Kdpipe) -> None:
    """Each to the bits that it reaches alone; the loss is what the flags say."""
    own = {
        "plain": {},
        "ard": {"adversarial": "pgd:8/255,2", "robust_loss": "ard", "kd_weight": 1, "ce_weight": 0, "temperature": 30},
        "rslad": {"adversarial": "pgd:8/255,1", "kd_weight": 0.5, "ce_weight": 0.25},
    }
    fleet = tmp_path / "fleet.yaml"
    fleet.write_text(yaml.safe_dump([{"student": "resnet8", "name": name, **each} for name, each in own.items()]))
    shared = ("train-student", *LIMITS, "--store", built.store, "--input-size", 16, "--device", "cpu", "--epochs", 1)
    assert kdpipe(*shared, "--fleet", fleet, "--out", tmp_path / "runs").code == 0
    flags = [word for key, value in own["rslad"].items() for word in (f"--{key.replace('_', '-')}", value)]
    assert kdpipe(*shared, "--student", "resnet8", *flags, "--out", tmp_path / "alone").code == 0
    together, alone = (
        load_file(run / "model.safetensors") for run in (tmp_path / "runs" / "rslad", tmp_path / "alone")
    )
    assert all(torch.equal(together[name], alone[name]) for name in alone)

    rows = {name: _history(tmp_path / "runs" / name)[0] for name in own}
    assert "adversarial_top1" not in rows["plain"]
    assert rows["ard"]["loss"] == pytest.approx(rows["ard"]["kd"], rel=1e-5)
    expected = 0.5 * rows["rslad"]["kd"] + 0.25 * rows["rslad"]["ce"]
    assert rows["rslad"]["loss"] == pytest.approx(expected, rel=1e-5)
    losses = {name: json.loads((tmp_path / "runs" / name / "run.json").read_text())["loss"] for name in own}
    assert losses == {"plain": "kd", "ard": "kd, ard", "rslad": "kd, rslad"}


def test_a_robust_teacher(tmp_path: Path, kdpipe: Kdpipe) -> None:
    flags = (*LIMITS, "--model", "resnet8", "--input-size", 16, "--device", "cpu", "--epochs", 1)
    flags = (*flags, "--adversarial", "pgd:8/255,1")
    done = kdpipe("train-teacher", *flags, "--out", tmp_path / "teacher")
    assert done.code == 0
    assert ", attacked " in done.err
    (row,) = _history(tmp_path / "teacher")
    assert row["adversarial_top1"] == row["train_top1"]
    again = kdpipe("train-teacher", *flags[:-1], "pgd:8/255,2", "--resume", "--out", tmp_path / "teacher")
    refused(again, "adversarial: pgd:8/255,1 then")


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        (("--adversarial", "pgd:8,10"), "epsilon=8, expected a number, above 0 and at most 1"),
        (("--adversarial", "pgd:8/255,none"), "steps=none, expected a whole number"),
        (("--adversarial", "autoattack"), "unknown attack 'autoattack'. Known: pgd"),
        (("--robust-loss", "ard", "--store", "no.zarr"), "robust-loss needs adversarial"),
        (("--robust-loss", "ard", "--adversarial", "pgd:8/255,10"), "robust-loss is for soft targets"),
        (("--robust-loss", "trades", "--adversarial", "pgd:8/255,10"), "expected ard or rslad, found 'trades'"),
    ],
)
def test_refused_trainings(flags: tuple[str, ...], part: str, tmp_path: Path, kdpipe: Kdpipe) -> None:
    refused(kdpipe(*STUDENT, *flags, "--out", tmp_path / "run"), part)
    assert not (tmp_path / "run").exists()


def test_refused_benchmarks(runs: Path, tmp_path: Path, kdpipe: Kdpipe) -> None:
    asked = ("--run", runs / "clean", "--out", tmp_path / "report")
    refused(kdpipe(*COMPARE, *asked, "--adversarial-samples", 5), "adversarial-samples needs adversarial")
    refused(kdpipe(*COMPARE, *asked, "--adversarial", "pgd:2,5"), "epsilon=2, expected a number, above 0")
    assert not (tmp_path / "report").exists()


def unlabeled(split: str) -> Any:
    """Digits whose test split has no labels."""

    class Pairs(list[tuple[np.ndarray, int]]):
        classes: Any = tuple(str(digit) for digit in range(10))

    digits = dataset.load("digits", split, 40)
    images = [digits.image(index).numpy().transpose(1, 2, 0) for index in range(40)]
    labels = [-1] * 40 if split == "test" else digits.labels.tolist()
    return Pairs(zip(images, labels, strict=True))


def test_no_labels_to_lead_away_from(runs: Path, tmp_path: Path, kdpipe: Kdpipe) -> None:
    data = ("--data", "tests.integration.test_robust:unlabeled")
    run = tmp_path / "clean"
    shutil.copytree(runs / "clean", run)
    record = json.loads((run / "run.json").read_text())
    del record["lineage"]["dataset"]["test"]  # a run that does not say what it was tested on
    (run / "run.json").write_text(json.dumps(record))
    asked = ("benchmark", *data, "--run", run, "--out", tmp_path / "report", "--device", "cpu")
    refused(kdpipe(*asked, "--adversarial", "pgd:8/255,5"), "no test sample", "has a label", "leave adversarial out")
    assert not (tmp_path / "report").exists()
