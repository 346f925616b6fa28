"""SGD with a momentum of its own for each of two gradients: that of one part of the loss, and that of the rest."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

Apart = dict[Tensor, Tensor]
"""Gradients of a part of the loss, by parameter; those without one are not there."""


class SeparateMomenta(torch.optim.Optimizer):
    """SGD that keeps two momentum buffers for each parameter.

    Zhao et al., "DOT: A Distillation-Oriented Trainer" (2023): with the momentum ``m`` and the gap
    ``delta``, the gradient of the labels' loss has ``m - delta`` and that of the distillation loss ``m + delta``, so
    that the latter leads where both disagree. As in the authors' code (megvii-research/mdistiller), weight decay
    belongs to the former, and a parameter that has only one of the gradients has the momentum ``m`` and the decay.
    """

    def __init__(
        self, params: Iterable[Any], *, lr: float, momentum: float, gap: float, weight_decay: float, nesterov: bool
    ) -> None:
        """Update ``params``, tensors or groups of them."""
        settings = {"lr": lr, "momentum": momentum, "gap": gap, "weight_decay": weight_decay, "nesterov": nesterov}
        super().__init__(params, settings)
        self.apart: Apart = {}
        """Gradients of the part with the larger momentum; ``grad`` of a parameter is that of the rest."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # noqa: ARG002
        """Update every parameter that has a gradient of either kind, and forget ``apart``."""
        for group in self.param_groups:
            momentum, gap = group["momentum"], group["gap"]
            for parameter in group["params"]:
                rest, apart = parameter.grad, self.apart.get(parameter)
                decay = group["weight_decay"] * parameter.detach()
                buffers: list[tuple[str, Tensor, float]] = []
                if rest is not None:
                    buffers.append(("momentum_buffer", rest + decay, momentum if apart is None else momentum - gap))
                if apart is not None and rest is not None:
                    buffers.append(("apart_buffer", apart, momentum + gap))
                elif apart is not None:
                    buffers.append(("apart_buffer", apart + decay, momentum))
                for name, gradient, own in buffers:
                    move = self._move(parameter, name, gradient, own, nesterov=group["nesterov"])
                    parameter.add_(move, alpha=-group["lr"])
        self.apart = {}

    def _move(self, parameter: Tensor, name: str, gradient: Tensor, momentum: float, *, nesterov: bool) -> Tensor:
        """Add a gradient to its buffer, and return the direction of the step, as torch's SGD does."""
        state = self.state[parameter]
        if name not in state:
            state[name] = gradient.clone()
        else:
            state[name].mul_(momentum).add_(gradient)
        buffer: Tensor = state[name]
        return gradient + momentum * buffer if nesterov else buffer
