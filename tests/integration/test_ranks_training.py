"""Several ranks that are dealt students or seeds: each run is that of one process, apart from times."""

from __future__ import annotations

import csv
import json
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from safetensors.torch import load_file

from kdpipe.errors import RunError
from kdpipe.stages.seed_runs import wait_for_runs
from kdpipe.training.runs import RunDirectory
from tests.conftest import LIMITS, Built, Outcome, refused
from tests.processes import Server, Started

TIMES = ("seconds", "images_per_second")


def _student(built: Built, out: Path, *flags: object) -> tuple[object, ...]:
    return (
        *("train-student", *LIMITS, "--store", built.store, "--out", out, "--epochs", 2, "--device", "cpu"),
        *("--batch-size", 50, *flags),
    )


def _ranks(commands: Server, world: int, *arguments: object) -> list[Started]:
    started = []
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free.getsockname()[1]}
    for rank in range(world):
        place = {"RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": world, **meeting}
        with patch.dict(os.environ, {name: str(value) for name, value in place.items()}):
            started.append(commands.start(*arguments))
    return started


def _result(run: Path) -> dict[str, Any]:
    """Return what a run has trained, without times."""
    history = [
        {name: value for name, value in row.items() if name not in TIMES}
        for row in csv.DictReader((run / "history.csv").read_text().splitlines())
    ]
    tested = json.loads((run / "metrics.json").read_text())["test"]
    return {"weights": (run / "model.safetensors").read_bytes(), "history": history, "test": tested}


def _agree(runs: Path, others: Path) -> None:
    names = sorted(path.name for path in others.iterdir() if path.is_dir())
    assert sorted(path.name for path in runs.iterdir() if path.is_dir()) == names
    for name in names:
        assert _result(runs / name) == _result(others / name)


def test_students_are_dealt(built: Built, tmp_path: Path, commands: Server, kdpipe: Callable[..., Outcome]) -> None:
    fleet = tmp_path / "fleet.yaml"
    fleet.write_text(
        "- {student: resnet8, name: a}\n- {student: resnet8, name: b, seed: 5, loss: dkd}\n"
        "- {student: resnet8, name: c, lr: 0.01}\n"
    )
    ended = [each.communicate() for each in _ranks(commands, 2, *_student(built, tmp_path / "dealt", "--fleet", fleet))]
    assert "3 students are finished" in ended[0][1]
    assert ended[1][1] == ""
    assert kdpipe(*_student(built, tmp_path / "one", "--fleet", fleet)).code == 0
    _agree(tmp_path / "dealt", tmp_path / "one")


def test_seeds_are_dealt_stopped_and_resumed(
    built: Built, tmp_path: Path, commands: Server, kdpipe: Callable[..., Outcome]
) -> None:
    flags = ("--student", "resnet8", "--seeds", "1,2,3")
    started = _ranks(commands, 2, *_student(built, tmp_path / "dealt", *flags))
    while not (tmp_path / "dealt" / "seed-1" / "history.csv").exists():
        assert started[0].poll() is None
    for each in started:
        each.send_signal(signal.SIGKILL)
    assert [each.wait() for each in started] == [-signal.SIGKILL] * 2
    resumed = _ranks(commands, 3, *_student(built, tmp_path / "dealt", *flags, "--resume"))
    ended = [each.communicate() for each in resumed]
    assert [each.returncode for each in resumed] == [0, 0, 0]
    assert "over 3 seeds" in ended[0][1]
    assert kdpipe(*_student(built, tmp_path / "one", *flags)).code == 0
    _agree(tmp_path / "dealt", tmp_path / "one")
    summaries = [json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("dealt", "one")]
    assert summaries[0] == summaries[1]


def test_a_student_that_diverges_on_its_rank(built: Built, tmp_path: Path, commands: Server) -> None:
    fleet = tmp_path / "fleet.yaml"
    fleet.write_text("- {student: resnet8, name: a}\n- {student: resnet8, name: b, lr: 1.0e+38}\n")
    started = _ranks(commands, 2, *_student(built, tmp_path / "out", "--fleet", fleet))
    errors = [each.communicate()[1] for each in started]
    assert [each.returncode for each in started] == [1, 0]
    assert "1 of 2 students could not be trained to their end (b)" in errors[0]
    assert RunDirectory(tmp_path / "out" / "a").finished
    assert RunDirectory(tmp_path / "out" / "b").failure() is not None


def _together(out: Path, *flags: object, network: str = "plain") -> tuple[object, ...]:
    """Return a training of one student; the last batch of an epoch has three samples."""
    return (
        *("train-student", "--data", "digits", "--limit-train", 203, "--limit-test", 60, "--distill", "none"),
        *("--student", f"tests.networks:{network}", "--input-size", 16, "--epochs", 3, "--batch-size", 40),
        *("--device", "cpu", "--out", out, *flags),
    )


