"""A model's logits on the plain view."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from kdpipe.models import Preset
from kdpipe.progress import Progress, silent
from kdpipe.views import Renderer

_BATCH = 256


@torch.inference_mode()
def predict(
    module: torch.nn.Module, renderer: Renderer, *, preset: Preset, progress: Progress = silent
) -> npt.NDArray[np.float32]:
    """Return float32 logits ``(n, classes)`` of the plain view of every sample of the renderer's dataset.

    The module must be on the renderer's device; it is left in the mode (training or evaluation) it was in.
    """
    samples = len(renderer.dataset)
    batches = [np.arange(start, min(start + _BATCH, samples)) for start in range(0, samples, _BATCH)]
    was_training = module.training
    module.eval()
    blocks = []
    try:
        with progress(f"evaluating {renderer.dataset.split}", total=samples) as advance:
            for pixels in renderer.batches(batches, view=0):
                blocks.append(module(preset.normalise(pixels)).float().cpu())
                advance(len(pixels))
    finally:
        module.train(was_training)
    logits: npt.NDArray[np.float32] = torch.cat(blocks).numpy()
    return logits
