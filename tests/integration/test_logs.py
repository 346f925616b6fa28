"""DVCLive, TensorBoard and Weights & Biases, read back from what they really left."""

from __future__ import annotations

import csv
import json
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.conftest import LIMITS, ROOT, Built, Outcome, refused
from tests.networks import SMALL
from tests.processes import Server

pytest.importorskip("dvclive", reason="DVCLive is not installed: pip install 'kdpipe[dvc]'")
pytest.importorskip("tensorboard", reason="TensorBoard is not installed: pip install 'kdpipe[tensorboard]'")
pytest.importorskip("wandb", reason="Weights & Biases is not installed: pip install 'kdpipe[wandb]'")

Kdpipe = Callable[..., Outcome]
Series = dict[str, list[tuple[int, float]]]

EPOCHS = 3
NAMES = ("dvclive", "tensorboard", "wandb")
TEACHER = ("train-teacher", *LIMITS, "--model", SMALL, "--input-size", 16, "--device", "cpu", "--epochs", EPOCHS)
TIMES = ("seconds", "images_per_second")


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    for name in [name for name in os.environ if name.startswith(("WANDB_", "DVC"))]:
        monkeypatch.delenv(name)
    folder = tmp_path_factory.mktemp("home")
    for name in ("CONFIG", "CACHE", "DATA", "ARTIFACT"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(folder))
    for name, value in (("WANDB_MODE", "offline"), ("WANDB_SILENT", "true"), ("DVC_NO_ANALYTICS", "1")):
        monkeypatch.setenv(name, value)


