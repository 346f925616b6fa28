"""Properties of a network: device, mode, parameters, multiply-accumulates, penultimate features.

Importing this does not import torch.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from kdpipe.errors import DeviceError, did_you_mean
from kdpipe.models.inputs import InputSize, blank, noise

if TYPE_CHECKING:
    import torch
    from torch import nn


def resolve_device(name: str) -> torch.device:
    """Return the device called ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.

    ``auto`` is CUDA where available, else the CPU.

    Raises:
        DeviceError: the name is unknown, or this machine has no such device.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cpu":
        return torch.device("cpu")
    if name == "mps":
        if not torch.backends.mps.is_available():
            raise DeviceError("device 'mps' is not available; use 'auto' or 'cpu'")
        return torch.device("mps")
    match = re.fullmatch(r"cuda(?::(\d+))?", name)
    if match is None:
        hint = did_you_mean(name, ("auto", "cpu", "cuda", "mps"))
        raise DeviceError(f"unknown device '{name}'{hint} (expected auto, cpu, cuda, cuda:N or mps)")
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(match[1] or 0) >= found:
        raise DeviceError(f"device '{name}' is not available: found {found} CUDA devices; use 'auto' or 'cpu'")
    return torch.device(name)


def device_of(module: nn.Module) -> torch.device:
    """Return the device of the first parameter or buffer; the CPU for a network without either."""
    import torch

    for tensor in (*module.parameters(), *module.buffers()):
        return tensor.device
    return torch.device("cpu")


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Switch a network to evaluation mode; afterwards, restore the mode of each submodule."""
    modes = [(part, part.training) for part in module.modules()]
    try:
        module.eval()
        yield
    finally:
        for part, training in modes:
            part.training = training


@contextmanager
def hooked(layers: Iterable[tuple[str, nn.Module]], hook: Callable[[str, nn.Module, Any, Any], None]) -> Iterator[None]:
    """Call ``hook`` with name, layer, inputs and output whenever one of the layers has run in the block."""
    handles = [layer.register_forward_hook(partial(hook, name)) for name, layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def count_parameters(module: nn.Module) -> int:
    """Return the number of parameters, without buffers; shared ones count once, and those of an ONNX model as well."""
    counted = sum(parameter.numel() for parameter in module.parameters())
    return counted + sum(getattr(part, "onnx_parameters", 0) for part in module.modules())


def macs(module: nn.Module, size: InputSize) -> int:
    """Return the multiply-accumulates of one ``(1, 3, size, size)`` image, or one item of tensors.

    Convolutions, linear layers and attention count; normalization, activations and pooling do not, as in
    published tables. Works for programs of torch.export, too. The modes of the module's parts are restored.

    Raises:
        NotImplementedError: it is an ONNX model, whose operators are not counted.
    """
    if any(hasattr(part, "onnx_parameters") for part in module.modules()):
        raise NotImplementedError("the operators of an ONNX model are not counted")
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    image = blank(size, 1, device_of(module))
    with evaluating(module), torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(image)
    return int(counter.get_total_flops()) // 2


@dataclass(frozen=True)
class Penultimate:
    """The input of the layer that computes the logits."""

    layer: str
    """Name of that layer, as in ``named_modules``."""
    dim: int
    """Length of its flattened input, for one image."""


def find_penultimate(module: nn.Module, size: InputSize) -> Penultimate | None:
    """Find the last linear layer or convolution whose output is the logits, by a pass of two noise images.

    ``size`` is the side of the images in pixels, or the form of tensors. Returns ``None`` if there is no such layer: in
    an exported program, or a network that pools or averages after its last layer. The modes of the module's parts are
    restored.
    """
    import torch
    from torch import nn

    seen: dict[str, tuple[int, torch.Tensor]] = {}

    def remember(name: str, _layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        seen.pop(name, None)
        if inputs and isinstance(output, torch.Tensor):
            # A copy, because later layers may work in place.
            seen[name] = (inputs[0][0].numel(), output.flatten(1).clone())

    layers = [(name, part) for name, part in module.named_modules() if isinstance(part, nn.Linear | nn.Conv2d)]
    with evaluating(module), hooked(layers, remember), torch.no_grad():
        logits = module(noise(size, 2, device_of(module)))
    for name, (dim, output) in reversed(seen.items()):
        if torch.equal(output, logits):
            return Penultimate(name, dim)
    return None
