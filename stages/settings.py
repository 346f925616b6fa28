"""The parameters of each stage, composed of the settings of the rooms that obey them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from kdpipe.benchmark.settings import BenchmarkSettings
from kdpipe.dataset.settings import DatasetSettings
from kdpipe.distil.settings import ExtraSettings, LossSettings, StoreSettings, TargetSettings
from kdpipe.encoding.settings import EncodingSettings
from kdpipe.settings import Names, Settings
from kdpipe.store.settings import Provenance
from kdpipe.teacher.settings import ImportSettings, TeacherSettings
from kdpipe.training.settings import LogSettings, Optimization, RunSettings, SamplingSettings
from kdpipe.views.settings import CachedViewSettings, ImportedViewSettings, ViewSettings


class Training(Settings):
    """The settings that both trainings share."""

    dataset: DatasetSettings
    view: ViewSettings
    extra: ExtraSettings
    optimization: Optimization
    sampling: SamplingSettings
    run: RunSettings
    logs: LogSettings


class TrainTeacher(Training):
    """Train a teacher on hard labels."""

    model: str
    """Model name; kdpipe list models."""


class TrainStudent(Training):
    """Train students, with soft targets from a store, from a live teacher, or without any."""

    student: Names = ()
    """Model name, kdpipe list models; repeat to train several together, each in a run directory of its name in OUT."""
    fleet: Path | None = None
    """YAML list of students to train together, each with its own settings."""
    dataset: DatasetSettings
    targets: TargetSettings
    learning: LossSettings

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
        temperature = self.learning.temperature
        if temperature is not None and min(temperature.values(self.optimization.epochs)) <= 0:
            raise ValueError(f"temperature must stay above 0, got {temperature}")
        if self.learning.robust_loss is not None and self.extra.adversarial is None and self.fleet is None:
            raise ValueError("robust-loss needs adversarial, such as pgd:8/255,10")
        if self.learning.robust_loss is not None and self.targets.mode == "none":
            raise ValueError("robust-loss is for soft targets: give store or teacher, or leave it out")
        return self


class StoreOutput(Settings):
    """Output"""

    out: Annotated[Path, Field(description="Store to write, NAME.zarr.")]
    overwrite: bool = False
    """Rebuild a store that was made from other ingredients instead of refusing."""

    @model_validator(mode="after")
    def _is_a_store(self) -> Self:
        if self.out.suffix != ".zarr":
            raise ValueError(f"out must end in .zarr, got {self.out}")
        return self


class Storing(Settings):
    """The settings that both stages that make a store share."""

    dataset: DatasetSettings
    encoding: EncodingSettings
    output: StoreOutput
    provenance: Provenance


class CacheTeacher(Storing):
    """Run the teacher once over every view and keep its logits in a store."""

    view: CachedViewSettings
    teacher: TeacherSettings


class ImportLogits(Storing):
    """Make a store of logits that someone already has, from any teacher in any framework."""

    view: ImportedViewSettings
    source: ImportSettings


class Benchmark(Settings):
    """Compare trained students: accuracy, agreement with the teacher, size and latency."""

    dataset: DatasetSettings
    measurement: BenchmarkSettings
    stores: StoreSettings
