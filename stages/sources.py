"""The datasets and models that a stage's settings name, and a dataset in the classes of a store."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from blake3 import blake3

from kdpipe import dataset, models
from kdpipe.dataset import Dataset
from kdpipe.dataset.learning import is_unread
from kdpipe.dataset.settings import DatasetSettings
from kdpipe.errors import DatasetError, MissingSplitError, ModelError
from kdpipe.models import Model, TensorPreset
from kdpipe.pairing.classes import ClassMap, find_classes, read_class_map
from kdpipe.stages.console import progress, say
from kdpipe.stages.ranks import first_on_machine
from kdpipe.store.reader import LogitStore


def load_split(settings: DatasetSettings, split: str, *, unread: bool = False) -> Dataset:
    """Load one split of the dataset, limited as the settings say; see ``kdpipe.dataset.load`` for ``unread``."""
    train = split == "train"
    with first_on_machine(f"{settings.data} {split}") as touch:
        found = dataset.load(
            settings.data,
            split,
            settings.limit_train if train else settings.limit_test,
            labels_per_class=settings.labels_per_class if train else None,
            download=settings.download,
            loading=settings.loading,
            workers=settings.workers or dataset.processors(of_rank=True),
            skip_broken=settings.skip_broken,
            unread=unread,
            progress=partial(_noticed, touch),
        )
    for note in found.notes:
        say(note)
    return found


@contextmanager
def _noticed(touch: Callable[[], None], what: str, total: int, **more: Any) -> Iterator[Callable[[int], None]]:
    """Show progress, and let other ranks notice that it is made."""
    with progress(what, total, **more) as advance:

        def count(done: int) -> None:
            touch()
            advance(done)

        yield count


def load_test(settings: DatasetSettings, train: Dataset, *, unread: bool = False) -> Dataset | None:
    """Load the test split; ``None``, and a line that says so, where the dataset has none.

    Warns of test images that are among those of ``train``, whatever their names.
    """
    try:
        test = load_split(settings, "test", unread=unread)
    except MissingSplitError as missing:
        say(f"warning: {missing}. Going on without: there will be no test figures.")
        return None
    if test.form != train.form:
        raise DatasetError(
            f"{settings.data} has other items in test than in train: expected {train.form or 'images'}, found "
            f"{test.form or 'images'}"
        )
    if not (is_unread(train) or is_unread(test)):
        warn_of_shared(train, test)
    return test


def warn_of_shared(train: Dataset, test: Dataset) -> None:
    """Warn of test images that are among those of ``train``, whatever their names."""
    found = dataset.find_ids(test.content_digests, train.content_digests) >= 0
    shared = int(np.count_nonzero(found & test.content_digests.any(axis=1)))
    if shared:
        say(
            f"warning: {shared:,} of {len(test):,} test images are in train, too, with the same content: the test "
            "figures are too high. Remove them from one of the two."
        )


def in_store_classes(
    store: LogitStore, samples: Dataset, *, class_map: Path | None = None
) -> tuple[ClassMap | None, Dataset]:
    """Return the dataset with the store's classes, and their map, after a table of those that have other names.

    ``samples`` have the store's ids; ``class_map`` is a file with the store's classes of some of theirs.

    Raises:
        StaleStoreError: classes of the data cannot be matched with those of the store.
        DatasetError: the file cannot be read, or has names that there are not.
    """
    given = None if class_map is None else read_class_map(class_map)
    found = find_classes(store, samples, given=given)
    if found is None:
        return None, samples
    for line in found.lines(store.path, samples.spec):
        say(line)
    return found, found.of(samples)


def content_digest(samples: Dataset) -> str | None:
    """Return a digest of the contents of all samples, in whatever order and under whatever names they are.

    ``None`` where the content of one is unknown.
    """
    digests = samples.content_digests
    if not digests.any(axis=1).all():
        return None
    return blake3(digests[np.lexsort(digests.T[::-1])].tobytes()).hexdigest(length=16)


def load_model(
    name: str,
    train: Dataset,
    *,
    weights: str | Path | None = None,
    size: int | None = None,
    seed: int = 0,
    trust_code: bool = False,
) -> Model:
    """Load a model to train for a dataset's classes; without weights they are drawn from ``seed``.

    Raises:
        ModelError: the model is unknown, cannot be trained, its weights do not fit, or nothing says which size of
            images it takes.
        UntrustedCodeError: a file would run code, and is not trusted.
    """
    torch.manual_seed(seed)
    model = models.load(
        name,
        num_classes=len(train.classes),
        weights=weights,
        size=size,
        fallback_statistics=train.statistics,
        fallback_size=side_of(name, train),
        form=train.form,
        trust_code=trust_code,
    )
    if not any(parameter.requires_grad for parameter in model.module.parameters()):
        raise ModelError(
            f"'{name}' has no weights that can be trained; it can be a teacher (--teacher). Name an architecture, such "
            "as resnet8, or a function of yours."
        )
    for remark in model.remarks:
        say(remark)
    refuse_other_items(model, train, origin=weights or name)
    if size is None and train.image_size is None:
        say(f"{name} takes images of {model.preset.size} px: those of {train.spec} differ in size (--input-size).")
    refuse_another_order(model, train, origin=weights or name)
    return model


def side_of(name: str, train: Dataset) -> int | None:
    """Return the side of a model's input where nothing else says it: that of the images, or 32 for the zoo."""
    if train.image_size is not None:
        return min(train.image_size)
    return None if models.is_foreign(name) else 32


def refuse_other_items(model: Model, train: Dataset, *, origin: object) -> None:
    """Refuse a network of tensors for a dataset of images; raises a ``ModelError``."""
    if isinstance(model.preset, TensorPreset) and model.preset.form != train.form:
        raise ModelError(f"{origin} takes tensors ({model.preset.form}), {train.spec} has {train.form or 'images'}.")


def refuse_another_order(model: Model, train: Dataset, *, origin: object) -> None:
    """Refuse weights for the dataset's classes in another order; raises a ``ModelError``."""
    if model.classes is not None and model.classes != train.classes and {*model.classes} == {*train.classes}:
        raise ModelError(
            f"{origin} has the classes of {train.spec} in another order: {', '.join(model.classes[:4])}, … "
            f"against {', '.join(train.classes[:4])}, …; its logits would be paired with the wrong names."
        )
