"""Settings of the benchmark."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import Field, model_validator

from kdpipe.distil.settings import AttackSetting
from kdpipe.settings import Parsed, Paths, Positive, Settings

if TYPE_CHECKING:
    from kdpipe.views.corruptions import Corruptions

    CorruptionsSetting = Corruptions
else:
    CorruptionsSetting = Annotated[Any, Parsed("kdpipe.views.corruptions:Corruptions.parse", "KINDS")]


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

    corruptions: CorruptionsSetting | None = None
    """Also measure the accuracy on corrupted images: all, or kinds such as noise+jpeg; kdpipe list corruptions."""
    corruption_samples: Positive | None = None
    """Corrupt a fixed class-balanced subset of N test samples (default: all that have a label)."""

    @model_validator(mode="after")
    def _corrupts_what_it_limits(self) -> Self:
        if self.corruption_samples is not None and self.corruptions is None:
            raise ValueError("corruption-samples needs corruptions, such as all")
        return self

    @model_validator(mode="after")
    def _attacks_what_it_limits(self) -> Self:
        if self.adversarial_samples is not None and self.adversarial is None:
            raise ValueError("adversarial-samples needs adversarial, such as pgd:8/255,20")
        return self
