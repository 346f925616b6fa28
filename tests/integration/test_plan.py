"""`kdpipe plan`: what it says before is what the store has afterwards."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from kdpipe.teacher.forecast import Rates, Training, teacher_pass
from tests.conftest import LIMITS, Built, Outcome, refused

Kdpipe = Callable[..., Outcome]


def test_bytes_and_files_are_those_of_the_store(built: Built, kdpipe: Kdpipe, tmp_path: Path) -> None:
    asked = (*LIMITS, "--teacher", "resnet8", "--weights", built.weights, "--views", 2, "--device", "cpu")
    out = tmp_path / "plan.json"
    done = kdpipe("plan", *asked, "--pilot", 64, "--student", "resnet8", "--epochs", 3, "--out", out)
    assert done.code == 0, done.err
    found = json.loads(out.read_text())
    (store,) = (each for each in found["stores"] if each["views"] == 2)
    files = [path for name in ("codes", "row_max") for path in built.store.glob(f"*/{name}/c/**/*") if path.is_file()]
    assert (store["rows"], store["files"]) == (200 * 3 + 60, len(files))
    written = sum(path.stat().st_size for path in built.store.rglob("c/**/*") if path.is_file())
    assert store["bytes"] == pytest.approx(written, rel=0.25)
    assert found["plane_bytes"] == 200 * (10 * 2 + 4)
    assert found["encoding"] == "fp16"
    # The seconds are those of the rates, by arithmetic that is tested below.
    expected = teacher_pass(Rates(**found["seconds_per_row"]), plain=260, augmented=400)
    assert found["passes"][0]["seconds"] == pytest.approx(expected.seconds)
    training = found["training"]
    assert (training["samples"], training["epochs"]) == (200, 3)
    assert training["live_epoch_seconds"] > 0
    for line in ("Data      digits: 200 train and 60 test images, 10 classes", "Store     2 views: 660 rows", "Pass "):
        assert line in done.out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plan.json"]


def test_a_budget_chooses_the_encoding(built: Built, kdpipe: Kdpipe, tmp_path: Path) -> None:
    asked = (*LIMITS, "--teacher", "resnet8", "--weights", built.weights, "--recipe", "none", "--pilot", 200)
    out = tmp_path / "plan.json"
    assert kdpipe("plan", *asked, "--max-kl", 1e-3, "--out", out).code == 0
    found = json.loads(out.read_text())
    within = [each["bytes_per_row"] for each in found["encodings"] if each["within"]]
    (chosen,) = (each for each in found["encodings"] if each["name"] == found["encoding"])
    assert chosen["within"]
    assert chosen["bytes_per_row"] == min(within)
    assert [each["views"] for each in found["stores"]] == [0]
    assert found["training"] is None
    refused(kdpipe("plan", *asked, "--pilot", 8), "--pilot")


RATES = Rates(
    start=2.0, plain=0.010, augmented=0.020, render=0.016, forward=0.004, encode=0.001, processes=2, shared=True
)


def test_one_cpu_takes_what_the_pilot_took() -> None:
    found = teacher_pass(RATES, plain=100, augmented=400)
    assert found.seconds == pytest.approx(2 + 100 * 0.010 + 400 * 0.020 + 500 * 0.001 / 2)
    assert (found.limit, found.processes) == ("rendering", 4)
    assert teacher_pass(RATES, plain=100, augmented=400, devices=5).seconds == pytest.approx(2 + 9.25 / 5)


def test_devices_of_one_machine_share_its_processes() -> None:
    gpu = Rates(**{**RATES.__dict__, "shared": False, "processes": 16, "render": 0.008})
    one, eight = (teacher_pass(gpu, plain=0, augmented=1000, devices=devices) for devices in (1, 8))
    assert (one.limit, one.seconds) == ("teacher", pytest.approx(2 + 1000 * 0.020))
    # Eight teachers take 0.5 ms for a row, and 16 processes of 8 ms just as long: 15 of them do not keep up.
    assert eight.seconds == pytest.approx(2 + 1000 * 0.0005)
    assert eight.processes == 16
    fewer = Rates(**{**gpu.__dict__, "processes": 4})
    assert teacher_pass(fewer, plain=0, augmented=1000, devices=8).limit == "rendering"
    assert teacher_pass(fewer, plain=0, augmented=1000, devices=8).seconds == pytest.approx(2 + 1000 * 0.002)


def test_a_store_pays_from_the_student_that_saves_its_seconds() -> None:
    training = Training(samples=1000, epochs=10, cached=0.001, live=0.003)
    assert (training.epoch_seconds, training.live_epoch_seconds) == pytest.approx((1, 3))
    assert [training.pays_from(seconds) for seconds in (19, 20, 21, 200)] == [1, 1, 2, 10]
    assert Training(samples=1000, epochs=10, cached=0.001, live=0.001).pays_from(1) is None
