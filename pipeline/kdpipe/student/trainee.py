"""One student in training: what it is given, what it learns from a batch, and what it leaves in its run directory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from kdpipe.errors import DeviceError, DivergedError, KdpipeError, RunError
from kdpipe.models import Preset
from kdpipe.student.attempt import attempt
from kdpipe.student.batches import Batch
from kdpipe.student.checkpoint import State
from kdpipe.student.distillation import Distillation
from kdpipe.student.divergence import LossWatch, not_finite
from kdpipe.student.hard_labels import top1
from kdpipe.student.memory import largest_that_fits
from kdpipe.student.objective import Objective
from kdpipe.student.optimisation import Learner, Optimisation
from kdpipe.student.position import Position, restore, state_of
from kdpipe.student.robust import Adversary, Robust
from kdpipe.student.rotation import Rotation
from kdpipe.student.runs import History, RunDirectory
from kdpipe.student.schedule import Schedule
from kdpipe.student.validation import Validation
from kdpipe.views import Renderer

_OF_LABELLED = ("ce", "train_top1", "adversarial_top1")
"""Figures of a batch that are means over its labelled samples."""


def _generators() -> list[torch.Tensor]:
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [])]


def _set_generators(states: list[torch.Tensor]) -> None:
    torch.set_rng_state(states[0])
    if len(states) > 1:
        torch.cuda.set_rng_state_all(states[1:])


@dataclass(frozen=True, eq=False)
class Member:
    """One of the students that are trained together: what it is, and how it learns."""

    module: torch.nn.Module
    """On the renderer's device."""
    renderer: Renderer
    """Renders the dataset at the size of the module's input."""
    preset: Preset
    schedule: Schedule
    distillation: Distillation | None
    """``None`` for cross-entropy to the labels alone."""
    run: RunDirectory
    optimisation: Optimisation = field(default_factory=Optimisation)
    validation: Validation | None = None
    robust: Robust | None = None
    """``None`` for images as they are."""
    rotation: Rotation | None = None
    """The auxiliary task; ``None`` for none."""
    on_resume: Callable[[History], None] = lambda _history: None
    """Gets the rows of the history that were made before the run was resumed."""
    on_epoch: Callable[[dict[str, float]], None] = lambda _row: None
    """Gets each row of the history when it is made."""
    on_failure: Callable[[], None] = lambda: None
    """Told when the others go on without it."""
    generators: list[torch.Tensor] = field(default_factory=_generators)
    """Where torch's generators are before its first step: as they are when it is made."""


