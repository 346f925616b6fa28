"""The weight-space objective: a penalty on the distance of a student's weights from those that it began with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from kdpipe.training.batches import Batch
from kdpipe.training.objective import Forward, Objective


class TowardParent:
    """An objective, plus ``weight / 2`` times the squared L2 distance of the parameters from their initial values.

    Li et al., "Explicit inductive bias for transfer learning with convolutional networks" (2018), equation 2 (L2-SP).
    The initial values are the parent's: of a pruned network those of the channels that it keeps, of a factored layer
    the factors of the parent's weight.
    """

    def __init__(self, objective: Objective, module: nn.Module, weight: float) -> None:
        """Pull the parameters of ``module`` towards their present values."""
        self._objective, self._module, self._weight = objective, module, weight
        self._initial: Mapping[str, torch.Tensor] = {
            name: parameter.detach().clone() for name, parameter in module.named_parameters()
        }
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
        """Return the logits of a batch and the terms of its loss; ``parent`` is half the squared distance."""
        logits, terms = self._objective(forward, batch, pixels)
        distance = torch.stack(
            [
                (parameter - self._initial[name].to(parameter.device)).square().sum()
                for name, parameter in self._module.named_parameters()
            ]
        ).sum()
        return logits, {**terms, "parent": distance / 2, "loss": terms["loss"] + self._weight * distance / 2}

    def close(self) -> None:
        """Remove all hooks from the student."""
        self._objective.close()
