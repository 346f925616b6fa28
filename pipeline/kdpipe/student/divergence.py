"""Finding the step at which a loss stopped being a number, without waiting for the device at every step."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from kdpipe.errors import DivergedError

_EVERY = 50
"""Steps between two looks at the losses."""


class LossWatch:
    """Keeps the terms of the latest steps and looks at them every so often."""

    def __init__(self, advice: Callable[[], str]) -> None:
        """End the message of a divergence with ``advice()``."""
        self._advice = advice
        self._recent: list[tuple[int, int, Mapping[str, torch.Tensor]]] = []

    def add(self, terms: Mapping[str, torch.Tensor], *, epoch: int, step: int) -> None:
        """Remember the terms of a step, both counted from 1; ``terms["loss"]`` is their sum.

        Raises:
            DivergedError: as ``check`` does.
        """
        self._recent.append((epoch, step, terms))
        if len(self._recent) == _EVERY:
            self.check()

    def check(self) -> None:
        """Look at every step since the last look.

        Raises:
            DivergedError: the loss of a step is not finite; the message has the first such step and its terms.
        """
        if not self._recent:
            return
        finite = torch.stack([terms["loss"] for _, _, terms in self._recent]).isfinite().tolist()
        if not all(finite):
            epoch, step, terms = self._recent[finite.index(False)]
            shown = ", ".join(f"{name} {value.item():.4g}" for name, value in terms.items())
            raise DivergedError(f"the loss of step {step} of epoch {epoch} is not finite ({shown}). {self._advice()}")
        self._recent.clear()


def not_finite(module: torch.nn.Module) -> str | None:
    """Return the name of the first weight or buffer that holds NaN or infinity, ``None`` where none does."""
    values = {name: value for name, value in module.state_dict().items() if value.is_floating_point()}
    finite = torch.stack([value.isfinite().all() for value in values.values()]).tolist() if values else []
    return next((name for name, good in zip(values, finite, strict=True) if not good), None)
