"""Parameters of the stages that train: `train-teacher`, `train-student` and `compress`."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import model_validator

from kdpipe.dataset.settings import DatasetSettings
from kdpipe.distil.settings import ExtraSettings, LossSettings, TargetSettings
from kdpipe.errors import UnsupportedLossError
from kdpipe.models.interface import Interface
from kdpipe.models.settings import CodeSettings
from kdpipe.settings import Names, Settings
from kdpipe.training.settings import LogSettings, Optimization, RunSettings, SamplingSettings
from kdpipe.views.settings import ViewSettings


class Training(Settings):
    """The settings that both trainings share."""

    dataset: DatasetSettings
    view: ViewSettings
    extra: ExtraSettings
    optimization: Optimization
    sampling: SamplingSettings
    run: RunSettings
    logs: LogSettings
    code: CodeSettings


class TrainTeacher(Training):
    """Train a teacher on hard labels."""

    model: str
    """Model name; kdpipe list models."""


class StudentTraining(Training):
    """The settings that all trainings of students share."""

    targets: TargetSettings
    network: Interface
    learning: LossSettings

    @model_validator(mode="after")
    def _taught(self) -> Self:
        temperature = self.learning.temperature
        if temperature is not None and temperature.follows_validation:
            raise ValueError(f"temperature cannot be {temperature.written}: this curve is for kd-weight and ce-weight")
        for name in ("kd_weight", "ce_weight"):
            weight = getattr(self.learning, name)
            if weight is not None and weight.follows_validation and not self.run.validation:
                raise ValueError(
                    f"{name.replace('_', '-')} {weight.written} needs validation, such as 0.1: it follows its accuracy"
                )
        if temperature is not None and min(temperature.values(max(1, self.optimization.epochs))) <= 0:
            raise ValueError(f"temperature must stay above 0, got {temperature.written}")
        if temperature is not None and self.targets.mode != "none":
            try:
                self.learning.loss.refuse_temperature(temperature.written)
            except UnsupportedLossError as error:
                raise ValueError(str(error).rstrip(".")) from None
        if self.targets.surest is not None and (self.sampling.balance or self.sampling.sample_weights is not None):
            raise ValueError("surest says which samples are drawn, as balance and sample-weights do: give one")
        if self.learning.robust_loss is not None and self.targets.mode == "none":
            raise ValueError("robust-loss is for soft targets: give store or teacher, or leave it out")
        return self

    def _refuse_no_attack(self) -> None:
        if self.learning.robust_loss is not None and self.extra.adversarial is None:
            raise ValueError("robust-loss needs adversarial, such as pgd:8/255,10")


class TrainStudent(StudentTraining):
    """Train students, with soft targets from a store, from a live teacher, or without any."""

    student: Names = ()
    """Model name, kdpipe list models; repeat to train several together, each in a run directory of its name in OUT."""
    fleet: Path | None = None
    """YAML list of students to train together, each with its own settings."""

    @property
    def architecture(self) -> str:
        """The model of a single student."""
        return self.student[0]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if bool(self.student) == (self.fleet is not None):
            raise ValueError("give --student, or --fleet for students with their own settings")
        if self.run.seeds and (self.fleet is not None or len(self.student) > 1):
            raise ValueError(
                "several students cannot be trained together with seeds: list the students of each seed in --fleet"
            )
        if self.fleet is None:
            self._refuse_no_attack()
        return self
