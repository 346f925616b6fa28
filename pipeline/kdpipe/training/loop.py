"""The training loop, for students with cached, live or no soft targets, for teachers, and for many at once.

Everything random is a function of the epoch and the seeds (the order of the samples, the view) or part of the
checkpoint (the weights, the optimizer, torch's generators). A resumed run therefore equals an uninterrupted one,
whichever step it was stopped at, and a student that is trained with others equals the same student trained alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kdpipe.errors import KdpipeError
from kdpipe.progress import Progress, silent
from kdpipe.training.batches import Batches, Targets
from kdpipe.training.fleet import Fleet
from kdpipe.training.group import Group
from kdpipe.training.schedule import Order
from kdpipe.training.trainee import Student, Trainee


@dataclass(frozen=True)
class Cost:
    """The cost of a training without evaluation, checkpoints and start-up."""

    seconds: float
    images_per_second: float


def train(
    student: Student,
    targets: Targets | Sequence[Targets] | None = None,
    *,
    order: Order,
    resume: bool = False,
    checkpoint_every: float = 60.0,
    should_stop: Callable[[], bool] = lambda: False,
    progress: Progress = silent,
    say: Callable[[str], None] = lambda _message: None,
) -> Cost:
    """Train one student's module in place; see ``train_together``.

    Raises:
        DeviceError: memory does not hold a step, the validation or a checkpoint.
        DivergedError: the loss of a step, or a weight, is not finite.
        RunError: ``should_stop`` returned true, or there is no checkpoint that can be read.
    """
    (trained,) = train_together(
        [student],
        targets,
        order=order,
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
    students: Sequence[Student],
    targets: Targets | Sequence[Targets] | None = None,
    *,
    order: Order,
    resume: bool = False,
    checkpoint_every: float = 60.0,
    should_stop: Callable[[], bool] = lambda: False,
    progress: Progress = silent,
    say: Callable[[str], None] = lambda _message: None,
    group: Group | None = None,
) -> list[Cost | KdpipeError]:
    """Train the modules of ``students`` in place on one pass over the data; write history and checkpoints of each.

    They share the dataset, the recipe, the device, the number of epochs, the batch size, ``order`` and ``targets``,
    one for each view of a sample where ``order`` has several. Checkpoints are written at the end of each epoch and
    every ``checkpoint_every`` seconds, all at the same step. ``should_stop`` is called after each step; ``say`` gets
    messages for a person. With a ``group``, other processes call this with the same arguments, for one student.

    Returns the cost of each, or the error that ended it: too little memory, or divergence. The others continue
    without it and take over its memory; its module is empty then.

    Raises:
        DeviceError: the device's memory does not suffice for what they share.
        RunError: ``should_stop`` returned true, or there are no checkpoints of one step that can be read.
    """
    renderers = list({id(student.renderer): student.renderer for student in students}.values())
    shared = students[0].settings
    batches = Batches(renderers, targets, order=order, batch_size=shared.batch_size, epochs=shared.epochs, group=group)
    trainees = [
        Trainee(student, steps=batches.steps, source=renderers.index(student.renderer), group=group)
        for student in students
    ]
    stops = should_stop if group is None else group.agreed(should_stop)
    fleet = Fleet(
        trainees, batches, epochs=shared.epochs, checkpoint_every=checkpoint_every, should_stop=stops, say=say
    )
    if resume:
        fleet.resume()
    unit = renderers[0].dataset.unit
    while fleet.active and fleet.epoch < fleet.epochs:
        what = f"epoch {fleet.epoch + 1}/{fleet.epochs}"
        with progress(what, batches.samples, unit=unit, status=fleet.status) as advance:
            within_memory = fleet.train_epoch(advance)
        if not within_memory:
            raise fleet.too_large()
    return [fleet.failures.get(trainee) or _cost(trainee) for trainee in trainees]


def _cost(trainee: Trainee) -> Cost:
    trainee.finish()
    history = trainee.position.history
    if not history:
        return Cost(0.0, 0.0)
    seconds = sum(row["seconds"] for row in history)
    return Cost(seconds, sum(row["seconds"] * row["images_per_second"] for row in history) / seconds)
