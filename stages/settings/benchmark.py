"""Parameters of the stage `benchmark`."""

from __future__ import annotations

from typing import Self

from pydantic import model_validator

from kdpipe.benchmark.settings import BenchmarkSettings, DecisionSettings
from kdpipe.dataset.settings import DatasetSettings
from kdpipe.distil.settings import StoreSettings
from kdpipe.models.interface import Interface
from kdpipe.models.settings import CodeSettings
from kdpipe.settings import Settings


class Benchmark(Settings):
    """Compare trained students: accuracy, agreement with the teacher, size and latency."""

    dataset: DatasetSettings
    measurement: BenchmarkSettings
    decision: DecisionSettings
    stores: StoreSettings
    network: Interface
    code: CodeSettings

    @model_validator(mode="after")
    def _decides_by_what_it_measures(self) -> Self:
        engine, engines = self.decision.ship_engine, self.measurement.engines
        if engine is not None and engine not in engines:
            raise ValueError(f"ship-engine {engine} is not timed: expected one of engines, {', '.join(engines)}")
        if self.decision.goal == "adversarial_top1" and self.measurement.adversarial is None:
            raise ValueError("goal adversarial_top1 needs adversarial, such as pgd:8/255,20")
        return self
