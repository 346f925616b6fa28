"""Soft targets of a training: those of stores that are joined to its data, or of a live teacher."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from kdpipe import models
from kdpipe.dataset import Dataset
from kdpipe.distil.selection import SelectedTargets
from kdpipe.distil.several_stores import MixedTargets, refuse_coarse
from kdpipe.distil.targets import LiveTargets, refuse_unsupported, soft_targets
from kdpipe.errors import DatasetError, StaleStoreError, UnsupportedLossError
from kdpipe.models import Model, parse_preset
from kdpipe.models.interface import Interface
from kdpipe.pairing.join import join_checked, remarks
from kdpipe.pairing.probes import lacking, stored_recipe
from kdpipe.stages.console import say
from kdpipe.stages.settings.training import StudentTraining
from kdpipe.stages.teachers import ClassNames, Normalization, Teacher, load_mapped
from kdpipe.stages.training_data import TrainingData
from kdpipe.stages.views import Rendering
from kdpipe.store.reader import LogitStore
from kdpipe.teacher.forward import Forward
from kdpipe.teacher.recompute import refuse_unfit
from kdpipe.training.batches import Targets
from kdpipe.views import Geometry, Recipe


def targets_of(
    students: Sequence[StudentTraining],
    stores: Sequence[LogitStore],
    teacher: Teacher | None,
    data: TrainingData,
    recipe: Recipe,
    rendering: Rendering,
) -> list[Targets]:
    """Return the soft targets that all students share, for each view of a sample in a batch."""
    params = students[0]
    for store in stores:
        _refuse_held_out(store, data)
    if teacher is None:
        return _cached_targets(students, stores, data, recipe)
    for store in stores:
        _refuse_another_teacher(store, teacher.model)
        _joined(store, data.in_store, allow_drift=params.targets.allow_drift)
    device = models.resolve_device(params.run.device)
    free = all(student.optimization.channels_last for student in students)
    precision = params.targets.precision
    forward = Forward(
        teacher.model,
        device=device,
        precision=precision,
        channels_last=None if free else False,
        outputs=teacher.outputs,
    )
    renderer = rendering(Geometry.of(teacher.model.preset))
    refuse_unfit(forward, renderer, name=teacher.model.name)
    return [LiveTargets(forward, renderer)] * params.view.views_per_sample


def live_teacher(params: StudentTraining, train: Dataset, stores: Sequence[LogitStore]) -> Teacher:
    """Load the live teacher; what nothing else says of its images is as in the store, where there is one."""
    settings = params.targets
    assert settings.teacher is not None
    of_data = settings.statistics is not None
    given = Normalization(settings.mean, settings.std, settings.teacher_size, of_data, interface=params.network)
    outputs = None
    if stores:
        recorded = stores[0].manifest.fingerprint.teacher
        given = replace(
            given,
            recorded=parse_preset(recorded.preset),
            recorded_in=stores[0].path,
            interface=params.network.over(Interface.parse(recorded.preset)),
        )
        outputs = recorded.class_maps[0] if recorded.class_maps else None
    return load_mapped(
        settings.teacher,
        train,
        given,
        # With a store, --class-map is of its classes.
        classes=ClassNames(None if stores else settings.class_map, settings.teacher_classes),
        recorded=outputs,
        weights=settings.weights,
        trust_code=params.code.trust_code,
    )


def refuse_partial(students: Sequence[StudentTraining], stores: Sequence[LogitStore]) -> None:
    """Refuse what cannot leave out the samples without soft targets.

    Raises:
        UnsupportedLossError: a loss on layers, an attack or a recipe that mixes, of data that the store does not cover;
            a live teacher.
    """
    for student in students:
        layers = student.learning.loss.layers
        what = (
            f"the loss {layers[0].name}" if layers else "an attack" if student.extra.adversarial is not None else None
        )
        if student.learning.loss.related_by:
            what = f"the loss {student.learning.loss}"
        if stored_recipe(stores[0]).mixes:
            what = f"the recipe {stored_recipe(stores[0])}, which mixes samples,"
        if student.targets.mode == "live":
            raise UnsupportedLossError(
                "--classes data is for soft targets of a store: leave --store out, and give the live teacher its "
                "--class-map, or leave --classes data out."
            )
        if what is not None:
            raise UnsupportedLossError(
                f"--classes data: classes or samples of the data have no soft targets, and {what} needs them of all. "
                "Leave --classes data out, or make a store of all of the data."
            )


def _cached_targets(
    students: Sequence[StudentTraining], stores: Sequence[LogitStore], data: TrainingData, recipe: Recipe
) -> list[Targets]:
    """Check every store against the losses and the data, and return its soft targets, or their mean, for each view."""
    settings, rows = students[0].targets, []
    train, chosen = data.in_store, data.selection
    there = np.arange(len(train)) if chosen is None else chosen.covered.nonzero()[0]
    shared = train if len(there) == len(train) else train.subset(there)
    for store in stores:
        for student in students:
            refuse_unsupported(store, student.learning.loss, temperature=_hottest(student))
        if settings.store_mix == "confidence":
            refuse_coarse(store)
        rows.append(np.zeros(len(train), dtype=np.int64))  # that of a sample without soft targets is not used
        rows[-1][there] = _joined(store, shared, allow_drift=settings.allow_drift)
        if not store.fits and store.manifest.order is None:
            say(
                f"warning: {store.path} has its rows in the order of its dataset, and --memory-limit holds a part of a "
                "view: of a dataset that is sorted by class, a batch has few classes. Raise --memory-limit, or make "
                "the store anew."
            )
    # A mixed image has two classes, and a teacher no cross-entropy to one of them.
    labels = None if recipe.mixes else train.labels
    found: list[Targets] = []
    for _ in range(students[0].view.views_per_sample):
        parts = [soft_targets(store, own) for store, own in zip(stores, rows, strict=True)]
        alone = len(parts) == 1
        one = parts[0] if alone else MixedTargets(parts, settings.shares, mix=settings.store_mix, labels=labels)
        found.append(one if chosen is None else SelectedTargets(one, chosen))
    return found


def _joined(store: LogitStore, train: Dataset, *, allow_drift: bool) -> npt.NDArray[np.int64]:
    """Return the store's row of each sample, after saying what has changed since the teacher's pass."""
    rows = join_checked(store, train, allow_drift=allow_drift)
    for line in remarks(store, train, rows):
        say(line)
    return rows


def _hottest(student: StudentTraining) -> float | None:
    """Return the highest temperature of a training; ``None`` where it is the loss's own."""
    temperature = student.learning.temperature
    return None if temperature is None else max(temperature.values(max(1, student.optimization.epochs)))


def _refuse_held_out(store: LogitStore, data: TrainingData) -> None:
    """Refuse to hold samples out that a store's recipe mixes into the others."""
    if data.validation is not None and lacking(store, data.train) and not lacking(store, data.whole):
        recipe = store.manifest.fingerprint.recipe.name
        raise DatasetError(
            f"{store.path} has images of the recipe {recipe}, which mixes samples and so needs all of them: "
            f"{len(data.validation)} held out for validation would show up in the others. Pass --validation 0, a store "
            "of the other samples alone or of a recipe that does not mix, or a live --teacher and no --store."
        )


def _refuse_another_teacher(store: LogitStore, teacher: Model) -> None:
    writer = store.manifest.fingerprint.teacher
    if writer.digest != teacher.digest:
        raise StaleStoreError(
            f"{store.path} was written by {writer.name}@{writer.digest[:8]}, the live teacher is "
            f"{teacher.name}@{teacher.digest[:8]}. Pass the same --teacher and --weights, or leave --store out."
        )