def _run(folder: Path, *command: str) -> str:
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "GIT_CONFIG_GLOBAL": os.devnull,
        **{f"GIT_{who}_{what}": "tester@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
    }
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def repositories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DVC repository without a commit, ``fresh``, and one with a commit, ``begun``."""
    folder = tmp_path_factory.mktemp("repositories")
    fresh = folder / "fresh"
    fresh.mkdir()
    _run(fresh, "git", "init", "--quiet")
    _run(fresh, "dvc", "init", "--quiet")
    _run(shutil.copytree(fresh, folder / "begun"), "git", "commit", "--quiet", "--message", "Start")
    return folder


@pytest.fixture
def fresh(repositories: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A DVC repository without a commit, and the working directory."""
    folder = shutil.copytree(repositories / "fresh", tmp_path / "repository")
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def repository(repositories: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A DVC repository with a commit, and the working directory."""
    folder = shutil.copytree(repositories / "begun", tmp_path / "repository")
    monkeypatch.chdir(folder)
    return folder


def _history(run: Path) -> Series:
    """The columns of ``history.csv`` by epoch."""
    with (run / "history.csv").open() as file:
        rows = [{name: float(text) for name, text in row.items()} for row in csv.DictReader(file)]
    return {name: [(int(row["epoch"]), row[name]) for row in rows] for name in rows[0] if name != "epoch"}


def _dvclive(run: Path) -> Series:
    found: Series = {}
    for path in (run / "dvclive" / "plots" / "metrics").rglob("*.tsv"):
        with path.open() as file:
            found[path.stem] = [
                (int(row["step"]), float(row[path.stem])) for row in csv.DictReader(file, delimiter="\t")
            ]
    return found


def _tensorboard(run: Path) -> Series:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert len(list((run / "tensorboard").glob("events.*"))) == 1
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def _wandb_records(run: Path) -> Iterator[Any]:
    """The records of the one run that is kept: a log in blocks of 32 KiB, as LevelDB's, after seven bytes."""
    from wandb.proto import wandb_internal_pb2

    (path,) = (run / "wandb").glob("offline-run-*/run-*.wandb")
    content, place, record = path.read_bytes(), 7, b""
    while place + 7 <= len(content):
        if (left := 32768 - place % 32768) < 7:
            place += left
            continue
        size, kind = struct.unpack("<HB", content[place + 4 : place + 7])
        record += content[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):
            parsed = wandb_internal_pb2.Record()
            parsed.ParseFromString(record)
            yield parsed
            record = b""


def _items(items: Any) -> dict[str, Any]:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


def _wandb(run: Path) -> Series:
    found: Series = {}
    for record in _wandb_records(run):
        if record.WhichOneof("record_type") == "history":
            for name, value in _items(record.history.item).items():
                if name != "epoch" and not name.startswith("_"):
                    found.setdefault(name, []).append((record.history.step.num, value))
    return found


def _assert_holds(run: Path, *names: str) -> None:
    """Assert that each log has every figure of the history, each epoch once, and nothing else but test accuracies."""
    expected = _history(run)
    test = json.loads((run / "metrics.json").read_text())["test"]["top1"]
    readers = {"dvclive": _dvclive, "tensorboard": _tensorboard, "wandb": _wandb}
    for name in names:
        found = readers[name](run)
        scores = {name: found.pop(name) for name in list(found) if "/" in name}
        assert set(found) == set(expected)
        for column, values in expected.items():
            assert found[column] == [(step, pytest.approx(value)) for step, value in values], (name, column)
        if name == "tensorboard":
            assert scores["test/top1"] == [(EPOCHS, pytest.approx(test))]
    if "dvclive" in names:
        assert json.loads((run / "dvclive" / "metrics.json").read_text())["test"]["top1"] == test
    if "wandb" in names:
        updates = [_items(record.summary.update) for record in _wandb_records(run)]
        assert [update["test/top1"] for update in updates if "test/top1" in update] == [test]


def _hyperparameters(run: Path) -> dict[str, dict[str, Any]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    events = EventAccumulator(str(run / "tensorboard")).Reload()
    told = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    session = HParamsPluginData.FromString(told).session_start_info
    records = list(_wandb_records(run))
    return {
        "dvclive": yaml.safe_load((run / "dvclive" / "params.yaml").read_text()),
        "tensorboard": {name: getattr(value, value.WhichOneof("kind")) for name, value in session.hparams.items()},
        "wandb": {name: value for record in records for name, value in _items(record.run.config.update).items()},
    }


def test_every_log_has_every_figure(built: Built, repository: Path, kdpipe: Kdpipe) -> None:
    outcome = kdpipe(
        *("train-student", *LIMITS, "--store", built.store, "--student", "resnet8", "--epochs", EPOCHS),
        *("--input-size", 16),
        *("--kd-weight", "linear:1,0.5", "--validation", 0.25, "--out", "runs/a", "--tensorboard", "--wandb"),
    )
    assert outcome.code == 0
    run = repository / "runs" / "a"
    assert {"kd", "ce", "loss", "kd_weight", "train_top1", "validation_top1", "lr"} <= set(_history(run))
    _assert_holds(run, *NAMES)
    metrics = json.loads((run / "metrics.json").read_text())
    best = metrics["best_on_validation"]["test"]["top1"]
    assert json.loads((run / "dvclive" / "metrics.json").read_text())["best_on_validation"]["test"]["top1"] == best
    assert _tensorboard(run)["best_on_validation/test/top1"] == [(EPOCHS, pytest.approx(best))]

    record = json.loads((run / "run.json").read_text())
    digest = record["lineage"]["stores"][0]["digest"]
    expected = {
        "lr": 0.1,
        "model": "resnet8",
        "num_parameters": record["num_parameters"],
        "kd_weight": "linear:1,0.5",
    }
    for name, found in _hyperparameters(run).items():
        assert expected.items() <= found.items(), name
        assert found["lineage.stores.0.digest"] == digest, name

    assert _run(repository, "git", "status", "--porcelain") == "?? runs/\n"
    assert "refs/exps" not in _run(repository, "git", "for-each-ref")
    assert not list(repository.rglob("dvc.yaml"))
    assert "test.top1" in _run(repository, "dvc", "metrics", "show", "runs/a/dvclive/metrics.json")


def test_students_that_are_trained_together_have_their_own_logs(repository: Path, kdpipe: Kdpipe) -> None:
    students = [{"student": SMALL}, {"name": "slow", "student": SMALL, "lr": 0.01}]
    (repository / "fleet.yaml").write_text(yaml.safe_dump(students))
    flags = ("train-student", *LIMITS, "--fleet", "fleet.yaml", "--trust-code", "--epochs", EPOCHS, "--input-size", 16)
    assert kdpipe(*flags, "--tensorboard", "--wandb", "--out", "runs").code == 0
    for name, lr in (("small", 0.1), ("slow", 0.01)):
        _assert_holds(repository / "runs" / name, *NAMES)
        for found in _hyperparameters(repository / "runs" / name).values():
            assert found["lr"] == lr


def _ends(run: Path) -> tuple[int, str]:
    """How the run ended: its exit code for Weights & Biases, and its state on TensorBoard's HParams page."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.api_pb2 import Status
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    (code,) = [record.exit.exit_code for record in _wandb_records(run) if record.WhichOneof("record_type") == "exit"]
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    told = events.SummaryMetadata("_hparams_/session_end_info").plugin_data.content
    return code, Status.Name(HParamsPluginData.FromString(told).session_end_info.status)


def _files(folder: Path) -> dict[Path, bytes]:
    """The files of a log, but for what its package notes of itself."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.suffix != ".log"}


def test_the_logs_of_a_student_that_is_left_out_end_as_failed(repository: Path, kdpipe: Kdpipe) -> None:
    flags = ("train-student", *LIMITS, "--student", SMALL, "--student", "tests.networks:starving", "--input-size", 16)
    flags = (*flags, "--epochs", EPOCHS, "--batch-size", 32, "--tensorboard", "--wandb", "--out", "runs")
    refused(kdpipe(*flags), "(starving)")
    finished, failed = repository / "runs" / "small", repository / "runs" / "starving"
    _assert_holds(finished, *NAMES)
    assert _ends(finished) == (0, "STATUS_SUCCESS")
    assert _ends(failed) == (1, "STATUS_FAILURE")
    for found in (_dvclive(failed), _tensorboard(failed), _wandb(failed)):
        assert [step for step, _ in found["loss"]] == [1]

    logs = {name: _files(failed / name) for name in NAMES}
    refused(kdpipe(*flags, "--resume"), "(starving)")
    assert {name: _files(failed / name) for name in NAMES} == logs
    _assert_holds(finished, *NAMES)


def test_logs_change_nothing_in_the_training(repository: Path, kdpipe: Kdpipe) -> None:
    assert kdpipe(*TEACHER, "--out", "with", "--tensorboard", "--wandb").code == 0
    assert kdpipe(*TEACHER, "--out", "without", "--no-dvclive").code == 0
    assert {path.name for path in (repository / "with").iterdir()} > set(NAMES)
    assert not set(NAMES) & {path.name for path in (repository / "without").iterdir()}
    weights, expected = ((repository / name / "model.safetensors").read_bytes() for name in ("with", "without"))
    assert weights == expected
    drawn, expected_drawn = (
        torch.load(repository / name / "checkpoint.pt")["generator"] for name in ("with", "without")
    )
    assert torch.equal(drawn, expected_drawn)
    history, expected_history = (_history(repository / name) for name in ("with", "without"))
    for column in set(history) - set(TIMES):
        assert history[column] == expected_history[column]


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM])
def test_a_resumed_run_logs_each_epoch_once(repository: Path, sent: signal.Signals, commands: Server) -> None:
    draw = random.Random(time.time_ns())
    run = repository / "run"
    command = (*TEACHER, "--out", "run", "--tensorboard", "--wandb", "--batch-size", 32, "--checkpoint-every", 0)
    command = (*command, "--model", "resnet8", "--input-size", 32)  # slow enough to be killed in the last epoch
    ids, resume = set(), []
    for epochs in (1, 2, None):
        process = commands.start(*command, *resume, cwd=repository)
        deadline = time.monotonic() + 60
        while epochs is not None and process.poll() is None and _epochs_done(run) < epochs:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        if epochs is not None:
            time.sleep(draw.uniform(0, 0.05))
            process.send_signal(sent)
        _, errors = process.communicate()
        assert "Traceback" not in errors
        assert process.returncode == (0 if epochs is None else -9 if sent == signal.SIGKILL else 143), errors
        ids.add((run / "wandb" / "run-id").read_text())
        resume = ["--resume"]
    _assert_holds(run, *NAMES)
    assert len(ids) == 1


