"""Parameters of the two stages that train."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from stages.params.base import StageParams, StoresParams, TeacherParams
from stages.params.learning import Learning
from stages.params.values import AttackText, CurveText, LossText, Names, Positive, RecipeText, Seed, Seeds


class Training(Learning, StageParams):
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
    init_weights: str | None = Field(
        None,
        description="Weights to begin with instead of drawn ones: .safetensors, .pt, .pth, run:DIR for those of a "
        "finished run, or a torchvision weights name.",
    )
    validation: float = Field(
        0.0, ge=0, lt=1, description="Share of the training samples to hold out and measure the model on each epoch."
    )
    aux: Literal["rotation"] | None = Field(
        None,
        description="Auxiliary task, learned without labels: rotation, to say by how many quarter turns an image was "
        "turned. docs/TRAINING.md says more.",
    )
    aux_weight: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="Weight of the auxiliary task in the loss; default: 0.5."
    )
    balance: bool = Field(False, description="Draw every class equally often, by drawing samples of small ones again.")
    sample_weights: Path | None = Field(
        None, description="CSV file with the columns key and weight: how often to draw each sample; 0 for never."
    )
    adversarial: AttackText | None = Field(
        None,
        description="Learn from attacked images: pgd:EPS,STEPS, such as pgd:8/255,10, moves pixels by at most EPS of "
        "their range. docs/ROBUST.md says more.",
    )
    checkpoint_every: float = Field(
        60.0, ge=0, description="Seconds between checkpoints; one is also written at the end of each epoch."
    )
    resume: bool = Field(False, description="Continue the run in --out from its last checkpoint.")
    dvclive: bool | None = Field(
        None,
        description="Log to OUT/dvclive with DVCLive; if left out, where OUT is in the DVC repository that the command "
        "runs in.",
    )
    tensorboard: bool = Field(False, description="Log to OUT/tensorboard for TensorBoard.")
    wandb: bool = Field(
        False, description="Log to Weights & Biases and OUT/wandb; to the latter alone where WANDB_MODE is offline."
    )

    @model_validator(mode="after")
    def _has_a_task_to_weigh(self) -> Self:
        if self.aux is None and self.aux_weight is not None:
            raise ValueError("aux-weight is that of an auxiliary task: give aux rotation too, or leave it out")
        return self

    @model_validator(mode="after")
    def _has_seeds_once(self) -> Self:
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds must differ, got {', '.join(map(str, self.seeds))}")
        return self


class TrainTeacher(Training):
    """Train a teacher on hard labels."""

    model: str = Field(description="Model name; kdpipe models lists them.")
    out: Path = Field(description="Run directory to write.")


class TrainStudent(StoresParams, TeacherParams, Training):
    """Train students, with soft targets from a store, from a live teacher, or without any."""

    student: Names = Field(
        (),
        description="Model name; kdpipe models lists them. Repeat for several that are trained together, each into a "
        "run directory of its name below OUT.",
    )
    fleet: Path | None = Field(
        None, description="YAML list of students to train together, each with settings of its own; docs/TRAINING.md."
    )
    out: Path = Field(description="Run directory to write.")
    store_mix: Literal["mean", "confidence", "draw"] = Field(
        "mean",
        description="How several stores are one: the mean of their logits by --store-weight, a mean that also follows "
        "each teacher's confidence in a sample, or one teacher drawn for each batch. docs/CHAINS.md says more.",
    )
    distill: Literal["cache", "live", "none"] | None = Field(
        None, description="Where soft targets come from: cache when a store is given, live when a teacher is."
    )
    teacher: str | None = Field(None, description="Live teacher's model name, or run:DIR, a finished run.")
    weights: str | None = Field(
        None, description="The live teacher's weights: .safetensors, .pt, .pth, or a torchvision weights name."
    )
    loss: LossText = Field(
        "kd",
        description="Distillation loss: kd, soft-ce, hard, mixed, mse, dkd, dist, nkd or wsld; or several "
        "with weights, such as {kd: {weight: 0.5}, dist: {weight: 1}}. docs/LOSSES.md has the table. Or features, rkd "
        "and attention, of the teacher's layers: docs/SIGNALS.md.",
    )
    standardize: bool = Field(
        False, description="Give the distillation loss the z-scores of both models' logits, each row's own."
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
    robust_loss: Literal["ard", "rslad"] | None = Field(
        None,
        description="What is learned from attacked images with a teacher: ard, the distillation loss on them and "
        "cross-entropy on clean ones, or rslad, the distillation loss on both; default: rslad.",
    )
    memory_limit: float = Field(
        8.0,
        gt=0,
        allow_inf_nan=False,
        description="GiB that the store's logits may take; where they need more, the shuffle is coarser.",
    )
    allow_drift: bool = Field(False, description="Accept that pixels render differently than for the teacher.")

    @property
    def architecture(self) -> str:
        """The model of a single student."""
        return self.student[0]

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
    def loss_name(self) -> str:
        """What the distillation loss is called in messages, ``run.json`` and reports."""
        return f"{self.loss}, standardized" if self.standardize else self.loss

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
        if bool(self.student) == (self.fleet is not None):
            raise ValueError("give --student, or --fleet for students with settings of their own")
        if self.seeds and (self.fleet is not None or len(self.student) > 1):
            raise ValueError(
                "several students cannot be trained together with seeds: list the students of each seed in --fleet"
            )
        if min(self.temperatures, default=1) <= 0:
            raise ValueError(f"temperature must stay above 0, got {self.temperature}")
        if self.mode == "cache" and not self.store:
            raise ValueError("distill cache needs store")
        if self.mode == "cache" and self.store_mix != "mean" and len(self.store) < 2:
            raise ValueError(f"store-mix {self.store_mix} is for several stores: give store more than once")
        if self.mode == "live" and self.teacher is None:
            raise ValueError("distill live needs teacher")
        if self.robust_loss is not None and self.adversarial is None and self.fleet is None:
            raise ValueError("robust-loss needs adversarial, such as pgd:8/255,10")
        if self.robust_loss is not None and self.mode == "none":
            raise ValueError("robust-loss is for soft targets: give store or teacher, or leave it out")
        if self.recipe == "none" and self.views:
            raise ValueError("recipe none has the plain view only: give views 0, or another recipe")
        return self
