"""Published recipes, from `kdpipe presets` to a trained student."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from kdpipe.presets import presets
from tests.conftest import LIMITS, ROOT, Built, Outcome, refused

Kdpipe = Callable[..., Outcome]


def test_a_mobilenet_preset_trains_on_small_images(built: Built, tmp_path: Path, kdpipe: Kdpipe) -> None:
    file, run = tmp_path / "params.yaml", tmp_path / "run"
    file.write_text(kdpipe("presets", "imagenet-dkd-512-resnet50-MobileNetV1").out)
    flags = ("--params", file, "--store", built.store, "--input-size", 32, "--epochs", 1, "--device", "cpu")
    assert kdpipe("train-student", *LIMITS, *flags, "--out", run).code == 0
    record = json.loads((run / "run.json").read_text())
    assert (record["model"], record["preset"]["size"]) == ("MobileNetV1", 32)


def test_a_printed_preset_trains(built: Built, tmp_path: Path, kdpipe: Kdpipe) -> None:
    file = tmp_path / "params.yaml"
    file.write_text(kdpipe("presets", "digits-short").out)
    store, run = tmp_path / "logits.zarr", tmp_path / "run"
    teacher = ("--teacher", "resnet8", "--weights", built.weights, "--views", 1, "--device", "cpu")
    assert kdpipe("cache-teacher", *LIMITS, "--params", file, *teacher, "--out", store).code == 0
    flags = ("--params", file, "--store", store, "--epochs", 1, "--device", "cpu", "--out", run)
    assert kdpipe("train-student", *LIMITS, *flags).code == 0
    with (run / "history.csv").open() as history:
        (row,) = csv.DictReader(history)
    assert float(row["loss"]) == pytest.approx(0.9 * float(row["kd"]) + 0.1 * float(row["ce"]), rel=1e-5)


def test_a_published_preset_s_settings_reach_the_run(built: Built, tmp_path: Path, kdpipe: Kdpipe) -> None:
    file, run = tmp_path / "params.yaml", tmp_path / "run"
    file.write_text(kdpipe("presets", "cifar100-dkd-wrn_40_2-wrn_16_2").out)
    flags = ("--params", file, "--store", built.store, "--student", "resnet8", "--epochs", 1, "--device", "cpu")
    assert kdpipe("train-student", *LIMITS, *flags, "--out", run).code == 0
    with (run / "history.csv").open() as history:
        (row,) = csv.DictReader(history)
    assert float(row["kd_weight"]) == pytest.approx(1 / 20)
    assert float(row["loss"]) == pytest.approx(float(row["kd"]) / 20 + float(row["ce"]), rel=1e-5)


def test_the_list_is_plain_where_it_is_piped(kdpipe: Kdpipe) -> None:
    listed = kdpipe("presets")
    assert listed.code == 0
    lines = listed.out.splitlines()
    assert len(lines) == 1 + len(presets())
    assert listed.out.isascii()
    (line,) = [line for line in lines if line.startswith("cifar100-kd-wrn_40_2-wrn_16_2 ")]
    assert re.split(r"\s{2,}", line)[1:] == [
        *("wrn_40_2 -> wrn_16_2", "75.61", "73.26", "74.92", "Tian 2020, RepDistiller"),
    ]


def test_a_terminal_gets_a_table(kdpipe: Kdpipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    lines = kdpipe("presets").out.splitlines()
    assert all(any(preset.name in line for line in lines) for preset in presets())
    assert any("\u2502" in line for line in lines)


def test_programs_get_json(kdpipe: Kdpipe) -> None:
    everything = json.loads(kdpipe("presets", "--json").out)
    assert [preset["name"] for preset in everything] == [preset.name for preset in presets()]
    (one,) = json.loads(kdpipe("presets", "digits-short", "--json").out)
    assert one["figures"] == {"teacher": None, "baseline": None, "distilled": None}
    assert one["train_student"] == yaml.safe_load(kdpipe("presets", "digits-short").out)["train_student"]


def test_a_slip_in_the_name(kdpipe: Kdpipe) -> None:
    refused(kdpipe("presets", "cifar100-kd-resnet56-resnet02"), "did you mean 'cifar100-kd-resnet56-resnet20'")


def test_listing_imports_no_torch() -> None:
    script = (
        "import sys; from kdpipe.stages.cli import main\n"
        "try: main(['presets', *sys.argv[1:]])\n"
        "except SystemExit as done: assert not done.code\n"
        "assert not {'torch', 'zarr', 'torchvision'} & set(sys.modules)"
    )
    for arguments in ([], ["digits-short"], ["--json"]):
        subprocess.run([sys.executable, "-c", script, *arguments], check=True, capture_output=True, cwd=ROOT)
