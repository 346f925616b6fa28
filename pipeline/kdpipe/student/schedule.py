"""How long and how fast to train, and which view and order belong to an epoch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from kdpipe.student.sampling import Sampling
from kdpipe.views import permutation

_ORDER_STREAM = 0x0_0DE7

LrSchedule = Literal["cosine", "step", "one-cycle", "constant"]


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

    lr_schedule: LrSchedule = "cosine"
    """How the learning rate moves after the warm-up; ``one-cycle`` has a rise of its own."""
    lr_steps: tuple[float, ...] = ()
    """Epochs after which ``step`` multiplies the learning rate by ``lr_gamma``."""
    lr_gamma: float = 0.1

    sampling: Sampling | None = None
    """How often each sample is drawn; ``None`` for once an epoch."""

    def rate(self, step: int, steps: int) -> float:
        """Return the learning rate of a step from 0, where an epoch has ``steps``."""
        total = steps * self.epochs
        if self.lr_schedule == "one-cycle":
            return one_cycle(step, steps=total, peak=self.lr)
        warmup = round(steps * self.warmup_epochs)
        if self.lr_schedule == "cosine" or step < warmup:
            return learning_rate(step, steps=total, warmup=warmup, peak=self.lr)
        drops = sum(step >= round(steps * epoch) for epoch in self.lr_steps)
        return self.lr * self.lr_gamma**drops


def view_of_epoch(epoch: int, views: int | None) -> int:
    """Return the view that epoch ``epoch`` (from 0) trains on.

    With ``views`` augmented views it is ``1 + epoch mod views``; with none the plain view 0; without a limit
    (``None``) each epoch has a view of its own.
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