def _epochs_done(run: Path) -> int:
    try:
        return (run / "history.csv").read_text().count("\n") - 1
    except FileNotFoundError:
        return 0


def test_a_run_that_starts_again_has_new_logs(repository: Path, kdpipe: Kdpipe) -> None:
    assert kdpipe(*TEACHER, "--out", "run", "--tensorboard", "--wandb").code == 0
    before = (repository / "run" / "wandb" / "run-id").read_text()
    # DVC removes the outputs of a stage before it runs, and leaves what it does not know of.
    for path in (repository / "run").iterdir():
        if path.is_file():
            path.unlink()
    assert kdpipe(*TEACHER, "--out", "run", "--wandb", "--lr", 0.05).code == 0
    assert not (repository / "run" / "tensorboard").exists()
    assert (repository / "run" / "wandb" / "run-id").read_text() != before
    _assert_holds(repository / "run", "dvclive", "wandb")


def test_a_folder_of_others_is_left_alone(tmp_path: Path, kdpipe: Kdpipe) -> None:
    theirs = tmp_path / "run" / "wandb" / "offline-run-1" / "run.wandb"
    theirs.parent.mkdir(parents=True)
    theirs.write_bytes(b"theirs")
    refused(kdpipe(*TEACHER, "--out", tmp_path / "run"), "is not a run: it holds wandb")
    shutil.move(tmp_path / "run" / "wandb", tmp_path / "wandb")
    assert kdpipe(*TEACHER, "--out", tmp_path / "run").code == 0
    shutil.move(tmp_path / "wandb", tmp_path / "run" / "wandb")
    refused(
        kdpipe(*TEACHER, "--out", tmp_path / "run", "--overwrite", "--wandb"),
        "is not a log of kdpipe",
        "Leave out --wandb",
    )
    assert theirs.read_bytes() == b"theirs"
    assert (tmp_path / "run" / "metrics.json").is_file()  # the run made before is kept


