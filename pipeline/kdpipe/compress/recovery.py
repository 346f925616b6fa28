"""The recovery of a compressed student: objectives that keep its weights near its parent's, or round them as int8 does.

Each is another objective with something added, so that it works with any loss.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from kdpipe.models.compressed import factorable
from kdpipe.training.batches import Batch
from kdpipe.training.objective import Forward, Objective

WEIGHT_LEVELS = 64
"""Largest integer of a weight: 7 bits, as ``kdpipe.export.onnx.quantized`` writes them."""
INPUT_LEVELS = 255
"""Largest integer of an activation, from 0."""

_MOMENTUM = 0.05
"""Share of a batch in the moving average of the ranges."""


class Around:
    """An objective that passes everything on to another one; what is derived from it adds to that."""

    parts = None

    def __init__(self, objective: Objective) -> None:
        """Pass everything on to ``objective``."""
        self._objective = objective
        self.of_labeled = objective.of_labeled
        self.beside = objective.beside

    @property
    def moving(self) -> dict[str, float]:
        """The epoch's weights and temperature that differ between epochs."""
        return self._objective.moving

    def begin(self, epoch: int, epochs: int, *, validated: Sequence[float] = ()) -> None:
        """Prepare for ``epoch``, from 0, of ``epochs``; ``validated`` are the validation accuracies before it."""
        self._objective.begin(epoch, epochs, validated=validated)

    def __call__(
        self, forward: Forward, batch: Batch, pixels: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the logits of a batch and the terms of its loss."""
        return self._objective(forward, batch, pixels)

    def close(self) -> None:
        """Remove all hooks from the student."""
        self._objective.close()


class TowardParent(Around):
    """An objective, plus ``weight / 2`` times the squared L2 distance of the parameters from their initial values.

    Li et al., "Explicit inductive bias for transfer learning with convolutional networks" (2018), equation 2 (L2-SP).
    The initial values are the parent's: of a pruned network those of the channels that it keeps, of a factored layer
    the factors of the parent's weight.
    """

    def __init__(self, objective: Objective, module: nn.Module, weight: float) -> None:
        """Pull the parameters of ``module`` towards their present values."""
        super().__init__(objective)
        self._module, self._weight = module, weight
        self._initial: Mapping[str, torch.Tensor] = {
            name: parameter.detach().clone() for name, parameter in module.named_parameters()
        }

    def __call__(
        self, forward: Forward, batch: Batch, pixels: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the logits of a batch and the terms of its loss; ``parent`` is half the squared distance."""
        logits, terms = super().__call__(forward, batch, pixels)
        distance = torch.stack(
            [
                (parameter - self._initial[name].to(parameter.device)).square().sum()
                for name, parameter in self._module.named_parameters()
            ]
        ).sum()
        return logits, {**terms, "parent": distance / 2, "loss": terms["loss"] + self._weight * distance / 2}


class Rounded(Around):
    """An objective whose student rounds weights and inputs of convolutions and linear layers to the levels of int8.

    Quantization-aware training: Jacob et al., "Quantization and Training of Neural Networks for Efficient
    Integer-Arithmetic-Only Inference" (2018), section 3. The forward pass rounds, the backward pass takes the rounding
    for the identity. Batch norm scales whole output channels, each of which has its own scale, so that it need not be
    folded into the weights first. The weights are those of an ordinary network, which is tested in float32 and
    quantized afterwards.
    """

    def __init__(self, objective: Objective, module: nn.Module, *, device: torch.device) -> None:
        """Round in the layers of ``module`` in training mode, until ``close``."""
        super().__init__(objective)
        self._layers = [layer for _, layer in factorable(module)]
        self.ranges = Ranges(len(self._layers)).to(device)
        self.beside = nn.ModuleDict({**dict(objective.beside.named_children()), "ranges": self.ranges})
        for number, layer in enumerate(self._layers):
            layer.forward = partial(_forward, layer, self.ranges, number)  # type: ignore[method-assign]

    def close(self) -> None:
        """Let the layers compute without rounding."""
        for layer in self._layers:
            layer.__dict__.pop("forward", None)
        super().close()


class Ranges(nn.Module):
    """Moving averages of the smallest and the largest input of each layer, kept with the checkpoints."""

    low: torch.Tensor
    high: torch.Tensor
    seen: torch.Tensor

    def __init__(self, layers: int) -> None:
        """Know no input of any layer."""
        super().__init__()
        for name in ("low", "high", "seen"):
            self.register_buffer(name, torch.zeros(layers))

    def add(self, number: int, values: torch.Tensor) -> None:
        """Count a batch of inputs of layer ``number``; the ranges always contain 0."""
        low, high = torch.aminmax(values.detach().float())
        share = torch.where(self.seen[number] > 0, _MOMENTUM, 1.0)
        self.low[number] += share * (low.clamp(max=0) - self.low[number])
        self.high[number] += share * (high.clamp(min=0) - self.high[number])
        self.seen[number] = 1


def rounded_inputs(values: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    """Return values rounded to 256 levels from ``low`` to ``high``, one of which is 0, and clipped to these."""
    scale = ((high - low) / INPUT_LEVELS).clamp(min=1e-12).float()
    zero = (-low / scale).round().clamp(0, INPUT_LEVELS).to(torch.int32)
    return torch.fake_quantize_per_tensor_affine(values, scale, zero, 0, INPUT_LEVELS)


def rounded_weight(weight: torch.Tensor) -> torch.Tensor:
    """Return a weight whose output channels are rounded, each to 129 levels up to its largest absolute value."""
    largest = weight.detach().flatten(1).abs().amax(dim=1)
    scale = (largest / WEIGHT_LEVELS).clamp(min=1e-12).float()
    zero = torch.zeros_like(scale, dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(weight, scale, zero, 0, -WEIGHT_LEVELS, WEIGHT_LEVELS)


def _forward(layer: nn.Conv2d | nn.Linear, ranges: Ranges, number: int, images: torch.Tensor) -> torch.Tensor:
    """Compute a layer, in training mode with rounding."""
    if not layer.training:
        return type(layer).forward(layer, images)  # type: ignore[arg-type]
    ranges.add(number, images)
    # In 32 bits also under autocast, where the layer then converts both.
    inputs = rounded_inputs(images.float(), ranges.low[number], ranges.high[number])
    weight = rounded_weight(layer.weight)
    if isinstance(layer, nn.Linear):
        return F.linear(inputs, weight, layer.bias)
    computed: torch.Tensor = layer._conv_forward(inputs, weight, layer.bias)
    return computed
