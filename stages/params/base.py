"""What several stages can be told."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from stages.params.values import Channels, Paths, Positive, Weights


class StageParams(BaseModel):
    """What every stage can be told."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    data: str = Field(
        description="Dataset: digits, folder:PATH, cifar10:PATH, cifar100:PATH, torchvision:NAME:PATH or "
        "package.module:function."
    )
    limit_train: Positive | None = Field(None, description="Use a fixed class-balanced subset of N training samples.")
    limit_test: Positive | None = Field(None, description="Use a fixed class-balanced subset of N test samples.")
    download: bool = Field(False, description="Let torchvision download the dataset.")
    loading: Literal["auto", "memory", "stream"] = Field(
        "auto", description="Keep decoded images in memory, stream them, or choose by their size."
    )
    device: str = Field("auto", description="auto (CUDA, then CPU), cpu, cuda, cuda:N or mps.")


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
    """Say whether a teacher's name stands for its weights, too."""
    return teacher.startswith(("run:", "file:"))


class TeacherParams(BaseModel):
    """How a teacher sees images and computes."""

    mean: Channels | None = Field(None, description="Mean that the teacher subtracts, R,G,B in 0..1.")
    std: Channels | None = Field(None, description="Standard deviation that the teacher divides by, R,G,B.")
    precision: Literal["fp32", "bf16", "fp16"] = Field("fp32", description="Arithmetic of the teacher's pass.")


class StoresParams(BaseModel):
    """Which stores hold the soft targets."""

    store: Paths = Field((), description="Store with the teacher's logits; repeat to train on a mean of several.")
    store_weight: Weights = Field((), description="Weight of each --store in the mean: equal if left out.")

    @property
    def shares(self) -> tuple[float, ...]:
        """The stores' weights, scaled to sum to 1."""
        weights = self.store_weight or (1.0,) * len(self.store)
        return tuple(weight / sum(weights) for weight in weights)

    @model_validator(mode="after")
    def _weighted(self) -> Self:
        if len(self.store_weight) not in (0, len(self.store)):
            raise ValueError(
                f"{len(self.store_weight)} store-weights for {len(self.store)} stores: give one for each in the same "
                "order, or none"
            )
        return self
