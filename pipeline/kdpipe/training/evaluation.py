"""Logits of a model on the plain view, and validation on held-out samples during training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from kdpipe.metrics.accuracy import accuracy
from kdpipe.models import AnyPreset, evaluating, taking
from kdpipe.models.layout import arranged
from kdpipe.models.parts import in_parts, part_size
from kdpipe.progress import Progress, silent
from kdpipe.training.checkpoint import State
from kdpipe.training.optimization import Learner
from kdpipe.views import Renderer

_BATCH = 256


@torch.inference_mode()
def predict(
    module: torch.nn.Module, renderer: Renderer, *, preset: AnyPreset, progress: Progress = silent
) -> npt.NDArray[np.float32]:
    """Return float32 logits ``(n, classes)`` of the plain view of every sample of the renderer's dataset.

    The module must be on the renderer's device; each of its parts is left in its mode, training or evaluation.
    """
    blocks: list[torch.Tensor] = []
    part = part_size(module, preset.size)
    dataset = renderer.dataset
    shown = progress(f"evaluating {dataset.split}", total=len(dataset), unit=dataset.unit)
    with evaluating(module), shown as advance:
        for pixels in renderer.batches(plain_batches(renderer), view=0):
            for each in in_parts(pixels, part):
                with taking(preset):
                    blocks.append(module(arranged(preset.normalize(each), module)).float().cpu())
            advance(len(pixels))
    logits: npt.NDArray[np.float32] = torch.cat(blocks).numpy()
    return logits


def plain_batches(renderer: Renderer) -> list[npt.NDArray[np.int64]]:
    """Return the indices of all samples of the renderer's dataset, in order and in batches of 256."""
    samples = len(renderer.dataset)
    return [np.arange(start, min(start + _BATCH, samples)) for start in range(0, samples, _BATCH)]


@dataclass(frozen=True)
class Best:
    """The first of the epochs with the highest validation accuracy so far."""

    epoch: int
    """Counted from 1."""
    top1: float
    loss: float
    weights: dict[str, torch.Tensor]
    """The module's state on the CPU: the averaged weights where there is an average."""


class Validation:
    """The plain view of the held-out samples, and the best weights so far."""

    def __init__(
        self,
        renderer: Renderer,
        *,
        preset: AnyPreset,
        keep: Callable[[torch.nn.Module], None] = lambda _module: None,
    ) -> None:
        """Validate on the renderer's dataset, all of it labeled; ``keep`` is called with each best module."""
        self.best: Best | None = None
        self._renderer, self._preset, self._keep = renderer, preset, keep

    def measure(self, learner: Learner, *, epoch: int) -> dict[str, float]:
        """Return accuracy and loss after ``epoch``, counted from 1; the training is not affected.

        Raises:
            DivergedError: the model's logits are not finite.
        """
        device = learner.device
        with learner.lent(learner.tested) as module:
            with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
                logits = predict(module, self._renderer, preset=self._preset)
            scores = accuracy(logits, self._renderer.dataset.labels)
            assert scores.top1 is not None
            assert scores.loss is not None
            if self.best is None or scores.top1 > self.best.top1:
                weights = {name: value.to("cpu", copy=True) for name, value in module.state_dict().items()}
                self.best = Best(epoch, scores.top1, scores.loss, weights)
                self._keep(module)
        return {"validation_top1": scores.top1, "validation_loss": scores.loss}

    def state(self) -> State:
        """Return the best so far, for a checkpoint."""
        return {} if self.best is None else {"best": vars(self.best)}

    def restore(self, state: State, learner: Learner) -> None:
        """Restore a ``state``, and call ``keep`` with its best model, which a later one may have replaced."""
        self.best = Best(**state["best"]) if "best" in state else None
        if self.best is not None:
            with learner.lent(self.best.weights) as module:
                self._keep(module)
