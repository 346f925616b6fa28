"""The optimiser and how its learning rate moves, and which view and order belong to an epoch."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import torch

from kdpipe.views import permutation

_ORDER_STREAM = 0x0_0DE7


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


def sgd(parameters: Iterable[torch.nn.Parameter], *, lr: float, weight_decay: float) -> torch.optim.SGD:
    """Return SGD with Nesterov momentum 0.9."""
    return torch.optim.SGD(parameters, lr=lr, momentum=0.9, weight_decay=weight_decay, nesterov=True)
