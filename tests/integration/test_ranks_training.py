"""Several ranks that are dealt students or seeds: each run is that of one process, apart from times."""

from __future__ import annotations

import csv
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from kdpipe.errors import RunError
from kdpipe.stages.ranks import wait_for_runs
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
    for rank in range(world):
        place = {"RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": world}
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


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (("--student", "resnet8"), ("2 ranks and one student", "--seeds")),
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
