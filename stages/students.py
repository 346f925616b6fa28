"""Trainings of students, against a store, a live teacher, or hard labels alone: from settings to run directories."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from kdpipe import models
from kdpipe.dataset import Dataset, find_ids
from kdpipe.distil.losses import Loss
from kdpipe.distil.objective import Distillation
from kdpipe.distil.relations import class_relations
from kdpipe.distil.selection import SelectedTargets
from kdpipe.distil.several_stores import MixedTargets, refuse_coarse
from kdpipe.distil.signals import SignalTerm, SignalTerms, settle
from kdpipe.distil.targets import LiveTargets, refuse_unlabeled, refuse_unsupported, savings, soft_targets
from kdpipe.errors import DatasetError, StaleStoreError, UnsupportedLossError
from kdpipe.models import Model, parse_preset
from kdpipe.models.interface import Interface
from kdpipe.pairing.join import join_checked, remarks
from kdpipe.pairing.probes import lacking, stored_recipe
from kdpipe.sharing.streaming import open_store
from kdpipe.stages.console import say
from kdpipe.stages.settings.training import StudentTraining
from kdpipe.stages.sources import load_test
from kdpipe.stages.teachers import ClassNames, Normalization, Teacher, load_mapped
from kdpipe.stages.training import Task, fit, objective_of
from kdpipe.stages.training_data import TrainingData, load_training, with_layout
from kdpipe.stages.views import Rendering, Views, views_of_stores
from kdpipe.store.reader import LogitStore
from kdpipe.teacher.forward import Forward
from kdpipe.teacher.recompute import refuse_unfit
from kdpipe.training.batches import Targets
from kdpipe.training.group import Group
from kdpipe.training.objective import Objective
from kdpipe.views import Geometry, Recipe

S = TypeVar("S", bound=StudentTraining)


@dataclass(frozen=True)
class Trained:
    """The students that were trained together, and the data that they learned from."""

    failed: list[str]
    """Names of those that could not be trained to their end."""
    data: TrainingData
    test: Dataset | None


def train(
    students: Sequence[S],
    *,
    stage: str,
    load: Callable[[S, Dataset], Model],
    lineage: Mapping[str, Any] | None = None,
    described: Mapping[str, Any] | None = None,
    changed: Callable[[Objective, Model], Objective] = lambda objective, _model: objective,
    group: Group | None = None,
) -> Trained:
    """Train students on one pass over the data, and write the run directory of each.

    ``load`` returns the model that a student begins with. ``changed`` returns the objective to minimize in the place of
    the one that the settings describe. ``lineage`` is recorded beside that of the soft targets, and ``described``
    in the place of what the settings say. ``group`` are the processes that train one student.
    """
    params, mode = students[0], students[0].targets.mode
    stores = [
        open_store(path, "train", memory_limit=params.targets.memory_bytes // params.view.views_per_sample, say=say)
        for path in params.targets.store
    ]
    of_stores = views_of_stores(params, stores) if stores else None
    data = _training_data(students, stores)
    views = of_stores or Views.asked(params.view, data.train)
    test = load_test(params.dataset, data.whole)
    if test is not None and data.class_map is not None and data.selection is None:
        test = data.class_map.of(test)
    loaded = [load(student, data.train) for student in students]
    students = [with_layout(student, model) for student, model in zip(students, loaded, strict=True)]
    terms = [_signal_terms(student, stores, model) for student, model in zip(students, loaded, strict=True)]
    stores = [_with_signals(store, list(chain(*terms))) for store in stores]
    teacher = _live_teacher(params, data.whole, stores) if mode == "live" else None
    rendering = views.rendering(data.train, models.resolve_device(params.run.device))
    targets = None if mode == "none" else _targets(students, stores, teacher, data, views.recipe, rendering)
    origin = {**(lineage or {}), **_lineage(stores, params.targets.shares, None if teacher is None else teacher.model)}
    tasks = []
    relations: dict[str, torch.Tensor] = {}
    for student, model, own in zip(students, loaded, terms, strict=True):
        distillation = None
        if targets is not None:
            loss = _among_classes(student, stores, data.train, relations)
            watch = _watch(student, own, stores, model, data.train)
            distillation = replace(
                _distillation(student, loss, data.train, views.recipe, watch), selection=data.selection
            )
        objective = changed(objective_of(student, model, distillation), model)
        tasks.append(Task(model, student, objective, targets is not None, origin, described or {}))
    failed = fit(tasks, data, test, stage=stage, views=views, rendering=rendering, targets=targets, group=group)
    if mode == "cache" and len(stores) == 1 and len(failed) < len(tasks):
        saved = savings(
            stores[0],
            samples=len(data.train),
            epochs=params.optimization.epochs * params.view.views_per_sample,
            students=len(tasks) - len(failed),
        )
        if saved is not None:
            say(str(saved))
    return Trained(failed, data, test)


def _training_data(students: Sequence[StudentTraining], stores: Sequence[LogitStore]) -> TrainingData:
    """Load the samples that all students learn from.

    Raises:
        DatasetError: alone, some of them would learn from samples without a label, and others would not.
    """
    taught = {student.targets.mode != "none" or student.extra.aux is not None for student in students}
    targets = students[0].targets
    data = load_training(
        students[0],
        taught=any(taught),
        stores=stores,
        distilled=targets.mode != "none",
        class_map=targets.class_map,
        own_classes=targets.classes == "data",
    )
    partial = data.selection is not None and not data.selection.whole and targets.mode == "cache"
    if partial or (data.selection is not None and targets.mode == "live"):
        _refuse_partial(students, stores)
    if len(taught) > 1 and (data.whole.labels < 0).any():
        raise DatasetError(
            f"{data.whole.spec} has samples without a label, which only those students learn from that have an "
            "auxiliary task: they cannot be trained together with the others. Give all of them --aux, or none."
        )
    return data


def _refuse_partial(students: Sequence[StudentTraining], stores: Sequence[LogitStore]) -> None:
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


def _targets(
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


def _joined(store: LogitStore, train: Dataset, *, allow_drift: bool) -> npt.NDArray[np.int64]:
    """Return the store's row of each sample, after saying what has changed since the teacher's pass."""
    rows = join_checked(store, train, allow_drift=allow_drift)
    for line in remarks(store, train, rows):
        say(line)
    return rows


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


def _live_teacher(params: StudentTraining, train: Dataset, stores: Sequence[LogitStore]) -> Teacher:
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


def _refuse_another_teacher(store: LogitStore, teacher: Model) -> None:
    writer = store.manifest.fingerprint.teacher
    if writer.digest != teacher.digest:
        raise StaleStoreError(
            f"{store.path} was written by {writer.name}@{writer.digest[:8]}, the live teacher is "
            f"{teacher.name}@{teacher.digest[:8]}. Pass the same --teacher and --weights, or leave --store out."
        )


def _among_classes(
    student: StudentTraining, stores: Sequence[LogitStore], train: Dataset, known: dict[str, torch.Tensor]
) -> Loss:
    """Return the student's loss, with relations between the classes where it reads them; they are added to ``known``.

    Raises:
        UnsupportedLossError: there is not one store, or it does not keep what is needed.
    """
    loss = student.learning.loss
    if not loss.related_by:
        return loss
    if student.targets.mode == "live" or len(stores) != 1:
        found = "a live teacher" if student.targets.mode == "live" else f"{len(stores)} stores"
        raise UnsupportedLossError(
            f"the loss {loss} relates classes by what one store keeps of them, found {found}. Give one --store."
        )
    rows = find_ids(train.sample_ids, stores[0].sample_ids)
    for each in loss.related_by - known.keys():
        known[each] = class_relations(stores[0], rows, train.labels, features=each == "features")
    return loss.among(known)


def _distillation(
    student: StudentTraining, loss: Loss, train: Dataset, recipe: Recipe, signals: SignalTerms | None
) -> Distillation:
    settings = student.learning
    refuse_unlabeled(loss, train, recipe)
    return Distillation(
        loss,
        temperature=settings.temperature,
        kd_weight=settings.kd_weight,
        ce_weight=settings.ce_weight,
        signals=signals,
    )


def _signal_terms(student: StudentTraining, stores: Sequence[LogitStore], model: Model) -> tuple[SignalTerm, ...]:
    """Return the pairs of layers that the losses on layers compare; empty where the loss reads logits alone.

    Raises:
        UnsupportedLossError: there is not one store, it does not keep what is needed, or layers have to be named.
    """
    wanted, mode = student.learning.loss.layers, student.targets.mode
    if not wanted or mode == "none":
        return ()
    if mode == "live" or len(stores) != 1:
        raise UnsupportedLossError(
            f"the loss {wanted[0].name} learns from the signals of one store, found "
            f"{'a live teacher' if mode == 'live' else f'{len(stores)} stores'}. Give one --store, made with "
            "kdpipe cache-teacher --signals."
        )
    (store,) = stores
    return settle(
        wanted,
        store.signals,
        model.module,
        size=model.preset.size,
        name=model.name,
        source=str(store.path),
    )


def _with_signals(store: LogitStore, terms: Sequence[SignalTerm]) -> LogitStore:
    """Return the store with planes that hold the signals of ``terms`` beside the logits."""
    names = sorted({str(theirs) for term in terms for _, theirs in term.pairs})
    return store.with_beside(names) if names else store


def _watch(
    student: StudentTraining,
    terms: Sequence[SignalTerm],
    stores: Sequence[LogitStore],
    model: Model,
    train: Dataset,
) -> SignalTerms | None:
    """Hook the terms onto the model; its projections are drawn by the run's seed."""
    if not terms:
        return None
    return SignalTerms(
        terms,
        model.module,
        shapes=stores[0].manifest.kept,
        size=model.preset.size,
        name=model.name,
        seed=student.run.seed,
        device=models.resolve_device(student.run.device),
        labels=torch.from_numpy(train.labels.astype(np.int64)),
    )


def _lineage(stores: Sequence[LogitStore], shares: Sequence[float], teacher: Model | None) -> dict[str, Any]:
    """Return the stores with their weights in the mean, and the teachers: a live one, or those of the stores."""
    cached = [store.manifest.fingerprint.teacher for store in stores]
    return {
        "stores": [
            {"path": store.place, "digest": store.digest, "weight": share}
            for store, share in zip(stores, shares, strict=True)
        ],
        "teachers": [{"name": each.name, "digest": each.digest} for each in (cached if teacher is None else [teacher])],
    }
