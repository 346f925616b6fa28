"""The origin of runs: commands that give the same settings again, and the account of the stores."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from kdpipe.benchmark.origin import Origin
from kdpipe.benchmark.results import average
from kdpipe.stages.flags import parser_of, resolve
from kdpipe.stages.origins import command_of, ledger_of, origin_of
from kdpipe.stages.settings.training import Training, TrainStudent, TrainTeacher
from kdpipe.store.reader import LogitStore
from kdpipe.training.runs import RunDirectory
from tests.reports import student


@pytest.mark.parametrize(
    ("stage", "flags"),
    [
        ("train-teacher", ["--data", "digits", "--model", "resnet20", "--out", "runs/t", "--optimizer", "adamw"]),
        ("train-student", ["--data", "digits", "--student", "resnet8", "--out", "runs/a b", "--seed", "7"]),
        (
            "train-student",
            [
                *(
                    "--data",
                    "folder:my $(pictures)",
                    "--student",
                    "resnet8",
                    "--store",
                    "a.zarr",
                    "--store",
                    "b c.zarr",
                ),
                *("--store-weight", "2", "--store-weight", "1", "--loss", "kd:temperature=2+dist", "--out", "x"),
                *("--lr-schedule", "step", "--lr-steps", "3,5", "--no-nesterov", "--channels-last", "--epochs", "9"),
                *(
                    "--teacher-size",
                    "40",
                    "--mean",
                    "0.1,0.2,0.3",
                    "--std",
                    "0.2,0.2,0.2",
                    "--validation",
                    "0.1",
                    "--seeds",
                    "0,1",
                    "--kd-weight",
                    "0.5",
                ),
            ],
        ),
    ],
)
def test_the_command_gives_the_settings_again(stage: str, flags: list[str]) -> None:
    kind: type[Training] = {"train-teacher": TrainTeacher, "train-student": TrainStudent}[stage]

    def parsed(words: list[str]) -> dict[str, Any]:
        given = vars(parser_of(kind, command=stage, example="").parse_args(words))
        settings: dict[str, Any] = json.loads(json.dumps(resolve(kind, section="x", file=None, flags=given).dump()))
        return settings

    settings = parsed(flags)
    words = shlex.split(command_of(stage, settings))
    assert words[:2] == ["kdpipe", stage]
    assert parsed(words[2:]) == settings
    assert len(words) <= len(flags) + 10


def test_an_unknown_stage_has_no_command() -> None:
    assert command_of("sell-student", {"data": "digits"}) == command_of(None, {}) == ""


def test_a_run_says_what_it_was_given(tmp_path: Path) -> None:
    record = {
        "format": 1, "stage": "train-student", "distill": "cache", "loss": "kd", "samples": 200, "views": 2,
        "recipe": {"name": "crop", "version": "crop/1", "seed": 0}, "seeds": {"seed": 3, "data_seed": 3},
        "parameters": {"data": "digits", "student": ["resnet8"], "seed": 3, "epochs": 6, "out": "x"},
        "weights": {"model.safetensors": "ab" * 16}, "git_revision": "c0ffee",
        "lineage": {
            "dataset": {"spec": "digits", "train": "f1" * 16},
            "stores": [{"path": "a.zarr", "digest": "d1" * 16, "weight": 1.0}],
            "teachers": [{"name": "resnet56", "digest": "77" * 16}],
        },
    }  # fmt: skip
    (tmp_path / "run.json").write_text(json.dumps(record))
    (tmp_path / "metrics.json").write_text(json.dumps({"test": {"top1": 0.5}, "seconds": 12.5}))
    found = origin_of(RunDirectory(tmp_path))
    assert (found.data, found.samples, found.epochs, found.recipe, found.views) == ("digits", 200, 6, "crop", 2)
    assert (found.fingerprint, found.weights, found.git_revision) == ("f1" * 16, "ab" * 16, "c0ffee")
    assert found.stores == (("a.zarr", "d1" * 16),)
    assert found.teachers == (("resnet56", "77" * 16),)
    assert found.seconds == 12.5
    assert found.command == "kdpipe train-student --student resnet8 --data digits --epochs 6 --out x --seed 3"


def _store(seconds: float | None) -> LogitStore:
    """A store of 1,000 samples in 11 planes, which took a teacher some time."""
    manifest = SimpleNamespace(
        about={} if seconds is None else {"seconds": seconds},
        fingerprint=SimpleNamespace(precision="fp32"),
        splits={"train": SimpleNamespace(samples=1000, planes=11)},
    )
    return cast(LogitStore, SimpleNamespace(manifest=manifest))


def test_the_ledger_counts_the_passes_of_all_runs() -> None:
    """110 s for 11,000 images are 10 s for a pass over 1,000."""
    origin = Origin(samples=1000, epochs=20, seconds=300.0)
    runs = [replace(student(f"a/{seed}", top1=0.5), origin=origin) for seed in range(3)]
    students = [
        average(runs, name="a", path=Path("a")),
        replace(student("b", top1=0.5), origin=replace(origin, epochs=4)),
        replace(student("labels", top1=0.5, distill="none"), origin=origin),
    ]
    found = ledger_of(students, [_store(110.0)])
    assert found is not None
    assert [(line.student, line.runs, line.passes) for line in found.lines] == [("a", 3, 60), ("b", 1, 4)]
    assert [line.saved_seconds for line in found.lines] == pytest.approx([600.0, 40.0])
    assert [line.training_seconds for line in found.lines] == pytest.approx([900.0, 300.0])
    assert (found.store_seconds, found.saved_seconds) == pytest.approx((110.0, 640.0))
    assert found.breaks_even == 1  # a run saves 160 s on average
    dear = ledger_of(students, [_store(1100.0), _store(2200.0)])
    assert dear is not None
    assert [line.passes for line in dear.lines] == [120, 8]
    assert dear.breaks_even == 1
    unknown = ledger_of(students, [_store(None)])
    assert unknown is not None
    assert (unknown.store_seconds, unknown.saved_seconds, unknown.breaks_even) == (None, None, None)
    assert ledger_of(students, []) is None
    assert ledger_of(students[2:], [_store(110.0)]) is None
