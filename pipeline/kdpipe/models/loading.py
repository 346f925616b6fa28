"""A model with its weights, its preset and its identity."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from blake3 import blake3
from torch import nn

from kdpipe.errors import ModelError, did_you_mean
from kdpipe.models import registry
from kdpipe.models.cost import count_parameters, device_of
from kdpipe.models.features import Penultimate, find_penultimate
from kdpipe.models.preprocessing import (
    Known,
    Triple,
    choose,
    from_flags,
    from_timm,
    from_torchvision,
    from_weights,
)
from kdpipe.models.preset import Preset
from kdpipe.models.program import ExportedModel, load_program
from kdpipe.models.weights import COUNTER, class_mismatch, fit, read_weights, tensor_bytes
from kdpipe.models.zoo import FOR_IMAGENET

IMAGENET_SIZE = 224
IMAGENET_RESIZE = 256


@dataclass(frozen=True)
class Model:
    """A network that is ready to be shown images."""

    name: str
    """The name it was asked for by."""
    module: nn.Module
    """Maps normalised float32 ``(n, 3, S, S)`` to logits ``(n, classes)``; in evaluation mode, on the CPU."""
    preset: Preset
    """Its evaluation view."""
    preset_source: str
    """Who said the normalisation: ``flags``, ``weights``, ``torchvision <enum>``, ``timm`` or ``dataset``."""
    classes: tuple[str, ...] | None
    """Class names in the order of the logits, where the weights record them."""
    digest: str
    """Hex BLAKE3-128 of the architecture and the weights; of the file for a program."""

    @property
    def parameters(self) -> int:
        """The number of parameters."""
        return count_parameters(self.module)

    @property
    def penultimate(self) -> Penultimate | None:
        """Where its penultimate features are, found by running it; ``None`` where it has none."""
        return find_penultimate(self.module, self.preset.size)


@dataclass(frozen=True)
class Loaded:
    """A module with its weights, and what came with them."""

    module: nn.Module
    presets: tuple[Known, ...]
    classes: tuple[str, ...] | None = None


def load(
    name: str,
    *,
    num_classes: int,
    weights: str | Path | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    size: int | None = None,
    interpolation: str | None = None,
    fallback_statistics: Callable[[], tuple[Triple, Triple]],
    fallback_size: int = 32,
) -> Model:
    """Build the network ``name``, give it its weights, and settle how images are prepared for it.

    ``weights`` is a ``.safetensors``, ``.pt`` or ``.pth`` file, for ``torchvision:NAME`` also a member of its
    weights enum such as ``IMAGENET1K_V2``, and for ``timm:NAME`` also ``DEFAULT``. Without weights the
    network is initialised from torch's global generator. Mean and std, and size, come from the arguments,
    else the weights' header, else the package the model is from, else ``fallback_statistics()`` and
    ``fallback_size``.

    Raises:
        ModelError: the model is unknown, or its weights are missing, damaged or do not fit it.
        ParamsError: an argument is out of range.
    """
    flags = from_flags(mean, std, size=size, interpolation=interpolation)
    loaded = load_module(name, weights, num_classes=num_classes)
    loaded.module.eval()
    sources = (flags, *loaded.presets)
    preset, source = choose(sources, fallback_statistics=fallback_statistics, fallback_size=fallback_size)
    if registry.is_file(name) or registry.is_own(name):
        check_output(name, loaded.module, size=preset.size, num_classes=num_classes)
    if loaded.classes is not None and len(loaded.classes) != num_classes:
        raise class_mismatch(weights or name, len(loaded.classes), num_classes)
    digest = identify(name, loaded.module)
    return Model(name, loaded.module, preset, source, loaded.classes, digest)


def load_module(name: str, weights: str | Path | None, *, num_classes: int) -> Loaded:
    """Build the network and give it its weights, by whichever way its name calls for."""
    if registry.is_file(name):
        if weights is not None:
            raise ModelError(f"'{name}' carries its own weights; leave out {weights}")
        program = load_program(Path(name.removeprefix("file:")))
        fixed = () if program.size is None else (Known("program", size=program.size, resize=program.size),)
        return Loaded(program, fixed)
    source, _, architecture = name.partition(":")
    if source == "torchvision" and isinstance(weights, str) and not Path(weights).suffix:
        return load_torchvision(architecture, weights, num_classes=num_classes)
    if source == "timm" and weights == "DEFAULT":
        return load_timm(architecture, num_classes=num_classes)
    module = registry.create(name, num_classes)
    presets: tuple[Known, ...] = ()
    if source == "timm":
        presets = (from_timm(module),)
    elif source == "torchvision":
        presets = (Known("torchvision", size=IMAGENET_SIZE, resize=IMAGENET_RESIZE),)
    elif name in FOR_IMAGENET:
        presets = (Known("zoo", size=IMAGENET_SIZE, resize=IMAGENET_RESIZE),)
    if weights is None:
        return Loaded(module, presets)
    file = read_weights(Path(weights))
    if file.classes is not None and len(file.classes) != num_classes:
        raise class_mismatch(file.path, len(file.classes), num_classes)
    fit(module, file, num_classes=num_classes)
    return Loaded(module, (from_weights(file), *presets), file.classes)


def load_torchvision(architecture: str, weights: str, *, num_classes: int) -> Loaded:
    """Load published weights of torchvision, downloading them if they are not cached."""
    from torchvision import models

    if architecture not in registry.torchvision_names():
        raise registry.unknown(f"torchvision:{architecture}")
    members = models.get_model_weights(architecture).__members__
    if weights not in members:
        published = ", ".join(members) or "none"
        hint = did_you_mean(weights, members)
        raise ModelError(f"torchvision:{architecture} has no weights '{weights}'{hint} (published: {published})")
    chosen = members[weights]
    classes = tuple(chosen.meta["categories"])
    if len(classes) != num_classes:
        raise class_mismatch(f"torchvision:{architecture} {chosen.name}", len(classes), num_classes)
    try:
        module = models.get_model(architecture, weights=chosen)
    except (OSError, RuntimeError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ModelError(f"torchvision:{architecture} {chosen.name}: cannot get {chosen.url}: {reason}") from error
    return Loaded(module, (from_torchvision(chosen),), classes)


def load_timm(architecture: str, *, num_classes: int) -> Loaded:
    """Load the default published weights of a timm model."""
    timm = registry.import_timm()
    if not timm.is_model(architecture):
        raise ModelError(f"timm has no model '{architecture}'{did_you_mean(architecture, timm.list_models())}")
    try:
        module = timm.create_model(architecture, pretrained=True)
    except (OSError, RuntimeError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ModelError(f"timm:{architecture}: cannot get its weights: {reason}") from error
    if module.num_classes != num_classes:
        raise class_mismatch(f"timm:{architecture}", module.num_classes, num_classes)
    return Loaded(module, (from_timm(module),))


def check_output(name: str, module: nn.Module, *, size: int, num_classes: int) -> None:
    """Show the network two blank images and check the shape of what it says.

    Raises:
        ModelError: it does not take them, or does not return ``(2, num_classes)``.
    """
    try:
        with torch.no_grad():
            output: Any = module(torch.zeros(2, 3, size, size, device=device_of(module)))
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ModelError(f"'{name}' does not take images of 3x{size}x{size}: {reason}") from error
    if not isinstance(output, torch.Tensor):
        raise ModelError(f"'{name}' returns a {type(output).__name__}, expected one tensor of logits")
    if output.ndim == 2 and output.shape[0] == 2 and output.shape[1] != num_classes:
        raise ModelError(f"'{name}': the model has {output.shape[1]} outputs, the dataset has {num_classes} classes")
    if tuple(output.shape) != (2, num_classes):
        raise ModelError(f"'{name}' returns {tuple(output.shape)} for two images, expected {(2, num_classes)}")


def identify(name: str, module: nn.Module) -> str:
    """Return the BLAKE3-128 of architecture and weights, in hex; a program is identified by its file.

    Covers the name, ``repr(module)`` and every tensor's key, type, shape and bytes, except batch norm's step
    counters.
    """
    if isinstance(module, ExportedModel):
        return module.source_digest
    digest = blake3()
    digest.update(json.dumps([name, repr(module)]).encode())
    state = module.state_dict()
    for key in sorted(key for key in state if not key.endswith(COUNTER)):
        tensor = state[key]
        digest.update(json.dumps([key, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor_bytes(tensor))
    return digest.hexdigest(length=16)


def probe(*models: Model, num: int = 8) -> list[float]:
    """Return the first ``num`` logits of one fixed synthetic image, to 4 significant digits.

    The image is uint8 at the preset's size, from a closed formula; it tells two opaque models apart whatever
    their files look like. Several models of one size are averaged. Runs on each module's device.
    """
    side = torch.arange(models[0].preset.size, dtype=torch.int64)
    y, x, channel = (
        side.view(1, -1, 1),
        side.view(1, 1, -1),
        torch.arange(3, dtype=torch.int64).view(-1, 1, 1),
    )
    pixels = ((x * x + 3 * y * y + 7 * x * y + 11 * x + 5 * y + 85 * channel) % 256).to(torch.uint8).unsqueeze(0)
    with torch.no_grad():
        said = [model.module(model.preset.normalise(pixels.to(device_of(model.module))))[0] for model in models]
    logits = torch.stack([each.float().cpu() for each in said]).mean(dim=0)
    return [float(f"{value:.4g}") for value in logits[:num].tolist()]
