"""Distillation losses from the command line to the history: defaults, settings, several at once, refusals."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from tests.conftest import LIMITS, Built, Outcome, refused, run_command

COMMON = ("train-student", *LIMITS, "--student", "resnet8", "--input-size", 16, "--device", "cpu", "--lr", 0.01)


def history(run: Path) -> list[dict[str, float]]:
    with (run / "history.csv").open() as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def test_a_standardized_loss_trains_and_is_recorded(
    built: Built, tmp_path: Path, kdpipe: Callable[..., Outcome]
) -> None:
    run, flags = tmp_path / "run", ("--store", built.store, "--loss", "kd:standardize=true")
    assert kdpipe(*COMMON, *flags, "--epochs", 1, "--out", run).code == 0
    (row,) = history(run)
    assert row["loss"] == pytest.approx(9 * row["kd"] + 0.1 * row["ce"], rel=1e-5)
    assert row["kd"] > 0
    record = json.loads((run / "run.json").read_text())
    assert (record["loss"], record["parameters"]["loss"]) == ("kd:standardize=true", "kd:standardize=true")
    changed = kdpipe(*COMMON, "--store", built.store, "--epochs", 1, "--resume", "--out", run)
    refused(changed, "loss: kd:standardize=true then")

    assert (
        kdpipe("benchmark", *LIMITS, "--run", run, "--out", tmp_path / "report", "--rounds", 5, "--no-cold-starts").code
        == 0
    )
    assert "kd:standardize=true" in (tmp_path / "report" / "report.html").read_text()


def test_standardized_and_plain_losses_add_up(built: Built, tmp_path: Path, kdpipe: Callable[..., Outcome]) -> None:
    """One step over all samples, so that the logged terms are of the same weights."""

    def first(out: str, loss: str, *flags: object) -> dict[str, float]:
        shared = ("--store", built.store, "--batch-size", 200, "--epochs", 1, "--loss", loss)
        assert kdpipe(*COMMON, *shared, *flags, "--out", tmp_path / out).code == 0
        return history(tmp_path / out)[0]

    both = first("both", "kd:standardize=true,weight=2+dkd:weight=3")
    plain, standardized = first("dkd", "dkd:alpha=1,beta=8"), first("kd", "kd:standardize=true")
    assert both["kd"] == pytest.approx(2 * standardized["kd"] + 3 * plain["kd"], rel=1e-5)
    assert both["loss"] == pytest.approx(both["kd"] + 0.1 * both["ce"], rel=1e-5)
    assert standardized["kd"] != pytest.approx(first("plain", "kd", "--temperature", 2)["kd"], rel=0.1)


def test_dkd_is_warmed_up_unless_told_otherwise(built: Built, tmp_path: Path, kdpipe: Callable[..., Outcome]) -> None:
    flags = ("--store", built.store, "--loss", "dkd", "--epochs", 2)
    assert kdpipe(*COMMON, *flags, "--out", tmp_path / "warmed").code == 0
    assert [row["kd_weight"] for row in history(tmp_path / "warmed")] == pytest.approx([1 / 20, 2 / 20])
    assert kdpipe(*COMMON, *flags, "--kd-weight", 1, "--out", tmp_path / "plain").code == 0
    assert "kd_weight" not in history(tmp_path / "plain")[0]


def test_a_loss_in_the_params_file(built: Built, tmp_path: Path, kdpipe: Callable[..., Outcome]) -> None:
    (tmp_path / "params.yaml").write_text("train_student:\n  loss: kd:weight=0.5+hard\n")
    flags = ("--params", tmp_path / "params.yaml", "--store", built.store, "--epochs", 1)
    assert kdpipe(*COMMON, *flags, "--out", tmp_path / "run").code == 0
    assert json.loads((tmp_path / "run" / "run.json").read_text())["loss"] == "kd:weight=0.5+hard"


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (("--loss", "dk"), "did you mean 'dkd'"),
        (("--loss", "mse", "--temperature", 4), "the loss mse has no parameter 'temperature'"),
        (("--loss", "kd:temperature=2", "--temperature", 4), "kd:temperature=2 gives another"),
        (("--loss", "kd:beta=2"), "the loss kd has no parameter 'beta'"),
        (("--loss", "dkd:alpha=-1"), "the loss dkd cannot take alpha=-1"),
        (("--loss", "hard:standardize=true"), "the loss hard reads only which class the teacher finds likeliest"),
        (("--loss", "{kd: {}}"), "unknown loss '{kd'"),
    ],
)
def test_refused_losses(
    flags: tuple[object, ...], complaint: str, built: Built, tmp_path: Path, kdpipe: Callable[..., Outcome]
) -> None:
    refused(kdpipe(*COMMON, "--store", built.store, *flags, "--out", tmp_path / "run"), complaint)
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def cached(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Make a store of one view with some flags, once for all tests."""

    @cache
    def made(*flags: object) -> Path:
        teacher = ("--teacher", "resnet8", "--weights", built.weights, "--device", "cpu", "--views", 1)
        path = tmp_path_factory.mktemp("cached") / "other.zarr"
        assert run_command(None, "cache-teacher", *LIMITS, *teacher, *flags, "--out", path).code == 0
        return path

    return made


class TestNeedsOfALoss:
    @pytest.mark.parametrize("loss", ["mse", "kd:standardize=true", "kd+mse"])
    def test_unlikely_logits(
        self, loss: str, cached: Callable[..., Path], tmp_path: Path, kdpipe: Callable[..., Outcome]
    ) -> None:
        store = cached("--encoding", "sqrtp8@4")
        outcome = kdpipe(*COMMON, "--store", store, "--loss", loss, "--out", tmp_path / "run")
        refused(outcome, "depends on the logits of unlikely classes", "--encoding fp16")

    @pytest.mark.parametrize("flags", [("kd:temperature=8",), ("kd", "--temperature", "linear:2,8")])
    def test_a_temperature(
        self, flags: tuple[object, ...], cached: Callable[..., Path], tmp_path: Path, kdpipe: Callable[..., Outcome]
    ) -> None:
        store = cached("--encoding", "sqrtp8@4")
        refused(kdpipe(*COMMON, "--store", store, "--loss", *flags, "--out", tmp_path / "run"), "up to 4; the loss kd")

    def test_only_a_decision(self, cached: Callable[..., Path], tmp_path: Path, kdpipe: Callable[..., Outcome]) -> None:
        store = cached("--encoding", "topk3")
        assert kdpipe(*COMMON, "--store", store, "--loss", "hard", "--epochs", 1, "--out", tmp_path / "run").code == 0

    @pytest.mark.parametrize("loss", ["dkd", "kd+wsld"])
    def test_one_true_class(
        self, loss: str, cached: Callable[..., Path], tmp_path: Path, kdpipe: Callable[..., Outcome]
    ) -> None:
        store = cached("--recipe", "crop-flip+mixup:0.2")
        outcome = kdpipe(*COMMON, "--store", store, "--loss", loss, "--out", tmp_path / "run")
        refused(outcome, "needs one true class per image; the recipe crop-flip+mixup:0.2 mixes two")
