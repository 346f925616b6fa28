"""How long and how fast to train, and which view and order belong to an epoch."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kdpipe.views import permutation

_ORDER_STREAM = 0x0_0DE7


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train."""

    epochs: int
    batch_size: int
    lr: float
    """Peak learning rate."""
    weight_decay: float
    warmup_epochs: float
    """Epochs over which the learning rate rises."""
    data_seed: int
    """Seed of the samples' order."""
    views: int | None
    """Augmented views to cycle through; ``None`` gives each epoch a view of its own."""

    def rate(self, step: int, steps: int) -> float:
        """Return the learning rate of a step from 0, where an epoch has ``steps``."""
        return learning_rate(step, steps=steps * self.epochs, warmup=round(steps * self.warmup_epochs), peak=self.lr)


def view_of_epoch(epoch: int, views: int | None) -> int:
    """Return the view that epoch ``epoch`` (from 0) trains on.

    With ``views`` augmented views it is ``1 + epoch mod views``; with none the plain view 0; without a limit
    (``None``) each epoch has a view of its own.
    """
    if views is None:
        return 1 + epoch
    return 0 if views == 0 else 1 + epoch % views


def epoch_batches(samples: int, *, batch_size: int, data_seed: int, epoch: int) -> list[npt.NDArray[np.int64]]:
    """Return the batches of an epoch, all samples shuffled."""
    order = permutation(samples, seed=data_seed, stream=(_ORDER_STREAM + epoch) % 2**32)
    return batches_of(order, batch_size=batch_size)


def batches_of(order: npt.NDArray[np.int64], *, batch_size: int) -> list[npt.NDArray[np.int64]]:
    """Cut an order of samples into batches; the last one may be smaller, but never a single sample."""
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    if len(batches) > 1 and len(batches[-1]) == 1:  # batch normalisation needs two
        batches[-2:] = [np.concatenate(batches[-2:])]
    return batches


def learning_rate(step: int, *, steps: int, warmup: int, peak: float) -> float:
    """Rise linearly to ``peak`` over ``warmup`` steps, then fall along half a cosine to zero at ``steps``.

    Loshchilov and Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts" (2017), equation 5.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
