"""Run directories: no run is lost, mixed with another or half-written, whatever happens while it is made."""

from __future__ import annotations

import errno
import json
import os
import shlex
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kdpipe import durable
from kdpipe.errors import RunError
from kdpipe.report import publish
from tests.conftest import LIMITS, Outcome, refused, run_command
from tests.processes import Server, Started

Kdpipe = Callable[..., Outcome]

STUDENT = (
    *("train-student", *LIMITS, "--distill", "none", "--student", "resnet8", "--input-size", 8, "--device", "cpu"),
    *("--recipe", "none", "--batch-size", 50),
)


def _student(out: Path, *flags: object, epochs: int = 1) -> tuple[object, ...]:
    return *STUDENT, "--out", out, "--epochs", epochs, *flags


def _content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run."""
    assert run_command(None, *_student(tmp_path / "run")).code == 0
    return tmp_path / "run"


def test_a_finished_run_is_replaced_only_when_asked(run: Path, kdpipe: Kdpipe) -> None:
    before = _content(run)
    refused(kdpipe(*_student(run, "--seed", 1)), f"{run} holds a finished run", "--overwrite")
    assert _content(run) == before
    assert [path.name for path in run.parent.iterdir()] == ["run"]
    assert kdpipe(*_student(run, "--seed", 1, "--overwrite")).code == 0
    assert (run / "model.safetensors").read_bytes() != before["model.safetensors"]


def test_a_run_that_was_begun_is_replaced_only_when_asked(run: Path, kdpipe: Kdpipe) -> None:
    (run / "metrics.json").unlink()
    (run / "model.safetensors").unlink()
    before = _content(run)
    refused(kdpipe(*_student(run, "--seed", 1)), f"{run} holds a run that was begun", "--resume", "--overwrite")
    assert _content(run) == before
    refused(kdpipe(*_student(run, "--resume", "--overwrite")), "resume goes on with a run and overwrite replaces it")


def test_a_finished_run_that_is_resumed_stays_the_same(run: Path, kdpipe: Kdpipe) -> None:
    before = _content(run)
    assert kdpipe(*_student(run, "--resume")).code == 0
    for name in ("model.safetensors", "history.csv", "metrics.json"):
        assert (run / name).read_bytes() == before[name]
    (run / "checkpoint.pt").unlink()
    before = _content(run)
    refused(kdpipe(*_student(run, "--resume")), f"{run} is finished, and its checkpoint is gone")
    assert _content(run) == before


def test_a_run_whose_record_lacks_newer_settings_is_resumed(run: Path, kdpipe: Kdpipe) -> None:
    record = json.loads((run / "run.json").read_text())
    lacking = [key for key, value in record["parameters"].items() if value is None or value is False]
    lacking += ["views_per_sample", "classes", "outputs"]
    assert "skip_broken" in lacking
    for key in lacking:
        del record["parameters"][key]
    (run / "run.json").write_text(json.dumps(record))
    refused(kdpipe(*_student(run, "--resume", "--skip-broken")), "skip_broken: None then, True now")
    assert kdpipe(*_student(run, "--resume")).code == 0


def test_no_student_of_several_is_replaced_before_all_are_checked(run: Path, kdpipe: Kdpipe) -> None:
    out = run.parent / "runs"
    out.mkdir()
    run.rename(out / "seed-3")
    before = _content(out)
    refused(kdpipe(*_student(out, "--seeds", "2,3")), f"{out / 'seed-3'} holds a finished run", "--overwrite")
    assert _content(out) == before
    (out / "seed-3").rename(out / "resnet14")
    before = _content(out)
    refused(kdpipe(*_student(out, "--student", "resnet14")), f"{out / 'resnet14'} holds a finished run")
    assert _content(out) == before
    assert sorted(path.name for path in out.iterdir()) == ["resnet14"]


def test_one_of_several_ranks_is_refused(tmp_path: Path, kdpipe: Kdpipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    given = ("train-teacher", *LIMITS, "--model", "resnet8", "--out", tmp_path / "run")
    refused(kdpipe(*given), "kdpipe train-teacher runs in one process, and WORLD_SIZE is 2")
    assert not list(tmp_path.iterdir())


def _begun(commands: Server, out: Path, *flags: object) -> Started:
    """Start a long training and wait for its first checkpoint."""
    process = commands.start(*_student(out, "--checkpoint-every", 0, *flags, epochs=1000))
    deadline = time.monotonic() + 60
    while not (out / "checkpoint.pt").exists() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    return process


def test_two_trainings_at_once(tmp_path: Path, commands: Server) -> None:
    first = _begun(commands, tmp_path / "run")
    for flags in (("--overwrite",), ("--resume",), ("--seed", 1, "--overwrite")):
        second = commands.start(*_student(tmp_path / "run", *flags, epochs=1000))
        _, errors = second.communicate()
        assert second.returncode == 1
        assert f"{tmp_path / 'run'} is being written by process {first.pid}" in errors.splitlines()[-1]
        assert "Traceback" not in errors
    assert first.poll() is None
    first.kill()
    first.wait()
    assert json.loads((tmp_path / "run" / "run.json").read_text())["parameters"]["seed"] == 0
    assert commands.start(*_student(tmp_path / "run", "--overwrite")).wait() == 0
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert not [path for path in (tmp_path / "run").iterdir() if path.name.startswith(".")]


def test_a_lock_that_is_a_link_is_refused(tmp_path: Path, kdpipe: Kdpipe) -> None:
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "run.lock").symlink_to(tmp_path / "precious")
    refused(kdpipe(*_student(tmp_path / "run")), "run.lock is a link", "Remove it")
    assert (tmp_path / "precious").read_text() == "precious"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("what", ["deleted", "moved", "replaced"])
def test_a_directory_that_goes_away_ends_the_training(tmp_path: Path, commands: Server, what: str) -> None:
    out = tmp_path / "run"
    process = _begun(commands, out)
    out.rename(tmp_path / "elsewhere")
    if what == "deleted":
        shutil.rmtree(tmp_path / "elsewhere", ignore_errors=True)
    if what == "replaced":
        out.mkdir()
    _, errors = process.communicate()
    assert process.returncode == 1
    assert "Traceback" not in errors
    assert f"{out}" in errors.splitlines()[-1]
    assert out.exists() == (what == "replaced")
    assert what != "replaced" or not list(out.iterdir())


class _FailingDisk:
    """Fails the write number ``at`` as a full disk does, once it is on disk."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
        self.count, self._at, self._flush = 0, at, durable.fsync_file
        monkeypatch.setattr(durable, "fsync_file", self)

    def __call__(self, path: Path, **options: Any) -> None:
        self.count += 1
        if self.count == self._at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        self._flush(path, **options)


