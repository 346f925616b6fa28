"""Files of a run that are damaged, forged or of another run: one line, and nothing is measured or trained by them."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import LIMITS, Outcome, refused, run_command

Kdpipe = Callable[..., Outcome]

STUDENT = (
    *("train-student", *LIMITS, "--distill", "none", "--student", "resnet8", "--input-size", 8, "--device", "cpu"),
    *("--recipe", "none", "--batch-size", 50, "--epochs", 1),
)
BENCHMARK = ("benchmark", "--data", "digits", "--device", "cpu", "--rounds", 5, "--no-cold-starts")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained") / "run"
    assert run_command(None, *STUDENT, "--out", out).code == 0
    return out


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def _compare(kdpipe: Kdpipe, run: Path, *flags: object) -> Outcome:
    return kdpipe(*BENCHMARK, "--limit-test", 60, "--run", run, "--out", run.parent / "reports", *flags)


def _change(path: Path, **sections: Any) -> None:
    content = json.loads(path.read_text()) | sections
    path.write_text(json.dumps({key: value for key, value in content.items() if value != "absent"}))


def _deep(levels: int) -> str:
    return '{"parameters": ' + "[" * levels + "]" * levels + "}"


ODD: dict[str, tuple[str, Callable[[Path], object]]] = {
    "a list": ("run.json", lambda path: path.write_text("[]")),
    "deep": ("run.json", lambda path: path.write_text(_deep(100_000))),
    "no classes": ("run.json", lambda path: _change(path, classes="absent")),
    "odd classes": ("run.json", lambda path: _change(path, classes=[1, 2])),
    "an unknown distill": ("run.json", lambda path: _change(path, distill="sometimes")),
    "parameters in a list": ("run.json", lambda path: _change(path, parameters=[])),
    "a seed in words": ("run.json", lambda path: _change(path, parameters={"seed": "one"})),
    "a huge size": ("run.json", lambda path: _change(path, preset={**PRESET, "size": 30_000})),
    "a mean of text": ("run.json", lambda path: _change(path, preset={**PRESET, "mean": ["a", "b", "c"]})),
    "stores of text": ("run.json", lambda path: _change(path, lineage={"stores": "logits.zarr"})),
    "an unknown section": ("run.json", lambda path: _change(path, more=1)),
    "not text": ("run.json", lambda path: path.write_bytes(b"\xff\xfe")),
    "a link": ("run.json", lambda path: (path.rename(path.parent / "x"), path.symlink_to(path.parent / "x"))),
    "a FIFO": ("run.json", lambda path: (path.unlink(), os.mkfifo(path))),
    "metrics in a list": ("metrics.json", lambda path: path.write_text("[1]")),
    "metrics without test": ("metrics.json", lambda path: path.write_text("{}")),
    "a huge accuracy": ("metrics.json", lambda path: _change(path, test={"top1": 10**400})),
    "NaN": ("metrics.json", lambda path: path.write_text('{"test": {"top1": NaN}}')),
    "history of text": ("history.csv", lambda path: path.write_text("epoch,loss\n1,low\n")),
    "history of NaN": ("history.csv", lambda path: path.write_text("epoch,loss\n1,nan\n")),
    "history of a long row": ("history.csv", lambda path: path.write_text("epoch,loss\n1,2,3\n")),
    "history of a short row": ("history.csv", lambda path: path.write_text("epoch,loss\n1\n")),
    "weights that are a link": (
        "model.safetensors",
        lambda path: (path.rename(path.parent / "x"), path.symlink_to(path.parent / "x")),
    ),
    "no weights": ("model.safetensors", lambda path: path.unlink()),
    "weights that are a FIFO": ("model.safetensors", lambda path: (path.unlink(), os.mkfifo(path))),
}
PRESET = {"size": 8, "resize": 8, "interpolation": "bilinear", "mean": [0.5] * 3, "std": [0.5] * 3}


@pytest.mark.parametrize("what", ODD)
def test_an_odd_file_of_a_run_is_refused_before_anything_is_measured(run: Path, kdpipe: Kdpipe, what: str) -> None:
    name, spoil = ODD[what]
    good = shutil.copytree(run, run.parent / "good")
    spoil(run / name)
    outcome = _compare(kdpipe, good, "--run", run)
    refused(outcome, f"{run / name}")
    assert "Timing" not in outcome.err
    assert not (run.parent / "reports").exists()


def test_a_flipped_bit_in_the_weights_is_noticed(run: Path, kdpipe: Kdpipe) -> None:
    content = bytearray((run / "model.safetensors").read_bytes())
    content[-2] ^= 0x40
    (run / "model.safetensors").write_bytes(content)
    out = run.parent / "next"
    for outcome in (
        _compare(kdpipe, run),
        kdpipe(*STUDENT, "--init-weights", f"run:{run}", "--out", out),
        kdpipe("cache-teacher", *LIMITS, "--teacher", f"run:{run}", "--out", run.parent / "l.zarr"),
    ):
        refused(outcome, f"{run / 'model.safetensors'} is damaged or was replaced: its digest is")
    assert sorted(path.name for path in run.parent.iterdir()) == ["run"]


def test_the_weights_of_another_run_are_noticed_by_either_record(run: Path, kdpipe: Kdpipe) -> None:
    for name in ("metrics.json", "run.json"):
        copy = Path(shutil.copytree(run, run.parent / name))
        other = "run.json" if name == "metrics.json" else "metrics.json"
        _change(copy / other, weights="absent")
        _change(copy / name, weights={"model.safetensors": "0" * 64})
        refused(_compare(kdpipe, copy), f"{name} recorded 00000000")


def _state(run: Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(run / "checkpoint.pt", weights_only=True)
    return state


ODD_STATES: dict[str, Callable[[dict[str, Any]], object]] = {
    "no history": lambda state: state.pop("history"),
    "a history of text": lambda state: state.update(history=["epoch 1"]),
    "a step of text": lambda state: state.update(step="first"),
    "a step beyond the epoch": lambda state: state.update(step=10**6, history=[]),
    "no weights": lambda state: state.pop("model"),
    "weights of another shape": lambda state: state["model"].update(
        {name: torch.zeros(3) for name in list(state["model"])[:1]}
    ),
    "no optimizer": lambda state: state.pop("optimizer"),
    "an optimizer of other shapes": lambda state: state["optimizer"]["state"][0].update(momentum_buffer=torch.ones(7)),
    "another momentum": lambda state: state["optimizer"]["param_groups"][0].update(momentum=3.0),
    "a generator of text": lambda state: state.update(generator="random"),
    "another version": lambda state: state.update(format=3),
}


@pytest.mark.parametrize("what", ODD_STATES)
def test_an_odd_checkpoint_is_refused(tmp_path: Path, kdpipe: Kdpipe, what: str) -> None:
    run = tmp_path / "run"
    assert kdpipe(*STUDENT, "--out", run).code == 0
    state = _state(run)
    ODD_STATES[what](state)
    torch.save(state, run / "checkpoint.pt")
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.name != "run.json"}
    refused(kdpipe(*STUDENT, "--out", run, "--resume"), "the checkpoint", "--overwrite")
    assert {path.name: path.read_bytes() for path in run.iterdir() if path.name != "run.json"} == before


def test_labels_that_changed_since_the_stop_are_refused(
    tmp_path: Path, kdpipe: Kdpipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "corrected_since.py").write_text(
        "from pathlib import Path\nfrom kdpipe import dataset\n\nclass Digits(list):\n    pass\n\n"
        "def load(split):\n"
        "    changed = Path(__file__).with_name('changed').exists() and split == 'train'\n"
        "    digits = dataset.load('digits', split, 100)\n"
        "    labels = [(int(label) + (changed and i == 7)) % 10 for i, label in enumerate(digits.labels)]\n"
        "    found = Digits((digits.image(i), labels[i]) for i in range(100))\n"
        "    found.classes, found.keys = digits.classes, digits.keys\n"
        "    return found\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    command = ("train-student", "--data", "corrected_since:load", *STUDENT[5:], "--out", tmp_path / "run")
    assert kdpipe(*command).code == 0
    assert kdpipe(*command, "--resume").code == 0
    (tmp_path / "changed").touch()
    refused(
        kdpipe(*command, "--resume"),
        f"{tmp_path / 'run'} was started with other labels than these: 1 of 100 train labels have changed",
    )
    _change(tmp_path / "run" / "run.json", labels="absent")  # as runs of before they were recorded
    assert kdpipe(*command, "--resume").code == 0


def test_other_test_images_are_refused(run: Path, kdpipe: Kdpipe) -> None:
    outcome = kdpipe(*BENCHMARK, "--limit-test", 50, "--run", run, "--out", run.parent / "reports")
    refused(outcome, f"{run} was tested on other images", "--limit-test")
    assert not (run.parent / "reports").exists()


@pytest.mark.parametrize(
    ("section", "value", "said"),
    [
        ("epochs", 9, "images over 9 epochs, not"),
        ("batch_size", 64, "batch size 64, not 50"),
        ("optimizer", "adamw", "optimizer adamw, not sgd"),
    ],
)
def test_a_baseline_with_another_budget_gives_no_gap(
    run: Path, kdpipe: Kdpipe, section: str, value: object, said: str
) -> None:
    baseline = Path(shutil.copytree(run, run.parent / "baseline"))
    record = json.loads((baseline / "run.json").read_text())
    _change(run / "run.json", distill="live")
    _change(baseline / "run.json", parameters={**record["parameters"], section: value})
    store = run.parent / "l.zarr"
    assert kdpipe("cache-teacher", *LIMITS, "--teacher", f"run:{run}", "--views", 1, "--out", store).code == 0
    outcome = _compare(kdpipe, run, "--run", baseline, "--store", store)
    assert outcome.code == 0
    metrics = json.loads((run.parent / "reports" / "metrics.json").read_text())["students"]["run"]
    assert said in metrics["gap_note"]
    assert said in " ".join(outcome.out.split())


def test_a_fleet_of_aliases_is_refused_at_once(tmp_path: Path, kdpipe: Kdpipe) -> None:
    lines = ["a0: &a0 [x, x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12))]
    (tmp_path / "fleet.yaml").write_text("\n".join(lines))
    began = time.monotonic()
    refused(
        kdpipe(
            "train-student", *LIMITS, "--distill", "none", "--fleet", tmp_path / "fleet.yaml", "--out", tmp_path / "r"
        ),
        f"{tmp_path / 'fleet.yaml'} holds more than",
    )
    assert time.monotonic() - began < 5


def test_a_log_folder_that_is_a_link_is_left_alone(tmp_path: Path, kdpipe: Kdpipe) -> None:
    run, theirs = tmp_path / "run", tmp_path / "theirs"
    assert kdpipe(*STUDENT, "--out", run).code == 0
    theirs.mkdir()
    (theirs / ".kdpipe").write_text("")
    (theirs / "precious").write_text("precious")
    (run / "tensorboard").symlink_to(theirs)
    assert kdpipe(*STUDENT, "--out", run, "--overwrite").code == 0
    assert (theirs / "precious").read_text() == "precious"
    refused(kdpipe(*STUDENT, "--out", run, "--overwrite", "--tensorboard"), "tensorboard is not a log of kdpipe")
    assert (theirs / "precious").read_text() == "precious"
