"""What the two training stages share: runs from models and their data to the files they leave."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from kdpipe import models
from kdpipe.dataset import Dataset
from kdpipe.distil.objective import Distillation
from kdpipe.distil.rotation import Rotation
from kdpipe.errors import DeviceError, KdpipeError, RunError
from kdpipe.metrics.accuracy import accuracy
from kdpipe.models import Model
from kdpipe.training.evaluation import Validation, predict
from kdpipe.training.failures import attempt
from kdpipe.training.loop import Cost, train_together
from kdpipe.training.runs import RunDirectory
from kdpipe.training.trainee import Member
from kdpipe.views import Geometry, Recipe, Renderer
from stages.console import progress, say
from stages.learning import optimisation, schedule
from stages.logs import Logs, choose
from stages.params import TrainStudent, TrainTeacher
from stages.provenance import git_revision, versions
from stages.robust import loss_name, robust
from stages.sources import TrainingData
from stages.stopping import stoppable

Plain = Callable[[Dataset, Geometry], Renderer]
"""Returns the one renderer of the plain view of a dataset at a size."""
Rendering = Callable[[Geometry], Renderer]
"""Returns the one renderer of the training samples at a size."""


@dataclass(frozen=True)
class Shown:
    """Which views are trained on."""

    recipe: Recipe
    seed: int
    views: int | None
    """Augmented views to cycle through; ``None`` gives each epoch a view of its own."""
    population: npt.NDArray[np.uint8] | None = None
    """Ids of the samples that are mixed, in the store's order; ``None`` for the dataset's own."""

    def rendering(self, train: Dataset, device: torch.device) -> Rendering:
        """Return what renders the training samples, once for all who look at them at one size."""
        return cache(
            lambda geometry: Renderer(
                train, self.recipe, seed=self.seed, geometry=geometry, device=device, population=self.population
            )
        )


@dataclass(frozen=True)
class Task:
    """A model to train, and what it learns from."""

    model: Model
    params: TrainTeacher | TrainStudent
    distillation: Distillation | None = None
    lineage: Mapping[str, Any] = field(default_factory=dict)
    rotation: Rotation | None = None

    @property
    def run(self) -> RunDirectory:
        """Where it is written."""
        return RunDirectory(self.params.out)


def fit(
    tasks: Sequence[Task], data: TrainingData, test_set: Dataset, *, stage: str, shown: Shown, rendering: Rendering
) -> list[str]:
    """Train the models in place on one pass over the data, test each once at the end, and write its run directory.

    Where samples are held out for validation, the weights that were best on them are tested once as well. What all
    models share, such as the batch size, is in the parameters of each; ``rendering`` makes what is ``shown``. Return
    the names of those of several that could not be trained to their end; ``failure.json`` of each says why.

    Raises:
        KdpipeError: the one model cannot be trained to its end.
    """
    params, alone = tasks[0].params, len(tasks) == 1
    device = models.resolve_device(params.device)
    shown = replace(shown, views=shown.views if shown.recipe.augments else 0)
    records = [_record(task, data, test_set, stage=stage, shown=shown, device=device) for task in tasks]
    logs = [choose(task.params) for task in tasks]
    for task, record in zip(tasks, records, strict=True):
        task.run.refuse_start(record, resume=params.resume)
    plain = cache(partial(_plain, device))
    members: list[Member] = []
    with ExitStack() as opened:
        for task, record, log in zip(tasks, records, logs, strict=True):
            task.run.start(record, resume=params.resume)
            model = task.model
            say(f"Training {model.name} ({model.parameters:,} parameters) on {len(data.train):,} samples, {device}.")
            if alone or task.run.failure() is None:
                opened.enter_context(log.of(task.run, record))
            renderer = rendering(Geometry.of(model.preset))
            members.append(_member(task, data, renderer, plain, shown=shown, logs=log, alone=alone))
        with stoppable() as should_stop:
            trained = train_together(
                members,
                resume=params.resume,
                checkpoint_every=params.checkpoint_every,
                should_stop=should_stop,
                progress=progress,
                say=say,
            )
        failed = []
        for task, member, cost, log in zip(tasks, members, trained, logs, strict=True):
            outcome = cost if isinstance(cost, KdpipeError) else _tested(task, test_set, cost, plain, member.validation)
            if not isinstance(outcome, KdpipeError):
                log.finish(outcome, epoch=params.epochs)
                continue
            if alone:
                raise outcome
            failed.append(task.run.path.name)
            if outcome is not cost:
                say(f"{task.run.path} is left out: {outcome}")
                task.run.write_failure(str(outcome))
                log.fail()
    return failed


def _record(
    task: Task, data: TrainingData, test_set: Dataset, *, stage: str, shown: Shown, device: torch.device
) -> dict[str, Any]:
    """Return what ``run.json`` says."""
    params, recipe = task.params, shown.recipe
    return {
        "format": 1,
        "stage": stage,
        "distill": "none" if isinstance(params, TrainTeacher) else params.mode,
        "loss": loss_name(params, taught=task.distillation is not None),
        "recipe": {"name": str(recipe), "version": recipe.version, "seed": shown.seed},
        "views": shown.views,
        "seeds": {"seed": params.seed, "data_seed": params.data_seed, "recipe_seed": shown.seed},
        "parameters": params.model_dump(mode="json"),
        "device": str(device),
        **_identity(task.model, data, test_set, spec=params.data, lineage={**_origin(task), **task.lineage}),
    }


def _origin(task: Task) -> dict[str, Any]:
    """Return what ``run.json`` says of the weights that the model begins with; nothing where they are drawn.

    Raises:
        RunError: the run would replace them.
    """
    weights, out = task.params.init_weights, task.params.out
    if weights is None:
        return {}
    if Path(weights.removeprefix("run:")).resolve().is_relative_to(out.resolve()):
        raise RunError(f"{out} holds {weights}, which this run begins with. Pass another --out.")
    return {"init_weights": {"name": weights, "digest": task.model.digest}}


def _plain(device: torch.device, dataset: Dataset, geometry: Geometry) -> Renderer:
    return Renderer(dataset, "none", seed=0, geometry=geometry, device=device)


def _member(
    task: Task, data: TrainingData, renderer: Renderer, plain: Plain, *, shown: Shown, logs: Logs, alone: bool
) -> Member:
    """Return the student as the training loop takes it, with its own draws starting from its seed."""
    params, model = task.params, task.model

    def report(row: dict[str, float]) -> None:
        say(_line(row, params.epochs) if alone else f"{task.run.path.name}, {_line(row, params.epochs)}")
        logs.epoch(row)

    module = model.module.to(renderer.device)
    validation = _validation(model, data.validation, plain, run=task.run)
    torch.manual_seed(params.seed)
    return Member(
        module,
        renderer,
        model.preset,
        schedule(params, shown.views, data.sampling),
        task.distillation,
        task.run,
        optimisation(params),
        validation,
        robust(params),
        task.rotation,
        on_resume=logs.epochs,
        on_epoch=report,
        on_failure=logs.fail,
    )


def _validation(model: Model, held_out: Dataset | None, plain: Plain, *, run: RunDirectory) -> Validation | None:
    """Return what measures the model on the held-out samples and writes the best weights to the run directory."""
    if held_out is None:
        return None

    def keep(module: torch.nn.Module) -> None:
        models.save_weights(
            run.best_weights, module, architecture=model.name, preset=model.preset, classes=held_out.classes
        )

    return Validation(plain(held_out, Geometry.of(model.preset)), preset=model.preset, keep=keep)


def _tested(
    task: Task, test_set: Dataset, cost: Cost, plain: Plain, validation: Validation | None
) -> dict[str, Any] | KdpipeError:
    """Return the accuracies, or why they could not be measured."""
    return attempt(
        lambda: _finish(task, test_set, cost=cost, plain=plain, validation=validation),
        lambda whose: DeviceError(
            f"{whose} ran out of memory in the test after the last epoch. {task.run.checkpoint} holds what was "
            "trained; free some memory and train this model alone with --resume."
        ),
    )


def _finish(
    task: Task, test_set: Dataset, *, cost: Cost, plain: Plain, validation: Validation | None
) -> dict[str, Any]:
    """Test the model once, and the best one on validation once; write weights and metrics, return the accuracies."""
    model, run, epochs = task.model, task.run, task.params.epochs
    tester = plain(test_set, Geometry.of(model.preset))

    def test() -> dict[str, float | None]:
        return asdict(accuracy(predict(model.module, tester, preset=model.preset, progress=progress), test_set.labels))

    scores = test()
    models.save_weights(
        run.weights, model.module, architecture=model.name, preset=model.preset, classes=test_set.classes
    )
    say(f"{run.path}: test top-1 {_percent(scores['top1'])} after {epochs} epochs, {cost.seconds:.1f} s.")
    metrics: dict[str, Any] = {"test": scores}
    if validation is not None and validation.best is not None:
        best, final = validation.best, run.history()[-1]
        model.module.load_state_dict(best.weights)
        metrics["last"] = _chosen(epochs, final["validation_top1"], final["validation_loss"], scores)
        best_scores = scores if best.epoch == epochs else test()
        metrics["best_on_validation"] = _chosen(best.epoch, best.top1, best.loss, best_scores)
        say(f"Best on validation: epoch {best.epoch} with {best.top1:.2%}; test top-1 {_percent(best_scores['top1'])}.")
    cost_figures = {"seconds": cost.seconds, "images_per_second": cost.images_per_second}
    run.write_metrics({**metrics, "epochs": epochs, **cost_figures})
    return metrics


def _chosen(epoch: int, top1: float, loss: float, test: dict[str, float | None]) -> dict[str, Any]:
    return {"epoch": epoch, "validation": {"top1": top1, "loss": loss}, "test": test}


def _percent(share: float | None) -> str:
    return "n/a (no labels)" if share is None else f"{share:.2%}"


def _identity(
    model: Model, data: TrainingData, test_set: Dataset, *, spec: str, lineage: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what ``run.json`` says of the model, the data and the software."""
    splits = {"train": data.train, "validation": data.validation, "test": test_set}
    fingerprints = {split: part.fingerprint for split, part in splits.items() if part is not None}
    weighed = {} if data.sampling is None else {"sample_weights": data.sampling.digest}
    return {
        "model": model.name,
        "num_parameters": model.parameters,
        "preset": model.preset.describe(),
        "preset_source": model.preset_source,
        "classes": list(data.train.classes),
        "lineage": {"dataset": {"spec": spec, "name": data.train.name, **fingerprints}, **weighed, **lineage},
        "versions": versions(),
        "git_revision": git_revision(),
    }


def _line(row: dict[str, float], epochs: int) -> str:
    terms = ", ".join(f"{name} {row[name]:.4f}" for name in ("loss", "kd", "ce", "rotation") if name in row)
    more = {"adversarial_top1": "attacked", "validation_top1": "validation top-1"}
    measured = "".join(f", {said} {row[name]:.2%}" for name, said in more.items() if name in row)
    return (
        f"epoch {row['epoch']:.0f}/{epochs}: {terms}, train top-1 {row['train_top1']:.2%}{measured}, "
        f"{row['images_per_second']:,.0f} images/s, {row['seconds']:.1f} s"
    )
