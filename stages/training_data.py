"""The data and the model that a training starts from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from blake3 import blake3

from kdpipe import dataset, models
from kdpipe.dataset import Dataset
from kdpipe.distil.selection import Selection
from kdpipe.errors import DatasetError
from kdpipe.models import Model
from kdpipe.models.layout import choose
from kdpipe.pairing.classes import ClassMap
from kdpipe.pairing.join import covered, with_store_ids
from kdpipe.stages.console import say
from kdpipe.stages.provenance import git_revision, versions
from kdpipe.stages.settings.training import Training
from kdpipe.stages.sources import content_digest, in_store_classes, load_model, load_split
from kdpipe.store.reader import LogitStore
from kdpipe.training.runs import RunDirectory
from kdpipe.training.schedule import Sampling, read_sample_weights
from kdpipe.training.settings import SamplingSettings

T = TypeVar("T", bound=Training)


@dataclass(frozen=True)
class TrainingData:
    """The training split, and its parts."""

    whole: Dataset
    train: Dataset
    """The samples to train on: all of them where nothing is held out."""
    validation: Dataset | None
    """The samples that are held out."""
    sampling: Sampling | None
    """Weights of the samples of ``train``; ``None`` to draw each once an epoch."""
    left_out: int = 0
    """Samples that are left out because they have no label."""
    class_map: ClassMap | None = None
    """The classes of the data as those of the stores, where they have other names or another order."""
    selection: Selection | None = None
    """Samples and classes with soft targets, for a student of the data's classes; ``None`` for the store's."""

    @property
    def in_store(self) -> Dataset:
        """The training samples, with the store's classes."""
        own = self.class_map is not None and self.selection is not None
        return self.class_map.of(self.train) if own and self.class_map is not None else self.train


def load_training(
    params: Training,
    *,
    taught: bool,
    stores: Sequence[LogitStore] = (),
    distilled: bool = False,
    class_map: Path | None = None,
    own_classes: bool = False,
) -> TrainingData:
    """Load the training split, hold out the validation samples, and weigh the rest.

    Samples that were moved since one of ``stores`` was made are recognized by their content, and classes of other names
    by the labels of their samples or the file ``class_map``. A student that is ``distilled`` from stores is trained on
    what they cover. With ``own_classes`` it has the classes of the data, and all samples with a label are kept.

    Samples without a label are left out unless the model is ``taught`` by a teacher or an auxiliary task.

    Raises:
        DatasetError: a class would be left without samples, no sample has a label, or the weights do not fit.
        StaleStoreError: classes of the data cannot be matched with those of a store.
    """
    whole, left_out = load_split(params.dataset, "train"), 0
    for store in stores:
        whole = with_store_ids(store, whole)
    classes = None
    if stores:
        classes, named = in_store_classes(stores[0], whole, class_map=class_map)
        own_classes = own_classes and classes is not None
        whole = whole if own_classes else named
    if stores and distilled and own_classes:
        kept = (_rows_in_all(stores, whole) | (whole.labels >= 0)).nonzero()[0]
        whole = whole if len(kept) == len(whole) else whole.subset(kept)
    elif stores and distilled:
        whole = _covered(stores, whole)
    if not taught and (whole.labels < 0).any():
        labeled = dataset.labeled(whole)
        say(f"Leaving {len(whole) - len(labeled):,} of {len(whole):,} samples out: they have no label.")
        whole, left_out = labeled, len(whole) - len(labeled)
    share = params.run.validation
    single = dataset.single_classes(whole) if share else ()
    if len(single):
        names = ", ".join(repr(whole.classes[label]) for label in single[:5]) + (", ..." if len(single) > 5 else "")
        say(f"{len(single):,} classes with one training image ({names}) keep it in training, none for validation.")
    train, held_out = dataset.hold_out(whole, share) if share else (whole, None)
    found = TrainingData(whole, train, held_out, _sampling(params.sampling, train), left_out, classes)
    if stores and own_classes and classes is not None:
        return replace(found, selection=_selected(stores, classes, train, distilled=distilled))
    return found


def _rows_in_all(stores: Sequence[LogitStore], samples: Dataset) -> npt.NDArray[np.bool_]:
    """Return which samples all stores have logits for."""
    there = np.ones(len(samples), dtype=bool)
    for store in stores:
        there &= dataset.find_ids(samples.sample_ids, store.sample_ids) >= 0
    return there


