"""Parameters of the benchmark."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from stages.params.base import StageParams, StoresParams
from stages.params.values import AttackText, Paths, Positive


class Benchmark(StoresParams, StageParams):
    """Compare trained students: accuracy, agreement with the teacher, size and latency."""

    run: tuple[Path, ...] = Field(
        min_length=1, description="Run directory of a student, or the one above its --seeds; repeat for each."
    )
    out: Path = Field(description="Directory to write the report to.")
    store: Paths = Field((), description="Store with the teacher's test logits; default: the runs' own.")
    latency_repeats: Annotated[int, Field(ge=5)] = Field(50, description="Timed forward passes per batch size.")
    adversarial: AttackText | None = Field(
        None,
        description="Also measure the accuracy on attacked test images: pgd:EPS,STEPS, such as pgd:8/255,20. "
        "docs/ROBUST.md says what that shows.",
    )
    adversarial_samples: Positive | None = Field(
        None, description="Attack a fixed class-balanced subset of N test samples; default: all that have a label."
    )
    threads: Positive | None = Field(None, description="Threads of the latency measurement; default: torch's.")

    @model_validator(mode="after")
    def _attacks_what_it_limits(self) -> Self:
        if self.adversarial_samples is not None and self.adversarial is None:
            raise ValueError("adversarial-samples needs adversarial, such as pgd:8/255,20")
        return self
