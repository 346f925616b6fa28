"""`--seeds` from the command line to the runs and their summary."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import LIMITS, Built, Outcome, refused

Kdpipe = Callable[..., Outcome]

STUDENT = ("train-student", *LIMITS, "--student", "resnet8", "--input-size", 16, "--device", "cpu", "--epochs", 2)
TEACHER = ("train-teacher", *LIMITS, "--model", "resnet8", "--input-size", 16, "--device", "cpu", "--epochs", 1)


def _read(run: Path, name: str = "metrics.json") -> Any:
    return json.loads((run / name).read_text())


def _deviation(values: list[float]) -> float:
    mean = sum(values) / len(values)
    return float((sum((value - mean) ** 2 for value in values) / (len(values) - 1)) ** 0.5)


def test_each_run_is_one_that_was_asked_for_alone(built: Built, tmp_path: Path, kdpipe: Kdpipe) -> None:
    several, alone = tmp_path / "several", tmp_path / "alone"
    common = (*STUDENT, "--store", built.store, "--validation", 0.25)
    assert kdpipe(*common, "--seeds", "0,1,7", "--out", several).code == 0
    assert {path.name for path in several.iterdir()} == {"seed-0", "seed-1", "seed-7", "metrics.json"}
    assert kdpipe(*common, "--seed", 7, "--data-seed", 7, "--out", alone).code == 0
    for name in ("model.safetensors", "best.safetensors"):
        assert (several / "seed-7" / name).read_bytes() == (alone / name).read_bytes()
        assert (several / "seed-1" / name).read_bytes() != (alone / name).read_bytes()
    parameters, expected = (_read(run, "run.json")["parameters"] for run in (several / "seed-7", alone))
    assert parameters | {"out": expected["out"]} == expected

    summary = _read(several)
    runs = [_read(several / f"seed-{seed}") for seed in (0, 1, 7)]
    assert set(summary) == {"seeds", "test", "last", "best_on_validation"}
    assert summary["seeds"] == [0, 1, 7]
    assert summary["test"] == summary["last"]["test"]
    for chosen in ("last", "best_on_validation"):
        for split in ("validation", "test"):
            values = [run[chosen][split]["top1"] for run in runs]
            found = summary[chosen][split]["top1"]
            assert found["values"] == values
            assert found["mean"] == pytest.approx(sum(values) / 3)
            assert found["std"] == pytest.approx(_deviation(values))


def test_the_order_of_the_samples_can_be_kept(tmp_path: Path, kdpipe: Kdpipe) -> None:
    assert kdpipe(*TEACHER, "--seeds", 0, "--seeds", 1, "--data-seed", 5, "--out", tmp_path / "run").code == 0
    for seed in (0, 1):
        recorded = _read(tmp_path / "run" / f"seed-{seed}", "run.json")["seeds"]
        assert (recorded["seed"], recorded["data_seed"]) == (seed, 5)
    assert kdpipe(*TEACHER, "--seeds", 3, "--out", tmp_path / "one").code == 0
    assert _read(tmp_path / "one")["test"]["top1"]["std"] is None


def test_finished_runs_are_left_alone_when_it_goes_on(tmp_path: Path, kdpipe: Kdpipe) -> None:
    out = tmp_path / "run"
    assert kdpipe(*TEACHER, "--seeds", "0,1", "--out", out).code == 0
    before = {path: path.stat().st_mtime_ns for path in (out / "seed-0").iterdir()}
    weights = (out / "seed-1" / "model.safetensors").read_bytes()
    for name in ("metrics.json", "model.safetensors", "checkpoint.pt"):
        (out / "seed-1" / name).unlink()
    assert kdpipe(*TEACHER, "--seeds", "0,1,2", "--out", out, "--resume").code == 0
    assert {path: path.stat().st_mtime_ns for path in (out / "seed-0").iterdir()} == before
    assert (out / "seed-1" / "model.safetensors").read_bytes() == weights
    assert _read(out)["seeds"] == [0, 1, 2]
    refused(kdpipe(*TEACHER, "--seeds", "0,1", "--lr", 0.2, "--out", out, "--resume"), "lr: 0.1 then, 0.2 now")


def test_what_is_no_set_of_seeds_is_refused(tmp_path: Path, kdpipe: Kdpipe) -> None:
    refused(kdpipe(*TEACHER, "--seeds", "1,1", "--out", tmp_path / "run"), "seeds must differ")
    refused(kdpipe(*TEACHER, "--seeds", "1,x", "--out", tmp_path / "run"), "--seeds")
    assert not (tmp_path / "run").exists()
    assert kdpipe(*TEACHER, "--out", tmp_path / "single").code == 0
    refused(kdpipe(*TEACHER, "--seeds", "0,1", "--out", tmp_path / "single"), "holds checkpoint.pt")
    assert kdpipe(*TEACHER, "--seeds", "0", "--out", tmp_path / "several").code == 0
    refused(kdpipe(*TEACHER, "--out", tmp_path / "several"), "holds seed-0")
