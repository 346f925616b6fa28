"""The auxiliary task from the command line: what a run learns and leaves, killed or in a fleet; what is refused."""

from __future__ import annotations

import csv
import json
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from kdpipe import dataset, models
from tests.conftest import LIMITS, Built, Outcome, refused
from tests.networks import DROPPING, SMALL
from tests.processes import Server

Kdpipe = Callable[..., Outcome]

SHARED = ("--device", "cpu", "--epochs", 2, "--batch-size", 64, "--input-size", 16)
STUDENT = ("train-student", *LIMITS, "--student", SMALL, *SHARED)
ROTATION = ("--aux", "rotation")


def _history(run: Path) -> list[dict[str, str]]:
    with (run / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    return [{key: text for key, text in row.items() if key not in ("seconds", "images_per_second")} for row in rows]


def _weights(run: Path) -> bytes:
    return (run / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 training digits, one in three in a folder of its class and the others in none; 20 test digits."""
    root = tmp_path_factory.mktemp("digits")
    for split, count in (("train", 60), ("test", 20)):
        digits = dataset.load("digits", split, count)
        for index, label in enumerate(digits.labels):
            known = split == "test" or index % 3 == 0
            folder = root / split / f"class{label % 2}" if known else root / "unlabeled"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(digits.image(index).numpy().transpose(1, 2, 0)).save(folder / f"{index:03}.png")
    return root


def test_a_student_learns_the_task_and_its_model_has_no_head(kdpipe: Kdpipe, tmp_path: Path) -> None:
    run = tmp_path / "run"
    learned = kdpipe(
        *("train-student", "--data", "digits", "--limit-train", 800, "--limit-test", 60, "--student", "resnet8"),
        *("--device", "cpu", "--epochs", 5, "--batch-size", 32, "--lr", 0.05, *ROTATION, "--out", run),
        *("--input-size", 16),
    )
    assert learned.code == 0
    assert ", rotation " in learned.err.splitlines()[1]
    rows = _history(run)
    assert float(rows[0]["rotation_top1"]) < 0.35
    assert float(rows[-1]["rotation_top1"]) > 0.4
    assert float(rows[-1]["rotation"]) < float(rows[0]["rotation"])
    for row in rows:
        assert float(row["loss"]) == pytest.approx(float(row["ce"]) + 0.5 * float(row["rotation"]), rel=1e-5)
    record = json.loads((run / "run.json").read_text())
    assert record["parameters"]["aux"] == "rotation:0.5"
    saved = load_file(run / "model.safetensors")
    assert saved.keys() <= models.create("resnet8", 10).state_dict().keys()
    held = torch.load(run / "checkpoint.pt", weights_only=True)["beside"]
    assert {name: tuple(value.shape) for name, value in held.items()} == {
        "rotation.weight": (4, 64),
        "rotation.bias": (4,),
    }


def test_a_teacher_takes_it_too_from_a_params_file(kdpipe: Kdpipe, tmp_path: Path) -> None:
    file = tmp_path / "params.yaml"
    file.write_text(f"train_teacher: {{model: '{SMALL}', epochs: 1, aux: 'rotation:2'}}\n")
    shared = ("train-teacher", *LIMITS, "--params", file, "--trust-code", "--device", "cpu", "--batch-size", 64)
    assert kdpipe(*shared, "--amp", "bf16", "--channels-last", "--ema", 0.9, "--out", tmp_path / "run").code == 0
    (row,) = _history(tmp_path / "run")
    assert float(row["loss"]) == pytest.approx(float(row["ce"]) + 2 * float(row["rotation"]), rel=1e-4)


def test_killed_and_resumed_it_ends_with_the_same_bytes(
    built: Built, tmp_path: Path, commands: Server, kdpipe: Kdpipe
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    shared = (*STUDENT, "--store", built.store, *ROTATION, "--checkpoint-every", 0, "--epochs", 6)
    assert kdpipe(*shared, "--out", whole).code == 0
    process, deadline = commands.start(*shared, "--out", killed), time.monotonic() + 60
    while not (killed / "checkpoint.previous.pt").exists():
        assert time.monotonic() < deadline
        time.sleep(0.0005)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert "Going on from" in kdpipe(*shared, "--out", killed, "--resume").err
    assert _weights(killed) == _weights(whole)
    assert _history(killed) == _history(whole)


def test_students_of_a_fleet_have_their_own_tasks(built: Built, kdpipe: Kdpipe, tmp_path: Path) -> None:
    own = {"plain": "", "turning": "aux: rotation, ", "heavily": "aux: 'rotation:2', "}
    listed = [f"- {{name: {name}, {settings}student: '{SMALL}', seed: 3}}" for name, settings in own.items()]
    fleet = tmp_path / "fleet.yaml"
    fleet.write_text("\n".join(listed))
    shared = ("train-student", *LIMITS, "--store", built.store, *SHARED)
    assert kdpipe(*shared, "--fleet", fleet, "--trust-code", "--out", tmp_path / "all").code == 0
    flags = {"plain": (), "turning": ROTATION, "heavily": ("--aux", "rotation:2")}
    for name, given in flags.items():
        alone = tmp_path / name
        assert kdpipe(*shared, "--student", SMALL, "--seed", 3, *given, "--out", alone).code == 0
        assert _weights(alone) == _weights(tmp_path / "all" / name)
        assert _history(alone) == _history(tmp_path / "all" / name)
    assert len({_weights(tmp_path / name) for name in flags}) == 3


@pytest.mark.parametrize("command", ["train-student", "train-teacher"])
def test_without_a_teacher_it_learns_from_samples_without_a_label(
    command: str, images: Path, kdpipe: Kdpipe, tmp_path: Path
) -> None:
    model = ("--student" if command == "train-student" else "--model", SMALL)
    shared = (command, "--data", f"folder:{images}", *model, *SHARED)
    learned = kdpipe(*shared, *ROTATION, "--out", tmp_path / "run")
    assert learned.code == 0
    assert "on 60 samples" in learned.err
    assert "Leaving" not in learned.err
    without = kdpipe(*shared, "--out", tmp_path / "without")
    assert "Leaving 40 of 60 samples out: they have no label." in without.err


def test_students_that_would_see_other_samples_alone_are_not_trained_together(
    images: Path, kdpipe: Kdpipe, tmp_path: Path
) -> None:
    fleet = tmp_path / "fleet.yaml"
    fleet.write_text(f"[{{student: '{SMALL}'}}, {{student: '{DROPPING}', aux: rotation}}]")
    shared = ("train-student", "--fleet", fleet, "--trust-code", *SHARED)
    apart = kdpipe(*shared, "--data", f"folder:{images}", "--out", tmp_path / "run")
    refused(apart, "samples without a label", "Give all of them --aux, or none.")
    assert not (tmp_path / "run").exists()
    together = kdpipe(*shared, "--data", f"folder:{images}", *ROTATION, "--out", tmp_path / "run")
    assert together.code == 0
    assert "on 60 samples" in together.err


def test_what_cannot_be_done_is_one_line(
    built: Built, kdpipe: Kdpipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    refused(kdpipe(*STUDENT, "--aux", "jigsaw", "--out", run), "--aux", "rotation", "'jigsaw'")
    for weight in (0, -1, "nan", "inf"):
        refused(kdpipe(*STUDENT, "--aux", f"rotation:{weight}", "--out", run), "--aux", f"weight={weight}")
    (tmp_path / "softened.py").write_text(
        "from torch import nn\n"
        "from kdpipe.testing.doubles import small_network\n"
        "def build(num_classes=10):\n"
        "    return nn.Sequential(small_network(num_classes), nn.Softplus())\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    softened = ("train-student", *LIMITS, "--student", "softened:build", *SHARED)
    refused(
        kdpipe(*softened, *ROTATION, "--out", run),
        "no layer of softened:build makes its logits, so it has no penultimate features for the task. Leave out --aux",
    )
    assert not run.exists()
    assert kdpipe(*softened, "--out", run).code == 0
    assert kdpipe(*STUDENT, *ROTATION, "--out", run, "--overwrite").code == 0
    refused(kdpipe(*STUDENT, "--resume", "--out", run), "aux: rotation:0.5 then, None now")
