"""Settings of distillation: where soft targets come from, what is learned from them, and what is learned besides."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, TypeAlias

from pydantic import Field, model_validator

from kdpipe.distil.curves import Curve
from kdpipe.settings import Channels, Parsed, PathsOrUrls, Settings, Weights

if TYPE_CHECKING:
    from kdpipe.distil.adversary import Attack
    from kdpipe.distil.losses import Loss
    from kdpipe.distil.rotation import Auxiliary

    AttackSetting: TypeAlias = Attack
    LossSetting: TypeAlias = Loss
    AuxiliarySetting: TypeAlias = Auxiliary
else:
    AttackSetting = Annotated[Any, Parsed("kdpipe.distil.adversary:ATTACKS.make", "ATTACK")]
    LossSetting = Annotated[Any, Parsed("kdpipe.distil.losses:parse", "LOSS")]
    AuxiliarySetting = Annotated[Any, Parsed("kdpipe.distil.rotation:AUXILIARY_TASKS.make", "TASK")]

CurveSetting = Annotated[Curve, Parsed("kdpipe.distil.curves:Curve.parse", "X|CURVE")]


class StoreSettings(Settings):
    """Soft targets"""

    store: PathsOrUrls = ()
    """Store with the teacher's logits, or URL/NAME@VERSION of one; repeat to train on a mean of several."""
    store_weight: Weights = ()
    """Weight of each --store in the mean (default: equal)."""

    class_map: Path | None = None
    """CSV file, class,store_class in its first line: classes of the data that a store has under other names, where the
    labels of images do not tell them. For a live teacher without a store: class,teacher_class."""

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


class TargetSettings(StoreSettings):
    """Soft targets"""

    store_mix: Literal["mean", "confidence", "draw"] = "mean"
    """Several stores: the weighted mean of their logits, a mean weighted by each teacher's confidence in a sample, or
    one teacher drawn for each batch."""
    classes: Literal["store", "data"] = "store"
    """Classes of a student of stores: those of the store, or those of the data, of which the store may lack some and
    have more. Soft targets are then over the classes that both have."""
    surest: float | None = Field(None, gt=0, lt=1)
    """Train on this share of the samples alone, those whose class the store's teacher is surest of. An epoch has as
    many steps as with all."""
    distill: Literal["cache", "live", "none"] | None = None
    """Source of soft targets (default: cache with --store, live with --teacher, else none)."""
    teacher: str | None = None
    """Live teacher: a model name, run:DIR or file:PATH."""
    weights: str | None = None
    """The live teacher's weights: .safetensors, .pt, .pth, or a torchvision weights name."""
    teacher_classes: str | None = None
    """File with the names of the live teacher's classes, one a line in the order of its outputs, or imagenet."""
    mean: Channels | None = None
    """Mean of the live teacher's normalization, R,G,B in 0..1."""
    std: Channels | None = None
    """Standard deviation of the live teacher's normalization, R,G,B."""
    statistics: Literal["data"] | None = None
    """data: normalize the live teacher's images by the mean and std of this dataset, where nothing else gives them."""
    teacher_size: int | None = Field(None, gt=0)
    """Side of the live teacher's input in pixels."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Arithmetic of the live teacher."""
    memory_limit: float = Field(8.0, gt=0, allow_inf_nan=False)
    """GiB of memory for the store's logits; above that the shuffle is coarser."""
    allow_drift: bool = False
    """Accept pixels that differ from those of the teacher pass."""

    @property
    def memory_bytes(self) -> int:
        """The memory limit of each store in bytes."""
        return int(self.memory_limit * 1024**3) // max(1, len(self.store))

    @property
    def mode(self) -> Literal["cache", "live", "none"]:
        """The source of soft targets, with the default resolved."""
        if self.distill is not None:
            return self.distill
        if self.store:
            return "cache"
        return "live" if self.teacher is not None else "none"

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.mode == "cache" and not self.store:
            raise ValueError("distill cache needs store")
        if self.mode == "cache" and self.store_mix != "mean" and len(self.store) < 2:
            raise ValueError(f"store-mix {self.store_mix} is for several stores: give store more than once")
        if self.surest is not None and len(self.store) != 1:
            raise ValueError(f"surest ranks samples by one store, found {len(self.store)}: give store once")
        if self.mode == "live" and self.teacher is None:
            raise ValueError("distill live needs teacher")
        return self


class LossSettings(Settings):
    """Loss"""

    loss: LossSetting = Field("kd", validate_default=True)
    """Distillation loss, such as dkd:beta=2, or several: kd:weight=0.5+dist+features:layer3; kdpipe list losses."""
    temperature: CurveSetting | None = None
    """Temperature of all losses that do not give their own: a number, a curve, or learned:LOW,HIGH (default: each
    loss's own)."""
    kd_weight: CurveSetting | None = None
    """Weight of the distillation loss: a number, or a curve such as cosine:0.9,0.1,every=5 or, with --validation,
    plateau:0.9,0.5,patience=3 (default: as published)."""
    ce_weight: CurveSetting | None = None
    """Weight of the cross-entropy to the labels in distillation: a number or a curve (default: as published)."""
    robust_loss: Literal["ard", "rslad"] | None = None
    """With --adversarial: ard, distillation on attacked and cross-entropy on clean images, or rslad, distillation on
    both (default: rslad)."""


class ExtraSettings(Settings):
    """Additional objectives"""

    aux: AuxiliarySetting | None = None
    """Auxiliary task without labels: rotation, or with its weight rotation:0.5."""
    adversarial: AttackSetting | None = None
    """Train on attacked images: pgd:EPSILON,STEPS, such as pgd:8/255,10; see the guide to robust students."""
