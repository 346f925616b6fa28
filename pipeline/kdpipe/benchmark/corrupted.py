"""The accuracy of a network on corrupted images, by kind and strength."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import torch

from kdpipe.metrics import Figure
from kdpipe.models import Preset, evaluating
from kdpipe.models.layout import arranged
from kdpipe.progress import Progress, silent
from kdpipe.training.evaluation import plain_batches
from kdpipe.views import Renderer
from kdpipe.views.corruptions import STRENGTHS, Corruptions, corrupt

CORRUPTED_TOP1 = Figure(
    "corrupted_top1",
    "Corrupted top-1",
    "Top-1 on corrupted images, the mean over all kinds of corruption that were measured and the strengths 1 to 5.",
    "%",
    "corrupt %",
)
CORRUPTION_DROP = Figure(
    "corruption_drop",
    "Corruption drop",
    "Top-1 on the same images before their corruption, minus the corrupted top-1.",
    "%",
)


@dataclass(frozen=True)
class CorruptionIdentity:
    """The corruptions that the students were measured under."""

    kinds: tuple[str, ...]
    samples: int
    """Number of test samples that were corrupted."""

    @property
    def figures(self) -> tuple[Figure, ...]:
        """The figures of a student: two over all kinds, then the drop of each."""
        return (CORRUPTED_TOP1, CORRUPTION_DROP, *(drop_figure(kind) for kind in self.kinds))


def drop_figure(kind: str) -> Figure:
    """Return the figure of one kind of corruption."""
    return Figure(
        f"{kind}_drop",
        f"Drop by {kind}",
        f"Top-1 on the same images before their corruption, minus the mean of the strengths 1 to 5 of {kind}.",
        "%",
    )


@dataclass(frozen=True)
class CorruptedTop1:
    """The accuracies of one network on the same images."""

    clean: float
    """Without corruption."""
    by_kind: Mapping[str, tuple[float, ...]]
    """Under each kind, at the strengths 1 to 5."""

    @property
    def figures(self) -> dict[str, float]:
        """The figures of ``CorruptionIdentity.figures``, by name."""
        drops = {drop_figure(kind).name: self.clean - fmean(values) for kind, values in self.by_kind.items()}
        mean = fmean(value for values in self.by_kind.values() for value in values)
        return {CORRUPTED_TOP1.name: mean, CORRUPTION_DROP.name: self.clean - mean, **drops}


@torch.inference_mode()
def corrupted_top1(
    module: torch.nn.Module,
    renderer: Renderer,
    *,
    preset: Preset,
    corruptions: Corruptions,
    progress: Progress = silent,
) -> CorruptedTop1:
    """Return the accuracy on the plain view of the renderer's dataset, all of it labeled, and on its corruptions.

    The module must be on the renderer's device; each of its parts is left in its mode, training or evaluation.
    """
    samples, batches = renderer.dataset, plain_batches(renderer)
    hits: dict[tuple[str, int] | None, int] = {}
    conditions: Sequence[tuple[str, int]] = [(kind, strength) for kind in corruptions.kinds for strength in STRENGTHS]
    with evaluating(module), progress(f"corrupting {samples.split}", total=len(samples)) as advance:
        for rows, pixels in zip(batches, renderer.batches(batches, view=0), strict=True):
            labels = torch.from_numpy(samples.labels[rows]).to(renderer.device)

            def right(images: torch.Tensor, labels: torch.Tensor = labels) -> int:
                predicted = module(arranged(preset.normalize(images), module)).float().argmax(dim=1)
                return int((predicted == labels).sum())

            hits[None] = hits.get(None, 0) + right(pixels)
            for kind, strength in conditions:
                images = corrupt(kind, pixels, strength=strength, sample_ids=samples.sample_ids[rows])
                hits[kind, strength] = hits.get((kind, strength), 0) + right(images)
            advance(len(rows))
    by_kind = {kind: tuple(hits[kind, each] / len(samples) for each in STRENGTHS) for kind in corruptions.kinds}
    return CorruptedTop1(hits[None] / len(samples), by_kind)
