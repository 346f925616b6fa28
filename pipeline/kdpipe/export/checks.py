"""The test of exported files: they are run on images beside the network that they were made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from kdpipe.dataset import Dataset
from kdpipe.errors import AccuracyLossError
from kdpipe.export.formats import Artifact
from kdpipe.export.images import plain_batches
from kdpipe.models import Model, of_images
from kdpipe.progress import Progress, silent

TIE = 1e-3
"""Relative distance of the two largest logits below which float32 does not determine the class."""


@dataclass
class Figures:
    """Counts over the test images."""

    images: int = 0
    labeled: int = 0
    hits: int = 0
    """Labeled images whose label has the largest logit."""
    same: int = 0
    """Images of the run's own class."""
    changed: int = 0
    """Images of another class than the run's, ties left out."""
    difference: float = 0.0
    """Largest absolute difference from the run's logits."""

    @property
    def top1(self) -> float | None:
        """Fraction of the labeled images that are classified correctly; None where no image has a label."""
        return self.hits / self.labeled if self.labeled else None

    @property
    def agreement(self) -> float:
        """Fraction of the images of the run's own class."""
        return self.same / self.images

    def add(self, logits: npt.NDArray[np.float32], run: npt.NDArray[np.float32], labels: npt.NDArray[np.int32]) -> None:
        """Count a batch: ``logits`` and those of the ``run`` ``(n, classes)``, ``labels`` ``(n,)``, -1 for none."""
        predicted, own = logits.argmax(axis=1), run.argmax(axis=1)
        largest = np.sort(run, axis=1)[:, -2:]
        tied = largest[:, -1] - largest[:, 0] <= TIE * np.maximum(1, np.abs(run).max(axis=1))
        self.images += len(labels)
        self.labeled += int((labels >= 0).sum())
        self.hits += int((predicted == labels).sum())
        self.same += int((predicted == own).sum())
        self.changed += int(((predicted != own) & ~tied).sum())
        self.difference = max(self.difference, float(np.abs(logits - run).max()))


@dataclass(frozen=True)
class Tested:
    """The figures of a run and of what was exported of it, on the same images."""

    run: Figures
    artifacts: tuple[tuple[Artifact, Figures], ...]

    def drop(self, figures: Figures) -> float:
        """Return how many percentage points of top-1 an artifact loses; of images without labels, of agreement."""
        if figures.top1 is None or self.run.top1 is None:
            return (1 - figures.agreement) * 100
        return (self.run.top1 - figures.top1) * 100


def measure(artifacts: Sequence[Artifact], model: Model, samples: Dataset, *, progress: Progress = silent) -> Tested:
    """Run artifacts and their network on the plain view of ``samples``, on the CPU."""
    run = Figures()
    found = [Figures() for _ in artifacts]
    start = 0
    with progress("testing the files", total=len(samples)) as advance:
        for images in plain_batches(samples, of_images(model.preset, "export")):
            labels = samples.labels[start : start + len(images)]
            with torch.inference_mode():
                expected = model.module(model.preset.normalize(torch.from_numpy(images))).float().numpy()
            run.add(expected, expected, labels)
            for artifact, figures in zip(artifacts, found, strict=True):
                figures.add(artifact.predict(images), expected, labels)
            start += len(images)
            advance(len(images))
    return Tested(run, tuple(zip(artifacts, found, strict=True)))


def refuse_losses(tested: Tested, *, max_drop: float, allow_drop: bool) -> list[str]:
    """Refuse artifacts that are not what they were made of; return warnings of what is allowed.

    In float32 the classes must be those of the run, but for ties. In int8 the loss of top-1 may be ``max_drop``
    percentage points, or more with ``allow_drop``.

    Raises:
        AccuracyLossError: an artifact loses more.
    """
    warnings = []
    for artifact, figures in tested.artifacts:
        name = next(iter(artifact.files))
        if artifact.precision == "fp32" and figures.changed:
            raise AccuracyLossError(
                f"{name} is not the run's network: it gives {figures.changed:,} of {figures.images:,} images another "
                f"class (top-1 {shown(figures.top1)}, the run {shown(tested.run.top1)}; logits differ by up to "
                f"{figures.difference:.2g}). Nothing was exported; leave {artifact.format} out of --to."
            )
        lost = tested.drop(figures)
        if artifact.precision == "fp32" or lost <= max_drop + 1e-9:
            continue
        what = f"{name} loses {lost:.2f} points of top-1 ({shown(figures.top1)}, in fp32 {shown(tested.run.top1)})"
        if not allow_drop:
            raise AccuracyLossError(
                f"{what}, more than --max-drop {max_drop:g}. Nothing was exported; pass more --calibration images, a "
                "higher --max-drop, or --allow-drop."
            )
        warnings.append(f"warning: {what}, more than --max-drop {max_drop:g} (--allow-drop).")
    return warnings


def shown(fraction: float | None) -> str:
    """Return a fraction as a percentage, for people."""
    return "n/a" if fraction is None else f"{fraction:.2%}"
