"""Flags of the optimizer and its schedules, from the command line to a run."""

from __future__ import annotations

import csv
import json
import re
import resource
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from tests.conftest import LIMITS, Built, Outcome, refused, run_command
from tests.processes import Server, Started

STUDENT = ("train-student", *LIMITS, "--student", "resnet8", "--input-size", 16, "--device", "cpu", "--epochs", 2)


@pytest.fixture(scope="module")
def plain(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without further flags."""
    out = tmp_path_factory.mktemp("plain") / "run"
    assert run_command(None, *STUDENT, "--store", built.store, "--out", out).code == 0
    return out


@pytest.mark.parametrize(
    "flags",
    [
        ("--optimizer", "adamw", "--ema", 0.9, "--label-smoothing", 0.1, "--clip-grad-norm", 1),
        ("--lr-schedule", "step", "--lr-steps", "1,1.5", "--decay-on", "weights"),
        ("--amp", "bf16", "--channels-last", "--lr-schedule", "one-cycle"),
    ],
)
def test_a_student_trains_and_is_recorded(
    flags: tuple[object, ...], built: Built, plain: Path, tmp_path: Path, kdpipe: Callable[..., Outcome]
) -> None:
    assert kdpipe(*STUDENT, "--store", built.store, "--out", tmp_path / "run", *flags).code == 0
    weights = [(run / "model.safetensors").read_bytes() for run in (plain, tmp_path / "run")]
    assert weights[0] != weights[1]
    recorded = json.loads((tmp_path / "run" / "run.json").read_text())["parameters"]
    for flag, value in pairwise(flags):
        if str(flag).startswith("--") and isinstance(value, int | float):
            assert recorded[str(flag)[2:].replace("-", "_")] == value


def test_a_resumed_run_must_learn_in_the_same_way(built: Built, plain: Path, kdpipe: Callable[..., Outcome]) -> None:
    run = (*STUDENT, "--store", built.store, "--out", plain)
    refused(kdpipe(*run, "--resume", "--ema", 0.9), "ema: None then, 0.9 now")
    assert kdpipe(*run, "--resume", "--checkpoint-every", 5).code == 0


def test_momentum_is_nesterov_s_or_plain(
    built: Built, plain: Path, tmp_path: Path, kdpipe: Callable[..., Outcome]
) -> None:
    def weights(out: Path, *flags: object) -> bytes:
        if flags:
            assert kdpipe(*STUDENT, "--store", built.store, "--out", out, *flags).code == 0
        recorded = json.loads((out / "run.json").read_text())["parameters"]
        assert recorded["nesterov"] is ("--no-nesterov" not in flags)
        return (out / "model.safetensors").read_bytes()

    without = tmp_path / "without"
    assert weights(plain) == weights(tmp_path / "nesterov", "--nesterov") != weights(without, "--no-nesterov")
    resumed = kdpipe(*STUDENT, "--store", built.store, "--out", without, "--resume")
    refused(resumed, "nesterov: False then, True now")
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


def _limited(commands: Server, *arguments: object) -> Started:
    """Run a command that may take 1,000 MiB of addresses more than it has at its start, with everything imported."""
    process = commands.start(*arguments)
    taken = int(Path(f"/proc/{process.pid}/statm").read_text().split()[0]) * resource.getpagesize()
    resource.prlimit(process.pid, resource.RLIMIT_AS, (taken + 1000 * 2**20, resource.RLIM_INFINITY))
    return process


@pytest.mark.skipif(sys.platform != "linux", reason="limits another process's memory")
def test_memory_that_does_not_suffice_is_one_line_with_a_size_that_does(commands: Server, tmp_path: Path) -> None:
    command = ("train-student", "--data", "digits", "--limit-test", 10, "--student", "resnet20", "--device", "cpu")
    command = (*command, "--epochs", 1)
    process = _limited(commands, *command, "--batch-size", 1024, "--out", tmp_path / "large")
    _, errors = process.communicate()
    assert process.returncode == 1
    assert "Traceback" not in errors
    message = errors.strip().splitlines()[-1]
    found = re.search(r"cpu ran out of memory at a batch size of 1024; (\d+) fit\. Try --batch-size (\d+);", message)
    assert found is not None, message
    fits = int(found[1])
    assert found[2] == found[1]
    assert 16 <= fits <= 512
    # Half of it, because addresses are limited here, which a process runs out of in more ways than of memory.
    half = ("--batch-size", fits // 2, "--limit-train", fits // 2)
    process = _limited(commands, *command, *half, "--out", tmp_path / "fits")
    _, errors = process.communicate()
    assert process.returncode == 0, errors


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


def test_a_weight_that_follows_the_validation(built: Built, tmp_path: Path, kdpipe: Callable[..., Outcome]) -> None:
    """A batch of all samples at a rate of almost nothing: the student never changes, and so never improves."""
    out = tmp_path / "run"
    flags = ("--lr", 1e-30, "--warmup-epochs", 0, "--validation", 0.2, "--batch-size", 160, "--weight-decay", 0)
    command = (*STUDENT, "--store", built.store, "--epochs", 4, *flags, "--ema", 0.9999999, "--out", out)
    assert kdpipe(*command, "--kd-weight", "plateau:0.8,0.5,patience=1,floor=0.3").code == 0
    with (out / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len({row["validation_top1"] for row in rows}) == 1
    assert [float(row["kd_weight"]) for row in rows] == [0.8, 0.8, 0.4, 0.3]
    record = json.loads((out / "run.json").read_text())["parameters"]
    assert record["kd_weight"] == "plateau:0.8,0.5,patience=1,floor=0.3"


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (("--kd-weight", "plateau:0.9,0.5,patience=3"), ("kd-weight plateau:0.9,0.5,patience=3 needs", "validation")),
        (("--ce-weight", "plateau:0.9,0.5,patience=3"), ("ce-weight plateau:0.9,0.5,patience=3 needs", "validation")),
        (
            ("--temperature", "plateau:4,0.5,patience=3", "--validation", 0.2),
            ("temperature cannot be plateau:4,0.5,patience=3",),
        ),
        (("--kd-weight", "plateau:0.9,0.5", "--validation", 0.2), ("lacks patience",)),
    ],
)
def test_a_plateau_without_what_it_follows_is_refused(
    flags: tuple[object, ...], parts: tuple[str, ...], tmp_path: Path, kdpipe: Callable[..., Outcome]
) -> None:
    outcome = kdpipe(*STUDENT, "--store", tmp_path / "none.zarr", *flags, "--out", tmp_path / "run")
    assert outcome.code == 1
    assert len(outcome.err.splitlines()) == 1
    assert all(part in outcome.err for part in parts), outcome.err
    assert not list(tmp_path.iterdir())


def test_a_store_must_serve_the_largest_temperature(
    built: Built, tmp_path: Path, kdpipe: Callable[..., Outcome]
) -> None:
    store = tmp_path / "low.zarr"
    cached = ("cache-teacher", *LIMITS, "--teacher", "resnet8", "--weights", built.weights, "--device", "cpu")
    assert kdpipe(*cached, "--views", 1, "--encoding", "sqrtp8@4", "--out", store).code == 0
    command = (*STUDENT, "--store", store, "--out", tmp_path / "run", "--temperature")
    refused(kdpipe(*command, "linear:2,9,over=1"), "serves temperatures up to 4", "needs 9")
    assert kdpipe(*command, "linear:2,4").code == 0


def test_the_memory_format_is_recorded_and_resumed_with(built: Built, tmp_path: Path, commands: Server) -> None:
    def run(name: str, *flags: object, begun: bool = False) -> tuple[bool, bytes]:
        out = tmp_path / name
        command = (*STUDENT, "--store", built.store, "--checkpoint-every", 0, "--out", out)
        if begun:
            process = commands.start(*command, *flags)
            while not (out / "checkpoint.pt").exists() and process.poll() is None:
                time.sleep(0.005)
            process.kill()
            process.wait()
            assert not (out / "metrics.json").exists()
            flags = ("--resume",)
        assert run_command(None, *command, *flags).code == 0
        recorded = json.loads((out / "run.json").read_text())["parameters"]["channels_last"]
        return recorded, (out / "model.safetensors").read_bytes()

    fast, plain = run("fast"), run("plain", "--no-channels-last")
    assert (fast[0], plain[0]) == (True, False)
    assert fast[1] != plain[1]
    assert run("asked", "--channels-last") == fast
    assert run("resumed", "--no-channels-last", begun=True) == plain
