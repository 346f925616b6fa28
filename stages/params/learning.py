"""Parameters of the optimiser and its learning rate, which both training stages take."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import BaseModel, Field, ModelWrapValidatorHandler, model_validator

from stages.params.values import Epochs

_ADAMW = {"lr": 1e-3, "weight_decay": 0.05}
"""Defaults with AdamW, those of Touvron et al., "Training data-efficient image transformers" (2021), at batch 1024."""


class Learning(BaseModel):
    """How a step is taken, and how large it is."""

    optimizer: Literal["sgd", "adamw"] = Field("sgd", description="SGD with momentum 0.9, or AdamW.")
    nesterov: bool = Field(
        True, description="Nesterov's form of the momentum of sgd, or with --no-nesterov the plain one."
    )
    lr: float = Field(0.1, gt=0, description="Peak learning rate; 0.001 if left out with adamw.")
    weight_decay: float = Field(
        5e-4, ge=0, description="L2 penalty of sgd, or decoupled decay of adamw, 0.05 if left out."
    )
    decay_on: Literal["auto", "all", "weights"] = Field(
        "auto",
        description="Decay all parameters, or weights but not biases and norms; auto: all for sgd, weights for adamw.",
    )
    lr_schedule: Literal["cosine", "step", "one-cycle", "constant"] = Field(
        "cosine", description="How the learning rate moves after the warm-up; one-cycle has a rise of its own."
    )
    warmup_epochs: float = Field(1.0, ge=0, description="Epochs over which the learning rate rises.")
    lr_steps: Epochs = Field(
        (), description="Epochs, such as 150,180,210, after which lr-schedule step drops the rate."
    )
    lr_gamma: float = Field(0.1, gt=0, lt=1, description="Factor of each of these drops.")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="Share of each label that goes evenly to all classes.")
    clip_grad_norm: float | None = Field(None, gt=0, description="Scale the gradients down to at most this norm.")
    ema: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Decay, such as 0.999, of a moving average of the weights; it is what is tested and saved.",
    )
    amp: Literal["fp32", "bf16", "fp16", "auto"] = Field(
        "fp32", description="Arithmetic of the trained model; auto: bf16 or fp16 on CUDA, fp32 elsewhere."
    )
    channels_last: bool = Field(False, description="Keep images and weights with the channels last in memory.")
    compile: bool = Field(False, description="Compile the trained model's forward pass with torch.compile.")

    @model_validator(mode="wrap")
    @classmethod
    def _defaults(cls, values: Any, validate: ModelWrapValidatorHandler[Self]) -> Self:
        if not isinstance(values, dict) or values.get("optimizer") != "adamw":
            return validate(values)
        made = validate({**_ADAMW, **values})
        made.model_fields_set.intersection_update(values)  # defaults are not set
        return made

    @model_validator(mode="after")
    def _has_steps(self) -> Self:
        if (self.lr_schedule == "step") != bool(self.lr_steps):
            raise ValueError("lr-schedule step and lr-steps go together: give both, or neither")
        return self

    @model_validator(mode="after")
    def _has_momentum(self) -> Self:
        if self.optimizer != "sgd" and not self.nesterov:
            raise ValueError("no-nesterov is for sgd, adamw has no such momentum: leave it out, or pass --nesterov")
        return self
