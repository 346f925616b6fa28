"""From a stage's parameters to the datasets and models it works on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from kdpipe import dataset, models
from kdpipe.dataset import Dataset
from kdpipe.errors import DatasetError, ModelError
from kdpipe.models import Model
from kdpipe.student import Sampling, read_sample_weights
from stages.console import progress, say
from stages.params import StageParams, TrainStudent, TrainTeacher


def load_split(params: StageParams, split: str) -> Dataset:
    """Load one split of the stage's dataset, limited as asked."""
    limit = params.limit_train if split == "train" else params.limit_test
    return dataset.load(params.data, split, limit, download=params.download, loading=params.loading, progress=progress)


@dataclass(frozen=True)
class TrainingData:
    """The training split, and the parts of it."""

    whole: Dataset
    train: Dataset
    """What is trained on: all of it where nothing is held out."""
    validation: Dataset | None
    """What is held out."""
    sampling: Sampling | None
    """How often each sample of ``train`` is drawn; ``None`` for once an epoch."""


def load_training(params: TrainTeacher | TrainStudent, *, taught: bool) -> TrainingData:
    """Load the training split, limited as asked, hold out what is asked for, and weigh the rest.

    Where the model is not ``taught`` by a teacher or an auxiliary task, samples without a label are left out.

    Raises:
        DatasetError: a class would be left without samples, no sample has a label, or the weights do not fit.
    """
    whole = load_split(params, "train")
    if not taught and (whole.labels < 0).any():
        labeled = dataset.labeled(whole)
        say(f"Leaving {len(whole) - len(labeled):,} of {len(whole):,} samples out: they have no label.")
        whole = labeled
    train, held_out = dataset.hold_out(whole, params.validation) if params.validation else (whole, None)
    return TrainingData(whole, train, held_out, _sampling(params, train))


def _sampling(params: TrainTeacher | TrainStudent, train: Dataset) -> Sampling | None:
    if params.sample_weights is None and not params.balance:
        return None
    if params.balance and (train.labels < 0).all():
        raise DatasetError(f"no training sample of {train.spec} has a label: there is nothing to --balance.")
    file = params.sample_weights
    weights = np.ones(len(train)) if file is None else read_sample_weights(file, train)
    sampling = Sampling.of(weights, train.labels, balance=params.balance)
    often = sampling.expected
    say(f"Drawing each sample {often.min():.3g} to {often.max():.3g} times an epoch on average.")
    return sampling


def load_model(
    name: str,
    train: Dataset,
    *,
    weights: str | Path | None = None,
    mean: tuple[float, float, float] | None = None,
    std: tuple[float, float, float] | None = None,
    size: int | None = None,
    seed: int = 0,
) -> Model:
    """Load a model for a dataset's classes; without weights they are drawn from ``seed``.

    Raises:
        ModelError: the model is unknown, its weights do not fit, or they were made for other classes.
    """
    torch.manual_seed(seed)
    side = min(train.image_size) if train.image_size is not None else 32
    model = models.load(
        name,
        num_classes=len(train.classes),
        weights=weights,
        mean=mean,
        std=std,
        size=size,
        fallback_statistics=train.statistics,
        fallback_size=side,
    )
    if model.classes is not None and model.classes != train.classes and _named_alike(model.classes, train.classes):
        raise ModelError(
            f"{weights or name} has the classes of {train.spec} in another order: {', '.join(model.classes[:4])}, … "
            f"against {', '.join(train.classes[:4])}, …; its logits would be paired with the wrong names."
        )
    return model


def _named_alike(first: tuple[str, ...], second: tuple[str, ...]) -> bool:
    return set(first) == set(second)
