"""Measurement of trained networks on the test split: figures, predictions, and the temperature fitted on validation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from kdpipe import dataset
from kdpipe.benchmark.corrupted import CorruptedTop1, CorruptionIdentity, corrupted_top1
from kdpipe.benchmark.quality import BEST_TOP1, Quality, Scaling, scaling
from kdpipe.dataset import Dataset
from kdpipe.dataset.settings import DatasetSettings
from kdpipe.errors import DatasetError, MissingSplitError
from kdpipe.metrics import accuracy, measure
from kdpipe.models import Model
from kdpipe.stages.console import progress
from kdpipe.stages.settings.benchmark import Benchmark
from kdpipe.stages.sources import load_split
from kdpipe.training.evaluation import predict
from kdpipe.training.runs import RunDirectory
from kdpipe.views import Geometry, Renderer

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Examined:
    """One run, measured on the test split."""

    figures: dict[str, float | None]
    quality: Quality | None
    """None without a test split."""
    corrupted: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """Top-1 by corruption; see ``StudentResult``."""


@dataclass
class Examiner:
    """Measures runs on the same test split, against the same teacher."""

    params: Benchmark
    test: Dataset | None
    teacher: Float32 | None
    """The teacher's logits of the test samples, ``(n, classes)``."""
    device: torch.device
    to_corrupt: Dataset | None = field(init=False)
    """The labeled test samples that are corrupted; None without ``--corruptions``."""
    _held_out: dict[tuple[Any, ...], Dataset | None] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        """Choose the samples to corrupt.

        Raises:
            DatasetError: no test sample has a label.
        """
        wanted = self.params.measurement
        self.to_corrupt = None
        if wanted.corruptions is not None:
            chosen = labeled_subset(self.test, wanted.corruption_samples)
            if chosen is None:
                raise DatasetError(
                    f"no test sample of {self.params.dataset.data} has a label, so a loss of accuracy cannot be "
                    "measured: leave corruptions out."
                )
            self.to_corrupt = chosen

    @property
    def corruptions(self) -> CorruptionIdentity | None:
        """The corruptions that are measured."""
        wanted = self.params.measurement.corruptions
        if wanted is None or self.to_corrupt is None:
            return None
        return CorruptionIdentity(wanted.kinds, len(self.to_corrupt))

    def __call__(self, model: Model, run: RunDirectory, *, load: Callable[[Path], Model]) -> Examined:
        """Measure the network of a run, which is on the device; ``load`` loads other weights of the run."""
        record = run.record()
        if self.test is None:
            nothing = np.empty((0, len(record["classes"] or ())), dtype=np.float32)
            return Examined(measure(nothing, np.empty(0, dtype=np.int64)), None)
        logits, labels = self._logits(model, self.test), self.test.labels
        fitted = self._scaling(model, record)
        quality = Quality(logits, labels, fitted.temperature, fitted.note)
        figures = measure(logits, labels, self.teacher) | quality.figures
        if run.best_weights.exists():
            best = load(run.best_weights)
            best.module.to(self.device)
            figures[BEST_TOP1.name] = accuracy(self._logits(best, self.test), labels).top1
        found = self._corrupted(model)
        if found is None:
            return Examined(figures, quality)
        return Examined({**figures, **found.figures}, quality, found.by_kind)

    def _corrupted(self, model: Model) -> CorruptedTop1 | None:
        wanted = self.params.measurement.corruptions
        if wanted is None or self.to_corrupt is None:
            return None
        renderer = plain(self.to_corrupt, model, self.device)
        return corrupted_top1(model.module, renderer, preset=model.preset, corruptions=wanted, progress=progress)

    def _logits(self, model: Model, samples: Dataset) -> Float32:
        return predict(model.module, plain(samples, model, self.device), preset=model.preset, progress=progress)

    def _scaling(self, model: Model, record: dict[str, Any]) -> Scaling:
        """Fit a temperature on the samples that the run held out."""
        found = self._validation(record)
        if isinstance(found, str):
            return Scaling(None, found)
        return scaling(self._logits(model, found), found.labels)

    def _validation(self, record: dict[str, Any]) -> Dataset | str:
        """Return the samples that a run held out, or the reason why there are none."""
        parameters, given = record["parameters"], self.params.dataset.data
        share = parameters.get("validation")
        if not isinstance(share, float) or not 0 < share < 1:
            return "the run held no samples out (--validation)"
        limits = {key: parameters.get(key) or None for key in ("limit_train", "labels_per_class")}
        key = (*limits.values(), share)
        if key not in self._held_out:
            self._held_out[key] = _held_out(self.params.dataset.model_copy(update=limits), share)
        found = self._held_out[key]
        if found is None or found.fingerprint != (record["lineage"].get("dataset") or {}).get("validation"):
            return f"the samples that the run held out are not among those of {given}"
        return found


def labeled_subset(test: Dataset | None, limit: int | None) -> Dataset | None:
    """Return the labeled samples of the test split, or a class-balanced subset of them; None if there are none."""
    rows = np.empty(0, dtype=np.int64) if test is None else np.flatnonzero(test.labels >= 0)
    if test is None or not len(rows):
        return None
    return test.subset(rows[dataset.balanced_indices(test.sample_ids[rows], test.labels[rows], limit=limit)])


def plain(samples: Dataset, model: Model, device: torch.device) -> Renderer:
    """Return a renderer of the plain view, as the model takes it."""
    return Renderer(samples, "none", seed=0, geometry=Geometry.of(model.preset), device=device)


def _held_out(settings: DatasetSettings, share: float) -> Dataset | None:
    """Return the samples that a training with these settings holds out; None if there are no such samples."""
    try:
        return dataset.hold_out(load_split(settings, "train"), share)[1]
    except (MissingSplitError, DatasetError):
        return None
