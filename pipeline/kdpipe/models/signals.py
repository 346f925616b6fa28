"""Signals of a network's layers: pooled features and attention maps, each by name.

``features:layer3`` is the output of the layer ``layer3``, averaged over positions, ``(channels,)``.
``attention:layer3`` is the mean square of its channels at each position, ``(H, W)``. ``features:penultimate`` is the
input of the last layer. Importing this does not import torch.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from kdpipe.errors import ModelError, ParamsError, did_you_mean
from kdpipe.models.inspection import device_of, evaluating, find_penultimate
from kdpipe.spec import parse

if TYPE_CHECKING:
    import torch
    from torch import nn

FEATURES, ATTENTION = "features", "attention"
PENULTIMATE = "penultimate"

Shape = tuple[int, ...]

_LAYER = re.compile(r"\w+(\.\w+)*", re.ASCII)
"""Layer names that are also valid as file names."""
_NEEDED = {
    FEATURES: "(channels), (tokens, channels) or (channels, H, W)",
    ATTENTION: "(channels, H, W) with more than one position",
}
"""Shapes of outputs that a signal can be computed from."""


@dataclass(frozen=True, order=True)
class Signal:
    """A signal of one layer."""

    kind: str
    """``features`` or ``attention``."""
    layer: str
    """Name of a layer, as in ``named_modules``, or ``penultimate``."""

    def __str__(self) -> str:
        """Return its name, ``kind:layer``."""
        return f"{self.kind}:{self.layer}"

    @classmethod
    def parse(cls, name: str) -> Signal:
        """Parse a name.

        Raises:
            ParamsError: it is not ``features:LAYER`` or ``attention:LAYER``.
        """
        kind, _, layer = name.partition(":")
        if kind not in (FEATURES, ATTENTION) or not _LAYER.fullmatch(layer):
            raise ParamsError(
                f"'{name}' is no signal, expected features:LAYER or attention:LAYER, several joined with +"
            )
        if (kind, layer) == (ATTENTION, PENULTIMATE):
            raise ParamsError("the penultimate features have no positions, which attention needs: name a layer")
        return cls(kind, layer)


def parse_signals(text: str) -> tuple[Signal, ...]:
    """Parse ``features:layer2,layer3+attention:layer3``; ``logits``, which are always kept, may stand among them.

    Returns each signal once, sorted.

    Raises:
        ParamsError: a name cannot be parsed.
    """
    terms = [term for term in parse(text) if str(term) != "logits"] if text.strip() else []
    for term in terms:
        if term.settings or not term.values:
            raise ParamsError(f"'{term}' is no signal, expected features:LAYER,LAYER or attention:LAYER, joined with +")
    return tuple(sorted({Signal.parse(f"{term.name}:{layer}") for term in terms for layer in term.values}))


def layers(module: nn.Module, size: int) -> dict[str, Shape]:
    """Return the layers whose output is one tensor, with its shape for one image, by a pass of two noise images.

    ``size`` is the side of the images. Layers are in the order in which they finish, so a layer comes after its parts;
    a layer that runs several times counts where it last does. An exported program has one layer, the whole. The modes
    of the module's parts are restored.
    """
    import torch

    shapes: dict[str, Shape] = {}

    def remember(name: str, _layer: nn.Module, _inputs: Any, output: Any) -> None:
        shapes.pop(name, None)
        is_batch = isinstance(output, torch.Tensor) and output.ndim > 1 and len(output) == len(images)
        if is_batch and output.is_floating_point():
            shapes[name] = tuple(output.shape[1:])

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


def pooled(output: torch.Tensor) -> torch.Tensor:
    """Average over positions: ``(n, C, H, W)``, ``(n, tokens, C)`` or ``(n, C)`` to float32 ``(n, C)``."""
    output = output.float()
    if output.ndim == 2:
        return output.clone()  # because later layers may work in place
    return output.mean(1) if output.ndim == 3 else output.mean((2, 3))


def attention_map(output: torch.Tensor) -> torch.Tensor:
    """Return the mean over channels of the squared activations ``(n, C, H, W)``, float32 ``(n, H, W)``.

    Zagoruyko and Komodakis, "Paying More Attention to Attention" (2017), F with p = 2 of section 3.1, as the mean that
    the authors' code takes where the paper sums.
    """
    import torch

    # A copy, because later layers may work in place.
    return output.to(torch.float32, copy=True).square().mean(1)


def signal_shape(kind: str, output: Shape) -> Shape | None:
    """Return the shape of a signal of an output of shape ``output``, both for one image; ``None`` if it has none."""
    if kind == FEATURES:
        return {1: output[:1], 2: output[1:], 3: output[:1]}.get(len(output))
    return output[1:] if len(output) == 3 and output[1] * output[2] > 1 else None


class Watch:
    """Hooks on a network that compute signals of its layers during each forward pass."""

    def __init__(self, module: nn.Module, signals: Sequence[Signal], *, size: int, name: str) -> None:
        """Watch ``module``, called ``name`` in errors, whose images have the side ``size``.

        Raises:
            ModelError: a layer is missing, or its output has another number of dimensions than the signal needs.
        """
        self._found: dict[str, torch.Tensor] = {}
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []
        self.shapes: dict[str, Shape] = {}
        """Shape of each signal for one image, by name: ``(channels,)`` or ``(H, W)``."""
        if signals and getattr(module, "is_onnx", False):
            raise ModelError(f"{name} is an ONNX model, whose layers cannot be watched: leave out --signals.")
        outputs = layers(module, size) if any(signal.layer != PENULTIMATE for signal in signals) else {}
        for signal in signals:
            if signal.layer == PENULTIMATE:
                self._watch_penultimate(module, signal, size=size, name=name)
            else:
                self._watch(module, signal, outputs, name=name)
        self.take()  # those of the search for the last layer

    def take(self) -> dict[str, torch.Tensor]:
        """Return the signals of the last forward pass, float32 ``(n, *shape)``, by name, and forget them."""
        found, self._found = self._found, {}
        return found

    def close(self) -> None:
        """Remove the hooks."""
        for hook in self._hooks:
            hook.remove()

    def _watch(self, module: nn.Module, signal: Signal, outputs: dict[str, Shape], *, name: str) -> None:
        layer, shape = signal.layer, outputs.get(signal.layer)
        if shape is None:
            hint = did_you_mean(layer, outputs) or "."
            raise ModelError(
                f"{name} has no layer '{layer}' whose output is one tensor{hint} kdpipe models {name} --layers lists "
                "those."
            )
        of_signal = signal_shape(signal.kind, shape)
        if of_signal is None:
            raise ModelError(
                f"{signal} of {name}: the layer's output has shape {shape} per image, expected {_NEEDED[signal.kind]}."
            )
        self.shapes[str(signal)] = of_signal
        make = attention_map if signal.kind == ATTENTION else pooled

        def remember(_layer: nn.Module, _inputs: Any, output: torch.Tensor) -> None:
            self._found[str(signal)] = make(output)

        self._hooks.append(module.get_submodule(layer).register_forward_hook(remember))

    def _watch_penultimate(self, module: nn.Module, signal: Signal, *, size: int, name: str) -> None:
        penultimate = find_penultimate(module, size)
        if penultimate is None:
            raise ModelError(
                f"no layer of {name} makes its logits, so kdpipe finds no penultimate features. Leave "
                "out --features, or name a layer: --signals features:LAYER."
            )
        self.shapes[str(signal)] = (penultimate.dim,)

        def remember(_layer: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            self._found[str(signal)] = inputs[0].flatten(1).float()

        self._hooks.append(module.get_submodule(penultimate.layer).register_forward_pre_hook(remember))