def test_every_write_may_fail(tmp_path: Path, kdpipe: Kdpipe) -> None:
    failures = 0
    while True:
        out = tmp_path / f"{failures}"
        with pytest.MonkeyPatch.context() as patch:
            disk = _FailingDisk(patch, failures + 1)
            outcome = kdpipe(*_student(out, "--validation", 0.2))
        if disk.count < failures + 1:
            break
        refused(outcome, f"{out}/", "cannot be written: its disk is full", "Make room in")
        assert not [path for path in out.iterdir() if path.name.startswith(".")]
        failures += 1
        flag = "--resume" if (out / "run.json").exists() else "--no-resume"
        assert kdpipe(*_student(out, "--validation", 0.2, flag)).code == 0
        assert (out / "metrics.json").exists()
    assert failures >= 6
    assert outcome.code == 0
    names = {path.name for path in out.iterdir()}
    assert all({path.name for path in (tmp_path / f"{k}").iterdir()} == names for k in range(failures))
    weights = {(tmp_path / f"{k}" / "model.safetensors").read_bytes() for k in range(failures + 1)}
    assert len(weights) == 1


def test_a_run_to_be_replaced_is_kept_where_the_disk_is_full(run: Path, kdpipe: Kdpipe) -> None:
    before = _content(run)
    with pytest.MonkeyPatch.context() as patch:
        _FailingDisk(patch, 1)
        refused(kdpipe(*_student(run, "--overwrite")), "run.json cannot be written: its disk is full")
    assert _content(run) == before


def test_a_limit_on_the_size_of_files(tmp_path: Path) -> None:
    """A real limit of the system, which torch's writer meets in the middle of a checkpoint."""
    import resource
    import subprocess
    import sys

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    command = [sys.executable, "-m", "kdpipe", *map(str, _student(tmp_path / "run"))]
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=limit, timeout=120)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"kdpipe: {tmp_path / 'run' / 'checkpoint.pt'} cannot be written: its disk is full (")
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"run.json"}


