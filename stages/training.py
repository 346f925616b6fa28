"""What the two training stages share: one run from a model and its data to the files it leaves."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from kdpipe import models
from kdpipe.dataset import Dataset
from kdpipe.models import Model
from kdpipe.student import Cost, Distillation, Optimisation, RunDirectory, Schedule, predict, train
from kdpipe.student.accuracy import Accuracy, accuracy
from kdpipe.views import Geometry, Recipe, Renderer
from stages.console import progress, say
from stages.params import TrainStudent, TrainTeacher
from stages.provenance import git_revision, versions
from stages.stopping import stoppable


def fit(
    model: Model,
    train_set: Dataset,
    test_set: Dataset,
    *,
    params: TrainTeacher | TrainStudent,
    stage: str,
    recipe: Recipe,
    recipe_seed: int,
    views: int | None,
    run: RunDirectory,
    population: npt.NDArray[np.uint8] | None = None,
    distillation: Distillation | None = None,
    lineage: dict[str, Any] | None = None,
) -> None:
    """Train ``model`` in place, test it once at the end, and write the run directory.

    ``population`` are the samples that a recipe mixes, see ``Renderer``.
    """
    device = models.resolve_device(params.device)
    geometry = Geometry.of(model.preset)
    views = views if recipe.augments else 0
    renderer = Renderer(train_set, recipe, seed=recipe_seed, geometry=geometry, device=device, population=population)
    seeds = {"seed": params.seed, "data_seed": params.data_seed, "recipe_seed": recipe_seed}
    record = {
        "format": 1,
        "stage": stage,
        "distill": "none" if isinstance(params, TrainTeacher) else params.mode,
        "loss": "ce" if distillation is None or isinstance(params, TrainTeacher) else params.loss,
        "recipe": {"name": str(recipe), "version": recipe.version, "seed": recipe_seed},
        "views": views,
        "seeds": seeds,
        "parameters": params.model_dump(mode="json"),
        "device": str(device),
        **_identity(model, train_set, test_set, spec=params.data, lineage=lineage or {}),
    }
    run.start(record, resume=params.resume)
    say(f"Training {model.name} ({model.parameters:,} parameters) on {len(train_set):,} samples, {device}.")
    with stoppable() as should_stop:
        cost = train(
            model.module.to(device),
            renderer,
            preset=model.preset,
            schedule=_schedule(params, views),
            optimisation=_optimisation(params),
            distillation=distillation,
            run=run,
            resume=params.resume,
            checkpoint_every=params.checkpoint_every,
            should_stop=should_stop,
            progress=progress,
            say=say,
            on_epoch=lambda row: say(_line(row, params.epochs)),
        )
    scores = _finish(model, test_set, run=run, cost=cost, epochs=params.epochs, device=device)
    shown = "n/a (no labels)" if scores.top1 is None else f"{scores.top1:.2%}"
    say(f"{run.path}: test top-1 {shown} after {params.epochs} epochs, {cost.seconds:.1f} s.")


def _schedule(params: TrainTeacher | TrainStudent, views: int | None) -> Schedule:
    return Schedule(
        epochs=params.epochs,
        batch_size=params.batch_size,
        lr=params.lr,
        weight_decay=params.weight_decay,
        warmup_epochs=params.warmup_epochs,
        lr_schedule=params.lr_schedule,
        lr_steps=params.lr_steps,
        lr_gamma=params.lr_gamma,
        data_seed=params.data_seed,
        views=views,
    )


def _optimisation(params: TrainTeacher | TrainStudent) -> Optimisation:
    return Optimisation(
        optimizer=params.optimizer,
        decay_on=params.decay_on,
        label_smoothing=params.label_smoothing,
        clip_grad_norm=params.clip_grad_norm,
        ema=params.ema,
        amp=params.amp,
        channels_last=params.channels_last,
        compile=params.compile,
    )


def _finish(
    model: Model, test_set: Dataset, *, run: RunDirectory, cost: Cost, epochs: int, device: torch.device
) -> Accuracy:
    """Test the model once, and write its weights and metrics."""
    tester = Renderer(test_set, "none", seed=0, geometry=Geometry.of(model.preset), device=device)
    scores = accuracy(predict(model.module, tester, preset=model.preset, progress=progress), test_set.labels)
    models.save_weights(
        run.weights, model.module, architecture=model.name, preset=model.preset, classes=test_set.classes
    )
    run.write_metrics(
        {
            "test": {"top1": scores.top1, "top5": scores.top5, "loss": scores.loss},
            "epochs": epochs,
            "seconds": cost.seconds,
            "images_per_second": cost.images_per_second,
        }
    )
    return scores


def _identity(
    model: Model, train_set: Dataset, test_set: Dataset, *, spec: str, lineage: dict[str, Any]
) -> dict[str, Any]:
    """Return what ``run.json`` says of the model, the data and the software."""
    fingerprints = {"train": train_set.fingerprint, "test": test_set.fingerprint}
    return {
        "model": model.name,
        "num_parameters": model.parameters,
        "preset": model.preset.describe(),
        "preset_source": model.preset_source,
        "classes": list(train_set.classes),
        "lineage": {"dataset": {"spec": spec, "name": train_set.name, **fingerprints}, **lineage},
        "versions": versions(),
        "git_revision": git_revision(),
    }


def _line(row: dict[str, float], epochs: int) -> str:
    terms = ", ".join(f"{name} {row[name]:.4f}" for name in ("loss", "kd", "ce") if name in row)
    return (
        f"epoch {row['epoch']:.0f}/{epochs}: {terms}, train top-1 {row['train_top1']:.2%}, "
        f"{row['images_per_second']:,.0f} images/s, {row['seconds']:.1f} s"
    )
