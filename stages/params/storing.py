"""Parameters of the stages that make a store."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from stages.params.base import StageParams, TeacherParams, with_weights
from stages.params.values import Fraction, Names, Positive, RecipeText, Seed, SignalNames


class StoreParams(StageParams):
    """What the stages that make a store share."""

    out: Path = Field(description="Store to write, NAME.zarr.")
    encoding: str = Field(
        "fp16", description="How logits are kept: fp32, fp16, fp16r<1-9>, sqrtp<2-8>@<T0>, tailp<2-8>@<T> or topk<k>."
    )
    max_kl: float | None = Field(
        None, gt=0, description="Choose the smallest encoding whose mean KL on a pilot stays below this by 1.2."
    )
    at_temperature: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (1.0, 4.0), min_length=1, description="Temperature at which --max-kl must hold; repeat for several."
    )
    seed: Seed = Field(0, description="Seed of the views' pixels.")
    input_size: Positive | None = Field(None, description="Side of the teacher's input in pixels.")
    min_top1: Fraction | None = Field(
        None, description="Stop before the training views if the teacher's test accuracy is lower."
    )
    overwrite: bool = Field(False, description="Rebuild a store made from other ingredients instead of refusing.")
    title: str | None = Field(None, description="The store's title, for those who will get it.")
    license: str | None = Field(None, description="Licence of the logits, best as an SPDX identifier.")
    allowed_use: str | None = Field(None, description="What the logits may be used for.")
    contact: str | None = Field(None, description="Whom to ask about them.")
    notes: str | None = Field(None, description="Whatever else people should know.")

    @model_validator(mode="after")
    def _is_a_store(self) -> Self:
        if self.out.suffix != ".zarr":
            raise ValueError(f"out must end in .zarr, got {self.out}")
        return self


class CacheTeacher(TeacherParams, StoreParams):
    """Run the teacher once over every view and keep its logits in a store."""

    teacher: Names = Field(
        min_length=1,
        description="Model name, see kdpipe models, or run:DIR, a finished run. Repeat for several, with --average.",
    )
    weights: Names = Field(
        (),
        description="The teacher's weights: .safetensors, .pt, .pth, or a torchvision weights name. Repeat for each "
        "teacher that does not bring its own.",
    )
    features: bool = Field(
        False, description="The same as --signals features:penultimate, what the last layer is shown."
    )
    signals: SignalNames = Field(
        (),
        description="Also keep, in float16, what layers show: logits,features:LAYER[,LAYER],attention:LAYER. Logits "
        "are always kept; kdpipe models NAME --layers lists the layers.",
    )
    average: bool = Field(False, description="Keep the plain mean of the logits of several teachers.")
    views: Annotated[int, Field(ge=0)] | None = Field(
        None, description="Augmented views beside the plain one: 4, or 0 with the recipe none."
    )
    recipe: RecipeText = Field(
        "crop-flip",
        description="View recipe, such as none, crop-flip or rrc-flip:0.25+color+mixup:0.2, or a .yaml file; "
        "docs/VIEWS.md lists the operations.",
    )
    batch_size: Positive = Field(256, description="Samples per forward pass.")

    @property
    def augmented_views(self) -> int:
        """Number of augmented views."""
        if self.views is None:
            return 0 if self.recipe == "none" else 4
        return self.views

    @property
    def members(self) -> list[tuple[str, str | None]]:
        """Each teacher with its weights, where they are given."""
        return with_weights(self.teacher, self.weights)

    @property
    def kept_signals(self) -> tuple[str, ...]:
        """Names of what is kept beside the logits, ``features`` included."""
        return tuple(sorted({*self.signals, *(("features:penultimate",) if self.features else ())}))

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(self.teacher) > 1 and not self.average:
            raise ValueError(
                f"{len(self.teacher)} teachers ({', '.join(self.teacher)}) for one store: give --average to keep the "
                "mean of their logits, or make a store for each"
            )
        if len(self.teacher) > 1 and self.kept_signals:
            flag = "--features" if self.features else "--signals"
            raise ValueError(f"features of several teachers have no mean: leave out {flag} or --average")
        with_weights(self.teacher, self.weights)
        if self.recipe == "none" and self.views:
            raise ValueError("recipe none has the plain view only: give views 0, or another recipe")
        return self


class ImportLogits(StoreParams):
    """Make a store of logits that someone already has, from any teacher in any framework."""

    logits: Path = Field(
        description="Training logits, .npy: (samples, classes) in the dataset's order; with views "
        "(1 + views, samples, classes), the plain view first."
    )
    test_logits: Path | None = Field(None, description="Test logits, .npy: (samples, classes).")
    teacher_name: str = Field(min_length=1, description="Who gave them.")
    recipe: RecipeText = Field(
        "none", description="View recipe that the augmented views were rendered by, if there are any."
    )
    views: int = Field(0, ge=0, description="Augmented views beside the plain one.")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.recipe == "none") != (self.views == 0):
            raise ValueError(
                "recipe and views go together: give both for augmented views, or neither for the plain one"
            )
        return self
