"""Where a classifier's penultimate features are: what its last layer is shown."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from kdpipe.models.cost import device_of, evaluating


@dataclass(frozen=True)
class Penultimate:
    """The input of the layer that makes the logits."""

    layer: str
    """Name of that layer, as ``named_modules`` has it."""
    dim: int
    """Length of its flattened input, for one image."""


def find_penultimate(module: nn.Module, size: int) -> Penultimate | None:
    """Run two noise images and find the last linear layer or convolution whose output is the logits.

    ``size`` is the side of the images in pixels. ``None`` where there is no such layer: in an exported program, or a
    network that pools or averages after its last layer. The module's modes are as before afterwards.
    """
    seen: dict[str, tuple[int, torch.Tensor]] = {}

    def remember(name: str, _layer: nn.Module, shown: tuple[Any, ...], said: Any) -> None:
        seen.pop(name, None)
        if shown and isinstance(said, torch.Tensor):
            # A copy, because the network may go on in place.
            seen[name] = (shown[0][0].numel(), said.flatten(1).clone())

    layers = [(name, part) for name, part in module.named_modules() if isinstance(part, nn.Linear | nn.Conv2d)]
    hooks = [layer.register_forward_hook(partial(remember, name)) for name, layer in layers]
    images = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0)).to(device_of(module))
    try:
        with evaluating(module), torch.no_grad():
            logits = module(images)
    finally:
        for hook in hooks:
            hook.remove()
    for name, (dim, said) in reversed(seen.items()):
        if torch.equal(said, logits):
            return Penultimate(name, dim)
    return None
