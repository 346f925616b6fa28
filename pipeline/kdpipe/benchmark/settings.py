"""Settings of the benchmark."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from kdpipe.distil.settings import AttackSetting
from kdpipe.settings import Channels, Choices, Counts, Fraction, Parsed, Paths, Positive, Settings
from kdpipe.teacher.settings import brings_weights

if TYPE_CHECKING:
    from kdpipe.views.corruptions import Corruptions

    CorruptionsSetting = Corruptions
else:
    CorruptionsSetting = Annotated[Any, Parsed("kdpipe.views.corruptions:Corruptions.parse", "KINDS")]


Goal = Literal["top1", "top5", "adversarial_top1"]


def _count(value: Any) -> Any:
    """Return a number that may be written with k, M or G, such as 20M."""
    factors = {"k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9}
    if isinstance(value, str) and value[-1:] in factors:
        with suppress(ValueError):
            return float(value[:-1]) * factors[value[-1]]
    return value


Above = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[Above, BeforeValidator(_count)]


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
    """Also time this teacher, and without --store compare with its logits: a model name, run:DIR or file:PATH."""
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
    corruptions: CorruptionsSetting | None = None
    """Also measure the accuracy on corrupted images: all, or kinds such as noise+jpeg; kdpipe list corruptions."""
    corruption_samples: Positive | None = None
    """Corrupt a fixed class-balanced subset of N test samples (default: all that have a label)."""
    cam: Positive | None = None
    """Compare Grad-CAM of each student and of --teacher on N class-balanced test images."""

    @model_validator(mode="after")
    def _corrupts_what_it_limits(self) -> Self:
        if self.corruption_samples is not None and self.corruptions is None:
            raise ValueError("corruption-samples needs corruptions, such as all")
        return self

    @model_validator(mode="after")
    def _explains_beside_a_teacher(self) -> Self:
        if self.cam is None:
            return self
        if self.teacher is None or (self.weights is None and not brings_weights(self.teacher)):
            raise ValueError("cam compares with a trained teacher: give --teacher, and --weights unless it has its own")
        return self

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


class DecisionSettings(Settings):
    """Decision"""

    ship_engine: str | None = None
    """Engine to decide by, one of the engines (default: the first)."""
    goal: Goal = "top1"
    """Accuracy to decide by; adversarial_top1 needs adversarial."""
    max_ms: Above | None = None
    """Leave out students that take longer than X ms for one image (median, with the engine to ship)."""
    max_mb: Above | None = None
    """Leave out students whose file to ship is larger than X MB (1 MB is 1,000,000 bytes)."""
    max_macs: Count | None = None
    """Leave out students with more multiply-accumulates per image, such as 20M."""
    min_top1: Fraction | None = None
    """Leave out students with a lower top-1, 0 to 1."""
