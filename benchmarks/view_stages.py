"""Time of each stage of rendering: timers around the functions that a ``Renderer`` calls."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any
from unittest.mock import patch

from kdpipe.views import geometry, mixing
from kdpipe.views.philox import Draws
from kdpipe.views.recipe import Step

_STAGES: dict[str, tuple[tuple[Any, str], ...]] = {
    "drawing": ((Draws, "words"), (Draws, "integers"), (Draws, "uniform")),
    "boxes and resizing": ((geometry, "cut"),),
    "mixing": ((mixing, "mix"), (mixing.Population, "partners")),
}
_PHASES = {
    "box": "boxes and resizing",
    "flip": "flips and rotation",
    "rotate": "flips and rotation",
    "color": "colors",
    "erase": "erasing",
    "mix": "mixing",
}


class Stopwatch:
    """Seconds by stage; a stage within another one has its time to itself."""

    def __init__(self) -> None:
        """Start with the time that belongs to none of the stages."""
        self.seconds = dict.fromkeys([*_STAGES, *_PHASES.values(), "rest"], 0.0)
        self._within = ["rest"]
        self._since = time.perf_counter()

    def lap(self) -> None:
        """Give the time since the last call to the present stage."""
        now = time.perf_counter()
        self.seconds[self._within[-1]] += now - self._since
        self._since = now

    def timed(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function with its time given to ``stage``."""

        @wraps(function)
        def wrapper(*arguments: Any, **named: Any) -> Any:
            self.lap()
            self._within.append(stage)
            try:
                return function(*arguments, **named)
            finally:
                self.lap()
                self._within.pop()

        return wrapper


@contextmanager
def by_stage() -> Iterator[dict[str, float]]:
    """Yield the seconds by stage of what is rendered within the block; complete at its end."""
    watch = Stopwatch()
    call = Step.__call__

    def step(self: Step, *arguments: Any) -> Any:
        return watch.timed(_PHASES[self.operation.phase], call)(self, *arguments)

    with ExitStack() as patches:
        patches.enter_context(patch.object(Step, "__call__", step))
        for stage, functions in _STAGES.items():
            for owner, name in functions:
                patches.enter_context(patch.object(owner, name, watch.timed(stage, getattr(owner, name))))
        yield watch.seconds
        watch.lap()
