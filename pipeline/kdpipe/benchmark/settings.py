"""Settings of the benchmark."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from kdpipe.distil.settings import AttackSetting
from kdpipe.settings import Paths, Positive, Settings


class BenchmarkSettings(Settings):
    """Benchmark"""

    run: Paths = Field(min_length=1)
    """Run directory of a student, or the one above its --seeds; repeat for each."""
    out: Path
    """Directory to write the report to."""
    device: str = "auto"
    """auto (CUDA, then CPU), cpu, cuda, cuda:N or mps."""
    latency_repeats: int = Field(50, ge=5)
    """Timed forward passes per batch size."""
    threads: Positive | None = None
    """Threads of the latency measurement (default: torch's)."""
    adversarial: AttackSetting | None = None
    """Also measure the accuracy under attack: pgd:EPSILON,STEPS, such as pgd:8/255,20."""
    adversarial_samples: Positive | None = None
    """Attack a fixed class-balanced subset of N test samples (default: all that have a label)."""

    @model_validator(mode="after")
    def _attacks_what_it_limits(self) -> Self:
        if self.adversarial_samples is not None and self.adversarial is None:
            raise ValueError("adversarial-samples needs adversarial, such as pgd:8/255,20")
        return self
