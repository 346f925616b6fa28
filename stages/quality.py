"""Measurement of trained networks on the test split: figures, predictions, and the temperature fitted on validation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from kdpipe import dataset
from kdpipe.benchmark.cam import CAM_OVERLAP, Explained, Explanations, explain, in_frame, overlap
from kdpipe.benchmark.corrupted import CorruptedTop1, CorruptionIdentity, corrupted_top1
from kdpipe.benchmark.quality import BEST_TOP1, Quality, Scaling, scaling
from kdpipe.benchmark.results import StudentResult
from kdpipe.benchmark.settings import BenchmarkSettings
from kdpipe.dataset import Dataset
from kdpipe.dataset.settings import DatasetSettings
from kdpipe.distil.adversary import Attack, predict_attacked
from kdpipe.errors import DatasetError, MissingSplitError, ModelError, ParamsError
from kdpipe.metrics import accuracy, measure
from kdpipe.metrics.significance import Correct, correct
from kdpipe.models import Model, of_images
from kdpipe.models.layout import settle
from kdpipe.stages.console import progress, say
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
    """The teacher's logits of the test samples, ``(n, classes)``; without them those of ``network``."""
    device: torch.device
    network: Model | None = None
    """The teacher's network, where its weights are at hand."""
    to_corrupt: Dataset | None = field(default=None, init=False)
    """The labeled test samples that are corrupted; None without ``--corruptions``."""
    _explained: dict[str, Explained] = field(default_factory=dict, init=False)
    _to_explain: Dataset | None = field(default=None, init=False)
    _example: Explained | None = field(default=None, init=False)
    _held_out: dict[tuple[Any, ...], Dataset | None] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        """Choose the samples to corrupt and to explain, and measure the teacher's network.

        Raises:
            DatasetError: no test sample has a label to lose, or there is no test image to explain.
            ModelError: the teacher has no layer that Grad-CAM can explain.
        """
        wanted = self.params.measurement
        if wanted.corruptions is not None:
            self.to_corrupt = labeled_subset(self.test, wanted.corruption_samples)
            if self.to_corrupt is None:
                raise DatasetError(
                    f"no test sample of {self.params.dataset.data} has a label, so a loss of accuracy cannot be "
                    "measured: leave corruptions out."
                )
        if self.network is None:
            return
        settle(self.network.module.to(self.device), self.network.preset.size)
        if wanted.cam is not None:
            self._explain_teacher(self.network, wanted.cam)
        if self.teacher is None and self.test is not None:
            self.teacher = self._logits(self.network, self.test)

    def _explain_teacher(self, network: Model, count: int) -> None:
        if self.test is None:
            raise DatasetError(f"{self.params.dataset.data} has no test images to explain: leave cam out.")
        self._to_explain = self.test.subset(
            dataset.balanced_indices(self.test.sample_ids, self.test.labels, limit=count)
        )
        self._example = explain(network, plain(self._to_explain, network, self.device))
        if self._example is None:
            raise ModelError(
                f"{self.params.measurement.teacher} has no layer whose output has channels and positions, which "
                "Grad-CAM needs: leave cam out."
            )

    def explanations(self, students: Sequence[StudentResult]) -> Explanations | None:
        """Return Grad-CAM of the teacher and of the students; None without ``--cam``."""
        if self._to_explain is None or self._example is None or self.network is None:
            return None
        images = plain(self._to_explain, self.network, self.device)(range(len(self._to_explain)), 0)
        shipped = {student.name: student.runs[0].name for student in students}
        explained = {name: self._explained[run] for name, run in shipped.items() if run in self._explained}
        return Explanations(images.cpu().numpy(), self._to_explain.labels, self._example, explained)

    def _cam_overlap(self, model: Model, name: str) -> float | None:
        """Explain a run, and return the overlap of its maps with the teacher's."""
        if self._to_explain is None or self._example is None or self.network is None:
            return None
        found = explain(model, plain(self._to_explain, model, self.device), self._example.predicted)
        if found is None:
            say(f"{name} has no layer whose output has channels and positions: no Grad-CAM of it.")
            return None
        own, frame = Geometry.of(model.preset), Geometry.of(self.network.preset)
        assert own is not None
        assert frame is not None
        self._explained[name] = replace(found, maps=in_frame(found.maps, own, frame))
        return overlap(in_frame(found.maps, own, frame), in_frame(self._example.maps, frame, own))

    @property
    def corruptions(self) -> CorruptionIdentity | None:
        """The corruptions that are measured."""
        wanted = self.params.measurement.corruptions
        if wanted is None or self.to_corrupt is None:
            return None
        return CorruptionIdentity(wanted.kinds, len(self.to_corrupt))

    def __call__(self, model: Model, run: RunDirectory, *, name: str, load: Callable[[Path], Model]) -> Examined:
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
            settle(best.module.to(self.device), best.preset.size)
            figures[BEST_TOP1.name] = accuracy(self._logits(best, self.test), labels).top1
        if self._example is not None:
            figures[CAM_OVERLAP.name] = self._cam_overlap(model, name)
        found = self._corrupted(model)
        if found is None:
            return Examined(figures, quality)
        return Examined({**figures, **found.figures}, quality, found.by_kind)

    def _corrupted(self, model: Model) -> CorruptedTop1 | None:
        wanted = self.params.measurement.corruptions
        if wanted is None or self.to_corrupt is None:
            return None
        renderer = plain(self.to_corrupt, model, self.device)
        return corrupted_top1(
            model.module,
            renderer,
            preset=of_images(model.preset, "--corruptions"),
            corruptions=wanted,
            progress=progress,
        )

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


