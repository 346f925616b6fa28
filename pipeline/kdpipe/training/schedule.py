"""The learning rate of each step, and the samples, order and view of each epoch."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kdpipe.training.sampling import Sampling
from kdpipe.training.settings import Optimization
from kdpipe.views import permutation

_ORDER_STREAM = 0x0_0DE7


@dataclass(frozen=True)
class Order:
    """The samples and views of each epoch, and their order: all that several students share."""

    data_seed: int
    """Seed of the samples' order."""
    views: int | None
    """Augmented views to cycle through; ``None`` gives each epoch its own view."""
    sampling: Sampling | None = None
    """Weights of the samples; ``None`` to draw each once an epoch."""


def rate(settings: Optimization, step: int, steps: int) -> float:
    """Return the learning rate of a step from 0, where an epoch has ``steps``."""
    total = steps * settings.epochs
    if settings.lr_schedule == "one-cycle":
        return one_cycle(step, steps=total, peak=settings.lr)
    warmup = round(steps * settings.warmup_epochs)
    if settings.lr_schedule == "cosine" or step < warmup:
        return learning_rate(step, steps=total, warmup=warmup, peak=settings.lr)
    drops = sum(step >= round(steps * epoch) for epoch in settings.lr_steps)
    return settings.lr * settings.lr_gamma**drops


def view_of_epoch(epoch: int, views: int | None) -> int:
    """Return the view of epoch ``epoch``, from 0.

    With ``views`` augmented views it is ``1 + epoch mod views``; with none the plain view 0; without a limit
    (``None``) each epoch has its own view.
    """
    if views is None:
        return 1 + epoch
    return 0 if views == 0 else 1 + epoch % views


def epoch_samples(samples: int, sampling: Sampling | None, *, data_seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """Return the samples of an epoch in ascending order, as many as there are: each once, or as they are drawn."""
    return np.arange(samples) if sampling is None else sampling.draw(data_seed=data_seed, epoch=epoch)


def shuffled(samples: npt.NDArray[np.int64], *, data_seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """Return the samples of an epoch in its order."""
    return samples[permutation(len(samples), seed=data_seed, stream=(_ORDER_STREAM + epoch) % 2**32)]


def epoch_batches(samples: int, *, batch_size: int, data_seed: int, epoch: int) -> list[npt.NDArray[np.int64]]:
    """Return the batches of an epoch, all samples shuffled."""
    return batches_of(shuffled(np.arange(samples), data_seed=data_seed, epoch=epoch), batch_size=batch_size)


def batches_of(order: npt.NDArray[np.int64], *, batch_size: int) -> list[npt.NDArray[np.int64]]:
    """Cut an order of samples into batches; the last one may be smaller, but never a single sample."""
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    if len(batches) > 1 and len(batches[-1]) == 1:  # batch normalization needs two
        batches[-2:] = [np.concatenate(batches[-2:])]
    return batches


def learning_rate(step: int, *, steps: int, warmup: int, peak: float) -> float:
    """Rise linearly to ``peak`` over ``warmup`` steps, then fall along half a cosine to zero at ``steps``.

    Loshchilov and Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts" (2017), equation 5.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def one_cycle(step: int, *, steps: int, peak: float) -> float:
    """Rise along half a cosine from ``peak / 25`` for 30 % of the steps, then fall along one to ``peak / 250,000``.

    Smith and Topin, "Super-Convergence" (2018), in the form and with the constants of PyTorch's ``OneCycleLR``, without
    its change of momentum.
    """
    top = max(1.0, 0.3 * steps - 1)
    low, end = peak / 25, peak / 25 / 1e4
    if step <= top:
        return peak + (low - peak) / 2 * (1 + math.cos(math.pi * step / top))
    return end + (peak - end) / 2 * (1 + math.cos(math.pi * (step - top) / max(1.0, steps - 1 - top)))
