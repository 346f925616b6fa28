"""What a network's layers show while it answers: pooled features and attention maps, each by name.

``features:layer3`` is the output of the layer ``layer3``, averaged over places, ``(channels,)``; ``attention:layer3``
says how active each place of it is, ``(H, W)``. ``features:penultimate`` is what the last layer is shown.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from kdpipe.errors import ModelError, ParamsError, did_you_mean
from kdpipe.models.cost import device_of, evaluating
from kdpipe.models.features import find_penultimate

FEATURES, ATTENTION = "features", "attention"
PENULTIMATE = "penultimate"

Shape = tuple[int, ...]

_LAYER = re.compile(r"\w+(\.\w+)*", re.ASCII)
"""Names that can also be those of files."""
_NEEDED = {
    FEATURES: "(channels), (tokens, channels) or (channels, H, W)",
    ATTENTION: "(channels, H, W) with more than one place",
}
"""Which outputs a signal can be made of."""


@dataclass(frozen=True, order=True)
class Signal:
    """One thing to keep of one layer."""

    kind: str
    """``features`` or ``attention``."""
    layer: str
    """Name of a layer, as ``named_modules`` has it, or ``penultimate``."""

    def __str__(self) -> str:
        """Return its name, ``kind:layer``."""
        return f"{self.kind}:{self.layer}"

    @classmethod
    def parse(cls, name: str) -> Signal:
        """Read a name.

        Raises:
            ParamsError: it is not ``features:LAYER`` or ``attention:LAYER``.
        """
        kind, _, layer = name.partition(":")
        if kind not in (FEATURES, ATTENTION) or not _LAYER.fullmatch(layer):
            raise ParamsError(f"'{name}' is no signal, expected features:LAYER or attention:LAYER")
        if (kind, layer) == (ATTENTION, PENULTIMATE):
            raise ParamsError("the penultimate features have no places to map: name a layer for attention")
        return cls(kind, layer)


def parse_signals(text: str) -> tuple[Signal, ...]:
    """Read ``logits,features:layer2,layer3,attention:layer3``; logits are always kept and need not be written.

    A layer without a kind has that of the name before it. Returns each signal once, sorted.

    Raises:
        ParamsError: a name cannot be read.
    """
    found, kind = set(), None
    for part in filter(None, map(str.strip, text.split(","))):
        if part == "logits":
            continue
        signal = Signal.parse(part if ":" in part or kind is None else f"{kind}:{part}")
        kind = signal.kind
        found.add(signal)
    return tuple(sorted(found))


def layers(module: nn.Module, size: int) -> dict[str, Shape]:
    """Show two noise images of side ``size`` and return the layers whose output is one tensor, with its shape.

    The shape is that for one image. Layers are in the order in which they are done, so one comes after its parts; of
    one that runs several times it is the last time that counts. Of an exported program there is but the whole. The
    module's modes are as before afterwards.
    """
    shapes: dict[str, Shape] = {}

    def remember(name: str, _layer: nn.Module, _shown: Any, said: Any) -> None:
        shapes.pop(name, None)
        if isinstance(said, torch.Tensor) and said.is_floating_point() and said.ndim > 1 and len(said) == len(images):
            shapes[name] = tuple(said.shape[1:])

    images = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0)).to(device_of(module))
    named = [(name, layer) for name, layer in module.named_modules() if _LAYER.fullmatch(name)]
    hooks = [layer.register_forward_hook(partial(remember, name)) for name, layer in named]
    try:
        with evaluating(module), torch.no_grad():
            module(images)
    finally:
        for hook in hooks:
            hook.remove()
    return shapes


def pooled(said: torch.Tensor) -> torch.Tensor:
    """Average over places: ``(n, C, H, W)``, ``(n, tokens, C)`` or ``(n, C)`` to float32 ``(n, C)``."""
    said = said.float()
    if said.ndim == 2:
        return said.clone()  # because the network may go on in place
    return said.mean(1) if said.ndim == 3 else said.mean((2, 3))


def attention_map(said: torch.Tensor) -> torch.Tensor:
    """Return the mean over channels of the squared activations ``(n, C, H, W)``, float32 ``(n, H, W)``.

    Zagoruyko and Komodakis, "Paying More Attention to Attention" (2017), F with p = 2 of section 3.1, as the mean that
    the authors' code takes where the paper sums.
    """
    # A copy, because the network may go on in place.
    return said.to(torch.float32, copy=True).square().mean(1)


def signal_shape(kind: str, said: Shape) -> Shape | None:
    """Return the shape of a signal made of an output ``said``, both for one image; ``None`` where it cannot be made."""
    if kind == FEATURES:
        return {1: said[:1], 2: said[1:], 3: said[:1]}.get(len(said))
    return said[1:] if len(said) == 3 and said[1] * said[2] > 1 else None


class Watch:
    """Hooks on a network that make signals of what its layers say, during each forward pass."""

    def __init__(self, module: nn.Module, signals: Sequence[Signal], *, size: int, name: str) -> None:
        """Watch ``module``, called ``name`` in errors, whose images have the side ``size``.

        Raises:
            ModelError: a layer is not there, or its output has another number of dimensions than the signal needs.
        """
        self._found: dict[str, torch.Tensor] = {}
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []
        self.shapes: dict[str, Shape] = {}
        """Shape of each signal for one image, by name: ``(channels,)`` or ``(H, W)``."""
        said = layers(module, size) if any(signal.layer != PENULTIMATE for signal in signals) else {}
        for signal in signals:
            if signal.layer == PENULTIMATE:
                self._watch_penultimate(module, signal, size=size, name=name)
            else:
                self._watch(module, signal, said, name=name)
        self.take()  # what the search for the last layer showed

    def take(self) -> dict[str, torch.Tensor]:
        """Return the signals of the last forward pass, float32 ``(n, *shape)``, by name, and let go of them."""
        found, self._found = self._found, {}
        return found

    def close(self) -> None:
        """Take the hooks away."""
        for hook in self._hooks:
            hook.remove()

    def _watch(self, module: nn.Module, signal: Signal, said: dict[str, Shape], *, name: str) -> None:
        layer, shape = signal.layer, said.get(signal.layer)
        if shape is None:
            hint = did_you_mean(layer, said) or "."
            raise ModelError(
                f"{name} has no layer '{layer}' whose output is one tensor{hint} kdpipe models {name} --layers lists "
                "those that do."
            )
        of_signal = signal_shape(signal.kind, shape)
        if of_signal is None:
            raise ModelError(
                f"{signal} of {name}: the layer's output has shape {shape} per image, expected {_NEEDED[signal.kind]}."
            )
        self.shapes[str(signal)] = of_signal
        make = attention_map if signal.kind == ATTENTION else pooled

        def remember(_layer: nn.Module, _shown: Any, output: torch.Tensor) -> None:
            self._found[str(signal)] = make(output)

        self._hooks.append(module.get_submodule(layer).register_forward_hook(remember))

    def _watch_penultimate(self, module: nn.Module, signal: Signal, *, size: int, name: str) -> None:
        penultimate = find_penultimate(module, size)
        if penultimate is None:
            raise ModelError(
                f"no layer of {name} makes its logits, so it has no penultimate features that kdpipe can find. Leave "
                "out --features, or name a layer: --signals features:LAYER."
            )
        self.shapes[str(signal)] = (penultimate.dim,)

        def remember(_layer: nn.Module, shown: tuple[torch.Tensor, ...]) -> None:
            self._found[str(signal)] = shown[0].flatten(1).float()

        self._hooks.append(module.get_submodule(penultimate.layer).register_forward_pre_hook(remember))