def _near(run: Path, other: Path) -> None:
    """The weights and the history are the same up to the order of sums."""
    weights, expected = (load_file(path / "model.safetensors") for path in (run, other))
    assert weights.keys() == expected.keys()
    for name, values in weights.items():
        torch.testing.assert_close(values, expected[name], rtol=1e-4, atol=1e-5)
    for row, wanted in zip(_result(run)["history"], _result(other)["history"], strict=True):
        assert {name: float(value) for name, value in row.items()} == pytest.approx(
            {name: float(value) for name, value in wanted.items()}, rel=1e-4
        )


def test_one_student_of_several_ranks_is_that_of_one_process(
    built: Built, tmp_path: Path, commands: Server, kdpipe: Callable[..., Outcome]
) -> None:
    flags = ("--validation", 0.1)
    started = _ranks(commands, 3, *_together(tmp_path / "three", *flags))
    ended = [each.communicate() for each in started]
    assert [each.returncode for each in started] == [0, 0, 0]
    assert [errors for _, errors in ended[1:]] == ["", ""]
    assert kdpipe(*_together(tmp_path / "one", *flags)).code == 0
    _near(tmp_path / "three", tmp_path / "one")
    assert sorted(path.name for path in (tmp_path / "three").iterdir()) == sorted(
        path.name for path in (tmp_path / "one").iterdir()
    )
    taught = _student(built, tmp_path / "taught", "--student", "resnet8", "--loss", "dkd", "--resume")
    assert [each.wait() for each in _ranks(commands, 2, *taught)] == [0, 0]
    assert RunDirectory(tmp_path / "taught").finished


def test_one_student_is_stopped_and_resumed_by_other_numbers(
    tmp_path: Path, commands: Server, kdpipe: Callable[..., Outcome]
) -> None:
    begun = ("--epochs", 30, "--checkpoint-every", 5)
    started = _ranks(commands, 2, *_together(tmp_path / "run", *begun))
    while not (tmp_path / "run" / "history.csv").exists():
        assert started[0].poll() is None
    started[1].send_signal(signal.SIGTERM)
    errors = [each.communicate()[1] for each in started]
    assert "stopped at" in errors[0]
    assert 0 not in [each.returncode for each in started]
    resumed = _ranks(commands, 3, *_together(tmp_path / "run", *begun, "--resume"))
    while (tmp_path / "run" / "history.csv").read_text().count("\n") < 8:
        assert resumed[0].poll() is None
    resumed[2].kill()
    errors = [each.communicate()[1] for each in resumed]
    assert [each.returncode for each in resumed] == [1, 1, -signal.SIGKILL]
    assert "another rank has ended" in errors[0].splitlines()[-1]
    assert "Traceback" not in errors[0] + errors[1]
    assert kdpipe(*_together(tmp_path / "run", *begun, "--resume")).code == 0
    assert kdpipe(*_together(tmp_path / "one", *begun)).code == 0
    rows = [_result(tmp_path / name)["history"] for name in ("run", "one")]
    assert [row["epoch"] for row in rows[0]] == [row["epoch"] for row in rows[1]]
    for row, wanted in zip(rows[0][:5], rows[1][:5], strict=True):
        assert float(row["loss"]) == pytest.approx(float(wanted["loss"]), rel=1e-3)


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (("--student", "resnet8", "--aux", "rotation"), ("without --aux",)),
        (("--student", "resnet8", "--dot", 0.05), ("without --dot",)),
        (("--student", "resnet8", "--temperature", "learned:1,5"), ("without a learned temperature",)),
        (("--student", "resnet8", "--distill", "live", "--teacher", "resnet8"), ("without --distill live",)),
        (("--student", "resnet8", "--seeds", "1,2", "--overwrite"), ("--overwrite would remove",)),
    ],
)
def test_what_ranks_cannot_do(
    built: Built,
    tmp_path: Path,
    kdpipe: Callable[..., Outcome],
    monkeypatch: pytest.MonkeyPatch,
    flags: tuple[object, ...],
    parts: tuple[str, ...],
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    refused(kdpipe(*_student(built, tmp_path / "run", *flags)), "RANK is ''", "start kdpipe by torchrun")
    monkeypatch.setenv("RANK", "0")
    outcome = kdpipe(*_student(built, tmp_path / "run", *flags))
    assert outcome.code == 1
    assert outcome.last_line.startswith("kdpipe, rank 0: ")
    for part in parts:
        assert part in outcome.last_line
    assert not list(tmp_path.iterdir())


def test_a_rank_that_writes_nothing_is_waited_for_within_limits(tmp_path: Path) -> None:
    (tmp_path / "seed-2").mkdir()
    runs = [RunDirectory(tmp_path / "seed-2"), RunDirectory(tmp_path / "seed-3")]
    with pytest.raises(RunError, match=r"waited 0 s for the runs of other ranks.*seed-2, .*seed-3. End what hangs"):
        wait_for_runs(runs, patience=0.3)
