"""One student in training: its settings, its steps, and its checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch

from kdpipe.errors import DeviceError, DivergedError, KdpipeError, RunError
from kdpipe.training.batches import Batch
from kdpipe.training.checkpoint import State, refuse_odd, unfit
from kdpipe.training.evaluation import Validation
from kdpipe.training.failures import LossWatch, attempt, largest_that_fits, not_finite, ran_out_of_memory
from kdpipe.training.group import Group
from kdpipe.training.objective import Objective, top1
from kdpipe.training.optimization import Learner
from kdpipe.training.runs import History, RunDirectory
from kdpipe.training.schedule import rate
from kdpipe.training.settings import Optimization
from kdpipe.views import Renderer

FORMAT = 4


@dataclass
class Position:
    """The progress of a run."""

    history: History = field(default_factory=list)
    """One row for each finished epoch."""
    step: int = 0
    """Steps done of the epoch after those."""
    sums: dict[str, torch.Tensor] = field(default_factory=dict)
    """Sums over the samples of these steps, of each loss term and of correct answers, and of the labeled samples."""
    seconds: float = 0.0
    """Duration of these steps."""

    @property
    def epoch(self) -> int:
        """The epoch under way, from 0."""
        return len(self.history)

    def __str__(self) -> str:
        """Return the position in words."""
        return f"step {self.step} of epoch {self.epoch + 1}" if self.step else f"the end of epoch {self.epoch}"


def state_of(position: Position, learner: Learner, validation: Validation | None) -> State:
    """Return the content of a checkpoint."""
    return {
        "format": FORMAT,
        "history": position.history,
        "step": position.step,
        "sums": position.sums,
        "seconds": position.seconds,
        **learner.state(),
        **({} if validation is None else validation.state()),
    }


def restore(state: State, learner: Learner, validation: Validation | None) -> Position:
    """Restore a ``state`` and return its position.

    Raises:
        RunError: another version of kdpipe wrote it, or it does not fit the run.
    """
    refuse_odd(state, version=FORMAT)
    try:
        learner.restore(state)
        if validation is not None:
            validation.restore(state, learner)
    except (RuntimeError, KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        if ran_out_of_memory(error):
            raise
        raise unfit(" ".join(str(error).split())[:200] or type(error).__name__) from None
    sums = {name: total.to(learner.device) for name, total in state["sums"].items()}
    return Position(state["history"], state["step"], sums, state["seconds"])


def _generators() -> list[torch.Tensor]:
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [])]


def _set_generators(states: list[torch.Tensor]) -> None:
    torch.set_rng_state(states[0])
    if len(states) > 1:
        torch.cuda.set_rng_state_all(states[1:])


@dataclass(frozen=True, eq=False)
class Student:
    """A module to train, with all that is its own among students that are trained together."""

    module: torch.nn.Module
    """On the renderer's device."""
    renderer: Renderer
    """Renders the dataset at the size of the module's input."""
    objective: Objective
    settings: Optimization
    run: RunDirectory
    validation: Validation | None = None
    on_resume: Callable[[History], None] = lambda _history: None
    """Called with the rows of the history that were made before the run was resumed."""
    on_epoch: Callable[[dict[str, float]], None] = lambda _row: None
    """Called with each row of the history when it is made."""
    on_failure: Callable[[], None] = lambda: None
    """Called when the other students continue without this one."""
    generators: list[torch.Tensor] = field(default_factory=_generators)
    """States of torch's generators before the first step (default: the present ones)."""


