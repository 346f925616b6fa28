"""The command `tune`: successive halving on validation, killed, resumed and refused."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import LIMITS, Built, Outcome, refused, run_command

Command = Callable[..., Outcome]

SEARCH = ("--search", "lr=0.02..0.3,log", "--search", "loss=kd|dist", "--trials", 4, "--epochs", 2, "--reduction", 2)


def _tune(built: Built, out: Path) -> tuple[object, ...]:
    return ("tune", *LIMITS, "--store", built.store, "--student", "resnet8", *SEARCH, "--device", "cpu", "--out", out)


@pytest.fixture(scope="module")
def tuned(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tuned") / "out"
    assert run_command(None, *_tune(built, out)).code == 0
    return out


def _rows(out: Path) -> list[dict[str, str]]:
    with (out / "trials.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def _metrics(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "metrics.json").read_text())
    return found


def test_the_best_on_validation_train_longer(tuned: Path) -> None:
    rows = _rows(tuned)
    assert [row["trial"] for row in rows] == [f"trial-{number:03}" for number in range(4)]
    first, last = "validation_top1_after_1_epochs", "validation_top1_after_2_epochs"
    for row in rows:
        scored = _metrics(tuned / "rung-1" / row["trial"])["last"]["validation"]["top1"]
        assert float(row[first]) == pytest.approx(scored, abs=1e-6)
    order = sorted(rows, key=lambda row: -float(row[first]))
    kept = {row["trial"] for row in order[:2]}
    assert {each.name for each in (tuned / "rung-2").iterdir() if each.is_dir()} == kept
    assert {row["trial"] for row in rows if row[last]} == kept
    best = max((row for row in rows if row[last]), key=lambda row: float(row[last]))
    written = yaml.safe_load((tuned / "best.yaml").read_text())["train_student"]
    assert float(written["lr"]) == float(best["lr"])
    assert written["loss"] == best["loss"]
    assert written["epochs"] == 2
    for row in rows:  # a rung has a whole schedule: the warm-up of one epoch in two is half of the single epoch
        recorded = json.loads((tuned / "rung-1" / row["trial"] / "run.json").read_text())["parameters"]
        assert (recorded["epochs"], recorded["warmup_epochs"], recorded["validation"]) == (1, 0.5, 0.1)


def test_the_best_settings_train_a_student(tuned: Path, tmp_path: Path, kdpipe: Command) -> None:
    outcome = kdpipe(
        *("train-student", "--params", tuned / "best.yaml", "--device", "cpu", "--out", tmp_path / "run"),
        *("--validation", 0),
    )
    assert outcome.code == 0, outcome.err
    assert "best_on_validation" not in _metrics(tmp_path / "run")


def test_a_finished_search_is_a_no_op_to_resume_and_refused_anew(tuned: Path, built: Built, kdpipe: Command) -> None:
    before = {path: path.stat().st_mtime_ns for path in tuned.rglob("*.safetensors")}
    refused(kdpipe(*_tune(built, tuned)), "--resume")
    outcome = kdpipe(*_tune(built, tuned), "--resume")
    assert outcome.code == 0, outcome.err
    assert {path: path.stat().st_mtime_ns for path in tuned.rglob("*.safetensors")} == before


def test_a_schedule_that_is_searched_is_whole_in_each_rung(built: Built, tmp_path: Path, kdpipe: Command) -> None:
    given = ("--store", built.store, "--student", "resnet8", "--device", "cpu", "--epochs", 2, "--reduction", 2)
    search = ("--search", "warmup-epochs=0.5|1", "--trials", 2)
    assert kdpipe("tune", *LIMITS, *given, *search, "--out", tmp_path / "out").code == 0
    for rung, share in ((1, 0.5), (2, 1)):
        for run in (tmp_path / "out" / f"rung-{rung}").glob("trial-*/run.json"):
            drawn = next(row for row in _rows(tmp_path / "out") if row["trial"] == run.parent.name)["warmup_epochs"]
            assert json.loads(run.read_text())["parameters"]["warmup_epochs"] == share * float(drawn)


def test_a_search_of_other_settings_is_refused_to_resume(tuned: Path, built: Built, kdpipe: Command) -> None:
    table = (tuned / "trials.csv").read_text()
    refused(kdpipe(*_tune(built, tuned), "--search-seed", 1, "--resume"), "was started with other parameters", "lr")
    refused(kdpipe(*_tune(built, tuned), "--weight-decay", 0.1, "--resume"), "other parameters", "weight_decay")
    assert (tuned / "trials.csv").read_text() == table


def test_a_search_that_lost_runs_goes_on_to_the_same_result(
    tuned: Path, built: Built, tmp_path: Path, kdpipe: Command
) -> None:
    out = shutil.copytree(tuned, tmp_path / "out")
    shutil.rmtree(out / "rung-2")
    shutil.rmtree(out / "rung-1" / "trial-003")
    (out / "best.yaml").unlink()
    assert kdpipe(*_tune(built, out), "--resume").code == 0
    assert (out / "trials.csv").read_text() == (tuned / "trials.csv").read_text()
    for path in tuned.rglob("model.safetensors"):
        assert (out / path.relative_to(tuned)).read_bytes() == path.read_bytes()


def test_refusals(built: Built, tmp_path: Path, kdpipe: Command) -> None:
    common = ("tune", *LIMITS, "--store", built.store, "--device", "cpu", "--out", tmp_path / "out")
    refused(kdpipe(*common, "--student", "resnet8"), "--search")
    refused(kdpipe(*common, "--student", "resnet8", "--search", "batch-size=1..2"), "'batch-size' cannot be searched")
    refused(kdpipe(*common, "--student", "resnet8", "--search", "lr=-1..1", "--trials", 9), "the search draws lr=-")
    refused(kdpipe(*common, "--student", "resnet8", "--search", "lr=1..2", "--validation", 0), "validation")
    refused(kdpipe(*common, "--search", "student=resnet8|resnet14", "--trials", 2), "one --student")
    assert not (tmp_path / "out").exists()
