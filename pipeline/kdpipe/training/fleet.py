"""Students that are trained together on the same batches: epochs, checkpoints, and the failure of one."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial

from kdpipe.errors import KdpipeError, RunError
from kdpipe.training.batches import Batches
from kdpipe.training.checkpoint import State, refuse_odd
from kdpipe.training.failures import ran_out_of_memory
from kdpipe.training.trainee import FORMAT, Trainee

_SHOWN = 4
"""Number of students in a status line."""


class Fleet:
    """Students in training, all at the same step, and the errors of those that failed."""

    def __init__(
        self,
        trainees: Sequence[Trainee],
        batches: Batches,
        *,
        epochs: int,
        checkpoint_every: float,
        should_stop: Callable[[], bool],
        say: Callable[[str], None],
    ) -> None:
        """Train ``trainees`` for ``epochs``, and save checkpoints every ``checkpoint_every`` seconds.

        ``should_stop`` is asked after each step; ``say`` gets messages for a person.
        """
        self.active = list(trainees)
        """Students in training."""
        self.failures: dict[Trainee, KdpipeError] = {}
        """Errors of the students that failed."""
        self.epochs = epochs
        self._several = len(trainees) > 1
        self._batches, self._should_stop, self._say = batches, should_stop, say
        self._checkpoint_every, self._saved_at = checkpoint_every, time.monotonic()
        self._started = time.monotonic(), 0

    @property
    def epoch(self) -> int:
        """The epoch under way, from 0."""
        return self.active[0].position.epoch

    def resume(self) -> None:
        """Restore the newest checkpoints that are of one step.

        Raises:
            RunError: there are none.
        """
        for trainee in list(self.active):
            failure = trainee.run.failure()
            if failure is not None and self._several:
                self._drop(trainee, RunError(failure))
        states = dict(_meeting(self.active, self._say))
        self._each(lambda trainee: trainee.resume(states[trainee]) if states else None)
        if self.active and (self.active[0].position.epoch or self.active[0].position.step):
            self._say(f"Going on from {self.active[0].position}.")
            self._started = time.monotonic(), self._done()

    def train_epoch(self, advance: Callable[[int], None]) -> bool:
        """Train the rest of the epoch under way; return whether memory sufficed for what the students share.

        Where it did not, nothing is left that holds on to it.
        """
        try:
            self._train_epoch(advance)
        except (RuntimeError, MemoryError) as error:
            if not ran_out_of_memory(error):
                raise
            return False
        return True

    def too_large(self) -> KdpipeError:
        """Return an error with a batch size that fits, for too little memory for what the students share."""
        epoch = self.epoch
        return self.active[0].too_large(lambda size: self._batches.first(epoch, size))

    def status(self) -> str:
        """Return the means of the epoch so far, which waits for the device, and the remaining time of the run."""
        began, before = self._started
        done = self._done() if self.active else 0
        if not done > before or not self.active[0].position.step:
            return ""
        seconds = (time.monotonic() - began) / (done - before) * (self.epochs * self._batches.steps - done)
        return f"{self._losses()}, {timedelta(seconds=round(seconds))} left of the run"

    def _losses(self) -> str:
        if self._several:
            shown = [f"{each.run.path.name} {each.means()['loss']:.4f}" for each in self.active[:_SHOWN]]
            more = f" and {len(self.active) - _SHOWN} more" if len(self.active) > _SHOWN else ""
            return f"loss of {', '.join(shown)}{more}"
        means = self.active[0].means()
        terms = {"loss": means.pop("loss"), **means}
        accuracy = terms.pop("train_top1")
        return ", ".join([*(f"{name} {mean:.4f}" for name, mean in terms.items()), f"train top-1 {accuracy:.2%}"])

    def _done(self) -> int:
        position = self.active[0].position
        return position.epoch * self._batches.steps + position.step

    def _train_epoch(self, advance: Callable[[int], None]) -> None:
        first = self.active[0].position
        epoch, step, before = first.epoch, first.step, first.seconds
        seen, batches = self._batches.epoch(epoch, done=step)
        for trainee in self.active:
            trainee.begin(seen)
        advance(seen)
        began = time.perf_counter() - before
        for batch in batches:
            self._each(partial(Trainee.learn, batch=batch))
            if not self.active:
                return
            step += 1
            advance(len(batch))
            if step < self._batches.steps:
                seconds = time.perf_counter() - began
                self._pause(seconds)
                began = time.perf_counter() - seconds
        seconds = time.perf_counter() - began
        self._each(lambda trainee: trainee.end(view=self._batches.view(epoch), seconds=seconds))
        self._save()
        for trainee in self.active:
            trainee.report()
        if self._should_stop() and self.active and self.epoch < self.epochs:
            raise self.active[0].stopped()

    def _pause(self, seconds: float) -> None:
        """Stop or save checkpoints where due, between two steps and ``seconds`` into the epoch."""
        stopping = self._should_stop()
        if stopping or time.monotonic() - self._saved_at >= self._checkpoint_every:
            for trainee in self.active:
                trainee.position.seconds = seconds
            self._save()
        if stopping and self.active:
            raise self.active[0].stopped()

    def _save(self) -> None:
        self._each(Trainee.save)
        self._saved_at = time.monotonic()

    def _each(self, act: Callable[[Trainee], KdpipeError | None]) -> None:
        for trainee in list(self.active):
            failure = act(trainee)
            if failure is not None:
                self._drop(trainee, failure)

    def _drop(self, trainee: Trainee, failure: KdpipeError) -> None:
        self.active.remove(trainee)
        self.failures[trainee] = failure
        if self._several:
            self._say(f"{trainee.run.path} is left out: {failure}")
            trainee.leave(failure)


def _meeting(trainees: Sequence[Trainee], say: Callable[[str], None]) -> list[tuple[Trainee, State]]:
    """Return the newest checkpoints that are of one step, and drop newer ones; none where one run has none yet.

    Raises:
        RunError: a checkpoint cannot be read, or they are of different steps; none is dropped.
    """
    found = [trainee.run.load_checkpoint(say=say) for trainee in trainees]
    states = [state for state in found if state is not None]
    for state in states:
        refuse_odd(state, version=FORMAT)
    if len(states) < len(trainees):
        return []
    places = [_place(state) for state in states]
    met = []
    for trainee, state in zip(trainees, states, strict=True):
        earlier = state if _place(state) == min(places) else trainee.run.load_earlier_checkpoint()
        if earlier is not None:
            refuse_odd(earlier, version=FORMAT)
        if earlier is None or _place(earlier) != min(places):
            raise RunError(
                f"the checkpoints of {trainee.run.path} and those beside it are of different steps, so they cannot go "
                "on together. Start them without --resume and with --overwrite, or resume each alone."
            )
        met.append((trainee, earlier))
    for (trainee, earlier), state in zip(met, states, strict=True):
        if earlier is not state:
            trainee.run.drop_newest_checkpoint()
    return met


def _place(state: State) -> tuple[int, int]:
    return len(state["history"]), state["step"]
