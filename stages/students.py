"""Trainings of students, against a store, a live teacher, or hard labels alone: from settings to run directories."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, TypeVar

import numpy as np
import torch

from kdpipe import models
from kdpipe.dataset import Dataset, find_ids
from kdpipe.distil.losses import Loss
from kdpipe.distil.objective import Distillation
from kdpipe.distil.relations import class_relations
from kdpipe.distil.signals import SignalTerm, SignalTerms, settle
from kdpipe.distil.targets import refuse_unlabeled, savings
from kdpipe.errors import DatasetError, StaleStoreError, UnsupportedLossError
from kdpipe.models import Model
from kdpipe.pairing.certainty import margins
from kdpipe.sharing.streaming import open_store
from kdpipe.stages.console import say
from kdpipe.stages.settings.training import StudentTraining
from kdpipe.stages.sources import load_test
from kdpipe.stages.student_targets import live_teacher, refuse_partial, targets_of
from kdpipe.stages.teachers import Teacher
from kdpipe.stages.training import Task, fit, objective_of
from kdpipe.stages.training_data import TrainingData, load_training, with_layout
from kdpipe.stages.views import Views, views_of_stores
from kdpipe.store.manifest import digest_json
from kdpipe.store.reader import LogitStore
from kdpipe.training.group import Group
from kdpipe.training.objective import Objective
from kdpipe.training.schedule import Sampling
from kdpipe.views import Recipe

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
    teacher = live_teacher(params, data.whole, stores) if mode == "live" else None
    rendering = views.rendering(data.train, models.resolve_device(params.run.device))
    targets = None if mode == "none" else targets_of(students, stores, teacher, data, views.recipe, rendering)
    origin = {**(lineage or {}), **_lineage(stores, params.targets.shares, teacher)}
    tasks = []
    relations: dict[str, torch.Tensor] = {}
    for student, model, own in zip(students, loaded, terms, strict=True):
        distillation = None
        if targets is not None:
            loss = _among_classes(student, stores, data, relations)
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
            unit=data.train.unit,
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
    if targets.surest is not None:
        data = replace(data, sampling=_surest(stores[0], data.train, share=targets.surest))
    partial = data.selection is not None and not data.selection.whole and targets.mode == "cache"
    if partial or (data.selection is not None and targets.mode == "live"):
        refuse_partial(students, stores)
    if len(taught) > 1 and (data.whole.labels < 0).any():
        raise DatasetError(
            f"{data.whole.spec} has samples without a label, which only those students learn from that have an "
            "auxiliary task: they cannot be trained together with the others. Give all of them --aux, or none."
        )
    return data


def _surest(store: LogitStore, train: Dataset, *, share: float) -> Sampling:
    """Return what draws the share of the samples that a store's teacher is surest of, after saying how many they are.

    Raises:
        StaleStoreError: the store lacks samples.
    """
    rows = find_ids(train.sample_ids, store.sample_ids)
    if (rows < 0).any():
        raise StaleStoreError(
            f"{store.path} has no logits of {(rows < 0).sum():,} of the {len(train):,} 'train' samples of "
            f"{train.spec}, such as '{train.keys[int(rows.argmin())]}': --surest cannot rank them. Leave it out."
        )
    chosen = np.argsort(-margins(store, rows), kind="stable")[: max(1, round(share * len(train)))]
    say(f"Training on the {len(chosen):,} of {len(train):,} samples whose class the teacher is surest of.")
    weights = np.zeros(len(train))
    weights[chosen] = 1
    return Sampling.of(weights, train.labels)


def _among_classes(
    student: StudentTraining, stores: Sequence[LogitStore], data: TrainingData, known: dict[str, torch.Tensor]
) -> Loss:
    """Return the student's loss, with relations between the classes where it reads them; they are added to ``known``.

    Raises:
        UnsupportedLossError: there is not one store, or it does not keep what is needed.
    """
    loss = student.learning.loss
    if not loss.related_by:
        return loss
    if student.targets.mode == "live" or len(stores) != 1:
        source = "a live teacher" if student.targets.mode == "live" else f"{len(stores)} stores"
        raise UnsupportedLossError(
            f"the loss {loss} relates classes by what one store keeps of them, found {source}. Give one --store."
        )
    rows, labels = find_ids(data.train.sample_ids, stores[0].sample_ids), data.in_store.labels
    there = rows >= 0
    for each in loss.related_by - known.keys():
        found = class_relations(stores[0], rows[there], labels[there], features=each == "features")
        columns = None if data.selection is None else list(data.selection.columns)
        known[each] = found if columns is None else found[columns][:, columns]
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


def _lineage(stores: Sequence[LogitStore], shares: Sequence[float], live: Teacher | None) -> dict[str, Any]:
    """Return the stores with their weights in the mean, and the teachers: a live one, or those of the stores."""
    if live is None:
        taught = [store.manifest.fingerprint.teacher for store in stores]
        teachers = [{"name": each.name, "digest": each.digest} for each in taught]
    else:
        mapped = {} if live.outputs is None else {"class_map": digest_json(live.outputs)}
        teachers = [{"name": live.model.name, "digest": live.model.digest, **mapped}]
    return {
        "stores": [
            {"path": store.place, "digest": store.digest, "weight": share}
            for store, share in zip(stores, shares, strict=True)
        ],
        "teachers": teachers,
    }