def _selected(stores: Sequence[LogitStore], found: ClassMap, train: Dataset, *, distilled: bool) -> Selection:
    """Return what has soft targets for a student of the data's classes, after saying it.

    Raises:
        DatasetError: the data has no class or no sample of the store, or two classes that are one in the store.
    """
    place = {name: index for index, name in enumerate(found.classes)}
    shared = [index for index, match in enumerate(found.matches) if match.store_class is not None]
    columns = [place[found.matches[index].store_class or ""] for index in shared]
    spec, path = train.spec, stores[0].path
    if len(set(columns)) < len(columns):
        twice = next(name for name in found.recorded.values() if list(found.recorded.values()).count(name) > 1)
        names = [name for name, other in found.recorded.items() if other == twice]
        raise DatasetError(
            f"--classes data: {' and '.join(map(repr, names[:3]))} of {spec} are both {twice!r} in {path}, whose soft "
            "targets do not tell them apart. Merge them, or leave --classes data out."
        )
    of_shared = np.isin(train.labels, [-1, *shared])
    covered = _rows_in_all(stores, train) & of_shared
    if distilled:
        if not covered.any():
            raise DatasetError(f"no 'train' sample of {spec} has soft targets in {path}: make a store for this data.")
        total, lacking = len(found.matches), len(train) - int(covered.sum())
        most = "all" if len(shared) == total else f"{len(shared):,}"
        line = f"The student has the {total:,} classes of {spec}; soft targets are over {most} of them, from {path}"
        lone = f"; {lacking:,} of {len(train):,} 'train' samples have none and learn from their labels alone"
        say(f"{line}{lone if lacking else ''}.")
    return Selection(tuple(shared), tuple(columns), len(found.matches), covered)


def _covered(stores: Sequence[LogitStore], whole: Dataset) -> Dataset:
    """Return the samples that all stores have logits for, after saying how many those are."""
    found = covered(stores, whole)
    if len(found) < len(whole):
        where = str(stores[0].path) if len(stores) == 1 else f"all {len(stores)} stores"
        say(
            f"warning: training on {len(found):,} of {len(whole):,} '{whole.split}' samples of {whole.spec}: there are "
            f"no logits for {len(whole) - len(found):,} in {where}, which are left out."
        )
    return found


def label_digest(samples: Dataset) -> str:
    """Return a digest of the label of each sample id, in whatever order they are."""
    order = np.lexsort(samples.sample_ids.T[::-1])
    return blake3(samples.sample_ids[order].tobytes() + samples.labels[order].astype("<i8").tobytes()).hexdigest(
        length=16
    )


def _sampling(settings: SamplingSettings, train: Dataset) -> Sampling | None:
    if settings.sample_weights is None and not settings.balance:
        return None
    if settings.balance and (train.labels < 0).all():
        raise DatasetError(f"no training sample of {train.spec} has a label: there is nothing to --balance.")
    file = settings.sample_weights
    weights = np.ones(len(train)) if file is None else read_sample_weights(file, train)
    sampling = Sampling.of(weights, train.labels, balance=settings.balance)
    often = sampling.expected
    say(f"Drawing each sample {often.min():.3g} to {often.max():.3g} times an epoch on average.")
    return sampling


def load_student(params: Training, name: str, train: Dataset) -> Model:
    """Load the model that a training starts from."""
    run = params.run
    return load_model(
        name,
        train,
        weights=run.init_weights,
        size=run.input_size,
        seed=run.seed,
        trust_code=params.code.trust_code,
    )


def with_layout(params: T, model: Model) -> T:
    """Return the settings with ``channels_last`` as asked for, as a resumed run recorded it, or by the network.

    Raises:
        ModelError: it is asked for, and the network cannot compute in it.
    """
    asked, directory = params.optimization.channels_last, RunDirectory(params.run.out)
    if asked is None and params.run.resume and (directory.path / "run.json").exists():
        recorded = directory.record()["parameters"].get("channels_last")
        asked = recorded if isinstance(recorded, bool) else None
    device = models.resolve_device(params.run.device)
    settled = choose(model.module, model.preset.size, asked=asked, device=device, name=models.short_name(model.name))
    return params.model_copy(
        update={"optimization": params.optimization.model_copy(update={"channels_last": settled or bool(asked)})}
    )


def _splits(data: TrainingData, test_set: Dataset | None) -> dict[str, Dataset]:
    splits = {"train": data.train, "validation": data.validation, "test": test_set}
    return {split: part for split, part in splits.items() if part is not None}


def labels_of(data: TrainingData, test_set: Dataset | None) -> dict[str, npt.NDArray[np.int32]]:
    """Return the labels of each split, int32 ``(n,)``."""
    return {split: part.labels.astype(np.int32) for split, part in _splits(data, test_set).items()}


def identity(
    model: Model, data: TrainingData, test_set: Dataset | None, *, spec: str, lineage: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the model, the data and the software for ``run.json``."""
    splits = _splits(data, test_set)
    fingerprints = {split: part.fingerprint for split, part in splits.items()}
    contents = {split: content_digest(part) for split, part in splits.items()}
    named = {} if data.class_map is None else {"class_map": data.class_map.recorded}
    weighed = {} if data.sampling is None else {"sample_weights": data.sampling.digest}
    return {
        "model": model.name,
        "num_parameters": model.parameters,
        "preset": model.preset.describe(),
        "preset_source": model.preset_source,
        "classes": list(data.train.classes),
        "samples": len(data.train),
        "left_out": data.left_out,
        "labels": {split: label_digest(part) for split, part in splits.items()},
        "content": {split: digest for split, digest in contents.items() if digest is not None},
        "lineage": {"dataset": {"spec": spec, "name": data.train.name, **fingerprints}, **weighed, **named, **lineage},
        "versions": versions(),
        "git_revision": git_revision(),
    }
