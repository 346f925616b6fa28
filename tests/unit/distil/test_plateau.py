"""The weight of distillation that falls when validation stalls: in a training, resumed, and in a fleet."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kdpipe import dataset
from kdpipe.distil.curves import Curve
from kdpipe.distil.losses import make
from kdpipe.distil.objective import Distillation, DistillationObjective
from kdpipe.errors import ParamsError, RunError
from kdpipe.testing.doubles import Dropping, IndexedTargets, StopAfter, differences, small_network
from kdpipe.training.evaluation import Validation
from kdpipe.training.loop import train_together
from kdpipe.training.runs import RunDirectory
from kdpipe.training.trainee import Student
from tests.students import ORDER, PRESET, SETTINGS, digits, renderer, student

EPOCHS = 8
SETTINGS_LONG = SETTINGS.but(epochs=EPOCHS, batch_size=30)


def _student(folder: Path, *, patience: int, validated: bool = True) -> Student:
    """Return a student with dropout on 150 samples, which is validated on 50 others."""
    part, held_out = dataset.hold_out(digits(), 0.25)
    torch.manual_seed(0)
    weight = Curve.parse(f"plateau:0.8,0.5,patience={patience},floor=0.1")
    return student(
        folder,
        Dropping(small_network()),
        objective=DistillationObjective(PRESET, Distillation(make("kd"), kd_weight=weight, ce_weight=0.3)),
        images=renderer(part),
        settings=SETTINGS_LONG,
        validation=Validation(renderer(held_out, "none"), preset=PRESET) if validated else None,
    )


def _train(*students: Student, resume: bool = False, stop_after: int = 0) -> list[RunDirectory]:
    ended = train_together(students, IndexedTargets(10), order=ORDER, resume=resume, should_stop=StopAfter(stop_after))
    assert not [each for each in ended if isinstance(each, Exception)]
    return [each.run for each in students]


def _expected(validated: list[float], patience: int) -> list[float]:
    """Return the weight of each epoch, by looking back from each epoch to those before it."""
    weights = [0.8]
    last = 0  # the epoch since which accuracies are counted
    for epoch in range(1, len(validated)):
        best = max(range(epoch), key=lambda index: (validated[index], -index))
        stalled = epoch - 1 - max(best, last) >= patience
        last = epoch - 1 if stalled else last
        weights.append(max(0.1, weights[-1] / 2) if stalled else weights[-1])
    return weights


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[int, RunDirectory]:
    """A run for each patience."""
    folder = tmp_path_factory.mktemp("alone")
    return {patience: _train(_student(folder / str(patience), patience=patience))[0] for patience in (1, 2)}


@pytest.mark.parametrize("patience", [1, 2])
def test_the_history_has_the_weight_of_each_epoch(alone: dict[int, RunDirectory], patience: int) -> None:
    history = alone[patience].history()
    weights = [row["kd_weight"] for row in history]
    assert weights == pytest.approx(_expected([row["validation_top1"] for row in history], patience))
    assert len(set(weights)) > 1
    for row in history:
        assert row["loss"] == pytest.approx(row["kd_weight"] * row["kd"] + 0.3 * row["ce"], rel=1e-5)


@pytest.mark.parametrize("epoch", range(1, EPOCHS))
def test_a_resumed_run_is_the_uninterrupted_one(alone: dict[int, RunDirectory], epoch: int, tmp_path: Path) -> None:
    """Stopped at the end of an epoch, and two steps before it."""
    for step in (5 * epoch, 5 * epoch - 2):
        folder = tmp_path / str(step)
        with pytest.raises(RunError, match="stopped at"):
            _train(_student(folder, patience=1), stop_after=step)
        (resumed,) = _train(_student(folder, patience=1), resume=True)
        assert not differences(resumed.load_checkpoint(), alone[1].load_checkpoint())
        assert not differences(resumed.history(), alone[1].history())


def test_each_student_of_a_fleet_follows_its_own_validation(alone: dict[int, RunDirectory], tmp_path: Path) -> None:
    runs = _train(*(_student(tmp_path / str(patience), patience=patience) for patience in (2, 1)))
    for patience, run in zip((2, 1), runs, strict=True):
        assert not differences(run.load_checkpoint(), alone[patience].load_checkpoint())
    assert [row["kd_weight"] for row in runs[0].history()] != [row["kd_weight"] for row in runs[1].history()]


def test_without_a_validation_it_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match=r"plateau:0\.8,0\.5,.* needs the validation accuracy .* --validation"):
        _train(_student(tmp_path / "run", patience=1, validated=False))
