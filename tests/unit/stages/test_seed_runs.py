"""Directories of seed runs: their order, and those that are refused because runs are missing or differ."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kdpipe.errors import RunError
from kdpipe.stages.seed_runs import seed_runs


def _record(seed: int) -> dict[str, Any]:
    return {
        "stage": "train-student",
        "model": "resnet8",
        "classes": ["a", "b"],
        "loss": "kd",
        "lineage": {"stores": [{"path": "l.zarr", "digest": "d0", "weight": 1.0}]},
        "parameters": {"seed": seed, "data_seed": seed, "out": f"r/seed-{seed}", "lr": 0.1, "store": ["l.zarr"]},
        "git_revision": f"r{seed}",
    }


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """A directory of seeds 10, 0 and 2, in this order."""
    for seed in (10, 0, 2):
        run = tmp_path / "r" / f"seed-{seed}"
        run.mkdir(parents=True)
        (run / "run.json").write_text(json.dumps(_record(seed)))
        (run / "metrics.json").write_text("{}")
    (tmp_path / "r" / "metrics.json").write_text(json.dumps({"seeds": [10, 0, 2]}))
    return tmp_path / "r"


def _change(run: Path, **sections: Any) -> None:
    path = run / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | sections))


def test_the_order_is_that_of_the_seeds_given(trained: Path) -> None:
    (trained / ".gitignore").write_text("/seed-0\n")
    assert [run.path.name for run in seed_runs(trained)] == ["seed-10", "seed-0", "seed-2"]


def test_other_directories_have_no_seed_runs(trained: Path, tmp_path: Path) -> None:
    assert seed_runs(trained / "seed-0") == []
    assert seed_runs(tmp_path / "nothing") == []
    assert seed_runs(trained / "metrics.json") == []
    (tmp_path / "empty").mkdir()
    assert seed_runs(tmp_path / "empty") == []


def _without(name: str) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        target = path / name
        shutil.rmtree(target) if target.is_dir() else target.unlink()

    return spoil


def _more(path: Path) -> None:
    shutil.copytree(path / "seed-2", path / "seed-3")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_without("seed-0/metrics.json"), "seed-0 has no metrics.json"),
        (_without("metrics.json"), "no metrics.json that counts them"),
        (_without("seed-2"), "counts seed-2, which does not exist"),
        (_more, "does not count seed-3"),
        (lambda path: (path / "metrics.json").write_text("[]"), "no metrics.json that counts them"),
        (lambda path: (path / "metrics.json").write_text('{"seeds": 3}'), "no metrics.json that counts them"),
        (lambda path: (path / "metrics.json").write_text("{"), "not JSON"),
    ],
)
def test_unfinished_seeds_are_refused(trained: Path, spoil: Callable[[Path], object], message: str) -> None:
    spoil(trained)
    with pytest.raises(RunError) as refused:
        seed_runs(trained)
    assert message in str(refused.value)
    assert str(trained) in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"parameters": _record(2)["parameters"] | {"lr": 0.2}}, "lr 0.2, the first seed with 0.1"),
        ({"lineage": {"stores": [{"path": "l.zarr", "digest": "d1", "weight": 1.0}]}}, "stores.0.digest d1"),
        ({"lineage": {"stores": []}}, "lineage.stores.0"),
        ({"model": "resnet14"}, "model resnet14"),
        ({"parameters": _record(0)["parameters"]}, "seed-2 was trained with seed 0"),
    ],
)
def test_runs_that_differ_in_more_than_the_seed_are_refused(trained: Path, sections: Any, message: str) -> None:
    _change(trained / "seed-2", **sections)
    with pytest.raises(RunError) as refused:
        seed_runs(trained)
    assert message in str(refused.value)
    assert str(trained / "seed-2") in str(refused.value)
