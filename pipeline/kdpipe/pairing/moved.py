"""Files that were moved or relabeled since a teacher's pass: recognized by content, and what is said of them.

The id of a sample is the digest of its key, and the key of a file has the name of its class folder. A label that is
corrected by moving the file thus changes the id, though the teacher saw the same bytes. The views of a sample are drawn
from its id, so a recognized sample gets the id that the store has: its pixels are then those that the teacher saw.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from kdpipe.dataset import Dataset, find_ids, sample_id
from kdpipe.store.reader import LogitStore

Bools = npt.NDArray[np.bool_]


def with_store_ids(store: LogitStore, dataset: Dataset) -> Dataset:
    """Return the dataset with the store's ids for samples that have another id and the same content.

    A row of the store whose own sample the dataset has is given to no other. Of several samples with the same content,
    each gets a row of its own, in order. Samples of unknown content keep their ids, and so does everything else.
    """
    if dataset.origin is None:
        ids, origin = matched(store, dataset.sample_ids, lambda index: dataset.content_digests[index].tobytes()), None
    else:
        # A subset has the ids of the dataset that it was taken from, where all of them were matched at once.
        origin = with_store_ids(store, dataset.origin)
        ids = origin.sample_ids[_places(dataset, origin)]
    if np.array_equal(ids, dataset.sample_ids) and origin is dataset.origin:
        return dataset
    return replace(dataset, sample_ids=ids, origin=origin)


def _places(subset: Dataset, origin: Dataset) -> npt.NDArray[np.int64]:
    place = {key: index for index, key in enumerate(origin.keys)}
    return np.array([place[key] for key in subset.keys], dtype=np.int64)


def as_stored(store: LogitStore, dataset: Dataset) -> Dataset:
    """Return a loaded dataset with the ids and the order of the store, so that planes can be added to it.

    Itself where it is in that order already, or where the store does not hold exactly its samples.
    """
    if len(dataset) != store.num_samples or np.array_equal(dataset.sample_ids, store.sample_ids):
        return dataset
    paired = with_store_ids(store, dataset)
    indices = find_ids(store.sample_ids, paired.sample_ids)
    if (indices < 0).any():
        return dataset
    # Without its origin: the partners of mixing recipes are drawn from the store's order.
    return replace(paired.subset(indices), origin=None)


def matched(
    store: LogitStore, ids: npt.NDArray[np.uint8], digest_of: Callable[[int], bytes | None]
) -> npt.NDArray[np.uint8]:
    """Return ``ids`` ``(n, 16)`` with the store's ids in place of those that it lacks and whose content it has.

    ``digest_of`` returns the content digest of a sample by its index, ``None`` where that is unknown.
    """
    rows = find_ids(ids, store.sample_ids)
    unknown = np.flatnonzero(rows < 0)
    if not unknown.size:
        return ids
    taken = set(rows.tolist())
    free: dict[bytes, list[int]] = defaultdict(list)
    for row in reversed(range(store.num_samples)):
        if row not in taken:
            free[store.content_digests[row].tobytes()].append(row)
    found = ids.copy()
    for index in unknown.tolist():
        digest = digest_of(index)
        if digest is not None and free.get(digest):
            found[index] = store.sample_ids[free[digest].pop()]
    return found


def remarks(store: LogitStore, dataset: Dataset, rows: npt.NDArray[np.int64]) -> list[str]:
    """Return what a user should know of a dataset that is joined to a store by ``rows``: one line each.

    They are warnings of labels that differ from those at the time of the teacher's pass, and the number of samples that
    were recognized by their content.
    """
    lines = []
    moved = int(moved_samples(dataset).sum())
    if moved:
        lines.append(
            f"{moved:,} of {len(dataset):,} '{dataset.split}' samples have other names than in {store.path} and were "
            "matched by content: their views are those that the teacher saw."
        )
    differing = relabeled(store, dataset, rows)
    if differing.any():
        first = int(differing.argmax())
        names = dataset.classes
        lines.append(
            f"warning: {int(differing.sum()):,} of {len(dataset):,} '{dataset.split}' samples have other labels than "
            f"when {store.path} was made, first {dataset.keys[first]} ({names[store.labels[rows[first]]]} then, "
            f"{names[dataset.labels[first]]} now). Training uses the dataset's labels."
        )
    return lines


def moved_samples(dataset: Dataset) -> Bools:
    """Return which samples have the id of a store instead of their key's, ``(n,)``."""
    ids = np.frombuffer(b"".join(map(sample_id, dataset.keys)), dtype=np.uint8).reshape(-1, 16)
    differing: Bools = (ids != dataset.sample_ids).any(axis=1)
    return differing


def relabeled(store: LogitStore, dataset: Dataset, rows: npt.NDArray[np.int64]) -> Bools:
    """Return which samples have another label than in the store, ``(n,)``; samples without a label in either do not."""
    then = store.labels[rows]
    differing: Bools = (then != dataset.labels) & (then >= 0) & (dataset.labels >= 0) & (then < store.num_classes)
    return differing
