"""One frozen model, one batch of pixels, one block of logits."""

from __future__ import annotations

import torch

from kdpipe.errors import ModelError
from kdpipe.models import Model

PRECISIONS: dict[str, torch.dtype | None] = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Autocast dtype by name; ``fp32`` runs without autocast."""


class Forward:
    """A model in evaluation mode on a device, called with pixels and answering with logits."""

    def __init__(self, model: Model, *, device: torch.device, precision: str = "fp32") -> None:
        """Move the model to ``device`` and freeze it."""
        self.model = model
        self.device = device
        self._dtype = PRECISIONS[precision]
        self._module = model.module.to(device).requires_grad_(False)
        if device.type == "cuda" and precision == "fp32":
            torch.backends.cuda.matmul.allow_tf32 = False
            torch.backends.cudnn.allow_tf32 = False

    @torch.inference_mode()
    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return float32 logits ``(n, classes)`` on the device, for uint8 ``(n, 3, H, W)`` rendered pixels."""
        inputs = self.model.preset.normalise(pixels.to(self.device))
        with torch.autocast(self.device.type, dtype=self._dtype, enabled=self._dtype is not None):
            logits: torch.Tensor = self._module(inputs)
        if logits.ndim != 2:
            raise ModelError(f"{self.model.name} answers with shape {tuple(logits.shape)}, expected (n, classes).")
        return logits.float()
