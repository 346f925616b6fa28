"""What a network costs: parameters and multiply-accumulates."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def count_parameters(module: nn.Module) -> int:
    """Return the number of parameters, without buffers; shared ones count once."""
    return sum(parameter.numel() for parameter in module.parameters())


def device_of(module: nn.Module) -> torch.device:
    """Return the device of the first parameter or buffer; the CPU for a network that has neither."""
    for tensor in (*module.parameters(), *module.buffers()):
        return tensor.device
    return torch.device("cpu")


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put a network into evaluation mode for a while; every part's mode is as before afterwards."""
    modes = [(part, part.training) for part in module.modules()]
    try:
        module.eval()
        yield
    finally:
        for part, training in modes:
            part.training = training


def macs(module: nn.Module, size: int) -> int:
    """Return the multiply-accumulates of one ``(1, 3, size, size)`` image.

    Convolutions, linear layers and attention count; normalisation, activations and pooling do not, as in the
    published tables. Works for programs of torch.export too. The module's modes are as before afterwards.
    """
    image = torch.zeros(1, 3, size, size, device=device_of(module))
    with evaluating(module), torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(image)
    return int(counter.get_total_flops()) // 2
