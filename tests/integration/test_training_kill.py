"""Real signals to a real `train-student`: a resumed run ends as an uninterrupted one, to the byte."""

from __future__ import annotations

import csv
import json
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kdpipe import dataset
from tests.conftest import LIMITS, Built
from tests.processes import Server, Started

EPOCHS, STEPS = 6, 7
TIMES = ("seconds", "images_per_second")

Start = Callable[..., Started]


@pytest.fixture(scope="module")
def start(built: Built, commands: Server, tmp_path_factory: pytest.TempPathFactory) -> Start:
    """Start a training with a checkpoint after each step."""
    weights = _weights(tmp_path_factory.mktemp("weights") / "weights.csv")

    def started(out: Path, *flags: object) -> Started:
        return commands.start(
            *("train-student", *LIMITS, "--store", built.store, "--student", "resnet8", "--input-size", 16),
            *("--out", out, "--device", "cpu", "--epochs", EPOCHS, "--batch-size", 32, "--checkpoint-every", 0),
            *("--ema", 0.9, "--kd-weight", "cosine:0.9,0.5", "--balance", "--sample-weights", weights, *flags),
        )

    return started


def _weights(path: Path) -> Path:
    """Write another weight for each sample; those of two classes are small."""
    digits = dataset.load("digits", "train", 200)
    rows = (
        f"{key},{(1 + row % 7) * (0.1 if label < 2 else 1)}"
        for row, (key, label) in enumerate(zip(digits.keys, digits.labels, strict=True))
    )
    path.write_text("\n".join(["key,weight", *rows]))
    return path


def _finish(process: Started) -> str:
    """Wait for a training to end well, and return what it printed on stderr."""
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    return errors


def _kill(process: Started) -> None:
    process.kill()
    assert process.wait() == -signal.SIGKILL


def _wait_for_checkpoints(out: Path, number: int, process: Started) -> None:
    """Wait until ``number`` checkpoints have been written since now."""
    seen = _written(out)
    deadline = time.monotonic() + 60
    while number and process.poll() is None:
        assert time.monotonic() < deadline
        if _written(out) != seen:
            number, seen = number - 1, _written(out)
        time.sleep(0.0005)


def _written(out: Path) -> int:
    try:
        return (out / "checkpoint.pt").stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def _assert_alike(run: Path, whole: Path) -> None:
    assert (run / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    mine, other = (json.loads((folder / "metrics.json").read_text())["test"] for folder in (run, whole))
    assert mine == other
    rows, expected = (_history(folder) for folder in (run, whole))
    assert len(rows) == EPOCHS
    assert rows == expected


def _history(run: Path) -> list[dict[str, str]]:
    with (run / "history.csv").open() as file:
        return [{key: text for key, text in row.items() if key not in TIMES} for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def uninterrupted(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    _finish(start(out))
    return out


def test_killed_at_random_steps(start: Start, uninterrupted: Path, tmp_path: Path) -> None:
    draw = random.Random(time.time_ns())
    out = tmp_path / "run"
    resume: tuple[str, ...] = ()
    for _ in range(3):
        process = start(out, *resume)
        _wait_for_checkpoints(out, draw.randint(1, STEPS - 1), process)
        time.sleep(draw.uniform(0, 0.01))
        _kill(process)
        resume = ("--resume",)
    assert "Going on from" in _finish(start(out, *resume))
    _assert_alike(out, uninterrupted)
    assert {path.name for path in out.iterdir()} == {path.name for path in uninterrupted.iterdir()}


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_asked_to_stop(start: Start, uninterrupted: Path, tmp_path: Path, sent: signal.Signals, code: int) -> None:
    out = tmp_path / "run"
    process = start(out)
    _wait_for_checkpoints(out, 3, process)
    process.send_signal(sent)
    _, errors = process.communicate()
    assert process.returncode == code
    assert "Traceback" not in errors
    assert errors.splitlines()[-1].startswith("kdpipe: stopped")
    assert "--resume" in errors.splitlines()[-1]
    _finish(start(out, "--resume"))
    _assert_alike(out, uninterrupted)


def test_a_damaged_checkpoint(start: Start, uninterrupted: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = start(out)
    _wait_for_checkpoints(out, 4, process)
    _kill(process)
    newest = out / "checkpoint.pt"
    newest.touch()
    content = bytearray(newest.read_bytes() or (out / "checkpoint.previous.pt").read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    errors = _finish(start(out, "--resume"))
    assert f"{newest} is damaged; going on from {out / 'checkpoint.previous.pt'}" in errors
    _assert_alike(out, uninterrupted)


def test_a_fine_tuning_that_was_killed(built: Built, start: Start, tmp_path: Path) -> None:
    flags = ("--init-weights", f"run:{built.weights.parent}", "--lr", 0.02)
    whole, out = tmp_path / "whole", tmp_path / "run"
    _finish(start(whole, *flags))
    process = start(out, *flags)
    _wait_for_checkpoints(out, STEPS + 2, process)
    _kill(process)
    assert "Going on from" in _finish(start(out, *flags, "--resume"))
    _assert_alike(out, whole)
