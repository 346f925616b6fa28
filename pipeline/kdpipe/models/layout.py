"""The memory format of a network's weights and images: channels-last where convolutions are faster with it.

On a CPU, training steps take 0.35 to 0.9 of the time and forward passes 0.26 to 1; results differ by
rounding. The choice follows from network and device alone, so the same work has the same bits. Other devices were not
measured and keep torch's default.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from kdpipe.errors import ModelError
from kdpipe.models.inputs import InputSize, blank
from kdpipe.models.inspection import device_of, evaluating
from kdpipe.printable import first_line

if TYPE_CHECKING:
    import torch
    from torch import nn

CHANNELS_LAST: Literal["channels_last"] = "channels_last"
"""The format as stores record it."""


def choose(module: nn.Module, size: InputSize, *, asked: bool | None, device: torch.device, name: str) -> bool:
    """Return whether a network is to compute in channels-last on a device; ``size`` is the side of its images.

    If ``asked`` is ``None``: on a CPU, unless it cannot. One without convolutions has nothing to convert.

    Raises:
        ModelError: it is asked for, and the network cannot.
    """
    if asked is False or (asked is None and device.type != "cpu"):
        return False
    if not isinstance(size, int):
        if asked:
            raise ModelError(f"{name} takes tensors, channels-last is for images: leave --channels-last out.")
        return False
    if not any(each.ndim == 4 for each in module.parameters()):
        return False
    reason = _unfit(module, size)
    if reason and asked:
        raise ModelError(f"{name} cannot compute in channels-last ({reason}): leave --channels-last out.")
    return not reason


def arrange(module: nn.Module, *, channels_last: bool) -> None:
    """Convert the weights of a network, in place."""
    import torch

    module.to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def settle(module: nn.Module, size: InputSize) -> None:
    """Arrange a network as ``choose`` does where nothing is asked for, on the device that it is on."""
    arrange(module, channels_last=choose(module, size, asked=None, device=device_of(module), name=""))


def is_arranged(module: nn.Module) -> bool:
    """Return whether a network's weights are in channels-last."""
    import torch

    return any(
        each.ndim == 4 and not each.is_contiguous() and each.is_contiguous(memory_format=torch.channels_last)
        for each in module.parameters()
    )


def arranged(images: Any, module: nn.Module) -> Any:
    """Return images ``(n, 3, H, W)`` in the memory format of a network's weights; differentiable. Others stay.

    Floats are converted several times as fast as bytes, and normalized faster before than after.
    """
    import torch

    of_images = isinstance(images, torch.Tensor) and images.ndim == 4
    return images.contiguous(memory_format=torch.channels_last) if of_images and is_arranged(module) else images


def _unfit(module: nn.Module, size: int) -> str:
    """Return why a network cannot compute in channels-last, tried on two blank images; empty where it can.

    Code that reshapes images by ``view`` refuses the format.
    """
    import torch

    images = blank(size, 2, device_of(module)).contiguous(memory_format=torch.channels_last)
    was = is_arranged(module)
    arrange(module, channels_last=True)
    try:
        with evaluating(module), torch.inference_mode():
            module(images)
    except (RuntimeError, TypeError, ValueError) as error:
        return first_line(error)[:120]
    finally:
        arrange(module, channels_last=was)
    return ""
