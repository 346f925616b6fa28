"""Nothing that comes as a file runs code, unless the command line says ``--trust-code``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import LIMITS, Outcome, refused

Kdpipe = Callable[..., Outcome]

CODE = """
import pathlib
import torch
pathlib.Path({marker!r}).touch()
def make(classes):
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, classes))
def data(split):
    raise RuntimeError("called")
"""


@pytest.fixture
def marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that the module ``strange`` creates when it is imported."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "strange.py").write_text(CODE.format(marker=str(tmp_path / "ran")))
    monkeypatch.syspath_prepend(tmp_path / "code")
    monkeypatch.delitem(__import__("sys").modules, "strange", raising=False)
    return tmp_path / "ran"


@pytest.fixture
def run(marker: Path, kdpipe: Kdpipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished run of the network ``strange:make``, which the user named."""
    out = tmp_path / "run"
    flags = ("train-teacher", *LIMITS, "--model", "strange:make", "--input-size", 32, "--epochs", 1, "--device", "cpu")
    assert kdpipe(*flags, "--out", out).code == 0
    assert marker.exists()
    marker.unlink()
    monkeypatch.delitem(__import__("sys").modules, "strange")
    return out


def test_a_run_is_not_measured_with_code_that_it_names(run: Path, marker: Path, kdpipe: Kdpipe, tmp_path: Path) -> None:
    flags = (
        "benchmark",
        *LIMITS[:2],
        "--limit-test",
        60,
        "--run",
        run,
        "--rounds",
        5,
        "--no-cold-starts",
        "--device",
        "cpu",
    )
    outcome = kdpipe(*flags, "--out", tmp_path / "report")
    refused(outcome, f"{run} says its network is made by strange:make", "pass --trust-code")
    assert not marker.exists()
    outcome = kdpipe(*flags, "--out", tmp_path / "report", "--trust-code")
    assert outcome.code == 0
    assert f"{run} is made by strange:make, whose code is run (--trust-code)." in outcome.err
    assert marker.exists()


def test_a_record_that_names_code_is_refused(built_run: Path, marker: Path, kdpipe: Kdpipe, tmp_path: Path) -> None:
    record = json.loads((built_run / "run.json").read_text())
    (built_run / "run.json").write_text(json.dumps({**record, "model": "strange:make"}))
    flags = ("benchmark", *LIMITS[:2], "--limit-test", 60, "--run", built_run, "--device", "cpu")
    refused(kdpipe(*flags, "--out", tmp_path / "report"), f"{built_run} says its network is made by strange:make")
    assert not marker.exists()


@pytest.fixture
def built_run(kdpipe: Kdpipe, tmp_path: Path) -> Path:
    out = tmp_path / "plain"
    flags = ("train-teacher", *LIMITS, "--model", "resnet8", "--epochs", 1, "--device", "cpu")
    assert kdpipe(*flags, "--out", out).code == 0
    return out


def test_a_teacher_is_not_made_by_code_that_its_weights_name(
    run: Path, marker: Path, kdpipe: Kdpipe, tmp_path: Path
) -> None:
    store = tmp_path / "x.zarr"
    flags = ("cache-teacher", *LIMITS, "--teacher", f"run:{run}", "--views", 0, "--device", "cpu", "--out", store)
    refused(kdpipe(*flags), f"{run} says its network is made by strange:make", "pass --trust-code")
    live = ("train-student", *LIMITS, "--teacher", f"run:{run}", "--student", "resnet8", "--epochs", 1)
    refused(
        kdpipe(*live, "--device", "cpu", "--out", tmp_path / "s"), f"{run} says its network is made by strange:make"
    )
    assert not marker.exists()
    assert not store.exists()
    outcome = kdpipe(*flags, "--trust-code")
    assert outcome.code == 0
    assert f"run:{run} is made by strange:make, whose code was run (--trust-code)." in outcome.err
    verify = ("verify", store, "--data", "digits", "--teacher", f"run:{run}", "--device", "cpu")
    refused(kdpipe(*verify), f"{run} says its network is made by strange:make")


