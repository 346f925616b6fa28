"""A model's logits on the plain view, as it is and under attack."""

from __future__ import annotations

from functools import partial

import numpy as np
import numpy.typing as npt
import torch

from kdpipe.models import Preset, evaluating
from kdpipe.progress import Progress, silent
from kdpipe.student.attack import Attack
from kdpipe.student.hard_labels import cross_entropy
from kdpipe.views import Renderer

_BATCH = 256


@torch.inference_mode()
def predict(
    module: torch.nn.Module, renderer: Renderer, *, preset: Preset, progress: Progress = silent
) -> npt.NDArray[np.float32]:
    """Return float32 logits ``(n, classes)`` of the plain view of every sample of the renderer's dataset.

    The module must be on the renderer's device; it is left in the mode (training or evaluation) it was in.
    """
    was_training = module.training
    module.eval()
    blocks = []
    try:
        with progress(f"evaluating {renderer.dataset.split}", total=len(renderer.dataset)) as advance:
            for pixels in renderer.batches(_batches(renderer), view=0):
                blocks.append(module(preset.normalize(pixels)).float().cpu())
                advance(len(pixels))
    finally:
        module.train(was_training)
    logits: npt.NDArray[np.float32] = torch.cat(blocks).numpy()
    return logits


def predict_attacked(
    module: torch.nn.Module,
    renderer: Renderer,
    *,
    preset: Preset,
    attack: Attack,
    seed: int = 0,
    progress: Progress = silent,
) -> npt.NDArray[np.float32]:
    """Return float32 logits ``(n, classes)`` of the plain view of every sample, attacked where it has a label.

    The attack maximises cross-entropy to the label, from starts drawn by ``seed``. The module must be on the renderer's
    device; its parts are left in the modes that they were in.
    """
    dataset, generator = renderer.dataset, torch.Generator().manual_seed(seed)
    batches, blocks = _batches(renderer), []
    with evaluating(module), progress(f"attacking {dataset.split}", total=len(dataset)) as advance:
        for rows, pixels in zip(batches, renderer.batches(batches, view=0), strict=True):
            labels = torch.from_numpy(dataset.labels[rows].astype(np.int64)).to(renderer.device)
            images = attack(
                lambda images: module(preset.standardize(images)).float(),
                preset.scaled(pixels),
                partial(cross_entropy, labels=labels),
                generator=generator,
            )
            with torch.inference_mode():
                blocks.append(module(preset.standardize(images)).float().cpu())
            advance(len(rows))
    logits: npt.NDArray[np.float32] = torch.cat(blocks).numpy()
    return logits


def _batches(renderer: Renderer) -> list[npt.NDArray[np.int64]]:
    samples = len(renderer.dataset)
    return [np.arange(start, min(start + _BATCH, samples)) for start in range(0, samples, _BATCH)]
