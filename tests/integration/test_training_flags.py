"""How the flags of the optimiser and its schedules reach a run."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from tests.conftest import LIMITS, Built, Outcome, refused

STUDENT = ("train-student", *LIMITS, "--student", "resnet8", "--device", "cpu", "--epochs", 2)


@pytest.mark.parametrize(
    "flags",
    [
        ("--optimizer", "adamw", "--ema", 0.9, "--label-smoothing", 0.1, "--clip-grad-norm", 1),
        ("--lr-schedule", "step", "--lr-steps", "1,1.5", "--decay-on", "weights"),
        ("--amp", "bf16", "--channels-last", "--lr-schedule", "one-cycle"),
    ],
)
def test_a_student_trains_and_is_recorded(
    flags: tuple[object, ...], built: Built, tmp_path: Path, kdpipe: Callable[..., Outcome]
) -> None:
    plain = kdpipe(*STUDENT, "--store", built.store, "--out", tmp_path / "plain")
    outcome = kdpipe(*STUDENT, "--store", built.store, "--out", tmp_path / "run", *flags)
    assert (plain.code, outcome.code) == (0, 0)
    weights = [(tmp_path / run / "model.safetensors").read_bytes() for run in ("plain", "run")]
    assert weights[0] != weights[1]
    recorded = json.loads((tmp_path / "run" / "run.json").read_text())["parameters"]
    for flag, value in pairwise(flags):
        if str(flag).startswith("--") and isinstance(value, float):
            assert recorded[str(flag)[2:].replace("-", "_")] == value


def test_a_resumed_run_must_learn_in_the_same_way(built: Built, tmp_path: Path, kdpipe: Callable[..., Outcome]) -> None:
    run = (*STUDENT, "--store", built.store, "--out", tmp_path / "run")
    assert kdpipe(*run).code == 0
    refused(kdpipe(*run, "--resume", "--ema", 0.9), "ema: None then, 0.9 now")
    assert kdpipe(*run, "--resume", "--checkpoint-every", 5).code == 0


def test_momentum_is_nesterov_s_or_plain(built: Built, tmp_path: Path, kdpipe: Callable[..., Outcome]) -> None:
    def weights(out: str, *flags: object) -> bytes:
        assert kdpipe(*STUDENT, "--store", built.store, "--out", tmp_path / out, *flags).code == 0
        recorded = json.loads((tmp_path / out / "run.json").read_text())["parameters"]
        assert recorded["nesterov"] is ("--no-nesterov" not in flags)
        return (tmp_path / out / "model.safetensors").read_bytes()

    assert weights("default") == weights("nesterov", "--nesterov") != weights("plain", "--no-nesterov")
    plain = (*STUDENT, "--store", built.store, "--out", tmp_path / "plain", "--resume")
    refused(kdpipe(*plain), "nesterov: False then, True now")
    refused(
        kdpipe(*STUDENT, "--optimizer", "adamw", "--no-nesterov", "--out", tmp_path / "adamw"),
        "no-nesterov is for sgd, adamw has no such momentum",
    )


def test_the_saved_model_is_the_one_that_was_tested(
    built: Built, tmp_path: Path, kdpipe: Callable[..., Outcome]
) -> None:
    from safetensors.torch import load_file

    out = tmp_path / "run"
    assert kdpipe(*STUDENT, "--store", built.store, "--out", out, "--ema", 0.95).code == 0
    state = torch.load(out / "checkpoint.pt", weights_only=True)
    for name, value in load_file(out / "model.safetensors").items():
        assert torch.equal(value, state["average"][name])
        assert "running" in name or not torch.equal(value, state["model"][name])


def limited(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a command that may take 1,000 MiB of addresses more than it has when everything is imported."""
    program = (
        "import resource, sys, torch, torchvision, kdpipe.student, kdpipe.models, stages.train_student; "
        "from pathlib import Path; from kdpipe.stages.cli import main; torch.set_num_threads(1); "
        "taken = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize(); "
        "resource.setrlimit(resource.RLIMIT_AS, (taken + 1000 * 2**20, resource.RLIM_INFINITY)); main(sys.argv[1:])"
    )
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.skipif(sys.platform != "linux", reason="reads the process's size from /proc")
def test_memory_that_does_not_suffice_is_one_line_with_a_size_that_does(tmp_path: Path) -> None:
    command = ("train-student", "--data", "digits", "--student", "resnet20", "--device", "cpu", "--epochs", 1)
    refusal = limited(*command, "--batch-size", 1024, "--out", tmp_path / "large")
    assert refusal.returncode == 1
    assert "Traceback" not in refusal.stderr
    message = refusal.stderr.strip().splitlines()[-1]
    found = re.search(r"cpu ran out of memory at a batch size of 1024; (\d+) fit\. Try --batch-size (\d+);", message)
    assert found is not None, message
    fits = int(found[1])
    assert found[2] == found[1]
    assert 16 <= fits <= 512
    # Half of it, because addresses are limited here, which a process runs out of in more ways than of memory.
    trained = limited(*command, "--batch-size", fits // 2, "--out", tmp_path / "fits")
    assert trained.returncode == 0, trained.stderr


def test_weights_and_temperature_that_follow_the_epochs(
    built: Built, tmp_path: Path, kdpipe: Callable[..., Outcome]
) -> None:
    out = tmp_path / "run"
    command = (*STUDENT, "--store", built.store, "--epochs", 4, "--out", out)
    assert kdpipe(*command, "--kd-weight", "cosine:0.5,0,every=2", "--temperature", "linear:8,4").code == 0
    with (out / "history.csv").open() as file:
        rows = [{name: float(text) for name, text in row.items()} for row in csv.DictReader(file)]
    assert [row["kd_weight"] for row in rows] == pytest.approx([0.5, 0.5, 0.25, 0.25])
    assert [row["temperature"] for row in rows] == [8, 7, 6, 5]
    assert "ce_weight" not in rows[0]
    for row in rows:
        assert row["loss"] == pytest.approx(row["kd_weight"] * row["kd"] + 0.1 * row["ce"], rel=1e-5)


def test_a_store_must_serve_the_largest_temperature(
    built: Built, tmp_path: Path, kdpipe: Callable[..., Outcome]
) -> None:
    store = tmp_path / "low.zarr"
    cached = ("cache-teacher", *LIMITS, "--teacher", "resnet8", "--weights", built.weights, "--device", "cpu")
    assert kdpipe(*cached, "--views", 1, "--encoding", "sqrtp8@4", "--out", store).code == 0
    command = (*STUDENT, "--store", store, "--out", tmp_path / "run", "--temperature")
    refused(kdpipe(*command, "linear:2,9,over=1"), "serves temperatures up to 4", "asks for 9")
    assert kdpipe(*command, "linear:2,4").code == 0
