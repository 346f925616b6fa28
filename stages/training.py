"""What the two training stages share: one run from a model and its data to the files it leaves."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from kdpipe import models
from kdpipe.dataset import Dataset
from kdpipe.models import Model
from kdpipe.student import (
    Cost,
    Distillation,
    Optimisation,
    RunDirectory,
    Sampling,
    Schedule,
    Validation,
    predict,
    train,
)
from kdpipe.student.accuracy import accuracy
from kdpipe.views import Geometry, Recipe, Renderer
from stages.console import progress, say
from stages.logs import choose
from stages.params import TrainStudent, TrainTeacher
from stages.provenance import git_revision, versions
from stages.sources import TrainingData
from stages.stopping import stoppable


def fit(
    model: Model,
    data: TrainingData,
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

    Where samples are held out for validation, the weights that were best on them are tested once as well.

    ``population`` are the samples that a recipe mixes, see ``Renderer``.
    """
    device = models.resolve_device(params.device)
    geometry = Geometry.of(model.preset)
    views = views if recipe.augments else 0
    renderer = Renderer(data.train, recipe, seed=recipe_seed, geometry=geometry, device=device, population=population)
    seeds = {"seed": params.seed, "data_seed": params.data_seed, "recipe_seed": recipe_seed}
    record = {
        "format": 1,
        "stage": stage,
        "distill": "none" if isinstance(params, TrainTeacher) else params.mode,
        "loss": "ce" if distillation is None or isinstance(params, TrainTeacher) else params.loss_name,
        "recipe": {"name": str(recipe), "version": recipe.version, "seed": recipe_seed},
        "views": views,
        "seeds": seeds,
        "parameters": params.model_dump(mode="json"),
        "device": str(device),
        **_identity(model, data, test_set, spec=params.data, lineage=lineage or {}),
    }
    logs = choose(params)
    run.start(record, resume=params.resume)
    say(f"Training {model.name} ({model.parameters:,} parameters) on {len(data.train):,} samples, {device}.")
    validation = _validation(model, data.validation, run=run, device=device)

    def report(row: dict[str, float]) -> None:
        say(_line(row, params.epochs))
        logs.epoch(row)

    with logs.of(run, record):
        with stoppable() as should_stop:
            cost = train(
                model.module.to(device),
                renderer,
                preset=model.preset,
                schedule=_schedule(params, views, data.sampling),
                optimisation=_optimisation(params),
                distillation=distillation,
                validation=validation,
                run=run,
                resume=params.resume,
                checkpoint_every=params.checkpoint_every,
                should_stop=should_stop,
                progress=progress,
                say=say,
                on_resume=logs.epochs,
                on_epoch=report,
            )
        scores = _finish(
            model, test_set, run=run, cost=cost, epochs=params.epochs, device=device, validation=validation
        )
        logs.finish(scores, epoch=params.epochs)


def _schedule(params: TrainTeacher | TrainStudent, views: int | None, sampling: Sampling | None) -> Schedule:
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
        sampling=sampling,
    )


def _optimisation(params: TrainTeacher | TrainStudent) -> Optimisation:
    return Optimisation(
        optimizer=params.optimizer,
        nesterov=params.nesterov,
        decay_on=params.decay_on,
        label_smoothing=params.label_smoothing,
        clip_grad_norm=params.clip_grad_norm,
        ema=params.ema,
        amp=params.amp,
        channels_last=params.channels_last,
        compile=params.compile,
    )


def _validation(
    model: Model, held_out: Dataset | None, *, run: RunDirectory, device: torch.device
) -> Validation | None:
    """Return what measures the model on the held-out samples and writes the best weights to the run directory."""
    if held_out is None:
        return None

    def keep(module: torch.nn.Module) -> None:
        models.save_weights(
            run.best_weights, module, architecture=model.name, preset=model.preset, classes=held_out.classes
        )

    renderer = Renderer(held_out, "none", seed=0, geometry=Geometry.of(model.preset), device=device)
    return Validation(renderer, preset=model.preset, keep=keep)


def _finish(
    model: Model,
    test_set: Dataset,
    *,
    run: RunDirectory,
    cost: Cost,
    epochs: int,
    device: torch.device,
    validation: Validation | None,
) -> dict[str, Any]:
    """Test the model once, and the best one on validation once; write weights and metrics, return the accuracies."""
    tester = Renderer(test_set, "none", seed=0, geometry=Geometry.of(model.preset), device=device)

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
    model: Model, data: TrainingData, test_set: Dataset, *, spec: str, lineage: dict[str, Any]
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
    terms = ", ".join(f"{name} {row[name]:.4f}" for name in ("loss", "kd", "ce") if name in row)
    validated = f", validation top-1 {row['validation_top1']:.2%}" if "validation_top1" in row else ""
    return (
        f"epoch {row['epoch']:.0f}/{epochs}: {terms}, train top-1 {row['train_top1']:.2%}{validated}, "
        f"{row['images_per_second']:,.0f} images/s, {row['seconds']:.1f} s"
    )