class Trainee:
    """A member and how far it has come."""

    def __init__(self, member: Member, *, steps: int, source: int) -> None:
        """Train ``member``, epochs of ``steps`` batches, on the pixels that a batch has from renderer ``source``."""
        self.member, self.run = member, member.run
        self.position = Position()
        self.seen = 0
        """Samples of the epoch under way that were learnt from."""
        schedule, optimisation = member.schedule, member.optimisation
        robust = member.robust
        self._objective = Objective(
            member.preset,
            member.distillation,
            label_smoothing=optimisation.label_smoothing,
            adversary=None if robust is None else Adversary(robust, member.module, member.preset),
            rotation=member.rotation,
        )
        self._learner = Learner(
            member.module,
            optimisation,
            lr=schedule.lr,
            weight_decay=schedule.weight_decay,
            device=member.renderer.device,
            beside=self._objective.beside,
        )
        self._steps, self._source = steps, source
        self._generators = member.generators
        self._saved = ""
        self._watch = LossWatch(lambda: f"{self._saved or 'There is no checkpoint yet'}; try a lower --lr.")

    def resume(self, state: State) -> KdpipeError | None:
        """Go back to the ``state`` of a checkpoint; return why this student cannot, or ``None``.

        Raises:
            RunError: another version of kdpipe wrote it.
        """
        return attempt(lambda: self._resume(state), lambda whose: self._too_little(whose, "reading its checkpoint"))

    def begin(self, seen: int) -> None:
        """Begin an epoch, or go on with it after ``seen`` samples."""
        self._objective.begin(self.position.epoch, self.member.schedule.epochs)
        self.seen = seen

    def learn(self, batch: Batch) -> KdpipeError | None:
        """Take a step; return why this student cannot go on, or ``None``."""
        return attempt(lambda: self._learn(batch), lambda _whose: self.too_large(batch.head))

    def too_large(self, batch: Callable[[int], Batch]) -> DeviceError:
        """Return what to try when memory does not suffice, having tried smaller batches: ``batch(size)``."""
        size, device = self.member.schedule.batch_size, self._learner.device
        fits = largest_that_fits(lambda size: self._step(batch(size)), below=size)
        said = f"{device} ran out of memory at a batch size of {size}"
        if fits is None:
            return DeviceError(f"{said}, and 2 do not fit either: take a smaller model.")
        reduced = " or --amp auto" if self.member.optimisation.amp == "fp32" and device.type == "cuda" else ""
        return DeviceError(
            f"{said}; {fits} fit. Try --batch-size {fits}{reduced}; a smaller batch usually wants a proportionally "
            "lower --lr."
        )

    def end(self, *, view: int, seconds: float) -> KdpipeError | None:
        """End an epoch: measure what is held out, and add the row of the history.

        Return why this student cannot go on, or ``None``: memory does not suffice, or a loss, a weight or the
        validation's logits are not finite.
        """
        doing = f"in the validation of epoch {self.position.epoch + 1}"
        return attempt(lambda: self._end(view, seconds), lambda whose: self._too_little(whose, doing))

    def report(self) -> None:
        """Write the history and tell of its last row."""
        self.run.write_history(self.position.history)
        self.member.on_epoch(self.position.history[-1])

    def save(self) -> KdpipeError | None:
        """Write a checkpoint; return why this student cannot go on, and it was not written, or ``None``."""
        doing = f"making a checkpoint of {self.position}"
        return attempt(self._save, lambda whose: self._too_little(whose, doing))

    def stopped(self) -> RunError:
        """Return the error of a run that was asked to stop."""
        return RunError(f"stopped at {self.position}. Run the same command with --resume to go on from there.")

    def finish(self) -> None:
        """Leave the trained weights in the module, and nothing that watches it."""
        self._objective.close()
        self._learner.finish()

    def leave(self, failure: KdpipeError) -> None:
        """Remember why this student cannot go on, and let go of all memory that it takes; its module is empty then."""
        self.run.write_failure(str(failure))
        self.member.on_failure()
        self._objective.close()
        self._learner.empty()
        del self._objective, self._learner
        if self.member.validation is not None:
            self.member.validation.best = None

    def means(self) -> dict[str, float]:
        """Return the mean of each loss term and the accuracy over the samples seen in the epoch under way."""
        sums = self.position.sums
        counts = dict.fromkeys(_OF_LABELLED, sums["labelled"].clamp(min=1).item())
        return {
            name: total.item() / counts.get(name, self.seen)
            for name, total in sorted(sums.items())
            if name != "labelled"
        }

    def _resume(self, state: State) -> None:
        with self._drawing():
            self.position = restore(state, self._learner, self.member.validation)
        self._saved = self._holds()
        if self.position.history:
            self.run.write_history(self.position.history)
            self.member.on_resume(self.position.history)

    def _learn(self, batch: Batch) -> None:
        with self._drawing():
            terms = self._step(batch)
            self.position.step += 1
            self._count(terms, batch)
            self._watch.add(terms, epoch=self.position.epoch + 1, step=self.position.step)

    def _end(self, view: int, seconds: float) -> None:
        position, schedule = self.position, self.member.schedule
        epoch = position.epoch
        row = {"epoch": epoch + 1, "view": view, "lr": schedule.rate(epoch * self._steps, self._steps)}
        row |= self._objective.moving | self.means()
        with self._drawing():
            if self.member.validation is not None:
                self._check()
                row |= self.member.validation.measure(self._learner, epoch=epoch + 1)
        row |= {"seconds": seconds, "images_per_second": self.seen / seconds}
        position.history.append(row)
        position.step, position.sums, position.seconds = 0, {}, 0.0

    def _save(self) -> None:
        self._check()
        with self._drawing():
            state = state_of(self.position, self._learner, self.member.validation)
        self.run.save_checkpoint(state)
        self._saved = self._holds()

    def _step(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Take one step; return the mean of each loss term and the share of correct answers."""
        logits, terms = self._objective(self._learner.forward, batch, batch.pixels[self._source])
        step = self.position.epoch * self._steps + self.position.step
        self._learner.step(terms["loss"], rate=self.member.schedule.rate(step, self._steps))
        terms["train_top1"] = top1(logits, batch.labels)
        return {name: value.detach() for name, value in terms.items()}

    def _count(self, terms: dict[str, torch.Tensor], batch: Batch) -> None:
        """Add a batch's means to the sums, each times the number of samples that it is a mean of."""
        sums = self.position.sums
        labelled = (batch.labels >= 0).sum()
        for name, value in terms.items():
            sums[name] = sums.get(name, 0) + value * (labelled if name in _OF_LABELLED else len(batch))
        sums["labelled"] = sums.get("labelled", 0) + labelled
        self.seen += len(batch)

    def _check(self) -> None:
        """Refuse to go on where a loss, a weight or a buffer is not finite."""
        self._watch.check()
        broken = not_finite(self._learner.module)
        if broken is not None:
            raise DivergedError(
                f"{broken} holds NaN or infinity at {self.position}. {self._saved or 'There is no checkpoint yet'}; "
                "try a lower --lr."
            )

    def _too_little(self, whose: str, doing: str) -> DeviceError:
        return DeviceError(
            f"{whose} ran out of memory {doing}. {self._saved or 'There is no checkpoint yet'}; free some memory and "
            "train this student alone with --resume, or take a smaller model."
        )

    def _holds(self) -> str:
        return f"{self.run.checkpoint} holds {self.position}"

    @contextmanager
    def _drawing(self) -> Iterator[None]:
        """Let torch's generators go on from where this student's own draws have left them."""
        others = _generators()
        _set_generators(self._generators)
        try:
            yield
        finally:
            self._generators = _generators()
            _set_generators(others)
