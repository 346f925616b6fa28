"""Settings of the teacher pass, and of the import of logits that were computed elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from kdpipe.settings import Channels, Fraction, Names, Parsed, Positive, Settings

if TYPE_CHECKING:
    from kdpipe.models import Signal

    SignalsSetting = tuple[Signal, ...]
else:
    SignalsSetting = Annotated[Any, Parsed("kdpipe.models.signals:parse_signals", "SIGNALS")]


class TeacherSettings(Settings):
    """Teacher"""

    teacher: Names = Field(min_length=1)
    """Model name, run:DIR or file:PATH; repeat for several, with --average. kdpipe list models."""
    weights: Names = ()
    """The teacher's weights: .safetensors, .pt, .pth, or a torchvision weights name; repeat for each teacher without
    its own."""
    class_map: Path | None = None
    """CSV file, class,teacher_class in its first line: classes of the data and the name or index of the teacher's, or
    of several, where it has others; names that both have are found."""
    teacher_classes: str | None = None
    """File with the names of the teacher's classes, one a line in the order of its outputs, or imagenet."""
    average: bool = False
    """Store the mean of the logits of several teachers."""
    signals: SignalsSetting = ()
    """Also store signals in float16: features:LAYER or attention:LAYER, of sequences hidden:LAYER or heads:LAYER,
    joined with +; kdpipe models NAME --layers."""
    mean: Channels | None = None
    """Mean of the teacher's normalization, R,G,B in 0..1."""
    std: Channels | None = None
    """Standard deviation of the teacher's normalization, R,G,B."""
    statistics: Literal["data"] | None = None
    """data: where nothing else gives mean and std, use those of this dataset, which the store then records."""
    input_size: Positive | None = None
    """Side of the teacher's input in pixels."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Arithmetic of the teacher's pass."""
    channels_last: bool | None = None
    """Compute in the channels-last memory format (default: on a CPU, for convolutions)."""
    batch_size: Positive = 256
    """Samples per forward pass."""
    device: str = "auto"
    """auto (CUDA, then CPU), cpu, cuda, cuda:N or mps."""
    min_top1: Fraction | None = None
    """Stop before the training views if the teacher's test accuracy is lower."""

    @property
    def with_weights(self) -> list[tuple[str, str | None]]:
        """Each teacher with its weights, where they are given."""
        return with_weights(self.teacher, self.weights)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(self.teacher) > 1 and not self.average:
            raise ValueError(
                f"{len(self.teacher)} teachers ({', '.join(self.teacher)}) for one store: give --average to keep the "
                "mean of their logits, or make a store for each"
            )
        if len(self.teacher) > 1 and self.signals:
            raise ValueError("signals of several teachers have no mean: leave out --signals or --average")
        with_weights(self.teacher, self.weights)
        return self


class ForecastSettings(Settings):
    """Forecast"""

    pilot: int = Field(1000, ge=32)
    """Training images of the pilot, which are rendered twice, passed to the teacher and trained on."""
    devices: Positive = 1
    """Devices that would share the teacher's pass."""
    student: str | None = None
    """Student whose epoch is timed as well; kdpipe list models."""
    epochs: Positive = 30
    """Epochs of each student."""
    train_batch_size: int = Field(128, ge=2)
    """Samples per step of the student."""
    memory_limit: float = Field(8.0, gt=0, allow_inf_nan=False)
    """GiB of memory for the store's logits in a training."""
    out: Path | None = None
    """File for the forecast as JSON."""


class ImportSettings(Settings):
    """Logits"""

    logits: Path
    """Training logits, .npy: (samples, classes) in the dataset's order, or (1 + views, samples, classes) with the plain
    view first."""
    test_logits: Path | None = None
    """Test logits, .npy: (samples, classes)."""
    teacher_name: str = Field(min_length=1)
    """Name of the teacher that computed them."""
    outputs: Literal["logits", "probabilities"] = "logits"
    """Content of the files; logarithms are taken of probabilities, of at least 1e-30."""
    class_map: Path | None = None
    """CSV file, class,teacher_class in its first line: classes of the data and the name or index of the teacher's, or
    of several, where it has others; names that both have are found."""
    teacher_classes: str | None = None
    """File with the names of the teacher's classes, one a line in the order of its outputs, or imagenet."""
    input_size: Positive | None = None
    """Side of the teacher's input in pixels."""
    min_top1: Fraction | None = None
    """Refuse logits whose test accuracy is lower."""


def with_weights(teachers: Sequence[str], weights: Sequence[str]) -> list[tuple[str, str | None]]:
    """Return each teacher with its weights; ``run:DIR`` and ``file:PATH`` bring their own.

    Raises:
        ValueError: there are neither no weights nor one for each of the others.
    """
    takers = [name for name in teachers if not brings_weights(name)]
    if len(weights) not in (0, len(takers)):
        own = [name for name in teachers if brings_weights(name)]
        besides = f"; {', '.join(own)} brings its own" if own else ""
        raise ValueError(
            f"{len(weights)} weights for {len(takers)} teachers: give one for each in the same order, or none{besides}"
        )
    given = iter(weights)
    return [(name, None if brings_weights(name) else next(given, None)) for name in teachers]


def brings_weights(teacher: str) -> bool:
    """Return whether a teacher's name stands for its weights, too."""
    return teacher.startswith(("run:", "file:"))
