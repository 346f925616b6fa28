"""Stage `train-student`: train students against a store, a live teacher, or hard labels alone."""

from __future__ import annotations

from functools import partial
from itertools import chain
from typing import Any

from kdpipe.store.probes import lacking

from kdpipe import models
from kdpipe.dataset import Dataset
from kdpipe.distil.curves import Curve
from kdpipe.distil.objective import Distillation, Tempered
from kdpipe.distil.savings import savings
from kdpipe.distil.several_stores import MixedTargets, refuse_coarse, refuse_mixture
from kdpipe.distil.signals import SignalTerms
from kdpipe.distil.targets import LiveTargets, SoftTargets, refuse_unlabelled, refuse_unsupported, soft_targets
from kdpipe.errors import DatasetError, StaleStoreError
from kdpipe.models import Model
from kdpipe.pairing import join_checked, lacking, stored_recipe
from kdpipe.store import LogitStore, open_store
from kdpipe.teacher import Forward
from kdpipe.views import Geometry, Recipe
from stages.auxiliary import rotation
from stages.console import say
from stages.fleet import members, refuse_failed
from stages.params import TrainStudent
from stages.seeds import for_each_seed
from stages.signals import beside, logits_loss, signal_terms, watch
from stages.sources import TrainingData, load_model, load_split, load_training
from stages.training import Rendering, Shown, Task, fit


def run(params: TrainStudent) -> None:
    """Train the students and leave their run directories, or those of each seed, at or below ``params.out``."""
    for_each_seed(params, _train)


def _train(params: TrainStudent) -> None:
    students = members(params)
    memory = params.memory_bytes // max(1, len(params.store))
    stores = [open_store(path, split="train", memory_limit=memory) for path in params.store]
    shown = _shown(params, stores)
    data, test = _training_data(students), load_split(params, "test")
    loaded = [
        load_model(
            student.architecture, data.train, weights=student.init_weights, size=student.input_size, seed=student.seed
        )
        for student in students
    ]
    terms = [signal_terms(student, stores, model) for student, model in zip(students, loaded, strict=True)]
    stores = [beside(store, list(chain(*terms))) for store in stores]
    teacher = _live_teacher(params, data.whole) if params.mode == "live" else None
    rendering = shown.rendering(data.train, models.resolve_device(params.device))
    targets = _targets(students, stores, teacher, data, shown, rendering)
    watched = [watch(student, own, stores, model) for student, own, model in zip(students, terms, loaded, strict=True)]
    lineage = _lineage(stores, params.shares, teacher)
    tasks = [
        Task(
            model,
            student,
            None if targets is None else _distillation(student, targets, data.train, shown.recipe, signals),
            lineage,
            rotation(student, model),
        )
        for student, model, signals in zip(students, loaded, watched, strict=True)
    ]
    failed = fit(tasks, data, test, stage="train-student", shown=shown, rendering=rendering)
    if params.mode == "cache" and len(stores) == 1 and len(failed) < len(tasks):
        finished = len(tasks) - len(failed)
        saved = savings(stores[0], samples=len(data.train), epochs=params.epochs, students=finished)
        if saved is not None:
            say(str(saved))
    refuse_failed(failed, of=len(tasks))


def _training_data(students: list[TrainStudent]) -> TrainingData:
    """Load what all students learn from.

    Raises:
        DatasetError: alone, some of them would learn from samples without a label, and others would not.
    """
    taught = {student.mode != "none" or student.aux is not None for student in students}
    data = load_training(students[0], taught=any(taught))
    if len(taught) > 1 and (data.whole.labels < 0).any():
        raise DatasetError(
            f"{data.whole.spec} has samples without a label, which only those students learn from that have an "
            "auxiliary task: they cannot be trained together with the others. Give all of them --aux, or none."
        )
    return data


def _targets(
    students: list[TrainStudent],
    stores: list[LogitStore],
    teacher: Model | None,
    data: TrainingData,
    shown: Shown,
    rendering: Rendering,
) -> SoftTargets | None:
    """Return the soft targets that all students share."""
    params = students[0]
    if params.mode == "none":
        return None
    for store in stores:
        _refuse_held_out(store, data)
    if teacher is None:
        return _cached_targets(students, stores, data.train, shown.recipe)
    for store in stores:
        _same_teacher(store, teacher)
        join_checked(store, data.train, allow_drift=params.allow_drift)
    forward = Forward(teacher, device=models.resolve_device(params.device), precision=params.precision)
    return LiveTargets(forward, rendering(Geometry.of(teacher.preset)))


