"""Parameters of the benchmark."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from stages.params.base import StageParams, StoresParams
from stages.params.values import Paths, Positive


class Benchmark(StoresParams, StageParams):
    """Compare trained students: accuracy, agreement with the teacher, size and latency."""

    run: tuple[Path, ...] = Field(
        min_length=1, description="Run directory of a student, or the one above its --seeds; repeat for each."
    )
    out: Path = Field(description="Directory to write the report to.")
    store: Paths = Field((), description="Store with the teacher's test logits; default: the runs' own.")
    latency_repeats: Annotated[int, Field(ge=5)] = Field(50, description="Timed forward passes per batch size.")
    threads: Positive | None = Field(None, description="Threads of the latency measurement; default: torch's.")