def test_a_repository_without_a_commit(fresh: Path, kdpipe: Kdpipe) -> None:
    outcome = kdpipe(*TEACHER, "--out", "run")
    assert outcome.code == 0
    assert [line for line in outcome.err.splitlines() if "DVCLive" in line] == [
        "warning: DVCLive cannot log this run (Empty git repo)."
    ]
    assert not (fresh / "run" / "dvclive").exists()
    refused(
        kdpipe(*TEACHER, "--out", "run", "--overwrite", "--dvclive"), "DVCLive cannot log this run (Empty git repo)"
    )


def test_only_what_lies_in_the_repository_is_logged_with_dvclive(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kdpipe: Kdpipe
) -> None:
    assert kdpipe(*TEACHER, "--out", tmp_path / "outside").code == 0
    assert not (tmp_path / "outside" / "dvclive").exists()
    plain = tmp_path / "plain"
    plain.mkdir()
    _run(plain, "git", "init", "--quiet")
    monkeypatch.chdir(plain)
    assert kdpipe(*TEACHER, "--out", "run").code == 0
    assert not (plain / "run" / "dvclive").exists()
    refused(kdpipe(*TEACHER, "--out", "other", "--dvclive"), "--dvclive needs a DVC repository", "dvc init")
    assert {path.name for path in plain.iterdir()} == {".git", "run"}


@pytest.mark.parametrize(("name", "extra"), [("dvclive", "dvc"), ("tensorboard", "tensorboard"), ("wandb", "wandb")])
def test_a_package_that_is_not_installed(
    name: str, extra: str, repository: Path, monkeypatch: pytest.MonkeyPatch, kdpipe: Kdpipe
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    refused(kdpipe(*TEACHER, "--out", "run", f"--{name}"), f"--{name} needs", f"pip install 'kdpipe[{extra}]'")
    assert not (repository / "run").exists()
    outcome = kdpipe(*TEACHER, "--out", "run")
    assert outcome.code == 0
    assert (repository / "run" / "dvclive").exists() == (name != "dvclive")


def test_a_log_that_fails_does_not_stop_the_training(
    repository: Path, monkeypatch: pytest.MonkeyPatch, kdpipe: Kdpipe
) -> None:
    from dvclive import Live

    assert kdpipe(*TEACHER, "--out", "whole", "--no-dvclive").code == 0
    step = Live.next_step

    def then_break(live: Live) -> None:
        step(live)
        shutil.rmtree(live.dir)
        Path(live.dir).write_text("no folder any more")

    monkeypatch.setattr(Live, "next_step", then_break)
    outcome = kdpipe(*TEACHER, "--out", "run", "--tensorboard")
    assert outcome.code == 0
    assert (
        len(
            [
                line
                for line in outcome.err.splitlines()
                if "warning: DVCLive failed and logs no more of this run (" in line
            ]
        )
        == 1
    )
    _assert_holds(repository / "run", "tensorboard")
    weights, expected = ((repository / name / "model.safetensors").read_bytes() for name in ("run", "whole"))
    assert weights == expected


def test_a_log_that_was_asked_for_and_cannot_begin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kdpipe: Kdpipe
) -> None:
    (tmp_path / "run" / "tensorboard").mkdir(parents=True)
    (tmp_path / "run" / "tensorboard" / ".kdpipe").touch()
    monkeypatch.setattr("torch.utils.tensorboard.SummaryWriter", lambda _folder: 1 / 0)
    outcome = kdpipe(*TEACHER, "--out", tmp_path / "run", "--tensorboard")
    refused(outcome, "TensorBoard cannot log this run (division by zero). Leave out --tensorboard.")
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"run.json"}


def test_each_seed_has_its_own(repository: Path, kdpipe: Kdpipe) -> None:
    assert kdpipe(*TEACHER, "--seeds", "0,1", "--out", "run", "--tensorboard", "--wandb").code == 0
    runs = [repository / "run" / f"seed-{seed}" for seed in (0, 1)]
    for run in runs:
        _assert_holds(run, *NAMES)
    assert _dvclive(runs[0])["loss"] != _dvclive(runs[1])["loss"]
    assert len({(run / "wandb" / "run-id").read_text() for run in runs}) == 2


def test_nothing_is_imported_that_is_not_used() -> None:
    code = (
        "import sys, kdpipe.stages.training\n"
        "print([name for name in sys.modules if name.split('.')[0] in sys.argv[1:]])"
    )
    found = subprocess.run([sys.executable, "-c", code, *NAMES], capture_output=True, text=True, check=True, cwd=ROOT)
    assert found.stdout == "[]\n"