def _shown(params: TrainStudent, stores: list[LogitStore]) -> Shown:
    """Take recipe, seed and number of views from the stores where there are any, else from the flags.

    Raises:
        StaleStoreError: a flag contradicts a store, or two stores contradict each other.
    """
    if not stores:
        return Shown(Recipe.parse(params.recipe or "crop-flip"), params.recipe_seed or 0, params.views)
    refuse_mixture(stores)
    store = min(stores, key=lambda store: store.num_views)
    stored = store.manifest.fingerprint.recipe
    asked: dict[str, tuple[Any, Any]] = {
        "recipe": (params.recipe and str(Recipe.parse(params.recipe)), stored.name),
        "recipe-seed": (params.recipe_seed, stored.seed),
    }
    for flag, (wanted, kept) in asked.items():
        if wanted is not None and wanted != kept:
            raise StaleStoreError(
                f"{store.path} was cached with {flag} {kept}, asked for {wanted}: the student would see other pixels "
                f"than the teacher did. Leave --{flag} out, or make a store with it."
            )
    if params.mode != "none" and params.views is not None and params.views > store.num_views:
        raise StaleStoreError(
            f"{store.path} holds {store.num_views} augmented views, asked for {params.views}. "
            f"Use --views {store.num_views} or fewer, or make a store with more."
        )
    # A student without soft targets is not bound to the cached views: each epoch gets fresh pixels.
    default = None if params.mode == "none" else store.num_views
    return Shown(
        recipe=stored_recipe(store),
        seed=stored.seed,
        views=default if params.views is None else params.views,
        # Without soft targets a part of the data may be mixed within itself.
        population=None if params.mode == "none" else store.sample_ids,
    )


def _cached_targets(
    students: list[TrainStudent], stores: list[LogitStore], train: Dataset, recipe: Recipe
) -> SoftTargets:
    """Check every store against the losses and the data, and serve its logits, or theirs mixed."""
    params, parts = students[0], []
    for store in stores:
        for student in students:
            loss = logits_loss(student, max(student.temperatures, default=None))
            refuse_unsupported(store, loss, name=student.loss_name)
        if params.store_mix == "confidence":
            refuse_coarse(store)
        parts.append(soft_targets(store, join_checked(store, train, allow_drift=params.allow_drift)))
    if len(parts) == 1:
        return parts[0]
    # A mixed image has two classes, and a teacher no cross-entropy to one of them.
    return MixedTargets(parts, params.shares, mix=params.store_mix, labels=None if recipe.mixes else train.labels)


def _refuse_held_out(store: LogitStore, data: TrainingData) -> None:
    """Refuse to hold samples out that a store's recipe mixes into the others."""
    if data.validation is not None and lacking(store, data.train) and not lacking(store, data.whole):
        recipe = store.manifest.fingerprint.recipe.name
        raise DatasetError(
            f"{store.path} has images of the recipe {recipe}, which mixes samples and so needs all of them: "
            f"{len(data.validation)} held out for validation would show up in the others. Pass --validation 0, a store "
            "of the other samples alone or of a recipe that does not mix, or a live --teacher and no --store."
        )


def _live_teacher(params: TrainStudent, train: Dataset) -> Model:
    assert params.teacher is not None
    return load_model(params.teacher, train, weights=params.weights, mean=params.mean, std=params.std)


def _same_teacher(store: LogitStore, teacher: Model) -> None:
    writer = store.manifest.fingerprint.teacher
    if writer.digest != teacher.digest:
        raise StaleStoreError(
            f"{store.path} was written by {writer.name}@{writer.digest[:8]}, the live teacher is "
            f"{teacher.name}@{teacher.digest[:8]}. Pass the same --teacher and --weights, or leave --store out."
        )


def _distillation(
    params: TrainStudent, targets: SoftTargets, train: Dataset, recipe: Recipe, signals: SignalTerms | None
) -> Distillation:
    """Build the loss with the weights that are asked for, or else the published ones."""
    loss = logits_loss(params, params.temperatures[0] if params.temperatures else None)
    refuse_unlabelled(loss, train, recipe, name=params.loss_name)
    published = Curve("constant", loss.kd_weight, warmup=loss.warmup_epochs)
    curve = Curve.parse(params.temperature) if isinstance(params.temperature, str) else None
    return Distillation(
        targets=targets,
        loss=loss if curve is None else Tempered(curve, partial(logits_loss, params)),
        kd_weight=published if params.kd_weight is None else Curve.parse(params.kd_weight),
        ce_weight=loss.ce_weight if params.ce_weight is None else Curve.parse(params.ce_weight),
        signals=signals,
    )


def _lineage(stores: list[LogitStore], shares: tuple[float, ...], teacher: Model | None) -> dict[str, Any]:
    """Return the stores with their shares of the mean, and the teachers: a live one, or those of the stores."""
    cached = [store.manifest.fingerprint.teacher for store in stores]
    return {
        "stores": [
            {"path": str(store.path), "digest": store.digest, "weight": share}
            for store, share in zip(stores, shares, strict=True)
        ],
        "teachers": [{"name": said.name, "digest": said.digest} for said in (cached if teacher is None else [teacher])],
    }