@dataclass(frozen=True)
class Attacked:
    """An attack, and the test samples that it changes."""

    attack: Attack
    samples: Dataset

    def withstood(self, model: Model, device: torch.device) -> Correct:
        """Return whether a model, which is on ``device``, predicts each attacked sample right, bool ``(samples,)``."""
        preset = of_images(model.preset, "--adversarial")
        renderer = plain(self.samples, model, device)
        logits = predict_attacked(model.module, renderer, preset=preset, attack=self.attack, progress=progress)
        return correct(logits, self.samples.labels)


def attack_of(params: Benchmark, test: Dataset | None) -> Attacked | None:
    """Return the attack of ``--adversarial``.

    Raises:
        DatasetError: no test sample has a label, which the attack leads away from.
    """
    if params.measurement.adversarial is None:
        return None
    chosen = labeled_subset(test, params.measurement.adversarial_samples)
    if chosen is None:
        raise DatasetError(
            f"no test sample of {params.dataset.data} has a label, so none can be attacked: leave adversarial out."
        )
    return Attacked(params.measurement.adversarial, chosen)


def refuse_images_only(asked: BenchmarkSettings, test: Dataset | None) -> None:
    """Refuse what changes or explains pictures, for a dataset of tensors.

    Raises:
        ParamsError: it is asked for.
    """
    wanted = {"corruptions": asked.corruptions, "cam": asked.cam, "adversarial": asked.adversarial}
    given = next((name for name, value in wanted.items() if value is not None), None)
    if test is not None and test.form is not None and given is not None:
        raise ParamsError(f"{given} is for images, {test.spec} has tensors ({test.form}): leave it out.")


def plain(samples: Dataset, model: Model, device: torch.device) -> Renderer:
    """Return a renderer of the plain view, as the model takes it."""
    return Renderer(samples, "none", seed=0, geometry=Geometry.of(model.preset), device=device)


def _held_out(settings: DatasetSettings, share: float) -> Dataset | None:
    """Return the samples that a training with these settings holds out; None if there are no such samples."""
    try:
        return dataset.hold_out(load_split(settings, "train"), share)[1]
    except (MissingSplitError, DatasetError):
        return None
