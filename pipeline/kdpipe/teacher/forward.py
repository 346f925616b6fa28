"""Frozen teachers: one model, or the mean of several; uint8 pixels in, float32 logits and signals out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import Literal, Protocol

import torch

from kdpipe.errors import ModelError
from kdpipe.models import AnyPreset, Model, Signal, Watch, probe, taking
from kdpipe.models.layout import CHANNELS_LAST, arrange, choose
from kdpipe.models.parts import in_parts, part_size
from kdpipe.models.program import ExportedModel
from kdpipe.store.manifest import digest_json
from kdpipe.store.sections import Teacher
from kdpipe.teacher.classes import Outputs, combine
from kdpipe.views import Geometry

PRECISIONS: dict[str, torch.dtype | None] = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Autocast dtype by name; ``fp32`` runs without autocast."""


class LogitSource(Protocol):
    """Origin of a store's logits, as the store records it."""

    @property
    def identity(self) -> Teacher:
        """Name, digest, preset and parameters, as in a store's fingerprint."""

    @property
    def preset(self) -> AnyPreset:
        """The evaluation preset, whose geometry the pixels must have."""

    @property
    def device(self) -> torch.device:
        """Device of the computation."""

    @property
    def precision(self) -> str:
        """Arithmetic of the computation; for a model, a key of ``PRECISIONS``."""

    @property
    def memory_format(self) -> Literal["channels_last"] | None:
        """Memory format of the computation, where it is not torch's default."""

    @property
    def signals(self) -> Mapping[str, tuple[int, ...]]:
        """Shape for one image of each signal that comes with the logits, by name."""

    def probe(self) -> list[float]:
        """Return the first logits of one fixed synthetic image, before any class map."""


