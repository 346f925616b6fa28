"""Published losses in whole trainings: what they read from a store, that they train and resume, and refusals."""

from __future__ import annotations

import csv
import json
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from kdpipe import dataset, open_store
from kdpipe.distil.relations import class_relations
from kdpipe.errors import UnsupportedLossError
from kdpipe.pairing.join import join_checked
from kdpipe.store.plan import Limits
from tests.conftest import LIMITS, Built, Outcome, refused, run_command
from tests.processes import Server, Started

Kdpipe = Callable[..., Outcome]

SMALL = ("--input-size", 16, "--device", "cpu")
MEASURED = ("seconds", "images_per_second")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of a teacher that knows the digits, with penultimate features, in small chunks."""
    folder = tmp_path_factory.mktemp("features")
    teacher = ("--model", "resnet8", "--epochs", 12, "--batch-size", 32, "--lr", 0.05, "--out", folder / "teacher")
    assert run_command(None, "train-teacher", *LIMITS, *SMALL, *teacher).code == 0
    weights = folder / "teacher" / "model.safetensors"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kdpipe.store.plan.LIMITS", Limits(chunk_bytes=20 * 2 * 64))
        made = run_command(
            *(None, "cache-teacher", *LIMITS, "--teacher", "resnet8", "--weights", weights, "--device", "cpu"),
            *("--signals", "features:penultimate", "--views", 2, "--out", folder / "s.zarr"),
        )
    assert made.code == 0
    return folder / "s.zarr"


def _train(store: Path, out: Path, *flags: object) -> tuple[object, ...]:
    return (
        *("train-student", *LIMITS, *SMALL, "--store", store, "--student", "resnet8", "--out", out),
        *("--epochs", 1, "--batch-size", 32, *flags),
    )


def _history(run: Path) -> list[dict[str, str]]:
    with (run / "history.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("features", [False, True])
def test_classes_are_related_by_the_cosine_of_what_the_store_has_of_them(store: Path, features: bool) -> None:
    digits, opened = dataset.load("digits", "train", 200), open_store(store)
    rows, labels = join_checked(opened, digits), digits.labels.copy()
    labels[::7] = -1
    found = class_relations(opened, rows, labels, features=features)
    vectors = opened.features(rows).astype(np.float64) if features else opened.logits(rows).astype(np.float64)
    if not features:
        vectors -= vectors.mean(axis=1, keepdims=True)
    for i in range(10):
        for j in range(10):
            one, other = (vectors[labels == label].mean(axis=0) for label in (i, j))
            cosine = one @ other / np.linalg.norm(one) / np.linalg.norm(other)
            assert found[i, j].item() == pytest.approx(cosine, abs=1e-6)


def test_a_class_without_labels_is_related_to_none(store: Path) -> None:
    digits, opened = dataset.load("digits", "train", 200), open_store(store)
    labels = np.where(digits.labels == 3, -1, digits.labels)
    found = class_relations(opened, join_checked(opened, digits), labels)
    assert found[3].tolist() == found[:, 3].tolist() == np.eye(10)[3].tolist()


def test_class_relations_that_cannot_be_computed_are_one_line(
    built: Built, store: Path, kdpipe: Kdpipe, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    lacking = kdpipe(*_train(built.store, run, "--loss", "wkd:features=true"))
    refused(
        lacking, "features:penultimate, which", "does not keep", "kdpipe cache-teacher --signals features:penultimate"
    )
    refused(kdpipe(*_train(store, run, "--store", store, "--loss", "kd+wkd")), "found 2 stores. Give one --store")
    live = ("--teacher", "resnet8", "--weights", built.weights, "--distill", "live")
    refused(kdpipe(*_train(built.store, run, *live, "--loss", "wkd")), "found a live teacher")
    assert not run.exists()
    digits = dataset.load("digits", "train", 200)
    with pytest.raises(UnsupportedLossError, match="does not keep"):
        class_relations(open_store(built.store), np.arange(200), digits.labels, features=True)


LEARNERS = {
    "wttm": {"loss": "wttm"},
    "ctkd": {"loss": "kd", "temperature": "learned:1,5,over=4"},
    "wkd": {"loss": "wkd:gamma=20,features=true"},
    "mlkd": {"loss": "mlkd"},
    "itrd": {"loss": "itrd"},
    "crd": {"loss": "kd+crd:negatives=64,width=16"},
    "dot": {"loss": "kd", "dot": 0.075, "nesterov": False},
}


def _fleet(path: Path) -> Path:
    students = [
        {"name": name, "student": "resnet8", "seed": 3, "lr": 0.02, **settings} for name, settings in LEARNERS.items()
    ]
    path.write_text(json.dumps(students))
    return path


def _together(store: Path, fleet: Path, out: Path, *flags: object) -> tuple[object, ...]:
    shared = _train(store, out, "--fleet", fleet, *flags)
    place = shared.index("--student")
    return shared[:place] + shared[place + 2 :]


def test_a_hundred_steps_lower_every_loss_and_classify_better_than_chance(
    store: Path, kdpipe: Kdpipe, tmp_path: Path
) -> None:
    """15 epochs of 7 batches, all students in one fleet; chance is 10 %."""
    out = tmp_path / "all"
    assert kdpipe(*_together(store, _fleet(tmp_path / "fleet.json"), out, "--epochs", 15)).code == 0
    for name in LEARNERS:
        rows = _history(out / name)
        assert float(rows[-1]["loss"]) < float(rows[0]["loss"])
        assert float(rows[-1]["kd"]) < float(rows[0]["kd"])
        assert float(rows[-1]["train_top1"]) > 0.3
    heats = [float(row["temperature"]) for row in _history(out / "ctkd")]
    assert all(1 < heat < 5 for heat in heats)
    assert len(set(heats)) == 15


def test_killed_and_resumed_they_end_with_the_same_bytes(store: Path, commands: Server, tmp_path: Path) -> None:
    fleet = _fleet(tmp_path / "fleet.json")

    def start(out: Path, *flags: object) -> Started:
        return commands.start(*_together(store, fleet, out, "--checkpoint-every", 0, "--epochs", 2, *flags))

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert start(whole).wait() == 0
    process, newest, seen, deadline = start(killed), 0, 0, time.monotonic() + 120
    while seen < 9 and process.poll() is None:
        assert time.monotonic() < deadline
        last = killed / "dot" / "checkpoint.pt"
        written = last.stat().st_mtime_ns if last.exists() else 0
        seen, newest = seen + (written != newest), written
        time.sleep(0.0005)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert start(killed, "--resume").wait() == 0
    for name in LEARNERS:
        assert (killed / name / "model.safetensors").read_bytes() == (whole / name / "model.safetensors").read_bytes()
        for ours, theirs in zip(_history(killed / name), _history(whole / name), strict=True):
            assert {key: ours[key] for key in ours if key not in MEASURED} == {
                key: theirs[key] for key in theirs if key not in MEASURED
            }


def test_two_views_of_a_sample_in_a_batch(store: Path, kdpipe: Kdpipe, tmp_path: Path) -> None:
    """From planes in memory and from windows of them, whose order is another."""
    two = ("--views-per-sample", 2, "--epochs", 2, "--loss", "mlkd", "--lr", 1e-6)
    run, windowed = tmp_path / "run", tmp_path / "windowed"
    saved = kdpipe(*_train(store, run, *two))
    assert saved.code == 0
    assert "Saved 4 passes of the teacher" in saved.err
    assert json.loads((run / "run.json").read_text())["parameters"]["views_per_sample"] == 2
    assert [row["view"] for row in _history(run)] == ["1", "1"]  # views 1 and 2, the store's two, in either epoch
    limit = 4 * open_store(store).plane_bytes - 1
    assert kdpipe(*_train(store, windowed, *two, "--memory-limit", f"{limit / 1024**3:.12f}")).code == 0
    losses = [float(_history(each)[-1]["loss"]) for each in (run, windowed)]
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.1)
    once = tmp_path / "once.zarr"
    teacher = store.parent / "teacher" / "model.safetensors"
    made = ("cache-teacher", *LIMITS, "--teacher", "resnet8", "--weights", teacher, "--device", "cpu", "--views", 1)
    assert kdpipe(*made, "--out", once).code == 0
    lacking = kdpipe(*_train(once, tmp_path / "lacking", "--views-per-sample", 2))
    refused(lacking, "takes two different views of a sample, found 1 augmented view", "--views 2 or more")
    assert not (tmp_path / "lacking").exists()


def test_separate_momenta_need_a_teacher(store: Path, kdpipe: Kdpipe, tmp_path: Path) -> None:
    run = tmp_path / "run"
    refused(kdpipe(*_train(store, run, "--distill", "none", "--dot", 0.05)), "--dot has separate momenta", "one loss")
    teacher = ("train-teacher", *LIMITS, "--model", "resnet8", "--device", "cpu", "--epochs", 1, "--out", run)
    refused(kdpipe(*teacher, "--dot", 0.05), "--dot has separate momenta")
    adamw = kdpipe(*_train(store, run, "--dot", 0.05, "--optimizer", "adamw"))
    refused(adamw, "dot takes two gradients of each step by sgd, which optimizer adamw does not fit")
    assert not run.exists()
