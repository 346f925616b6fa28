"""From the parameters of a training to how its model learns."""

from __future__ import annotations

from kdpipe.student import Optimisation, Sampling, Schedule
from stages.params import TrainStudent, TrainTeacher


def schedule(params: TrainTeacher | TrainStudent, views: int | None, sampling: Sampling | None) -> Schedule:
    """Return the epochs, batches and learning rates, on ``views`` augmented views of the samples that are drawn."""
    return Schedule(
        epochs=params.epochs,
        batch_size=params.batch_size,
        lr=params.lr,
        weight_decay=params.weight_decay,
        warmup_epochs=params.warmup_epochs,
        lr_schedule=params.lr_schedule,
        lr_steps=params.lr_steps,
        lr_gamma=params.lr_gamma,
        data_seed=params.data_seed,
        views=views,
        sampling=sampling,
    )


def optimisation(params: TrainTeacher | TrainStudent) -> Optimisation:
    """Return how a step is taken."""
    return Optimisation(
        optimizer=params.optimizer,
        nesterov=params.nesterov,
        decay_on=params.decay_on,
        label_smoothing=params.label_smoothing,
        clip_grad_norm=params.clip_grad_norm,
        ema=params.ema,
        amp=params.amp,
        channels_last=params.channels_last,
        compile=params.compile,
    )