def _benchmark(run: Path, out: Path) -> tuple[object, ...]:
    measured = ("--data", "digits", "--limit-test", 60, "--device", "cpu", "--rounds", 5, "--no-cold-starts")
    return ("benchmark", *measured, "--run", run, "--out", out)


def test_a_report_appears_whole_or_not_at_all(run: Path, kdpipe: Kdpipe) -> None:
    out = run.parent / "reports"
    names = {
        *("metrics.json", "results.csv", "timings.csv", "pareto.svg", "report.html", "summary.txt"),
        *("predictions.npz", "quality.json"),
    }
    for at in range(1, 9):
        with pytest.MonkeyPatch.context() as patch:
            _FailingDisk(patch, at)
            outcome = kdpipe(*_benchmark(run, out))
        refused(outcome, "reports", "cannot be written: its disk is full", "Make room in")
        assert outcome.out == ""
        assert [path.name for path in run.parent.iterdir()] == ["run"]
    assert kdpipe(*_benchmark(run, out)).code == 0
    (out / ".gitignore").write_text("/report.html\n")
    before = _content(out)
    assert {*before} == {*names, ".gitignore"}
    with pytest.MonkeyPatch.context() as patch:
        _FailingDisk(patch, 3)
        refused(kdpipe(*_benchmark(run, out)), "cannot be written: its disk is full")
    assert _content(out) == before
    assert kdpipe(*_benchmark(run, out)).code == 0
    assert {*_content(out)} == {*before}
    assert _content(out)["metrics.json"] != before["metrics.json"]
    assert sorted(path.name for path in run.parent.iterdir()) == ["reports", "run"]


def test_a_stop_between_the_two_renames_keeps_the_former_report(tmp_path: Path) -> None:
    out = tmp_path / "reports"
    publish(out, {"summary.txt": b"former"})
    rename = Path.rename

    def stop(path: Path, target: Path) -> Path:
        if path.name.endswith(".new"):
            raise KeyboardInterrupt
        return rename(path, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "rename", stop)
        with pytest.raises(KeyboardInterrupt):
            publish(out, {"summary.txt": b"next"})
    assert (out / "summary.txt").read_bytes() == b"former"
    assert [path.name for path in tmp_path.iterdir()] == ["reports"]


def test_a_report_replaces_nothing_else(run: Path, kdpipe: Kdpipe) -> None:
    before = _content(run)
    refused(kdpipe(*_benchmark(run, run)), f"{run} is not a report of kdpipe: it holds checkpoint.pt")
    assert _content(run) == before


def test_two_benchmarks_at_once(run: Path, kdpipe: Kdpipe) -> None:
    with durable.locked(run.parent / "reports.lock", RunError):
        refused(kdpipe(*_benchmark(run, run.parent / "reports")), f"reports is being written by process {os.getpid()}")
    assert not (run.parent / "reports").exists()


def test_the_next_command_can_be_pasted_into_a_shell(tmp_path: Path, kdpipe: Kdpipe) -> None:
    store = tmp_path / "my $(touch harm) store.zarr"
    made = kdpipe(
        *("cache-teacher", *LIMITS, "--teacher", "resnet8", "--views", 1, "--device", "cpu", "--out", store),
    )
    assert made.code == 0
    command = shlex.split(made.err.partition("Next: ")[2].splitlines()[0])
    assert command[command.index("--store") + 1] == str(store)
    missing = kdpipe("verify", tmp_path / "my other.zarr")
    assert shlex.split(missing.last_line.partition("Make one with: ")[2])[-1] == str(tmp_path / "my other.zarr")


def test_a_run_does_not_replace_its_own_teacher(run: Path, kdpipe: Kdpipe) -> None:
    before = _content(run)
    learning = ("train-student", *LIMITS, "--student", "resnet8", "--epochs", 1, "--device", "cpu")
    outcome = kdpipe(*learning, "--teacher", f"run:{run}", "--out", run, "--overwrite")
    refused(outcome, f"{run} holds run:{run}, the teacher of this run")
    assert _content(run) == before


def test_a_report_does_not_replace_the_working_directory(
    run: Path, kdpipe: Kdpipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    (run.parent / "here").mkdir()
    monkeypatch.chdir(run.parent / "here")
    refused(kdpipe(*_benchmark(run, Path())), "holds the working directory")
