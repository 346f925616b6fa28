"""Settings of the benchmark."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from kdpipe.distil.settings import AttackSetting
from kdpipe.settings import Channels, Choices, Counts, Paths, Positive, Settings
from kdpipe.teacher.settings import brings_weights


class BenchmarkSettings(Settings):
    """Benchmark"""

    run: Paths = Field(min_length=1)
    """Run directory of a student, or the one above its --seeds; repeat for each."""
    out: Path
    """Directory to write the report to."""
    device: str = "auto"
    """auto (CUDA, then CPU), cpu, cuda, cuda:N or mps."""
    engines: Choices = ("eager",)
    """Engines to time each network with, separated by commas: eager, compile, onnx, openvino; kdpipe list engines."""
    precisions: Choices = ("fp32",)
    """Precisions to time, separated by commas: fp32, int8 (of onnx and openvino)."""
    batch_sizes: Counts = (1, 64)
    """Images per pass, separated by commas."""
    threads: Counts | None = None
    """Threads of a pass, separated by commas (default: torch's)."""
    rounds: Positive = 30
    """Rounds of timing, each of which visits every network, engine, precision, batch size and number of threads."""
    calibration: Positive = 256
    """Training images that int8 is calibrated with."""
    cold_starts: bool = True
    """Also measure load time and peak memory, in a process for each network, engine and precision."""
    teacher: str | None = None
    """Also time this teacher: a model name, run:DIR or file:PATH; kdpipe list models."""
    weights: str | None = None
    """The teacher's weights: .safetensors, .pt, .pth, or a torchvision weights name."""
    mean: Channels | None = None
    """Mean of the teacher's normalization, R,G,B in 0..1."""
    std: Channels | None = None
    """Standard deviation of the teacher's normalization, R,G,B."""
    adversarial: AttackSetting | None = None
    """Also measure the accuracy under attack: pgd:EPSILON,STEPS, such as pgd:8/255,20."""
    adversarial_samples: Positive | None = None
    """Attack a fixed class-balanced subset of N test samples (default: all that have a label)."""

    @model_validator(mode="after")
    def _weighs_a_teacher(self) -> Self:
        if self.teacher is None and (self.weights, self.mean, self.std) != (None, None, None):
            raise ValueError("weights, mean and std are those of a teacher: give --teacher, too")
        if self.weights is not None and self.teacher is not None and brings_weights(self.teacher):
            raise ValueError(f"{self.teacher} brings its own weights: leave out --weights")
        return self

    @model_validator(mode="after")
    def _attacks_what_it_limits(self) -> Self:
        if self.adversarial_samples is not None and self.adversarial is None:
            raise ValueError("adversarial-samples needs adversarial, such as pgd:8/255,20")
        return self
