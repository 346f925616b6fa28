"""The training loop: the same for students with cached, live or no soft targets, for teachers, and for many at once.

Everything random is a function of the epoch and the seeds (the order of the samples, the view) or part of the
checkpoint (the weights, the optimiser, torch's generator), so a resumed run equals an uninterrupted one, whichever step
it was stopped at; and a student that is trained beside others equals itself trained alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from kdpipe.errors import KdpipeError
from kdpipe.models import Preset
from kdpipe.progress import Progress, silent
from kdpipe.student.batches import Batches
from kdpipe.student.distillation import Distillation
from kdpipe.student.fleet import Fleet
from kdpipe.student.optimisation import Optimisation
from kdpipe.student.robust import Robust
from kdpipe.student.rotation import Rotation
from kdpipe.student.runs import History, RunDirectory
from kdpipe.student.schedule import Schedule
from kdpipe.student.trainee import Member, Trainee
from kdpipe.student.validation import Validation
from kdpipe.views import Renderer


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
    robust: Robust | None = None,
    rotation: Rotation | None = None,
    resume: bool = False,
    checkpoint_every: float = 60.0,
    should_stop: Callable[[], bool] = lambda: False,
    progress: Progress = silent,
    say: Callable[[str], None] = lambda _message: None,
    on_resume: Callable[[History], None] = lambda _history: None,
    on_epoch: Callable[[dict[str, float]], None] = lambda _row: None,
) -> Cost:
    """Train one module in place; see ``Member`` and ``train_together``.

    Raises:
        DeviceError: memory does not hold a step, the validation or a checkpoint.
        DivergedError: the loss of a step, or a weight, is not finite.
        RunError: ``should_stop`` said so, or there is no checkpoint that can be read.
    """
    member = Member(
        module,
        renderer,
        preset,
        schedule,
        distillation,
        run,
        optimisation,
        validation,
        robust,
        rotation,
        on_resume,
        on_epoch,
    )
    (trained,) = train_together(
        [member],
        resume=resume,
        checkpoint_every=checkpoint_every,
        should_stop=should_stop,
        progress=progress,
        say=say,
    )
    if isinstance(trained, KdpipeError):
        raise trained
    return trained


def train_together(
    members: Sequence[Member],
    *,
    resume: bool = False,
    checkpoint_every: float = 60.0,
    should_stop: Callable[[], bool] = lambda: False,
    progress: Progress = silent,
    say: Callable[[str], None] = lambda _message: None,
) -> list[Cost | KdpipeError]:
    """Train the modules of ``members`` in place on one pass over the data; write history and checkpoints of each.

    They share the dataset, the recipe, the device, the epochs, the batches and the source of soft targets, if they have
    any; all else is their own. Checkpoints are written at the end of each epoch and every ``checkpoint_every`` seconds
    in between, all at the same step. ``should_stop`` is asked after each step. ``say`` gets messages for a person.

    Return what each took, or why it could not go on: its memory did not suffice, or it diverged. The others go on
    without it, and the memory that it took is theirs: of several, its module is empty then.

    Raises:
        DeviceError: the device's memory does not suffice for what they share.
        RunError: ``should_stop`` said so, or there are no checkpoints of one step that can be read.
    """
    renderers = list({id(member.renderer): member.renderer for member in members}.values())
    targets = next((member.distillation.targets for member in members if member.distillation is not None), None)
    batches = Batches(renderers, members[0].schedule, targets)
    trainees = [Trainee(member, steps=batches.steps, source=renderers.index(member.renderer)) for member in members]
    fleet = Fleet(trainees, batches, members[0].schedule.epochs, checkpoint_every, should_stop, say)
    if resume:
        fleet.resume()
    while fleet.active and fleet.epoch < fleet.epochs:
        with progress(f"epoch {fleet.epoch + 1}/{fleet.epochs}", batches.samples, status=fleet.status) as advance:
            within_memory = fleet.train_epoch(advance)
        if not within_memory:
            raise fleet.too_large()
    return [fleet.failures.get(trainee) or _cost(trainee) for trainee in trainees]


def _cost(trainee: Trainee) -> Cost:
    trainee.finish()
    history = trainee.position.history
    seconds = sum(row["seconds"] for row in history)
    return Cost(seconds, sum(row["seconds"] * row["images_per_second"] for row in history) / seconds)
