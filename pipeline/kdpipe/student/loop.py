"""The training loop: the same for students with cached, live or no soft targets, and for teachers.

Everything random is a function of the epoch and the seeds (the order of the samples, the view) or part of the
checkpoint (the weights, the optimiser, torch's generator), so a resumed run equals an uninterrupted one, whichever step
it was stopped at.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import numpy.typing as npt
import torch

from kdpipe.errors import DeviceError, DivergedError, RunError
from kdpipe.models import Preset
from kdpipe.progress import Progress, silent
from kdpipe.student.distillation import Distillation, Terms
from kdpipe.student.divergence import LossWatch, not_finite
from kdpipe.student.hard_labels import cross_entropy, mixed_cross_entropy
from kdpipe.student.memory import largest_that_fits, ran_out_of_memory
from kdpipe.student.optimisation import Learner, Optimisation
from kdpipe.student.position import Position, restore, state_of
from kdpipe.student.runs import History, RunDirectory
from kdpipe.student.schedule import Schedule, batches_of, epoch_batches, epoch_samples, shuffled, view_of_epoch
from kdpipe.student.validation import Validation
from kdpipe.views import Renderer

Rows = npt.NDArray[np.int64]

_OF_LABELLED = ("ce", "train_top1")
"""Figures of a batch that are means over its labelled samples."""


@dataclass(frozen=True)
class Cost:
    """What the training took, evaluation, checkpoints and start-up left out."""

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
    optimisation: Optimisation = Optimisation(),  # noqa: B008
    validation: Validation | None = None,
    resume: bool = False,
    checkpoint_every: float = 60.0,
    should_stop: Callable[[], bool] = lambda: False,
    progress: Progress = silent,
    say: Callable[[str], None] = lambda _message: None,
    on_resume: Callable[[History], None] = lambda _history: None,
    on_epoch: Callable[[dict[str, float]], None] = lambda _row: None,
) -> Cost:
    """Train ``module`` in place on the renderer's dataset and device; write history and checkpoints.

    Without ``distillation`` the loss is cross-entropy to the labels. Checkpoints are written at the end of each epoch
    and every ``checkpoint_every`` seconds in between. ``validation`` measures the model after each epoch, which changes
    nothing else, and has the best weights in the end. ``should_stop`` is asked after each step. ``on_epoch`` gets each
    row of the history when it is made, ``on_resume`` those made before the run was resumed, and ``say`` messages for a
    person.

    Raises:
        DeviceError: the device's memory does not hold a step.
        DivergedError: the loss of a step, or a weight, is not finite.
        RunError: ``should_stop`` said so, or there is no checkpoint that can be read.
    """
    learner = Learner(module, optimisation, lr=schedule.lr, weight_decay=schedule.weight_decay, device=renderer.device)
    position = Position()
    state = run.load_checkpoint(say=say) if resume else None
    if state is not None:
        position = restore(state, learner, validation)
        say(f"Going on from {position}.")
    loop = _Loop(
        learner, renderer, preset, schedule, distillation, validation, run, checkpoint_every, should_stop, position
    )
    if position.history:
        run.write_history(position.history)
        on_resume(position.history)
    samples = len(renderer.dataset)
    while position.epoch < schedule.epochs:
        with progress(f"epoch {position.epoch + 1}/{schedule.epochs}", samples, status=loop.status) as advance:
            row = _within_memory(loop, advance)
        if row is None:
            raise DeviceError(_smaller(loop))
        run.write_history(position.history)
        on_epoch(row)
    learner.finish()
    seconds = sum(row["seconds"] for row in position.history)
    return Cost(seconds=seconds, images_per_second=samples * schedule.epochs / seconds)


@dataclass
class _Loop:
    """All that an epoch needs."""

    learner: Learner
    renderer: Renderer
    preset: Preset
    schedule: Schedule
    distillation: Distillation | None
    validation: Validation | None
    run: RunDirectory
    checkpoint_every: float
    should_stop: Callable[[], bool]
    position: Position

    def __post_init__(self) -> None:
        dataset = self.renderer.dataset
        self.labels = torch.from_numpy(dataset.labels.astype(np.int64)).to(self.renderer.device)
        plain = epoch_batches(len(dataset), batch_size=self.schedule.batch_size, data_seed=0, epoch=0)
        self.steps = len(plain)
        self.seen = 0
        self.started = time.monotonic(), self.position.epoch * self.steps + self.position.step
        self.saved_at = time.monotonic()
        self.saved = f"{self.run.checkpoint} holds {self.position}" if self.position.epoch or self.position.step else ""
        self.watch = LossWatch(lambda: f"{self.saved or 'There is no checkpoint yet'}; try a lower --lr.")

    def epoch(self, advance: Callable[[int], None]) -> dict[str, float]:
        """Train what is left of the epoch under way, save a checkpoint and return its row of the history."""
        position, epoch, samples = self.position, self.position.epoch, len(self.renderer.dataset)
        view = view_of_epoch(epoch, self.schedule.views)
        batches = self._batches(epoch, view)
        weighed = None if self.distillation is None else self.distillation.terms(epoch, self.schedule.epochs)
        row = {"epoch": epoch + 1, "view": view, "lr": self.schedule.rate(epoch * self.steps, self.steps)}
        row |= {} if weighed is None else weighed.moving
        self.seen = sum(map(len, batches[: position.step]))
        advance(self.seen)
        began = time.perf_counter() - position.seconds
        for indices, pixels in self._rest(batches, view):
            terms = self._step(indices, pixels, view, weighed)
            position.step += 1
            self._count(terms, indices)
            self.seen += len(indices)
            self.watch.add(terms, epoch=epoch + 1, step=position.step)
            advance(len(indices))
            if position.step < len(batches):
                position.seconds = time.perf_counter() - began
                self._pause()
                began = time.perf_counter() - position.seconds
        row |= self._means()
        seconds = time.perf_counter() - began
        if self.validation is not None:
            self._check()
            row |= self.validation.measure(self.learner, epoch=epoch + 1)
        row |= {"seconds": seconds, "images_per_second": samples / seconds}
        position.history.append(row)
        position.step, position.sums, position.seconds = 0, {}, 0.0
        self._save()
        if self.should_stop() and position.epoch < self.schedule.epochs:
            self.run.write_history(position.history)
            raise self._stopped()
        return row

    def status(self) -> str:
        """Return the means of the epoch so far, for which the device is waited for, and what the run still takes."""
        began, before = self.started
        done = self.position.epoch * self.steps + self.position.step
        if not self.position.step or done == before:
            return ""
        means = self._means()
        terms = {"loss": means.pop("loss"), **means}
        accuracy = terms.pop("train_top1")
        seconds = (time.monotonic() - began) / (done - before) * (self.schedule.epochs * self.steps - done)
        shown = [f"{name} {mean:.4f}" for name, mean in terms.items()]
        shown += [f"train top-1 {accuracy:.2%}", f"{timedelta(seconds=round(seconds))} left of the run"]
        return ", ".join(shown)

    def _means(self) -> dict[str, float]:
        """Return the mean of each loss term and the accuracy over the samples seen in the epoch under way."""
        sums = self.position.sums
        counts = dict.fromkeys(_OF_LABELLED, sums["labelled"].clamp(min=1).item())
        return {
            name: total.item() / counts.get(name, self.seen)
            for name, total in sorted(sums.items())
            if name != "labelled"
        }

    def _batches(self, epoch: int, view: int) -> list[Rows]:
        """Return the batches of the epoch's samples: in the order that their soft targets need, or else shuffled."""
        schedule, seed = self.schedule, self.schedule.data_seed
        samples = epoch_samples(len(self.renderer.dataset), schedule.sampling, data_seed=seed, epoch=epoch)
        order = None
        if self.distillation is not None:
            upcoming = view_of_epoch(epoch + 1, schedule.views) if epoch + 1 < schedule.epochs else None
            self.distillation.targets.start_epoch(view, upcoming)
            order = self.distillation.targets.order(samples, data_seed=seed, epoch=epoch)
        if order is None:
            order = shuffled(samples, data_seed=seed, epoch=epoch)
        return batches_of(order, batch_size=schedule.batch_size)

    def _rest(self, batches: list[Rows], view: int) -> Iterator[tuple[Rows, torch.Tensor]]:
        """Yield the batches that are left of an epoch with their pixels."""
        done = self.position.step
        if done and self.distillation is not None:
            self.distillation.targets.skip(sum(map(len, batches[:done])))
        images = self.renderer.batches(batches[done:], view)
        # A DataLoader draws from torch's generator when it starts, which in a run that is not resumed is step 0 only.
        with torch.random.fork_rng(devices=[], enabled=done > 0 or self.position.epoch > 0):
            first = next(images)
        yield from zip(batches[done:], itertools.chain([first], images), strict=True)

    def _step(self, indices: Rows, pixels: torch.Tensor, view: int, weighed: Terms | None) -> dict[str, torch.Tensor]:
        """Take one step; return the mean of each loss term and the share of correct answers."""
        position, distillation = self.position, self.distillation
        targets = self.labels[torch.from_numpy(indices).to(self.renderer.device)]
        second = self.renderer.second_labels(indices, view)
        logits = self.learner.forward(self.preset.normalise(pixels))
        smoothing = self.learner.settings.label_smoothing
        terms = {
            "ce": cross_entropy(logits, targets, smoothing=smoothing)
            if second is None
            else mixed_cross_entropy(logits, targets, second, smoothing=smoothing)
        }
        if distillation is None or weighed is None:
            terms["loss"] = terms["ce"]
        else:
            soft_targets = distillation.targets.logits(indices, pixels)
            terms["kd"] = weighed.loss(logits, soft_targets, targets)
            terms["loss"] = weighed.kd_weight * terms["kd"] + weighed.ce_weight * terms["ce"]
        step = position.epoch * self.steps + position.step
        self.learner.step(terms["loss"], rate=self.schedule.rate(step, self.steps))
        correct = (logits.detach().argmax(dim=1) == targets).float().sum()
        terms["train_top1"] = correct / (targets >= 0).sum().clamp(min=1)
        return {name: value.detach() for name, value in terms.items()}

    def _count(self, terms: dict[str, torch.Tensor], indices: Rows) -> None:
        """Add a batch's means to the sums, each times the number of samples that it is a mean of."""
        sums = self.position.sums
        labelled = (self.labels[torch.from_numpy(indices).to(self.renderer.device)] >= 0).sum()
        for name, value in terms.items():
            sums[name] = sums.get(name, 0) + value * (labelled if name in _OF_LABELLED else len(indices))
        sums["labelled"] = sums.get("labelled", 0) + labelled

    def rehearse(self, size: int) -> None:
        """Take a step of the epoch under way again, on its first ``size`` samples."""
        view = view_of_epoch(self.position.epoch, self.schedule.views)
        indices = self._batches(self.position.epoch, view)[0][:size]
        weighed = None if self.distillation is None else self.distillation.terms(0, self.schedule.epochs)
        self._step(indices, self.renderer(indices, view), view, weighed)

    def _pause(self) -> None:
        """Between two steps, stop if asked to, and save a checkpoint when it is time."""
        stopping = self.should_stop()
        if stopping or time.monotonic() - self.saved_at >= self.checkpoint_every:
            self._save()
        if stopping:
            raise self._stopped()

    def _check(self) -> None:
        """Refuse to go on where a loss, a weight or a buffer is not finite."""
        self.watch.check()
        broken = not_finite(self.learner.module)
        if broken is not None:
            raise DivergedError(
                f"{broken} holds NaN or infinity at {self.position}. {self.saved or 'There is no checkpoint yet'}; "
                "try a lower --lr."
            )

    def _save(self) -> None:
        """Write a checkpoint, unless something in it is not finite."""
        self._check()
        self.run.save_checkpoint(state_of(self.position, self.learner, self.validation))
        self.saved, self.saved_at = f"{self.run.checkpoint} holds {self.position}", time.monotonic()

    def _stopped(self) -> RunError:
        return RunError(f"stopped at {self.position}. Run the same command with --resume to go on from there.")


def _within_memory(loop: _Loop, advance: Callable[[int], None]) -> dict[str, float] | None:
    """Train an epoch; return ``None`` where memory does not suffice, with nothing left that holds on to it."""
    try:
        return loop.epoch(advance)
    except (RuntimeError, MemoryError) as error:
        if not ran_out_of_memory(error):
            raise
    return None


def _smaller(loop: _Loop) -> str:
    """Return what to try when a step does not fit in memory."""
    size, device = loop.schedule.batch_size, loop.renderer.device
    reduced = " or --amp auto" if loop.learner.settings.amp == "fp32" and device.type == "cuda" else ""
    fits = largest_that_fits(loop.rehearse, below=size)
    if fits is None:
        return f"{device} ran out of memory at a batch size of {size}, and 2 do not fit either: take a smaller model."
    return (
        f"{device} ran out of memory at a batch size of {size}; {fits} fit. Try --batch-size {fits}{reduced}; a "
        "smaller batch usually wants a proportionally lower --lr."
    )