class FrozenTeacher(LogitSource, Protocol):
    """Maps pixels to logits: one model, or several."""

    @property
    def returns_probabilities(self) -> bool:
        """Whether its logits are logarithms of the probabilities that a network returns."""

    def outputs(self, pixels: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return float32 logits and signals ``(n, *shape)`` by name, for uint8 ``(n, 3, H, W)`` rendered pixels."""

    @property
    def members(self) -> tuple[FrozenTeacher, ...]:
        """The teachers, one or more, each without its class map."""

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return float32 logits ``(n, classes)`` on the device, for uint8 ``(n, 3, H, W)`` rendered pixels."""


class Forward:
    """A model in evaluation mode on a device; maps pixels to logits."""

    def __init__(
        self,
        model: Model,
        *,
        device: torch.device,
        precision: str = "fp32",
        signals: Sequence[Signal] = (),
        channels_last: bool | None = None,
        outputs: Outputs | None = None,
    ) -> None:
        """Move the model to ``device``, freeze it and watch the layers of ``signals``.

        ``channels_last`` is as for ``kdpipe.models.layout.choose``, and ``outputs`` are those that each class of the
        dataset is made of, where it has other classes than the model.

        Raises:
            ModelError: a layer does not exist, or cannot give its signal; the network cannot compute in channels-last.
        """
        self.model = model
        self.device = device
        self.precision = precision
        self.class_map = outputs
        self._dtype = PRECISIONS[precision]
        if isinstance(model.module, ExportedModel) and model.module.is_onnx and precision != "fp32":
            raise ModelError(f"{model.name} computes in the precision of its file: leave out --precision {precision}.")
        self._module = model.module.to(device).requires_grad_(False)
        size = model.preset.size
        self._last = choose(self._module, size, asked=channels_last, device=device, name=model.name)
        arrange(self._module, channels_last=self._last)
        self._part = part_size(self._module, model.preset.size)
        self._watch = Watch(self._module, signals, size=model.preset.size, name=model.name)
        if device.type == "cuda" and precision == "fp32":
            torch.backends.cuda.matmul.allow_tf32 = False
            torch.backends.cudnn.allow_tf32 = False

    @property
    def identity(self) -> Teacher:
        """Name, digest, preset and parameters of the model."""
        return Teacher(
            name=_portable(self.model.name),
            digest=self.model.digest,
            preset={**self.model.preset.describe(), **self.model.interface.describe()},
            parameters=self.model.parameters,
            class_maps=() if self.class_map is None else (self.class_map,),
        )

    @property
    def members(self) -> tuple[Forward, ...]:
        """The model without its class map."""
        if self.class_map is None:
            return (self,)
        bare = copy(self)
        bare.class_map = None
        return (bare,)

    @property
    def preset(self) -> AnyPreset:
        """The model's evaluation preset."""
        return self.model.preset

    @property
    def memory_format(self) -> Literal["channels_last"] | None:
        """Memory format of images and weights."""
        return CHANNELS_LAST if self._last else None

    @property
    def signals(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of each requested signal."""
        return self._watch.shapes

    @property
    def returns_probabilities(self) -> bool:
        """Whether the model returns probabilities, of which the logarithms are taken."""
        return self.model.interface.outputs == "probabilities"

    def probe(self) -> list[float]:
        """Return the first logits of one fixed synthetic image, to 4 significant digits."""
        return probe(self.model)

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return float32 logits ``(n, classes)`` on the device, for uint8 ``(n, 3, H, W)`` rendered pixels."""
        return self.outputs(pixels)[0]

    @torch.inference_mode()
    def outputs(self, pixels: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return logits, and the requested signals by name, float32 on the device."""
        parts = [self._outputs(part) for part in in_parts(pixels.to(self.device), self._part)]
        if len(parts) == 1:
            return parts[0]
        signals = {name: torch.cat([of_part[name] for _, of_part in parts]) for name in parts[0][1]}
        return torch.cat([logits for logits, _ in parts]), signals

    def _outputs(self, pixels: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        inputs = self.model.preset.normalize(pixels)
        if self._last:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        half = torch.autocast(self.device.type, dtype=self._dtype, enabled=self._dtype is not None)
        with half, taking(self.model.preset):
            logits: torch.Tensor = self._module(inputs)
        if logits.ndim != 2:
            raise ModelError(f"{self.model.name} returns shape {tuple(logits.shape)}, expected logits (n, classes).")
        logits = logits.float()
        return logits if self.class_map is None else combine(logits, self.class_map), self._watch.take()


class Ensemble:
    """A teacher ensemble: each teacher normalizes the same pixels with its own statistics, and logits are averaged.

    The mean is taken in float32 in the order of the teachers, with equal weights.
    """

    def __init__(self, teachers: Sequence[Forward]) -> None:
        """Take at least one teacher; all run on one device.

        Raises:
            ModelError: two teachers need images of different sizes, or different resampling.
        """
        first = teachers[0]
        for other in teachers[1:]:
            expected, found = Geometry.of(first.preset), Geometry.of(other.preset)
            if found != expected:
                raise ModelError(
                    f"{first.model.name} takes {_words(expected)}, {other.model.name} {_words(found)}: an average "
                    "needs teachers that take the same pixels. Give --input-size, or average teachers of one geometry."
                )
        self.teachers = tuple(teachers)
        self.device = first.device
        self.precision = first.precision

    @property
    def memory_format(self) -> Literal["channels_last"] | None:
        """Channels-last if it is that of one of the teachers."""
        return next((each.memory_format for each in self.teachers if each.memory_format is not None), None)

    @property
    def identity(self) -> Teacher:
        """``average(NAME, NAME, ...)``; the digest covers the teachers' digests in order.

        The preset is the first teacher's, whose geometry all of them share, and has all presets under ``members``.
        """
        parts = [teacher.identity for teacher in self.teachers]
        return Teacher(
            name=f"average({', '.join(part.name for part in parts)})",
            digest=digest_of([teacher.model for teacher in self.teachers]),
            preset={**parts[0].preset, "members": [part.preset for part in parts]},
            parameters=sum(part.parameters for part in parts),
            class_maps=self._class_maps,
        )

    @property
    def _class_maps(self) -> tuple[Outputs, ...]:
        """The class map of each teacher; a teacher without one has its outputs in order."""
        maps = [teacher.class_map for teacher in self.teachers]
        classes = max((len(each) for each in maps if each is not None), default=0)
        same = tuple((index,) for index in range(classes))
        return tuple(same if each is None else each for each in maps) if classes else ()

    @property
    def members(self) -> tuple[Forward, ...]:
        """The teachers without their class maps."""
        return tuple(bare for teacher in self.teachers for bare in teacher.members)

    @property
    def preset(self) -> AnyPreset:
        """The first teacher's evaluation preset; all have its geometry."""
        return self.teachers[0].preset

    def probe(self) -> list[float]:
        """Return the first averaged logits of one fixed synthetic image, to 4 significant digits."""
        return probe(*(teacher.model for teacher in self.teachers))

    @property
    def returns_probabilities(self) -> bool:
        """Whether all teachers return probabilities, so that the mean is one of logarithms."""
        return False  # the logarithms' mean does not sum to 1

    @property
    def signals(self) -> dict[str, tuple[int, ...]]:
        """Empty: features of different networks have different spaces, and therefore no mean."""
        return {}

    def outputs(self, pixels: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the mean logits, and no signals."""
        return self(pixels), {}

    @torch.inference_mode()
    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the mean of the teachers' float32 logits ``(n, classes)``, for uint8 ``(n, 3, H, W)`` pixels."""
        return torch.stack([teacher(pixels) for teacher in self.teachers]).mean(dim=0)


def digest_of(models: Sequence[Model]) -> str:
    """Return the digest of a teacher: a model's own, or one over those of the models that are averaged, in order."""
    return models[0].digest if len(models) == 1 else digest_json({"average": [model.digest for model in models]})


def _words(geometry: Geometry | None) -> str:
    if geometry is None:
        return "tensors"
    return f"{geometry.size} px cut from {geometry.resize} ({geometry.interpolation})"


def _portable(name: str) -> str:
    """Remove the folder from ``file:FOLDER/NAME.pt2``: the same program elsewhere is the same teacher."""
    scheme, _, path = name.partition(":")
    return f"{scheme}:{Path(path).name}" if scheme == "file" else name
