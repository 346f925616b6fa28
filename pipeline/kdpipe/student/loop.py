"""The training loop: the same for students with cached, live or no soft targets, and for teachers.

Everything random is a function of the epoch and the seeds (the order of the samples, the view) or part of the
checkpoint (the weights, the optimiser, torch's generator), so a resumed run equals an uninterrupted one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from kdpipe.errors import DivergedError
from kdpipe.models import Preset
from kdpipe.progress import Progress, silent
from kdpipe.student.losses import DistillationLoss
from kdpipe.student.runs import History, RunDirectory
from kdpipe.student.schedule import batches_of, epoch_batches, learning_rate, sgd, view_of_epoch
from kdpipe.student.targets import SoftTargets
from kdpipe.views import Renderer, SecondLabels


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


@dataclass(frozen=True)
class Distillation:
    """The distillation term and the weights of both terms."""

    targets: SoftTargets
    loss: DistillationLoss
    kd_weight: float
    ce_weight: float


@dataclass(frozen=True)
class Cost:
    """What the training took, evaluation and start-up left out."""

    seconds: float
    images_per_second: float


def train(
    module: torch.nn.Module,
    renderer: Renderer,
    *,
    preset: Preset,
    schedule: Schedule,
    distillation: Distillation | None,
    run: RunDirectory,
    resume: bool = False,
    progress: Progress = silent,
    on_epoch: Callable[[dict[str, float]], None] = lambda _row: None,
) -> Cost:
    """Train ``module`` in place on the renderer's dataset and device; write history and checkpoints.

    Without ``distillation`` the loss is cross-entropy to the labels. ``on_epoch`` gets each row of the history.

    Raises:
        DivergedError: the loss of an epoch is not finite.
    """
    module.train()
    optimiser = sgd(module.parameters(), lr=schedule.lr, weight_decay=schedule.weight_decay)
    history: History = []
    if resume:
        state = run.load_checkpoint()
        history = _restore(state, module, optimiser)
    samples = len(renderer.dataset)
    steps = len(_batches(samples, schedule, epoch=0))
    for epoch in range(len(history), schedule.epochs):
        view = view_of_epoch(epoch, schedule.views)
        if distillation is not None:
            upcoming = view_of_epoch(epoch + 1, schedule.views) if epoch + 1 < schedule.epochs else None
            distillation.targets.start_epoch(view, upcoming)
        began = time.perf_counter()
        with progress(f"epoch {epoch + 1}/{schedule.epochs}", total=samples) as advance:
            sums = _epoch(
                module,
                renderer,
                optimiser,
                preset=preset,
                batches=_batches(samples, schedule, epoch=epoch, distillation=distillation),
                view=view,
                rates=[_rate(schedule, epoch * steps + step, steps) for step in range(steps)],
                distillation=distillation,
                advance=advance,
            )
        seconds = time.perf_counter() - began
        row = {"epoch": epoch + 1, "view": view, "lr": _rate(schedule, epoch * steps, steps)}
        row |= {name: value / samples for name, value in sums.items()}
        row |= {"seconds": seconds, "images_per_second": samples / seconds}
        if not math.isfinite(row["loss"]):
            raise DivergedError(
                f"the loss of epoch {epoch + 1} is not finite ({row}). {run.checkpoint} holds the epoch before; "
                "try a lower --lr."
            )
        history.append(row)
        run.save_checkpoint(_state(module, optimiser, history))
        run.write_history(history)
        on_epoch(row)
    seconds = sum(row["seconds"] for row in history)
    return Cost(seconds=seconds, images_per_second=samples * schedule.epochs / seconds)


def _epoch(
    module: torch.nn.Module,
    renderer: Renderer,
    optimiser: torch.optim.Optimizer,
    *,
    preset: Preset,
    batches: list[npt.NDArray[np.int64]],
    view: int,
    rates: list[float],
    distillation: Distillation | None,
    advance: Callable[[int], None],
) -> dict[str, float]:
    """Train one epoch; return sums over the samples of each loss term and of correct answers."""
    labels = torch.from_numpy(renderer.dataset.labels.astype(np.int64)).to(renderer.device)
    totals: dict[str, torch.Tensor] = {}
    for indices, rate, pixels in zip(batches, rates, renderer.batches(batches, view), strict=True):
        for group in optimiser.param_groups:
            group["lr"] = rate
        targets = labels[torch.from_numpy(indices).to(renderer.device)]
        second = renderer.second_labels(indices, view)
        logits = module(preset.normalise(pixels))
        terms = {
            "ce": cross_entropy(logits, targets) if second is None else mixed_cross_entropy(logits, targets, second)
        }
        if distillation is None:
            terms["loss"] = terms["ce"]
        else:
            soft_targets = distillation.targets.logits(indices, pixels)
            terms["kd"] = distillation.loss(logits, soft_targets, targets)
            terms["loss"] = distillation.kd_weight * terms["kd"] + distillation.ce_weight * terms["ce"]
        optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(terms["loss"])
        optimiser.step()
        terms["train_top1"] = (logits.detach().argmax(dim=1) == targets).float().mean()
        for name, value in terms.items():
            totals[name] = totals.get(name, 0) + value.detach() * len(indices)
        advance(len(indices))
    return {name: total.item() for name, total in sorted(totals.items())}


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the mean cross-entropy of logits ``(n, classes)`` over the samples whose label is not -1.

    It is 0 where no sample has a label.
    """
    total = F.cross_entropy(logits, labels, ignore_index=-1, reduction="sum")
    return total / (labels >= 0).sum().clamp(min=1)


