"""Join of a dataset and a store by sample id, with checks for changed files and pixels."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from kdpipe.dataset import Dataset, find_ids
from kdpipe.errors import DatasetError, StaleStoreError
from kdpipe.pairing.moved import remarks, with_store_ids
from kdpipe.pairing.probes import drift, lacking, stored_recipe
from kdpipe.store import tree
from kdpipe.store.reader import LogitStore


def join(store: LogitStore, dataset: Dataset) -> npt.NDArray[np.int64]:
    """Return the store's row of each sample of ``dataset``, int64 ``(len(dataset),)``.

    Raises:
        StaleStoreError: the classes differ.
        DatasetError: the store lacks samples of the dataset; the message has the first.
    """
    check_classes(store, dataset.classes, where=dataset.spec)
    where = f"'{dataset.split}' samples of {dataset.spec}"
    return locate(store, dataset.sample_ids, keys=dataset.keys, where=where)


def check_classes(store: LogitStore, classes: Sequence[str], *, where: str) -> None:
    """Compare class names with the store's, in its order.

    Raises:
        StaleStoreError: the classes differ.
    """
    if tuple(classes) != store.classes:
        raise StaleStoreError(
            f"{store.path} has the classes {_listed(store.classes)}; {where} has {_listed(tuple(classes))}. "
            "Use the dataset that the store was made from, or make a store for this one."
        )


def locate(
    store: LogitStore, sample_ids: npt.NDArray[np.uint8], *, keys: Sequence[str], where: str
) -> npt.NDArray[np.int64]:
    """Return the store's row of each of ``sample_ids`` ``(n, 16)``, int64 ``(n,)``; ``keys`` are their names.

    Raises:
        DatasetError: the store lacks some; the message has the first, and ``where`` they are.
    """
    rows = find_ids(sample_ids, store.sample_ids)
    missing = np.flatnonzero(rows < 0)
    if missing.size:
        raise DatasetError(
            f"{store.path} has no logits for {missing.size} of the {len(rows)} {where}, first "
            f"{keys[missing[0]]}. The store was made from {store.manifest.dataset}; "
            "use that dataset, or make a store for this one."
        )
    return rows


def join_checked(store: LogitStore, dataset: Dataset, *, allow_drift: bool = False) -> npt.NDArray[np.int64]:
    """Join a dataset to a store by sample id, and check that its views have the teacher's pixels.

    Returns the store's row of each sample, int64 ``(len(dataset),)``. ``allow_drift`` accepts other pixels.

    Raises:
        DatasetError: the store lacks samples, their content has changed, or the dataset lacks mixing partners.
        StaleStoreError: the classes differ, or the replay probes render to other pixels.
    """
    stored_recipe(store)
    rows = join(store, dataset)
    changed = changed_content(store, dataset, rows)
    if changed:
        raise DatasetError(
            f"{len(changed)} samples of {dataset.spec} have changed since {store.path} was made, first {changed[0]}. "
            "Restore them, or make a new store."
        )
    missing = lacking(store, dataset)
    if missing:
        raise DatasetError(
            f"{dataset.spec} lacks {missing} of the {store.num_samples} samples of {store.path} that its recipe "
            f"{store.manifest.fingerprint.recipe.name} mixes into the {len(dataset)} that it has. Use the dataset that "
            "the store was made from, or make a store for this one."
        )
    drifted = None if allow_drift else drift(store, dataset, rows)
    if drifted is not None:
        raise StaleStoreError(
            f"{store.path}: {drifted}. Install the versions that "
            f"kdpipe inspect {shlex.quote(str(store.path))} prints, make a new store, "
            "or pass --allow-drift."
        )
    return rows


def changed_content(store: LogitStore, dataset: Dataset, rows: npt.NDArray[np.int64]) -> list[str]:
    """Return the keys of the samples whose file or pixels have changed since the teacher's pass."""
    changed = (store.content_digests[rows] != dataset.content_digests).any(axis=1)
    return [dataset.keys[index] for index in np.flatnonzero(changed)]


def verify_data(store: LogitStore, dataset: Dataset, *, say: Callable[[str], object] = lambda _: None) -> list[str]:
    """Check that a dataset has the store's samples, unchanged, and the teacher's pixels; return a few faults.

    Samples that were moved are recognized by their content. ``say`` is called with what is no fault: other labels.
    """
    faults = []
    dataset = with_store_ids(store, dataset)
    known = {bytes(sample_id) for sample_id in store.sample_ids}
    shared = [index for index, sample_id in enumerate(dataset.sample_ids) if bytes(sample_id) in known]
    if len(shared) < store.num_samples:
        absent = store.num_samples - len(shared)
        faults.append(f"{absent} of the {store.num_samples} '{store.split}' samples are not in {dataset.spec}")
    if not shared:
        return faults
    dataset = dataset if len(shared) == len(dataset) else dataset.subset(shared)
    rows = join(store, dataset)
    for line in remarks(store, dataset, rows):
        say(line)
    changed = [f"{key}: its content has changed" for key in changed_content(store, dataset, rows)]
    faults += tree.first_few(changed, more="samples have changed")
    missing = lacking(store, dataset)
    if missing:
        return [*faults, f"{missing} samples that are mixed into those of {dataset.spec} are not in it"]
    drifted = drift(store, dataset, rows)
    return faults if drifted is None else [*faults, str(drifted)]


def _listed(names: tuple[str, ...]) -> str:
    first = ", ".join(names[:4])
    return f"{first}, … ({len(names)} in all)" if len(names) > 4 else first
