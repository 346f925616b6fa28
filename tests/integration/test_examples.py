"""The worked pipelines of `examples/`, each reproduced in a repository of its own, on a few digits."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from kdpipe import open_store
from tests.conftest import ROOT
from tests.integration.test_dvc import _ran, _run, _set

pytest.importorskip("dvc", reason="DVC is not installed: pip install 'kdpipe[dvc]'")
pytestmark = pytest.mark.usefixtures("programs")


def _reproduce(name: str, tmp_path: Path) -> tuple[Path, set[str]]:
    """Copy an example, make it small and reproduce it; return its folder and the stages that ran."""
    folder = shutil.copytree(ROOT / "examples" / name, tmp_path / name)
    _run(folder, "git", "init", "--quiet")
    _run(folder, "dvc", "init", "--quiet")
    limits = {"limit_train": 120, "limit_test": 40}
    _set(folder, "train_teacher", epochs=1, model="resnet14", **limits)
    _set(folder, "cache_teacher", views=1, **limits)
    _set(folder, "train_student", epochs=1, **limits)
    _set(folder, "benchmark", rounds=5, cold_starts=False, limit_test=40)
    ran = _ran(_run(folder, "dvc", "repro"))
    assert _ran(_run(folder, "dvc", "repro")) == set()
    assert (folder / "reports" / "report.html").is_file()
    return folder, ran


def _students(folder: Path) -> set[str]:
    report = json.loads((folder / "reports" / "metrics.json").read_text())
    return set(report["students"])


def _record(folder: Path, run: str) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((folder / "runs" / run / "run.json").read_text())
    return record


def _teacher(folder: Path, store: str) -> tuple[str, str]:
    """Return the architecture and the digest of the teacher of a store."""
    teacher = open_store(folder / "data" / f"{store}.zarr").manifest.fingerprint.teacher
    return teacher.name, teacher.digest


def _taught(record: dict[str, Any]) -> tuple[str, str]:
    (teacher,) = record["lineage"]["teachers"]
    return teacher["name"], teacher["digest"]


def test_one_way(tmp_path: Path) -> None:
    folder, ran = _reproduce("one_way", tmp_path)
    assert ran == {"train-teacher", "cache-teacher", "train-student@cache", "train-student@none", "benchmark"}
    assert _students(folder) == {"student-cache", "student-none"}
    assert _taught(_record(folder, "student-cache")) == _teacher(folder, "teacher")
    assert [_record(folder, f"student-{way}")["distill"] for way in ("cache", "none")] == ["cache", "none"]


def test_multi_level(tmp_path: Path) -> None:
    folder, ran = _reproduce("multi_level", tmp_path)
    caches = {f"cache-teacher@{name}" for name in ("teacher", "assistant")}
    students = {"assistant", "student", "direct"}
    assert ran == {"train-teacher", "benchmark"} | caches | {f"train-student@{name}" for name in students}
    assert _students(folder) == students
    teacher, assistant = _teacher(folder, "teacher"), _teacher(folder, "assistant")
    assert teacher[1] != assistant[1]
    for name, expected in {"assistant": teacher, "student": assistant, "direct": teacher}.items():
        assert _taught(_record(folder, name)) == expected
    assert assistant[0] == _record(folder, "assistant")["model"] == "resnet14"


def test_two_ways(tmp_path: Path) -> None:
    folder, ran = _reproduce("two_way", tmp_path)
    rounds = {f"{stage}@{number}" for stage in ("cache-teacher", "train-student") for number in (0, 1)}
    assert ran == {"train-teacher", "cache-student@1", "tune-teacher@1", "benchmark"} | rounds
    assert _students(folder) == {"student-0", "teacher-1", "student-1"}
    tuned = _record(folder, "teacher-1")
    assert tuned["lineage"]["init_weights"]["digest"] == _teacher(folder, "teacher-0")[1]
    assert _taught(tuned) == _teacher(folder, "student-0")
    assert _teacher(folder, "student-0")[0] == "resnet8"
    for number in (0, 1):
        assert _taught(_record(folder, f"student-{number}")) == _teacher(folder, f"teacher-{number}")
    assert _teacher(folder, "teacher-0")[1] != _teacher(folder, "teacher-1")[1]
