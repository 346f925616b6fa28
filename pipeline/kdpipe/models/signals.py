"""Signals of a network's layers: pooled features, attention maps, hidden states and attention heads, each by name.

``features:layer3`` is the output of the layer ``layer3``, averaged over positions, ``(channels,)``.
``attention:layer3`` is the mean square of its channels at each position, ``(H, W)``. ``features:penultimate`` is the
input of the last layer. Of sequences, ``hidden:encoder.1`` is the output at each token, ``(tokens, channels)``, and
``heads:encoder.1.attention`` the attention of each head, ``(heads, tokens, tokens)``; both are 0 at the padding that
the network's ``attention_mask`` marks. Of a layer that returns several tensors, the first that fits counts.

Importing this does not import torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kdpipe.dataset.forms import MASK
from kdpipe.errors import ModelError, ParamsError, did_you_mean
from kdpipe.models.inputs import InputSize, noise
from kdpipe.models.inspection import device_of, evaluating, find_penultimate, hooked
from kdpipe.spec import parse

if TYPE_CHECKING:
    import torch
    from torch import nn

FEATURES, ATTENTION, HIDDEN, HEADS = "features", "attention", "hidden", "heads"
KINDS = (FEATURES, ATTENTION, HIDDEN, HEADS)
PENULTIMATE = "penultimate"

Shape = tuple[int, ...]

_LAYER = re.compile(r"\w+(\.\w+)*", re.ASCII)
"""Layer names that are also valid as file names."""
_EXPECTED = "features:LAYER or attention:LAYER, of sequences also hidden:LAYER or heads:LAYER"
_NEEDED = {
    FEATURES: "(channels), (tokens, channels) or (channels, H, W)",
    ATTENTION: "(channels, H, W) with more than one position",
    HIDDEN: "(tokens, channels)",
    HEADS: "(heads, tokens, tokens)",
}
"""Shapes of outputs that a signal can be computed from."""


@dataclass(frozen=True, order=True)
class Signal:
    """A signal of one layer."""

    kind: str
    """One of ``KINDS``."""
    layer: str
    """Name of a layer, as in ``named_modules``, or ``penultimate``."""

    def __str__(self) -> str:
        """Return its name, ``kind:layer``."""
        return f"{self.kind}:{self.layer}"

    @classmethod
    def parse(cls, name: str) -> Signal:
        """Parse a name.

        Raises:
            ParamsError: it is not ``KIND:LAYER``.
        """
        kind, _, layer = name.partition(":")
        if kind not in KINDS or not _LAYER.fullmatch(layer):
            raise ParamsError(f"'{name}' is no signal, expected {_EXPECTED}, several joined with +")
        if kind != FEATURES and layer == PENULTIMATE:
            raise ParamsError(f"the penultimate features have no positions, which {kind} needs: name a layer")
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
            raise ParamsError(f"'{term}' is no signal, expected {_EXPECTED}, joined with +")
    return tuple(sorted({Signal.parse(f"{term.name}:{layer}") for term in terms for layer in term.values}))


def layers(module: nn.Module, size: InputSize) -> dict[str, Shape]:
    """Return the layers whose output is a tensor, with its shape for one image, by a pass of two noise images.

    Of several tensors that a layer returns, it is the first.

    ``size`` is the side of the images, or the form of tensors. Layers are in the order in which they finish, so a layer
    comes after its parts; a layer that runs several times counts where it last does. An exported program has one layer,
    the whole. The modes of the module's parts are restored.
    """
    return {name: next(filter(None, shapes)) for name, shapes in outputs(module, size).items()}


def outputs(module: nn.Module, size: InputSize) -> dict[str, list[Shape]]:
    """Return the shapes of all tensors that each layer returns, as ``layers``; ``()`` of one that is no batch."""
    import torch

    shapes: dict[str, list[Shape]] = {}

    def remember(name: str, _layer: nn.Module, _inputs: Any, output: Any) -> None:
        shapes.pop(name, None)
        found: list[Shape] = [tuple(each.shape[1:]) if len(each) == 2 else () for each in _tensors(output)]
        if any(found):
            shapes[name] = found

    named = [(name, layer) for name, layer in module.named_modules() if _LAYER.fullmatch(name)]
    with evaluating(module), hooked(named, remember), torch.no_grad():
        module(noise(size, 2, device_of(module)))
    return shapes


def _tensors(output: Any) -> list[torch.Tensor]:
    """Return the floating tensors of an output with more than one dimension."""
    import torch

    several = output if isinstance(output, tuple | list) else (output,)
    if isinstance(output, Mapping):  # as the outputs of transformers
        several = tuple(output.values())
    return [each for each in several if isinstance(each, torch.Tensor) and each.ndim > 1 and each.is_floating_point()]


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


def whole(output: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Return a layer's output in float32, 0 at the tokens where ``mask`` ``(n, tokens)`` is 0.

    Of hidden states ``(n, tokens, channels)`` these are the second dimension, of heads ``(n, heads, tokens, tokens)``
    the third, of the tokens that attend.
    """
    import torch

    found = output.to(torch.float32, copy=True)
    if mask is None or mask.shape != (len(output), output.shape[-2]):
        return found
    return found * (mask != 0).view(len(mask), *[1] * (output.ndim - 3), -1, 1)