@pytest.mark.parametrize(
    ("command", "content"),
    [
        ("train-teacher", "{data: digits, model: 'strange:make'}"),
        ("train-teacher", "{data: 'strange:data', model: resnet8}"),
        ("train-student", "{data: digits, student: [resnet8, 'strange:make']}"),
        ("train-student", "{data: digits, student: resnet8, teacher: 'strange:make'}"),
        ("cache-teacher", "{data: digits, teacher: 'strange:make', views: 0}"),
        ("import-logits", "{data: 'strange:data', logits: x.npy, teacher_name: x}"),
        ("benchmark", "{data: 'strange:data', run: x}"),
    ],
)
def test_a_params_file_runs_no_code(command: str, content: str, marker: Path, kdpipe: Kdpipe, tmp_path: Path) -> None:
    file = tmp_path / "params.yaml"
    file.write_text(f"{command.replace('-', '_')}: {content}\n")
    outcome = kdpipe(command, "--params", file, "--out", tmp_path / "out.zarr")
    refused(outcome, str(file), "strange:", "pass --trust-code")
    assert not marker.exists()
    assert not (tmp_path / "out.zarr").exists()


def test_a_name_on_the_command_line_is_the_user_s_word(marker: Path, kdpipe: Kdpipe, tmp_path: Path) -> None:
    file = tmp_path / "params.yaml"
    file.write_text("train_teacher: {data: 'strange:data', model: 'strange:make'}\n")
    outcome = kdpipe("train-teacher", "--params", file, "--data", "strange:data", "--model", "resnet8", "--out", "x")
    refused(outcome, "strange:data('train') raised RuntimeError: called")
    assert marker.exists()


def test_a_fleet_runs_no_code(marker: Path, kdpipe: Kdpipe, tmp_path: Path) -> None:
    fleet = tmp_path / "fleet.yaml"
    fleet.write_text("[{student: resnet8}, {student: 'strange:make', input_size: 32}]")
    flags = ("train-student", *LIMITS, "--fleet", fleet, "--epochs", 1, "--device", "cpu", "--out", tmp_path / "runs")
    refused(kdpipe(*flags), f"{fleet} says in the student 2 that its network is made by strange:make")
    assert not marker.exists()
    outcome = kdpipe(*flags, "--trust-code")
    assert outcome.code == 0
    assert f"{fleet} says in the student 2 that its network is made by strange:make, whose code is run" in outcome.err
    assert marker.exists()


@pytest.mark.parametrize("value", ["true", "false"])
def test_no_file_says_that_code_is_trusted(value: str, marker: Path, kdpipe: Kdpipe, tmp_path: Path) -> None:
    file = tmp_path / "params.yaml"
    file.write_text(f"train_teacher: {{data: digits, model: 'strange:make', trust_code: {value}}}\n")
    refused(kdpipe("train-teacher", "--params", file, "--out", tmp_path / "x"), "trust_code, which no file may say")
    fleet = tmp_path / "fleet.yaml"
    fleet.write_text(f"[{{student: 'strange:make', trust_code: {value}}}]")
    refused(
        kdpipe("train-student", *LIMITS, "--fleet", fleet, "--out", tmp_path / "x"), "trust_code, which no file may say"
    )
    assert not marker.exists()


def test_that_code_is_trusted_is_not_recorded(run: Path) -> None:
    assert "trust_code" not in (run / "run.json").read_text()


def test_a_run_whose_weights_are_a_link_is_refused(built_run: Path, kdpipe: Kdpipe, tmp_path: Path) -> None:
    weights = built_run / "model.safetensors"
    weights.rename(tmp_path / "w.safetensors")
    weights.symlink_to(tmp_path / "w.safetensors")
    flags = ("cache-teacher", *LIMITS, "--views", 0, "--device", "cpu", "--out", tmp_path / "x.zarr")
    refused(kdpipe(*flags, "--teacher", f"run:{built_run}"), "is a link")
    assert kdpipe(*flags, "--teacher", "resnet8", "--weights", weights).code == 0
