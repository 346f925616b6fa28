"""Gap recovered between equal budgets only: the same data, epochs and recipe, and otherwise the reason why not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kdpipe.benchmark.comparison import compare
from kdpipe.benchmark.origin import Budget
from kdpipe.benchmark.results import StudentResult

BUDGET = Budget(
    epochs=30,
    samples=1000,
    batch_size=64,
    optimizer="sgd",
    recipe="crop-flip@2",
    data=("folder:pets", None),
    fingerprint="ab" * 16,
)


def _student(name: str, top1: float, budget: Budget) -> StudentResult:
    return StudentResult(
        name=name,
        path=Path(name),
        architecture="resnet8",
        distill="none" if name == "labels" else "cache",
        loss="kd",
        seed=0,
        figures={"top1": top1},
        parameters=1,
        file_bytes=1,
        budget=budget,
    )


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"epochs": 60}, "60,000 images over 60 epochs, not 30,000 over 30"),
        ({"samples": 500, "fingerprint": "cd" * 16}, "15,000 images over 30 epochs, not 30,000 over 30"),
        ({"samples": None, "epochs": 1}, "epochs 1, not 30"),
        ({"recipe": "rrc-flip@1"}, "recipe rrc-flip@1, not crop-flip@2"),
        ({"fingerprint": "cd" * 16}, "other training images"),
        ({"batch_size": 128}, "batch size 128, not 64"),
        ({"optimizer": "adamw"}, "optimizer adamw, not sgd"),
    ],
)
def test_a_baseline_with_another_budget_leaves_the_gap_undefined(changed: dict[str, Any], reason: str) -> None:
    students = [_student("kd", 0.8, BUDGET), _student("labels", 0.7, replace(BUDGET, **changed))]
    kd, _ = compare(students, teacher_top1=0.9, samples=10_000)
    assert (kd.gap_recovered, kd.gap_note) == (None, f"the baseline labels was trained with {reason}")


def test_an_equal_budget_gives_a_gap() -> None:
    kd, labels = compare(
        [_student("kd", 0.8, BUDGET), _student("labels", 0.7, BUDGET)], teacher_top1=0.9, samples=10_000
    )
    assert kd.gap_recovered == pytest.approx(0.5)
    assert (kd.gap_note, labels.gap_recovered) == (None, None)


def test_of_two_baselines_only_that_of_the_same_budget_counts() -> None:
    longer = replace(_student("labels", 0.85, replace(BUDGET, epochs=90)), name="longer")
    students = [_student("kd", 0.8, BUDGET), _student("labels", 0.7, BUDGET), longer]
    assert compare(students, teacher_top1=0.9, samples=10_000)[0].gap_recovered == pytest.approx(0.5)
