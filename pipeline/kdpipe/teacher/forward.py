"""One frozen model, one batch of pixels, one block of logits, and of each signal that is asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch

from kdpipe.errors import ModelError
from kdpipe.models import Model, Preset, Signal, Watch, probe
from kdpipe.store import Teacher

PRECISIONS: dict[str, torch.dtype | None] = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Autocast dtype by name; ``fp32`` runs without autocast."""


class Source(Protocol):
    """Where a store's logits come from, and what it says of that."""

    @property
    def identity(self) -> Teacher:
        """Name, digest, preset and parameters, as a store's fingerprint has them."""

    @property
    def preset(self) -> Preset:
        """The evaluation view whose geometry the pixels must have."""

    @property
    def device(self) -> torch.device:
        """Where it runs."""

    @property
    def precision(self) -> str:
        """How it computes; of a model, a key of ``PRECISIONS``."""

    @property
    def signals(self) -> Mapping[str, tuple[int, ...]]:
        """Shape for one image of each signal that comes with the logits, by name."""

    def probe(self) -> list[float]:
        """Return the first logits of one fixed synthetic image."""


class FrozenTeacher(Source, Protocol):
    """Whoever answers pixels with logits, one model or several."""

    def answer(self, pixels: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return float32 logits and signals ``(n, *shape)`` by name, for uint8 ``(n, 3, H, W)`` rendered pixels."""

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return float32 logits ``(n, classes)`` on the device, for uint8 ``(n, 3, H, W)`` rendered pixels."""


class Forward:
    """A model in evaluation mode on a device, called with pixels and answering with logits."""

    def __init__(
        self, model: Model, *, device: torch.device, precision: str = "fp32", signals: Sequence[Signal] = ()
    ) -> None:
        """Move the model to ``device``, freeze it and watch the layers of ``signals``.

        Raises:
            ModelError: a layer is not there, or cannot give its signal.
        """
        self.model = model
        self.device = device
        self.precision = precision
        self._dtype = PRECISIONS[precision]
        self._module = model.module.to(device).requires_grad_(False)
        self._watch = Watch(self._module, signals, size=model.preset.size, name=model.name)
        if device.type == "cuda" and precision == "fp32":
            torch.backends.cuda.matmul.allow_tf32 = False
            torch.backends.cudnn.allow_tf32 = False

    @property
    def identity(self) -> Teacher:
        """Who a store says that it was written by."""
        return Teacher(
            name=_portable(self.model.name),
            digest=self.model.digest,
            preset=self.model.preset.describe(),
            parameters=self.model.parameters,
        )

    @property
    def preset(self) -> Preset:
        """The model's evaluation view."""
        return self.model.preset

    @property
    def signals(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of each signal that was asked for."""
        return self._watch.shapes

    def probe(self) -> list[float]:
        """Return the first logits of one fixed synthetic image, to 4 significant digits."""
        return probe(self.model)

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return float32 logits ``(n, classes)`` on the device, for uint8 ``(n, 3, H, W)`` rendered pixels."""
        return self.answer(pixels)[0]

    @torch.inference_mode()
    def answer(self, pixels: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return logits, and the signals that were asked for by name, float32 on the device."""
        inputs = self.model.preset.normalize(pixels.to(self.device))
        with torch.autocast(self.device.type, dtype=self._dtype, enabled=self._dtype is not None):
            logits: torch.Tensor = self._module(inputs)
        if logits.ndim != 2:
            raise ModelError(f"{self.model.name} answers with shape {tuple(logits.shape)}, expected (n, classes).")
        return logits.float(), self._watch.take()


def _portable(name: str) -> str:
    """Leave the folder out of ``file:FOLDER/NAME.pt2``: the same program elsewhere is the same teacher."""
    scheme, _, path = name.partition(":")
    return f"{scheme}:{Path(path).name}" if scheme == "file" else name
