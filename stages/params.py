"""The parameters of each stage: one frozen model each, from which flags, params.yaml and help all come."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from stages.learning import CurveText, Learning, split_numbers


def _split_numbers(value: Any) -> Any:
    return value.split(",") if isinstance(value, str) else value


def _one_as_many(value: Any) -> Any:
    return value if isinstance(value, list | tuple) else (value,)


def _recipe_text(value: Any) -> Any:
    """Return a recipe as text: YAML stays a short string or becomes JSON, and a ``.yaml`` file is read."""
    if isinstance(value, list | dict):
        return json.dumps(value)
    if isinstance(value, str) and value.endswith((".yaml", ".yml")):
        try:
            return Path(value).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"the recipe file cannot be read: {error}") from None
    return value.strip() if isinstance(value, str) else value


def _loss_text(value: Any) -> Any:
    """Return a loss as text: several, a mapping in YAML, become JSON."""
    return json.dumps(value) if isinstance(value, dict) else value


Channels = Annotated[tuple[float, float, float], BeforeValidator(_split_numbers)]
"""Three numbers, one for each of red, green and blue; on the command line with commas between."""
Names = Annotated[tuple[str, ...], BeforeValidator(_one_as_many)]
"""One name or several; in YAML a lone name needs no list."""
RecipeText = Annotated[str, BeforeValidator(_recipe_text)]
"""A view recipe; see ``kdpipe.views.recipe``."""
LossText = Annotated[str, BeforeValidator(_loss_text)]
"""A distillation loss, or several as YAML; see ``kdpipe.student.losses``."""
Paths = Annotated[tuple[Path, ...], BeforeValidator(_one_as_many)]
Weights = Annotated[tuple[Annotated[float, Field(gt=0)], ...], BeforeValidator(_one_as_many)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Seeds = Annotated[tuple[Seed, ...], BeforeValidator(split_numbers)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(gt=0)]


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


class _Training(Learning, StageParams):
    """What the two training stages share."""

    epochs: Positive = Field(30, description="Passes over the training samples.")
    batch_size: int = Field(128, ge=2, description="Samples per step.")
    seed: Seed = Field(0, description="Seed of the initial weights.")
    data_seed: Seed = Field(0, description="Seed of the samples' order.")
    seeds: Seeds = Field(
        (),
        description="Seeds, such as 0,1,2, each of which gets a run of its own, OUT/seed-N, in place of seed and, if "
        "that is left out, of data-seed.",
    )
    recipe_seed: Seed | None = Field(
        None, description="Seed of the views' pixels: the store's, or 0 where there is none."
    )
    recipe: RecipeText | None = Field(
        None,
        description="View recipe: the store's, or crop-flip where there is none. docs/VIEWS.md lists the operations.",
    )
    views: Annotated[int, Field(ge=0)] | None = Field(
        None,
        description="Views to cycle through: all of the store's, or a new one each epoch where there is none.",
    )
    input_size: Positive | None = Field(None, description="Side of the model's input in pixels.")
    validation: float = Field(
        0.0, ge=0, lt=1, description="Share of the training samples to hold out and measure the model on each epoch."
    )
    checkpoint_every: float = Field(
        60.0, ge=0, description="Seconds between checkpoints; one is also written at the end of each epoch."
    )
    resume: bool = Field(False, description="Continue the run in --out from its last checkpoint.")

    @model_validator(mode="after")
    def _has_seeds_once(self) -> Self:
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds must differ, got {', '.join(map(str, self.seeds))}")
        return self


class TrainTeacher(_Training):
    """Train a teacher on hard labels."""

    model: str = Field(description="Model name; kdpipe models lists them.")
    out: Path = Field(description="Run directory to write.")


class _Teacher(BaseModel):
    """How a teacher sees images and computes."""

    mean: Channels | None = Field(None, description="Mean that the teacher subtracts, R,G,B in 0..1.")
    std: Channels | None = Field(None, description="Standard deviation that the teacher divides by, R,G,B.")
    precision: Literal["fp32", "bf16", "fp16"] = Field("fp32", description="Arithmetic of the teacher's pass.")


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


class CacheTeacher(_Teacher, StoreParams):
    """Run the teacher once over every view and keep its logits in a store."""

    teacher: Names = Field(
        min_length=1, description="Model name; kdpipe models lists them. Repeat for several, with --average."
    )
    weights: Names = Field(
        (),
        description="The teacher's weights: .safetensors, .pt, .pth, or a torchvision weights name. Repeat for each.",
    )
    features: bool = Field(False, description="Also keep what the teacher's last layer is shown, in float16.")
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

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(self.teacher) > 1 and not self.average:
            raise ValueError(
                f"{len(self.teacher)} teachers ({', '.join(self.teacher)}) for one store: give --average to keep the "
                "mean of their logits, or make a store for each"
            )
        if len(self.teacher) > 1 and self.features:
            raise ValueError("features of several teachers have no mean: leave out --features or --average")
        if len(self.weights) not in (0, len(self.teacher)):
            raise ValueError(
                f"{len(self.weights)} weights for {len(self.teacher)} teachers: give one for each in the same order, "
                "or none"
            )
        if self.recipe == "none" and self.views:
            raise ValueError("recipe none has the plain view only: give views 0, or another recipe")
        return self


class _Stores(BaseModel):
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


class TrainStudent(_Stores, _Teacher, _Training):
    """Train one student, with soft targets from a store, from a live teacher, or without any."""

    student: str = Field(description="Model name; kdpipe models lists them.")
    out: Path = Field(description="Run directory to write.")
    distill: Literal["cache", "live", "none"] | None = Field(
        None, description="Where soft targets come from: cache when a store is given, live when a teacher is."
    )
    teacher: str | None = Field(None, description="Live teacher's model name.")
    weights: str | None = Field(
        None, description="The live teacher's weights: .safetensors, .pt, .pth, or a torchvision weights name."
    )
    loss: LossText = Field(
        "kd",
        description="Distillation loss: kd, soft-ce, hard, mixed, mse, dkd, dist, nkd, wsld or standardized-kd; or "
        "several with weights, such as {kd: {weight: 0.5}, dist: {weight: 1}}. docs/LOSSES.md has the table.",
    )
    temperature: CurveText = Field(
        None, description="Temperature of the distillation loss: a number or a curve; default: the loss's own."
    )
    kd_weight: CurveText = Field(
        None,
        description="Weight of the distillation loss: a number, or a curve such as cosine:0.9,0.1,every=5; default: "
        "the published one.",
    )
    ce_weight: CurveText = Field(
        None,
        description="Weight of cross-entropy, when distilling: a number or a curve; default: the published one.",
    )
    alpha: float | None = Field(None, description="Parameter of dkd.")
    beta: float | None = Field(None, description="Parameter of dkd and dist.")
    gamma: float | None = Field(None, description="Parameter of dist and nkd.")
    soft_weight: float | None = Field(None, description="Share of the soft targets in the loss mixed.")
    memory_limit: float = Field(
        8.0,
        gt=0,
        allow_inf_nan=False,
        description="GiB that the store's logits may take; where they need more, the shuffle is coarser.",
    )
    allow_drift: bool = Field(False, description="Accept that pixels render differently than for the teacher.")

    @property
    def memory_bytes(self) -> int:
        """The memory limit in bytes."""
        return int(self.memory_limit * 1024**3)

    @property
    def temperatures(self) -> list[float]:
        """The temperature in each epoch; empty where it is the loss's own."""
        if self.temperature is None:
            return []
        if isinstance(self.temperature, float):
            return [self.temperature] * self.epochs
        from kdpipe.student.curves import Curve

        return Curve.parse(self.temperature).values(self.epochs)

    @property
    def loss_settings(self) -> dict[str, float]:
        """The loss's parameters that are given, but for the temperature."""
        given = {name: getattr(self, name) for name in ("alpha", "beta", "gamma", "soft_weight")}
        return {name: value for name, value in given.items() if value is not None}

    @property
    def mode(self) -> Literal["cache", "live", "none"]:
        """Where soft targets come from, with the default resolved."""
        if self.distill is not None:
            return self.distill
        if self.store:
            return "cache"
        return "live" if self.teacher is not None else "none"

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if min(self.temperatures, default=1) <= 0:
            raise ValueError(f"temperature must stay above 0, got {self.temperature}")
        if self.mode == "cache" and not self.store:
            raise ValueError("distill cache needs store")
        if self.mode == "live" and self.teacher is None:
            raise ValueError("distill live needs teacher")
        if self.recipe == "none" and self.views:
            raise ValueError("recipe none has the plain view only: give views 0, or another recipe")
        return self


class Benchmark(_Stores, StageParams):
    """Compare trained students: accuracy, agreement with the teacher, size and latency."""

    run: tuple[Path, ...] = Field(min_length=1, description="Run directory of a student; repeat for each.")
    out: Path = Field(description="Directory to write the report to.")
    store: Paths = Field((), description="Store with the teacher's test logits; default: the runs' own.")
    latency_repeats: Annotated[int, Field(ge=5)] = Field(50, description="Timed forward passes per batch size.")
    threads: Positive | None = Field(None, description="Threads of the latency measurement; default: torch's.")