class Trainee:
    """A student, its position, and the step that moves it on."""

    def __init__(self, student: Student, *, steps: int, source: int, group: Group | None = None) -> None:
        """Train ``student`` in epochs of ``steps`` batches, on the pixels of renderer number ``source``.

        With a ``group``, other processes train the same student.
        """
        self._alone = group is None
        self.student, self.run = student, student.run
        self.position = Position()
        self.seen = 0
        """Samples that the epoch under way has used."""
        self._objective = student.objective
        self._learner = Learner(
            student.module,
            student.settings,
            device=student.renderer.device,
            beside=self._objective.beside,
            group=group,
        )
        self._of_labeled = {*self._objective.of_labeled, "train_top1"}
        self._steps, self._source = steps, source
        self._generators = student.generators
        self._saved = "There is no checkpoint yet"
        self._watch = LossWatch(lambda: f"{self._saved}; try a lower --lr.")

    def resume(self, state: State) -> KdpipeError | None:
        """Restore the ``state`` of a checkpoint; return the error where memory does not suffice, or ``None``.

        Raises:
            RunError: another version of kdpipe wrote it.
        """
        return attempt(lambda: self._resume(state), lambda whose: self._too_little(whose, "reading its checkpoint"))

    def begin(self, seen: int) -> None:
        """Begin an epoch, or continue it after ``seen`` samples."""
        position = self.position
        validated = [row["validation_top1"] for row in position.history if "validation_top1" in row]
        self._objective.begin(position.epoch, self.student.settings.epochs, validated=validated)
        self.seen = seen

    def learn(self, batch: Batch) -> KdpipeError | None:
        """Take a step; return the error that ends this student, or ``None``."""
        return attempt(lambda: self._learn(batch), lambda _whose: self.too_large(batch.head))

    def too_large(self, batch: Callable[[int], Batch]) -> DeviceError:
        """Return an error with the largest batch size that fits; smaller batches, ``batch(size)``, are tried."""
        size, device = self.student.settings.batch_size, self._learner.device
        said = f"{device} ran out of memory at a batch size of {size}"
        if not self._alone:  # others do not take part in smaller steps
            return DeviceError(f"{said}. Try a smaller --batch-size, or more ranks.")
        fits = largest_that_fits(lambda size: self._step(batch(size)), below=size)
        if fits is None:
            return DeviceError(f"{said}, and 2 do not fit either: take a smaller model.")
        reduced = " or --amp auto" if self.student.settings.amp == "fp32" and device.type == "cuda" else ""
        return DeviceError(
            f"{said}; {fits} fit. Try --batch-size {fits}{reduced}; a smaller batch usually wants a proportionally "
            "lower --lr."
        )

    def end(self, *, view: int, seconds: float) -> KdpipeError | None:
        """End an epoch: validate, and add the row of the history.

        Return the error that ends this student, or ``None``: memory does not suffice, or a loss, a weight or the
        validation's logits are not finite.
        """
        doing = f"in the validation of epoch {self.position.epoch + 1}"
        return attempt(lambda: self._end(view, seconds), lambda whose: self._too_little(whose, doing))

    def report(self) -> None:
        """Write the history and report its last row."""
        self.run.write_history(self.position.history)
        self.student.on_epoch(self.position.history[-1])

    def save(self) -> KdpipeError | None:
        """Write a checkpoint; return the error that ends this student, with nothing written, or ``None``."""
        doing = f"making a checkpoint of {self.position}"
        return attempt(self._save, lambda whose: self._too_little(whose, doing))

    def stopped(self) -> RunError:
        """Return the error of a run that was asked to stop."""
        return RunError(f"stopped at {self.position}. Run the same command with --resume to go on from there.")

    def finish(self) -> None:
        """Leave the trained weights in the module, without hooks."""
        self._objective.close()
        self._learner.finish()

    def leave(self, failure: KdpipeError) -> None:
        """Record why this student has ended, and free its memory; its module is empty then."""
        self.run.write_failure(str(failure))
        self.student.on_failure()
        self._objective.close()
        self._learner.empty()
        del self._objective, self._learner
        if self.student.validation is not None:
            self.student.validation.best = None

    def means(self) -> dict[str, float]:
        """Return the mean of each loss term and the accuracy over the samples seen in the epoch under way."""
        sums = self.position.sums
        counts = dict.fromkeys(self._of_labeled, sums["labeled"].clamp(min=1).item())
        return {
            name: total.item() / counts.get(name, self.seen)
            for name, total in sorted(sums.items())
            if name != "labeled"
        }

    def _resume(self, state: State) -> None:
        with self._drawing():
            self.position = restore(state, self._learner, self.student.validation)
        if self.position.step >= self._steps or self.position.epoch > self.student.settings.epochs:
            raise unfit(f"it is at {self.position}, beyond the end of the training")
        self._saved = self._holds()
        if self.position.history:
            self.run.write_history(self.position.history)
            self.student.on_resume(self.position.history)

    def _learn(self, batch: Batch) -> None:
        with self._drawing():
            terms = self._step(batch)
            self.position.step += 1
            self._count(terms, batch)
            self._watch.add(terms, epoch=self.position.epoch + 1, step=self.position.step)

    def _end(self, view: int, seconds: float) -> None:
        position = self.position
        epoch = position.epoch
        row = {"epoch": epoch + 1, "view": view, "lr": rate(self.student.settings, epoch * self._steps, self._steps)}
        row |= self._objective.moving | self.means()
        with self._drawing():
            if self.student.validation is not None:
                self._check()
                row |= self.student.validation.measure(self._learner, epoch=epoch + 1)
        row |= {"seconds": seconds, "images_per_second": self.seen / seconds}
        position.history.append(row)
        position.step, position.sums, position.seconds = 0, {}, 0.0

    def _save(self) -> None:
        self._check()
        with self._drawing():
            state = state_of(self.position, self._learner, self.student.validation)
        self.run.save_checkpoint(state)
        self._saved = self._holds()

    def _step(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Take one step; return the mean of each loss term and the training accuracy."""
        forward = partial(self._learner.of_batch, rows=len(batch))
        views = (batch, *batch.others)
        measured, parts = [], []
        for view in views:
            logits, terms = self._objective(forward, view, view.pixels[self._source])
            measured.append({**terms, "train_top1": top1(logits, view.labels)})
            parts.append(self._objective.parts if self.student.settings.dot is not None else None)
        terms = measured[0] if len(views) == 1 else _mean(measured)
        step = self.position.epoch * self._steps + self.position.step
        separate = [each for each in parts if each is not None]
        loss, apart = map(_mean_of, zip(*separate, strict=True)) if separate else (terms["loss"], None)
        self._learner.step(loss, rate=rate(self.student.settings, step, self._steps), rows=len(batch), apart=apart)
        return {name: value.detach() for name, value in terms.items()}

    def _count(self, terms: dict[str, torch.Tensor], batch: Batch) -> None:
        """Add a batch's means to the sums, each times the number of its samples."""
        sums = self.position.sums
        labeled = (batch.labels >= 0).sum()
        for name, value in terms.items():
            sums[name] = sums.get(name, 0) + value * (labeled if name in self._of_labeled else len(batch))
        sums["labeled"] = sums.get("labeled", 0) + labeled
        self.seen += len(batch)

    def _check(self) -> None:
        """Raise ``DivergedError`` where a loss, a weight or a buffer is not finite."""
        self._watch.check()
        broken = not_finite(self._learner.module)
        if broken is not None:
            raise DivergedError(f"{broken} holds NaN or infinity at {self.position}. {self._saved}; try a lower --lr.")

    def _too_little(self, whose: str, doing: str) -> DeviceError:
        return DeviceError(
            f"{whose} ran out of memory {doing}. {self._saved}; free some memory and train this student alone with "
            "--resume, or take a smaller model."
        )

    def _holds(self) -> str:
        return f"{self.run.checkpoint} holds {self.position}"

    @contextmanager
    def _drawing(self) -> Iterator[None]:
        """Draw from this student's own states of torch's generators."""
        others = _generators()
        _set_generators(self._generators)
        try:
            yield
        finally:
            self._generators = _generators()
            _set_generators(others)


def _mean(measured: Sequence[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Return the mean of each term over the views of a batch."""
    return {name: _mean_of([terms[name] for terms in measured]) for name in measured[0]}


def _mean_of(values: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.stack(tuple(values)).mean() if len(values) > 1 else values[0]