def signal_shape(kind: str, output: Shape) -> Shape | None:
    """Return the shape of a signal of an output of shape ``output``, both for one image; ``None`` if it has none."""
    if kind == FEATURES:
        return {1: output[:1], 2: output[1:], 3: output[:1]}.get(len(output))
    if kind == HIDDEN:
        return output if len(output) == 2 else None
    if kind == HEADS:
        return output if len(output) == 3 and output[1] == output[2] else None
    return output[1:] if len(output) == 3 and output[1] * output[2] > 1 else None


class Watch:
    """Hooks on a network that compute signals of its layers during each forward pass."""

    def __init__(self, module: nn.Module, signals: Sequence[Signal], *, size: InputSize, name: str) -> None:
        """Watch ``module``, called ``name`` in errors, whose images have the side ``size``, or tensors that form.

        Raises:
            ModelError: a layer is missing, or its output has another number of dimensions than the signal needs.
        """
        self._found: dict[str, torch.Tensor] = {}
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []
        self.shapes: dict[str, Shape] = {}
        """Shape of each signal for one image, by name, such as ``(channels,)`` or ``(H, W)``."""
        if signals and getattr(module, "is_onnx", False):
            raise ModelError(f"{name} is an ONNX model, whose layers cannot be watched: leave out --signals.")
        self._mask: torch.Tensor | None = None
        found = outputs(module, size) if any(signal.layer != PENULTIMATE for signal in signals) else {}
        if any(signal.kind in (HIDDEN, HEADS) for signal in signals):
            self._hooks.append(module.register_forward_pre_hook(self._take_mask, with_kwargs=True))
        for signal in signals:
            if signal.layer == PENULTIMATE:
                self._watch_penultimate(module, signal, size=size, name=name)
            else:
                self._watch(module, signal, found, name=name)
        self.take()  # those of the search for the last layer

    def take(self) -> dict[str, torch.Tensor]:
        """Return the signals of the last forward pass, float32 ``(n, *shape)``, by name, and forget them."""
        found, self._found = self._found, {}
        return found

    def _take_mask(self, _module: nn.Module, _given: Any, keywords: dict[str, Any]) -> None:
        self._mask = keywords.get(MASK)

    def close(self) -> None:
        """Remove the hooks."""
        for hook in self._hooks:
            hook.remove()

    def _watch(self, module: nn.Module, signal: Signal, found: dict[str, list[Shape]], *, name: str) -> None:
        layer, kind, shapes = signal.layer, signal.kind, found.get(signal.layer)
        if shapes is None:
            hint = did_you_mean(layer, found) or "."
            raise ModelError(
                f"{name} has no layer '{layer}' whose output is one tensor{hint} kdpipe models {name} --layers lists "
                "those."
            )
        place = next((at for at, shape in enumerate(shapes) if signal_shape(kind, shape) is not None), None)
        if place is None:
            shape = next(filter(None, shapes))
            raise ModelError(
                f"{signal} of {name}: the layer's output has shape {shape} per image, expected {_NEEDED[kind]}."
            )
        of_signal = signal_shape(kind, shapes[place])
        assert of_signal is not None
        self.shapes[str(signal)] = of_signal

        def remember(_layer: nn.Module, _inputs: Any, output: Any) -> None:
            tensor = output if hasattr(output, "dtype") else _tensors(output)[place]
            if kind in (HIDDEN, HEADS):
                self._found[str(signal)] = whole(tensor, self._mask)
            else:
                self._found[str(signal)] = attention_map(tensor) if kind == ATTENTION else pooled(tensor)

        self._hooks.append(module.get_submodule(layer).register_forward_hook(remember))

    def _watch_penultimate(self, module: nn.Module, signal: Signal, *, size: InputSize, name: str) -> None:
        penultimate = find_penultimate(module, size)
        if penultimate is None:
            raise ModelError(
                f"no layer of {name} makes its logits, so kdpipe finds no penultimate features. Leave "
                "out features:penultimate, or name a layer: --signals features:LAYER."
            )
        self.shapes[str(signal)] = (penultimate.dim,)

        def remember(_layer: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            self._found[str(signal)] = inputs[0].flatten(1).float()

        self._hooks.append(module.get_submodule(penultimate.layer).register_forward_pre_hook(remember))
