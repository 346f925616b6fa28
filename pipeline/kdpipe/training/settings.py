"""Settings of a training: how steps are taken, for how long, and what the run directory keeps."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, ModelWrapValidatorHandler, model_validator

from kdpipe.settings import Epochs, Positive, Seed, Seeds, Settings

_ADAMW = {"lr": 1e-3, "weight_decay": 0.05}
"""Defaults with AdamW, those of Touvron et al., "Training data-efficient image transformers" (2021), at batch 1024."""


class Optimization(Settings):
    """Optimization"""

    epochs: Positive = 30
    """Passes over the training samples."""
    batch_size: int = Field(128, ge=2)
    """Samples per step."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """SGD with momentum 0.9, or AdamW with betas 0.9 and 0.999."""
    nesterov: bool = True
    """Nesterov momentum of sgd; --no-nesterov for plain momentum, as in RepDistiller and mdistiller."""
    dot: float | None = Field(None, gt=0, lt=0.1)
    """Separate momenta (DOT) for students of a teacher, such as 0.075: 0.9 plus this for the distillation loss, 0.9
    minus this for the rest."""
    lr: float = Field(0.1, gt=0)
    """Peak learning rate; with adamw the default is 0.001."""
    weight_decay: float = Field(5e-4, ge=0)
    """L2 penalty of sgd, or decoupled decay of adamw; with adamw the default is 0.05."""
    decay_on: Literal["auto", "all", "weights"] = "auto"
    """Decay all parameters, or weights without biases and norms; auto: all for sgd, weights for adamw."""
    lr_schedule: Literal["cosine", "step", "one-cycle", "constant"] = "cosine"
    """Learning rate after the warm-up; one-cycle has its own rise."""
    warmup_epochs: float = Field(1.0, ge=0)
    """Epochs over which the learning rate rises linearly."""
    lr_steps: Epochs = ()
    """Epochs, such as 150,180,210, after which the schedule step multiplies the rate by --lr-gamma."""
    lr_gamma: float = Field(0.1, gt=0, lt=1)
    """Factor of each of these drops."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Fraction of each label that is spread evenly over all classes."""
    clip_grad_norm: float | None = Field(None, gt=0)
    """Largest norm of the gradients of all parameters together."""
    ema: float | None = Field(None, gt=0, lt=1)
    """Decay, such as 0.999, of a moving average of the weights, which is tested and saved in their place."""
    amp: Literal["fp32", "bf16", "fp16", "auto"] = "fp32"
    """Arithmetic of the trained model; auto: bf16 or fp16 on CUDA, fp32 elsewhere."""
    channels_last: bool | None = None
    """Keep images and weights in the channels-last memory format (default: on a CPU, for convolutions)."""
    compile: bool = False
    """Compile the forward pass with torch.compile."""

    @model_validator(mode="wrap")
    @classmethod
    def _defaults(cls, values: Any, validate: ModelWrapValidatorHandler[Self]) -> Self:
        if not isinstance(values, dict) or values.get("optimizer") != "adamw":
            return validate(values)
        made = validate({**_ADAMW, **values})
        made.model_fields_set.intersection_update(values)  # defaults are not set
        return made

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.lr_schedule == "step") != bool(self.lr_steps):
            raise ValueError("lr-schedule step and lr-steps go together: give both, or neither")
        if self.dot is not None:
            unfit = {
                f"optimizer {self.optimizer}": self.optimizer != "sgd",
                "clip-grad-norm": self.clip_grad_norm is not None,
                "amp fp16": self.amp == "fp16",
                "compile": self.compile,
            }
            for what, given in unfit.items():
                if given:
                    raise ValueError(
                        f"dot takes two gradients of each step by sgd, which {what} does not fit: drop one"
                    )
        if self.optimizer != "sgd" and not self.nesterov:
            raise ValueError("no-nesterov is for sgd, adamw has no such momentum: leave it out, or pass --nesterov")
        return self


class RunSettings(Settings):
    """Run"""

    out: Path
    """Run directory to write."""
    seed: Seed = 0
    """Seed of the initial weights."""
    data_seed: Seed = 0
    """Seed of the samples' order."""
    seeds: Seeds = ()
    """Seeds, such as 0,1,2: one run for each, in OUT/seed-N, with N as --seed and, unless given, --data-seed."""
    init_weights: str | None = None
    """Initial weights (default: random): .safetensors, .pt, .pth, run:DIR or a torchvision weights name."""
    input_size: Positive | None = None
    """Side of the model's input in pixels."""
    device: str = "auto"
    """auto (CUDA, then CPU), cpu, cuda, cuda:N or mps."""
    validation: float = Field(0.0, ge=0, lt=1)
    """Fraction of the training samples to hold out; the model is measured on them after each epoch."""
    checkpoint_every: float = Field(60.0, ge=0)
    """Seconds between checkpoints; one is also written at the end of each epoch."""
    resume: bool = False
    """Continue the run in --out from its last checkpoint."""
    overwrite: bool = False
    """Replace a run that is already in --out instead of refusing."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.resume and self.overwrite:
            raise ValueError("resume goes on with a run and overwrite replaces it: give one of them")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds must differ, got {', '.join(map(str, self.seeds))}")
        return self


class SamplingSettings(Settings):
    """Sampling"""

    balance: bool = False
    """Draw every class equally often, by repeating samples of small classes."""
    sample_weights: Path | None = None
    """CSV file with the columns key and weight: how often to draw each sample, 0 for never."""


class LogSettings(Settings):
    """Logging"""

    dvclive: bool | None = None
    """Log to OUT/dvclive with DVCLive (default: where OUT is in the DVC repository that the command runs in)."""
    tensorboard: bool = False
    """Log to OUT/tensorboard for TensorBoard."""
    wandb: bool = False
    """Log to Weights & Biases and OUT/wandb; to the latter alone where WANDB_MODE is offline."""
