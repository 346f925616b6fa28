"""How far a run has come, and how that is written to a checkpoint and read back."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from kdpipe.errors import RunError
from kdpipe.student.checkpoint import State
from kdpipe.student.optimisation import Learner
from kdpipe.student.runs import History
from kdpipe.student.validation import Validation

_FORMAT = 3


@dataclass
class Position:
    """How far a run has come."""

    history: History = field(default_factory=list)
    """One row for each finished epoch."""
    step: int = 0
    """Steps done of the epoch after those."""
    sums: dict[str, torch.Tensor] = field(default_factory=dict)
    """Sums over the samples of these steps, of each loss term and of correct answers, and of the labelled samples."""
    seconds: float = 0.0
    """What these steps took."""

    @property
    def epoch(self) -> int:
        """The epoch under way, from 0."""
        return len(self.history)

    def __str__(self) -> str:
        """Return the place in words."""
        return f"step {self.step} of epoch {self.epoch + 1}" if self.step else f"the end of epoch {self.epoch}"


def state_of(position: Position, learner: Learner, validation: Validation | None) -> State:
    """Return what a checkpoint holds."""
    return {
        "format": _FORMAT,
        "history": position.history,
        "step": position.step,
        "sums": position.sums,
        "seconds": position.seconds,
        **learner.state(),
        **({} if validation is None else validation.state()),
    }


def restore(state: State, learner: Learner, validation: Validation | None) -> Position:
    """Go back to a ``state`` and return how far it had come.

    Raises:
        RunError: another version of kdpipe wrote it.
    """
    if state.get("format") != _FORMAT:
        raise RunError("the checkpoint was written by another version of kdpipe. Start the run without --resume.")
    learner.restore(state)
    if validation is not None:
        validation.restore(state, learner)
    sums = {name: total.to(learner.device) for name, total in state["sums"].items()}
    return Position(state["history"], state["step"], sums, state["seconds"])
