"""The DVC pipeline and the sharing of stores, with real repositories, on a few digits."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT

pytest.importorskip("dvc", reason="DVC is not installed: pip install 'kdpipe[dvc]'")

STUDENTS = {f"train-student@{student}-learning{way}" for student in ("resnet8", "resnet14") for way in (0, 1)}


def _run(folder: Path, *command: str) -> str:
    environment = os.environ | {
        "PYTHONPATH": str(ROOT / "pipeline"),
        "DVC_NO_ANALYTICS": "1",
        "OMP_NUM_THREADS": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
        **{f"GIT_{who}_{what}": "tester@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
    }
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout + done.stderr


def _set(folder: Path, section: str, **values: Any) -> None:
    path = folder / "params.yaml"
    params = yaml.safe_load(path.read_text())
    params[section] |= values
    path.write_text(yaml.safe_dump(params))


def _ran(output: str) -> set[str]:
    return {line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage '")}


def _digest(folder: Path) -> str:
    manifest = json.loads((folder / "data" / "logits.zarr" / "zarr.json").read_text())["attributes"]["kdpipe"]
    return str(manifest["digest"])


def _commit(folder: Path, message: str) -> None:
    _run(folder, "git", "add", "--all")
    _run(folder, "git", "commit", "--quiet", "--message", message)


@pytest.fixture(scope="module")
def project(programs: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository's own pipeline, made small, reproduced once and committed."""
    folder = tmp_path_factory.mktemp("project")
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("pipeline", "stages"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignored, symlinks=True)
    (folder / "data").mkdir()
    (folder / ".dvc").mkdir()
    for name in ("dvc.yaml", "params.yaml", ".dvcignore", ".gitignore", ".dvc/config", ".dvc/.gitignore"):
        shutil.copy(ROOT / name, folder / name)
    _run(folder, "git", "init", "--quiet")
    limits = {"limit_train": 120, "limit_test": 40}
    _set(folder, "train_teacher", epochs=1, model="resnet8", **limits)
    _set(folder, "cache_teacher", views=1, min_top1=None, **limits)
    _set(folder, "train_student", seeds="0", labels_per_class=2, **limits)
    _set(folder, "benchmark", rounds=5, cold_starts=False, limit_test=40)
    path = folder / "params.yaml"
    path.write_text(path.read_text().replace("epochs: 116", "epochs: 1").replace("epochs: 8", "epochs: 1"))
    assert _ran(_run(folder, "dvc", "repro")) == {"train-teacher", "cache-teacher", "benchmark", "export"} | STUDENTS
    _commit(folder, "Reproduce")
    return folder


def test_pipeline_runs_what_changed_and_nothing_else(project: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(project, tmp_path / "project", symlinks=True)
    assert _ran(_run(folder, "dvc", "repro")) == set()
    assert "cache-teacher" in _run(folder, "dvc", "dag")

    loss = folder / "pipeline" / "kdpipe" / "distil" / "losses" / "logits.py"
    loss.write_text(loss.read_text() + "\n# A remark.\n")
    before = _digest(folder)
    ran = _ran(_run(folder, "dvc", "exp", "run", "--set-param", "train_student.temperature=2"))
    assert ran == STUDENTS | {"train-teacher", "benchmark", "export"}  # the same weights: the cached logits stay valid
    assert _digest(folder) == before
    assert _ran(_run(folder, "dvc", "repro")) == set()
    metrics = _run(folder, "dvc", "metrics", "diff", "HEAD")
    assert "students" in metrics
    _run(folder, "dvc", "plots", "diff", "HEAD")
    assert (folder / "dvc_plots" / "index.html").is_file()

    _set(folder, "train_teacher", epochs=2)
    ran = _ran(_run(folder, "dvc", "repro", "cache-teacher"))
    assert ran == {"train-teacher", "cache-teacher"}
    assert _digest(folder) != before


def test_the_pipeline_ends_with_the_tested_file_of_the_recommended_student(project: Path) -> None:
    benchmark = json.loads((project / "reports" / "metrics.json").read_text())
    report = json.loads((project / "exported" / "student" / "export.json").read_text())
    run = json.loads((project / benchmark["recommended_run"] / "metrics.json").read_text())
    assert f"runs/{report['name']}" == benchmark["recommended_run"]
    assert report["weights_blake3"] == run["weights"]["model.safetensors"]
    assert report["artifacts"][0]["top1"] == run["test"]["top1"]
    assert (project / "exported" / "student" / "model.onnx").is_file()


def _shared(project: Path, folder: Path) -> tuple[Path, Path]:
    """Return a copy of the project that has pushed its store under a tag, and the remote."""
    owner = shutil.copytree(project, folder / "owner", symlinks=True)
    remote = folder / "remote"
    _run(owner, "dvc", "remote", "add", "--default", "shared", str(remote))
    _run(owner, "dvc", "remote", "modify", "shared", "verify", "true")
    _run(owner, "dvc", "push", "--quiet")
    _commit(owner, "Share the store")
    _run(owner, "git", "tag", "logits-v1")
    return owner, remote


def _imported(owner: Path, folder: Path) -> Path:
    """Return a new repository that has imported the store by its tag."""
    consumer = folder / "consumer"
    consumer.mkdir()
    _run(consumer, "git", "init", "--quiet")
    _run(consumer, "dvc", "init", "--quiet")
    _run(consumer, "dvc", "import", str(owner), "data/logits.zarr", "--rev", "logits-v1", "--out", "logits.zarr")
    return consumer


def test_a_store_is_imported_by_tag_and_trained_against_without_the_teacher(project: Path, tmp_path: Path) -> None:
    owner, remote = _shared(project, tmp_path)

    consumer = _imported(owner, tmp_path)
    shutil.rmtree(owner)
    shutil.rmtree(remote)
    assert not list(consumer.rglob("*.safetensors"))
    _run(consumer, "kdpipe", "verify", "logits.zarr")
    _run(
        consumer,
        *("kdpipe", "train-student", "--data", "digits", "--limit-train", "120", "--limit-test", "40"),
        *("--store", "logits.zarr", "--student", "resnet8", "--epochs", "1", "--out", "run"),
    )
    assert json.loads((consumer / "run" / "run.json").read_text())["distill"] == "cache"


def test_verify_names_the_file_that_was_changed_at_a_remote_and_dvc_does_not(project: Path, tmp_path: Path) -> None:
    owner, remote = _shared(project, tmp_path)
    codes = next((owner / "data" / "logits.zarr" / "train" / "codes").rglob("c/0/*/0"))
    (there,) = (path for path in remote.rglob("*") if path.is_file() and path.read_bytes() == codes.read_bytes())
    there.chmod(0o644)
    content = bytearray(there.read_bytes())
    content[len(content) // 2] ^= 1
    there.write_bytes(content)
    shutil.rmtree(owner / ".dvc" / "cache")

    consumer = _imported(owner, tmp_path)
    assert "up to date" in _run(consumer, "dvc", "status")
    environment = os.environ | {"PYTHONPATH": str(ROOT / "pipeline")}
    command = ("kdpipe", "verify", "logits.zarr")
    refused = subprocess.run(command, cwd=consumer, capture_output=True, text=True, check=False, env=environment)
    assert refused.returncode == 1
    name = str(codes.relative_to(owner / "data" / "logits.zarr"))
    assert f"{name} does not match its digest" in refused.stdout + refused.stderr