def mixed_cross_entropy(logits: torch.Tensor, labels: torch.Tensor, second: SecondLabels) -> torch.Tensor:
    """Return the cross-entropy of logits ``(n, classes)`` to two labels each, weighed by their shares of the image.

    Zhang et al., "mixup: Beyond Empirical Risk Minimization" (2018), section 2. A label of -1 counts for nothing; the
    mean is over the shares that have a label.
    """
    own_share = torch.from_numpy(second.own_share).to(logits.device)
    total, weight = logits.new_zeros(()), logits.new_zeros(())
    for label, share in (
        (labels, own_share),
        (torch.from_numpy(second.labels.astype(np.int64)).to(logits.device), 1 - own_share),
    ):
        total = total + (share * F.cross_entropy(logits, label, ignore_index=-1, reduction="none")).sum()
        weight = weight + share[label >= 0].sum()
    return total / weight.clamp(min=1e-6)


def _batches(
    samples: int, schedule: Schedule, *, epoch: int, distillation: Distillation | None = None
) -> list[npt.NDArray[np.int64]]:
    """Return the epoch's batches: in the order that its soft targets need, or else all samples shuffled."""
    seed = schedule.data_seed
    order = None if distillation is None else distillation.targets.order(data_seed=seed, epoch=epoch)
    if order is not None:
        return batches_of(order, batch_size=schedule.batch_size)
    return epoch_batches(samples, batch_size=schedule.batch_size, data_seed=seed, epoch=epoch)


def _rate(schedule: Schedule, step: int, steps: int) -> float:
    return learning_rate(
        step, steps=steps * schedule.epochs, warmup=round(steps * schedule.warmup_epochs), peak=schedule.lr
    )


def _state(module: torch.nn.Module, optimiser: torch.optim.Optimizer, history: History) -> dict[str, Any]:
    state = {
        "model": module.state_dict(),
        "optimiser": optimiser.state_dict(),
        "history": history,
        "generator": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda_generators"] = torch.cuda.get_rng_state_all()
    return state


def _restore(state: dict[str, Any], module: torch.nn.Module, optimiser: torch.optim.Optimizer) -> History:
    module.load_state_dict(state["model"])
    optimiser.load_state_dict(state["optimiser"])
    torch.set_rng_state(state["generator"])
    if torch.cuda.is_available() and "cuda_generators" in state:
        torch.cuda.set_rng_state_all(state["cuda_generators"])
    history: History = state["history"]
    return history
