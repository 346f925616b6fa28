"""One frozen model, one batch of pixels, one block of logits, and of features if asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import torch

from kdpipe.errors import ModelError
from kdpipe.models import Model, Preset, probe
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
    def feature_dim(self) -> int | None:
        """Length of the features that come with the logits; ``None`` where none do."""

    def probe(self) -> list[float]:
        """Return the first logits of one fixed synthetic image."""


class FrozenTeacher(Source, Protocol):
    """Whoever answers pixels with logits, one model or several."""

    def answer(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return float32 logits and features ``(n, feature_dim)``, for uint8 ``(n, 3, H, W)`` rendered pixels."""

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return float32 logits ``(n, classes)`` on the device, for uint8 ``(n, 3, H, W)`` rendered pixels."""


class Forward:
    """A model in evaluation mode on a device, called with pixels and answering with logits."""

    def __init__(self, model: Model, *, device: torch.device, precision: str = "fp32", features: bool = False) -> None:
        """Move the model to ``device`` and freeze it; with ``features``, watch what its last layer is shown.

        Raises:
            ModelError: features are asked for, and no layer of the model makes the logits.
        """
        self.model = model
        self.device = device
        self.precision = precision
        self._dtype = PRECISIONS[precision]
        self._module = model.module.to(device).requires_grad_(False)
        self._penultimate = model.penultimate if features else None
        self._shown: torch.Tensor | None = None
        if features:
            self._watch()
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
    def feature_dim(self) -> int | None:
        """Length of the penultimate features, where they were asked for."""
        return None if self._penultimate is None else self._penultimate.dim

    def probe(self) -> list[float]:
        """Return the first logits of one fixed synthetic image, to 4 significant digits."""
        return probe(self.model)

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return float32 logits ``(n, classes)`` on the device, for uint8 ``(n, 3, H, W)`` rendered pixels."""
        return self.answer(pixels)[0]

    @torch.inference_mode()
    def answer(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return logits, and penultimate features ``(n, feature_dim)`` if asked for, float32 on the device."""
        inputs = self.model.preset.normalise(pixels.to(self.device))
        with torch.autocast(self.device.type, dtype=self._dtype, enabled=self._dtype is not None):
            logits: torch.Tensor = self._module(inputs)
        if logits.ndim != 2:
            raise ModelError(f"{self.model.name} answers with shape {tuple(logits.shape)}, expected (n, classes).")
        features, self._shown = self._shown, None
        return logits.float(), None if features is None else features.float()

    def _watch(self) -> None:
        if self._penultimate is None:
            raise ModelError(
                f"no layer of {self.model.name} makes its logits, so it has no penultimate features that kdpipe can "
                "find. Leave out --features."
            )

        def remember(_layer: torch.nn.Module, shown: tuple[torch.Tensor, ...]) -> None:
            self._shown = shown[0].flatten(1)

        self._module.get_submodule(self._penultimate.layer).register_forward_pre_hook(remember)


def _portable(name: str) -> str:
    """Leave the folder out of ``file:FOLDER/NAME.pt2``: the same program elsewhere is the same teacher."""
    scheme, _, path = name.partition(":")
    return f"{scheme}:{Path(path).name}" if scheme == "file" else name
