"""Structured pruning: the channels of smallest norm are removed, and with them what depends on them.

torch-pruning finds which layers depend on each other. Needs the extra ``compress``; a pruned network is built again
without it, see ``kdpipe.models.compressed``.
"""

from __future__ import annotations

import copy
import importlib
import warnings
from typing import Any, Literal

import torch
from torch import nn

from kdpipe.errors import ModelError
from kdpipe.models import count_parameters, evaluating, find_penultimate, macs
from kdpipe.printable import first_line

Cost = Literal["macs", "params"]
"""Multiply-accumulates of one image, or parameters."""

_STEPS = 10
"""Halvings of the interval of the share of channels: to a thousandth."""


def cost(module: nn.Module, size: int, by: Cost) -> int:
    """Return what a network costs for one image of ``size`` pixels."""
    return macs(module, size) if by == "macs" else count_parameters(module)


def prune(module: nn.Module, *, size: int, fraction: float, by: Cost = "macs", name: str = "the network") -> nn.Module:
    """Return a copy of a network without some channels, which lacks ``fraction`` of its cost, or slightly more.

    Every layer loses the same share of its channels, those whose weights have the smallest norm over all layers that
    depend on each other: Fang et al., "DepGraph: Towards Any Structural Pruning" (2023), section 3.3. The layer of the
    logits keeps its outputs. The share is the smallest, to a thousandth, that removes ``fraction``.

    Raises:
        ModelError: torch-pruning is not installed or cannot follow the network's layers, the network has no layer of
            its logits, or so much cannot be removed.
    """
    pruning = import_torch_pruning()
    last = find_penultimate(module, size)
    if last is None:
        raise ModelError(f"{name} cannot be pruned: its logits are not the output of a linear layer or convolution")
    target = (1 - fraction) * cost(module, size, by)
    low, high, found = 0.0, 1.0, None
    for _ in range(_STEPS):
        share = (low + high) / 2
        pruned = _pruned(pruning, module, size=size, share=share, keep=last.layer, name=name)
        if cost(pruned, size, by) <= target:
            high, found = share, pruned
        else:
            low = share
    if found is None:
        raise ModelError(
            f"{100 * fraction:g}% of the {by} of {name} cannot be pruned: each layer keeps a channel. Prune less."
        )
    return found


def import_torch_pruning() -> Any:
    """Import torch-pruning.

    Raises:
        ModelError: it is not installed.
    """
    try:
        return importlib.import_module("torch_pruning")
    except ImportError as error:
        raise ModelError("--prune needs torch-pruning: pip install 'kdpipe[compress]'") from error


def _pruned(pruning: Any, module: nn.Module, *, size: int, share: float, keep: str, name: str) -> nn.Module:
    """Return a copy without ``share`` of the channels of each layer; the layer ``keep`` keeps its outputs."""
    smaller = copy.deepcopy(module)
    image = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    try:
        with warnings.catch_warnings(), evaluating(smaller), torch.enable_grad():
            warnings.simplefilter("ignore")  # it warns of parameters that it leaves as they are
            pruning.pruner.BasePruner(
                smaller,
                image,
                importance=pruning.importance.GroupMagnitudeImportance(p=2),
                pruning_ratio=share,
                ignored_layers=[smaller.get_submodule(keep)],
            ).step()
            with torch.no_grad():
                smaller(image)
    except Exception as error:  # it documents none, and fails with whatever its tracing hits upon
        reason = first_line(error)
        raise ModelError(f"{name} cannot be pruned: torch-pruning cannot follow its layers ({reason})") from error
    for parameter in smaller.parameters():
        parameter.grad = None
    return smaller
