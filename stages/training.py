"""Training runs of both training stages: from models and data to the files of their run directories."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

import torch

from kdpipe import models
from kdpipe.dataset import Dataset
from kdpipe.directories import locked
from kdpipe.distil.adversary import Adversary, Robust
from kdpipe.distil.objective import Distillation, DistillationObjective
from kdpipe.errors import DeviceError, KdpipeError, ParamsError, RunError
from kdpipe.metrics import accuracy
from kdpipe.models import Model, of_images
from kdpipe.models.layout import arrange
from kdpipe.models.saved import digest_of
from kdpipe.stages.console import progress, say, stoppable
from kdpipe.stages.logs import Logs, choose
from kdpipe.stages.settings.training import StudentTraining, TrainTeacher
from kdpipe.stages.training_data import TrainingData, identity, labels_of
from kdpipe.stages.views import Rendering, Views
from kdpipe.training.batches import Targets
from kdpipe.training.evaluation import Validation, predict
from kdpipe.training.failures import attempt
from kdpipe.training.group import Group
from kdpipe.training.loop import Cost, train_together
from kdpipe.training.objective import Objective
from kdpipe.training.runs import RunDirectory
from kdpipe.training.schedule import Order
from kdpipe.training.trainee import Student
from kdpipe.views import Geometry, Renderer

Plain = Callable[[Dataset, Geometry | None], Renderer]
"""Returns the one renderer of the plain view of a dataset at a size."""


@dataclass(frozen=True)
class Task:
    """A model to train, and its objective."""

    model: Model
    params: TrainTeacher | StudentTraining
    objective: Objective
    taught: bool = False
    """Whether it learns from a teacher."""
    lineage: Mapping[str, Any] = field(default_factory=dict)
    described: Mapping[str, Any] = field(default_factory=dict)
    """Sections of ``run.json`` in the place of those that the settings describe."""
    classes: tuple[str, ...] = ()
    """The names of the classes, which ``fit`` takes from the data."""
    follows: bool = False
    """Whether another process writes the run directory."""

    @cached_property
    def run(self) -> RunDirectory:
        """Its run directory."""
        return RunDirectory(self.params.run.out, follows=self.follows)


def objective_of(
    params: TrainTeacher | StudentTraining, model: Model, distillation: Distillation | None = None
) -> DistillationObjective:
    """Return the objective that the settings describe, hooked onto the model where it needs its layers.

    Raises:
        ModelError: an auxiliary task needs penultimate features, and the model has none.
    """
    auxiliary, device = params.extra.aux, models.resolve_device(params.run.device)
    robust = robust_of(params)
    return DistillationObjective(
        model.preset,
        distillation,
        label_smoothing=params.optimization.label_smoothing,
        adversary=None if robust is None else Adversary(robust, model.module, of_images(model.preset, "--adversarial")),
        rotation=None
        if auxiliary is None
        else auxiliary.attach(
            model.module,
            of_images(model.preset, f"--aux {auxiliary}"),
            name=model.name,
            seed=params.run.seed,
            device=device,
        ),
        device=device,
        separate=params.optimization.dot is not None,
    )


def robust_of(params: TrainTeacher | StudentTraining) -> Robust | None:
    """Return the settings of adversarial training; ``None`` where images are not attacked."""
    if params.extra.adversarial is None:
        return None
    loss = params.learning.robust_loss if isinstance(params, StudentTraining) else None
    return Robust(params.extra.adversarial, loss or "rslad")


def fit(
    tasks: Sequence[Task],
    data: TrainingData,
    test_set: Dataset | None,
    *,
    stage: str,
    views: Views,
    rendering: Rendering,
    targets: Sequence[Targets] | None = None,
    group: Group | None = None,
) -> list[str]:
    """Train the models in place on one pass over the data, test each once at the end, and write its run directory.

    With a validation part the weights that were best on it are tested once as well. All models share the settings of
    the data, the batch size and the epochs. Returns the names of those of several that failed; ``failure.json`` of each
    holds the reason. With a ``group``, other processes call this for the same one model, whose run directory the first
    writes.

    Raises:
        KdpipeError: the only model failed.
    """
    follows = group is not None and group.rank > 0
    tasks = [replace(task, classes=data.train.classes, follows=follows) for task in tasks]
    _refuse_single_losses(tasks)
    params, alone = tasks[0].params, len(tasks) == 1
    device = models.resolve_device(params.run.device)
    views = replace(views, number=views.number if views.recipe.augments else 0)
    if params.view.views_per_sample > 1 and views.number is not None and views.number < params.view.views_per_sample:
        raise ParamsError(
            f"--views-per-sample {params.view.views_per_sample} takes two different views of a sample, found "
            f"{views.number} augmented {'view' if views.number == 1 else 'views'}: make a store with --views 2 or more."
        )
    records = [_record(task, data, test_set, stage=stage, views=views, device=device) for task in tasks]
    logs = [choose(task.params.logs, task.run.path) for task in tasks]
    labels = labels_of(data, test_set)
    how = {"resume": params.run.resume, "overwrite": params.run.overwrite}
    for task, record, log in zip(tasks, records, logs, strict=True):
        task.run.refuse_start(record, labels=labels, **how)
        log.refuse_foreign(task.run)
    plain = cache(partial(_plain, device))
    students: list[Student] = []
    with ExitStack() as opened:
        for task, record in zip(tasks, records, strict=True):
            opened.enter_context(nullcontext() if follows else locked(task.run.path))
            task.run.refuse_start(record, labels=labels, **how)  # another process may have written it since
        for task, record, log in zip(tasks, records, logs, strict=True):
            task.run.start(record, labels=labels, **how)
            model = task.model
            name = models.short_name(model.name)
            say(f"Training {name} ({model.parameters:,} parameters) on {len(data.train):,} samples, {device}.")
            if alone or task.run.failure() is None:
                opened.enter_context(log.of(task.run, record))
            renderer = rendering(Geometry.of(model.preset))
            students.append(_student(task, renderer, data.validation, plain, logs=log, alone=alone))
        with stoppable() as should_stop:
            trained = train_together(
                students,
                targets,
                order=Order(params.run.data_seed, views.number, data.sampling, params.view.views_per_sample),
                resume=params.run.resume,
                checkpoint_every=params.run.checkpoint_every,
                should_stop=should_stop,
                progress=progress,
                say=say,
                group=group,
            )
        if follows:
            return []
        ended = zip(tasks, students, trained, logs, strict=True)
        failures = [_end(*each, test_set, plain, alone=alone) for each in ended]
    return [name for name in failures if name is not None]


def _refuse_single_losses(tasks: Sequence[Task]) -> None:
    """Refuse separate momenta where there are no two losses.

    Raises:
        ParamsError: a task asks for them and has no teacher, or recovers a compressed model.
    """
    for task in tasks:
        twofold = task.taught and isinstance(task.objective, DistillationObjective)
        if task.params.optimization.dot is not None and not twofold:
            raise ParamsError(
                "--dot has separate momenta for a teacher's loss and that of the labels, and this training has one "
                "loss: leave it out, or train a student with --store or --teacher."
            )


def _end(
    task: Task,
    student: Student,
    cost: Cost | KdpipeError,
    log: Logs,
    test_set: Dataset | None,
    plain: Plain,
    *,
    alone: bool,
) -> str | None:
    """Test a trained model and end its log; return its name where it failed and others did not, else ``None``.

    Raises:
        KdpipeError: it failed, and is the only one.
    """
    outcome = cost if isinstance(cost, KdpipeError) else _tested(task, test_set, cost, plain, student.validation)
    if not isinstance(outcome, KdpipeError):
        log.finish(outcome, epoch=task.params.optimization.epochs)
        return None
    if alone:
        raise outcome
    if outcome is not cost:
        say(f"{task.run.path} is left out: {outcome}")
        task.run.write_failure(str(outcome))
        log.fail()
    return task.run.path.name


def _record(
    task: Task, data: TrainingData, test_set: Dataset | None, *, stage: str, views: Views, device: torch.device
) -> dict[str, Any]:
    """Return the content of ``run.json``."""
    params, recipe, run = task.params, views.recipe, task.params.run
    return {
        "format": 1,
        "stage": stage,
        "distill": "none" if isinstance(params, TrainTeacher) else params.targets.mode,
        "loss": _loss_name(params, taught=task.taught),
        "recipe": {"name": str(recipe), "version": recipe.version, "seed": views.seed},
        "views": views.number,
        "seeds": {"seed": run.seed, "data_seed": run.data_seed, "recipe_seed": views.seed},
        "parameters": params.dump(),
        "device": str(device),
        **identity(task.model, data, test_set, spec=params.dataset.data, lineage={**_origin(task), **task.lineage}),
        **task.described,
    }


def _loss_name(params: TrainTeacher | StudentTraining, *, taught: bool) -> str:
    """Return the name of the loss in ``run.json`` and reports."""
    name = str(params.learning.loss) if taught and isinstance(params, StudentTraining) else "ce"
    robust = robust_of(params)
    return name if robust is None else f"{name}, {robust.loss if taught else 'adversarial'}"


def _origin(task: Task) -> dict[str, Any]:
    """Return the initial weights for ``run.json``; empty where they are random.

    Raises:
        RunError: the run would replace them.
    """
    params, out = task.params, task.params.run.out
    weights = params.run.init_weights
    taught = (params.targets.teacher, params.targets.weights) if isinstance(params, StudentTraining) else ()
    for name, what in ((weights, "initial weights"), *((each, "teacher") for each in taught)):
        source = None if name is None else Path(str(name).removeprefix("run:"))
        if source is not None and source.exists() and source.resolve().is_relative_to(out.resolve()):
            raise RunError(f"{out} holds {name}, the {what} of this run. Pass another --out.")
    if weights is None:
        return {}
    return {"init_weights": {"name": weights, "digest": task.model.digest}}


def _plain(device: torch.device, dataset: Dataset, geometry: Geometry | None) -> Renderer:
    return Renderer(dataset, "none", seed=0, geometry=geometry, device=device)


def _student(
    task: Task, renderer: Renderer, held_out: Dataset | None, plain: Plain, *, logs: Logs, alone: bool
) -> Student:
    """Return the student for the training loop, its random draws starting from its seed."""
    params, model, epochs = task.params, task.model, task.params.optimization.epochs

    def report(row: dict[str, float]) -> None:
        line = _line(row, epochs, unit=renderer.dataset.unit)
        say(line if alone else f"{task.run.path.name}, {line}")
        logs.epoch(row)

    module = model.module.to(renderer.device)
    validation = _validation(model, held_out, plain, run=task.run)
    torch.manual_seed(params.run.seed)
    return Student(
        module,
        renderer,
        task.objective,
        params.optimization,
        task.run,
        validation,
        on_resume=logs.epochs,
        on_epoch=report,
        on_failure=logs.fail,
    )


def _validation(model: Model, held_out: Dataset | None, plain: Plain, *, run: RunDirectory) -> Validation | None:
    """Return the validation on the held-out samples, which writes the best weights to the run directory."""
    if held_out is None:
        return None

    def keep(module: torch.nn.Module) -> None:
        if run.follows:
            return
        run.check_place()
        models.save_weights(
            run.best_weights, module, architecture=model.name, preset=model.preset, classes=held_out.classes
        )

    return Validation(plain(held_out, Geometry.of(model.preset)), preset=model.preset, keep=keep)


def _tested(
    task: Task, test_set: Dataset | None, cost: Cost, plain: Plain, validation: Validation | None
) -> dict[str, Any] | KdpipeError:
    """Return the accuracies, or the error where memory does not suffice."""
    return attempt(
        lambda: _finish(task, test_set, cost=cost, plain=plain, validation=validation),
        lambda whose: DeviceError(
            f"{whose} ran out of memory in the test after the last epoch. {task.run.checkpoint} holds what was "
            "trained; free some memory and train this model alone with --resume."
        ),
    )


def _finish(
    task: Task, test_set: Dataset | None, *, cost: Cost, plain: Plain, validation: Validation | None
) -> dict[str, Any]:
    """Test the model once, and the best one on validation once; write weights and metrics, return the accuracies."""
    model, run, epochs = task.model, task.run, task.params.optimization.epochs
    tester = None if test_set is None else plain(test_set, Geometry.of(model.preset))
    arrange(model.module, channels_last=bool(task.params.optimization.channels_last))

    def test() -> dict[str, float | None]:
        if test_set is None or tester is None:
            return dict.fromkeys(("top1", "top5", "loss"))
        return asdict(accuracy(predict(model.module, tester, preset=model.preset, progress=progress), test_set.labels))

    scores = test()
    run.check_place()
    models.save_weights(run.weights, model.module, architecture=model.name, preset=model.preset, classes=task.classes)
    without = "n/a (no test split)" if test_set is None else "n/a (no labels)"
    say(f"{run.path}: test top-1 {_percent(scores['top1'], without)} after {epochs} epochs, {cost.seconds:.1f} s.")
    metrics: dict[str, Any] = {"test": scores}
    if validation is not None and validation.best is not None:
        best, final = validation.best, run.history()[-1]
        model.module.load_state_dict(best.weights)
        metrics["last"] = _chosen(epochs, final["validation_top1"], final["validation_loss"], scores)
        best_scores = scores if best.epoch == epochs else test()
        metrics["best_on_validation"] = _chosen(best.epoch, best.top1, best.loss, best_scores)
        tested = _percent(best_scores["top1"], without)
        say(f"Best on validation: epoch {best.epoch} with {best.top1:.2%}; test top-1 {tested}.")
    cost_figures = {"seconds": cost.seconds, "images_per_second": cost.images_per_second}
    written = (run.weights, run.best_weights) if "best_on_validation" in metrics else (run.weights,)
    digests = {path.name: digest_of(path) for path in written}
    run.write_metrics({**metrics, "epochs": epochs, **cost_figures, "weights": digests})
    return metrics


def _chosen(epoch: int, top1: float, loss: float, test: dict[str, float | None]) -> dict[str, Any]:
    return {"epoch": epoch, "validation": {"top1": top1, "loss": loss}, "test": test}


def _percent(share: float | None, without: str) -> str:
    return without if share is None else f"{share:.2%}"


def _line(row: dict[str, float], epochs: int, *, unit: str) -> str:
    terms = ", ".join(f"{name} {row[name]:.4f}" for name in ("loss", "kd", "ce", "rotation") if name in row)
    more = {"adversarial_top1": "attacked", "validation_top1": "validation top-1"}
    measured = "".join(f", {said} {row[name]:.2%}" for name, said in more.items() if name in row)
    return (
        f"epoch {row['epoch']:.0f}/{epochs}: {terms}, train top-1 {row['train_top1']:.2%}{measured}, "
        f"{row['images_per_second']:,.0f} {unit}/s, {row['seconds']:.1f} s"
    )
