"""Validation during a training: it finds the best epoch, it is resumed, and the training does not notice it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from kdpipe import dataset
from kdpipe.dataset import Dataset
from kdpipe.errors import RunError
from kdpipe.testing.doubles import Dropping, StopAfter, differences, small_network
from kdpipe.training.batches import Batch
from kdpipe.training.evaluation import Validation, predict
from kdpipe.training.loop import train
from kdpipe.training.objective import CrossEntropy
from kdpipe.training.runs import RunDirectory
from tests.students import ORDER, PRESET, SETTINGS, digits, renderer, student


class Run:
    """Trains one student on three quarters of some images, each time in the same way."""

    def __init__(self, images: Dataset, **settings: Any) -> None:
        self.part, self.held_out = dataset.hold_out(images, 0.25)
        self.module: torch.nn.Module = Dropping(small_network())
        self._settings = SETTINGS.but(**{"epochs": 3, **settings})
        self.kept: list[dict[str, torch.Tensor]] = []

    def _keep(self, module: torch.nn.Module) -> None:
        self.kept.append({name: value.clone() for name, value in module.state_dict().items()})

    def __call__(
        self, path: Path, *, validated: bool = True, objective: CrossEntropy | None = None, **others: Any
    ) -> Validation | None:
        self.module = Dropping(small_network())
        validation = None
        if validated:
            validation = Validation(renderer(self.held_out, "none"), preset=PRESET, keep=self._keep)
        trained = student(
            path,
            self.module,
            objective=objective,
            images=renderer(self.part),
            settings=self._settings,
            validation=validation,
        )
        torch.manual_seed(1)
        train(replace(trained, generators=[torch.get_rng_state()]), order=ORDER, **others)
        return validation

    def validated(self, path: Path, **settings: Any) -> Validation:
        validation = self(path, **settings)
        assert validation is not None
        return validation

    def top1(self) -> float:
        """Return the accuracy of the module as it is now, by plain counting."""
        logits = predict(self.module, renderer(self.held_out, "none"), preset=PRESET)
        return float((logits.argmax(axis=1) == self.held_out.labels).mean())


@pytest.mark.parametrize("ema", [None, 0.9])
def test_the_training_does_not_notice(ema: float | None, tmp_path: Path) -> None:
    run = Run(digits(240), ema=ema)
    run(tmp_path / "plain", validated=False)
    plain = run.module.state_dict()
    after = torch.get_rng_state()
    run(tmp_path / "validated")
    assert not differences(run.module.state_dict(), plain)
    assert torch.equal(torch.get_rng_state(), after)
    assert run.module.training
    expected = RunDirectory(tmp_path / "plain").history()
    for row, other in zip(RunDirectory(tmp_path / "validated").history(), expected, strict=True):
        assert set(row) - set(other) == {"validation_top1", "validation_loss"}
        assert not differences({key: row[key] for key in other}, other)


@pytest.mark.parametrize("ema", [None, 0.8])
def test_what_is_measured_last_is_what_is_left(ema: float | None, tmp_path: Path) -> None:
    run = Run(digits(240), ema=ema, epochs=8)
    validation = run.validated(tmp_path / "run")
    rows = RunDirectory(tmp_path / "run").history()
    assert rows[-1]["validation_top1"] == run.top1()
    values = [row["validation_top1"] for row in rows]
    assert len(set(values)) > 1
    assert validation.best is not None
    assert validation.best.top1 == max(values)
    assert validation.best.epoch == 1 + values.index(max(values))
    assert validation.best.loss == rows[validation.best.epoch - 1]["validation_loss"]
    run.module.load_state_dict(validation.best.weights)
    assert run.top1() == max(values)
    assert not differences(run.kept[-1], validation.best.weights)


class Unlearning(CrossEntropy):
    """A model learns in the third and fourth epoch, and from the fifth on the opposite."""

    sign = 0.0

    def begin(self, epoch: int, epochs: int, *, validated: Sequence[float] = ()) -> None:
        self.sign = (0.0, 0.0, 1.0, 1.0, -1.0, -1.0)[epoch]

    def of(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        return self.sign * super().of(logits, batch)


def test_the_best_epoch_is_the_one_before_the_model_is_destroyed(tmp_path: Path) -> None:
    run = Run(digits(240), epochs=6, batch_size=8, lr=0.1, warmup_epochs=0, lr_schedule="constant")
    validation = run.validated(tmp_path / "run", objective=Unlearning(PRESET))
    values = [row["validation_top1"] for row in RunDirectory(tmp_path / "run").history()]
    assert validation.best is not None
    assert validation.best.epoch == 4
    assert values[3] > 2 * max(values[4:])
    assert run.top1() == values[-1]
    run.module.load_state_dict(validation.best.weights)
    assert run.top1() == values[3]


def test_a_resumed_run_has_the_same_best(tmp_path: Path) -> None:
    """Stopped between two epochs, and in the middle of one, before the best epoch and after it."""
    run = Run(digits(240), ema=0.8, epochs=4)
    whole = run.validated(tmp_path / "whole").best
    expected, weights = RunDirectory(tmp_path / "whole").history(), run.module.state_dict()
    assert whole is not None
    for stop in (1, 5, 11, 16):
        path = tmp_path / str(stop)
        with pytest.raises(RunError, match="stopped at"):
            run(path, should_stop=StopAfter(stop))
        torch.manual_seed(stop)
        run.kept.clear()
        resumed = run.validated(path, resume=True).best
        assert resumed is not None
        assert (resumed.epoch, resumed.top1, resumed.loss) == (whole.epoch, whole.top1, whole.loss)
        for found, other in ((resumed.weights, whole.weights), (run.kept[-1], whole.weights)):
            assert not differences(found, other)
        assert not differences(run.module.state_dict(), weights)
        assert not differences(RunDirectory(path).history(), expected)
