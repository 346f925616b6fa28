"""Join of a dataset and a store by sample id, content or pixels, with checks for changed files, labels and pixels.

The id of a sample is the digest of its key, and the key of a file has the name of its class folder. A label that is
corrected by moving the file thus changes the id, though the teacher saw the same bytes. The views of a sample are drawn
from its id, so a sample that is recognized by content or pixels gets the id that the store has: its pixels are then
those that the teacher saw.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from kdpipe.dataset import Dataset, find_ids, sample_id
from kdpipe.errors import DatasetError, StaleStoreError
from kdpipe.pairing.probes import drift, lacking, stored_recipe
from kdpipe.pairing.recognition import differing, store_ids
from kdpipe.progress import Progress, silent
from kdpipe.store import tree
from kdpipe.store.reader import LogitStore
from kdpipe.store.segments import Samples

Bools = npt.NDArray[np.bool_]
_ENDINGS = (".jpg", ".jpeg", ".JPG", ".JPEG", ".png", ".PNG", ".webp", ".bmp", ".ppm", ".tif", ".tiff")
"""Endings that an image may have had before it was saved again."""


def with_store_ids(store: LogitStore | Samples, dataset: Dataset, *, progress: Progress = silent) -> Dataset:
    """Return the dataset with the store's ids for samples that have another id and the same content, or pixels.

    A row of the store whose own sample the dataset has is given to no other. Of several samples with the same image,
    each gets a row of its own, in order. Unknown samples keep their ids, and so does everything else.
    """
    if dataset.origin is None:
        ids, origin = store_ids(store, dataset, progress=progress), None
    else:
        # A subset has the ids of the dataset that it was taken from, where all of them were matched at once.
        origin = with_store_ids(store, dataset.origin, progress=progress)
        ids = origin.sample_ids[_places(dataset, origin)]
    if np.array_equal(ids, dataset.sample_ids) and origin is dataset.origin:
        return dataset
    return replace(dataset, sample_ids=ids, origin=origin)


def _places(subset: Dataset, origin: Dataset) -> npt.NDArray[np.int64]:
    place = {key: index for index, key in enumerate(origin.keys)}
    return np.array([place[key] for key in subset.keys], dtype=np.int64)


def remarks(store: LogitStore, dataset: Dataset, rows: npt.NDArray[np.int64]) -> list[str]:
    """Return what a user should know of a dataset that is joined to a store by ``rows``: one line each.

    They are warnings of labels that differ from those at the time of the teacher's pass, and the numbers of samples
    that were recognized by content and by pixels.
    """
    lines = [line] if (line := _recognized(store, dataset, rows)) else []
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


def _recognized(store: LogitStore, dataset: Dataset, rows: npt.NDArray[np.int64]) -> str:
    """Return one line on the samples that other things than their names tell; nothing if there are none."""
    moved = moved_samples(dataset)
    other = (store.content_digests[rows] != dataset.content_digests).any(axis=1)
    by_content, by_pixels, saved_again = (int(found.sum()) for found in (moved & ~other, moved & other, other & ~moved))
    counts = [f"content ({by_content:,})", f"pixels ({by_pixels:,})"] if by_content and by_pixels else []
    parts = []
    if by_content or by_pixels:
        how = " or ".join(counts) or ("content" if by_content else "pixels")
        parts.append(
            f"{by_content + by_pixels:,} of {len(dataset):,} '{dataset.split}' samples have other names than in"
        )
        parts[-1] += f" {store.path} and were matched by {how}"
    if saved_again:
        whose = "" if parts else f" of {len(dataset):,} '{dataset.split}' samples"
        parts.append(
            f"{saved_again:,}{whose} have other bytes and the same pixels{'' if parts else f' as in {store.path}'}"
        )
    return f"{'; '.join(parts)}: their views are those that the teacher saw." if parts else ""


def moved_samples(dataset: Dataset) -> Bools:
    """Return which samples have the id of a store instead of their key's, ``(n,)``."""
    differing: Bools = (ids_of(dataset.keys) != dataset.sample_ids).any(axis=1)
    return differing


def ids_of(keys: Iterable[str]) -> npt.NDArray[np.uint8]:
    """Return the sample ids of keys, ``(n, 16)``."""
    return np.frombuffer(b"".join(map(sample_id, keys)), dtype=np.uint8).reshape(-1, 16)


def relabeled(store: LogitStore, dataset: Dataset, rows: npt.NDArray[np.int64]) -> Bools:
    """Return which samples have another label than in the store, ``(n,)``; samples without a label in either do not."""
    then = store.labels[rows]
    differing: Bools = (then != dataset.labels) & (then >= 0) & (dataset.labels >= 0) & (then < store.num_classes)
    return differing


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
    if missing.size and store.manifest.hides_names:
        raise DatasetError(
            f"{store.path} hides the names of its samples: their ids are keyed by a secret of its publisher, so no "
            "images can be matched with it. Ask for a version with names."
        )
    if missing.size:
        renamed = _renamed(store, [keys[index] for index in missing.tolist()])
        raise DatasetError(
            f"{store.path} has no logits for {missing.size} of the {len(rows)} {where}, first "
            f"{keys[missing[0]]}.{renamed} The store was made from {store.manifest.dataset}; "
            "use that dataset, or make a store for this one."
        )
    return rows


def _renamed(store: LogitStore, keys: Sequence[str]) -> str:
    """Return how many of the samples that a store lacks have the name of one that it has, but for its ending."""
    if not knows_pixels(store):
        return ""
    found = np.zeros(len(keys), dtype=bool)
    stems = [key.rpartition(".")[0] for key in keys]
    for ending in _ENDINGS:
        found |= find_ids(ids_of(stem + ending for stem in stems), store.sample_ids) >= 0
    count = int(found.sum())
    return f" {count:,} have the names of others but for the ending: same names, other pixels." if count else ""


def covered(stores: Sequence[LogitStore], dataset: Dataset) -> Dataset:
    """Return the samples of a dataset that all stores have logits for; the dataset itself if they have all.

    Raises:
        DatasetError: they have none in common, or some of the others are images of theirs that were saved again with
            other pixels.
    """
    there = np.ones(len(dataset), dtype=bool)
    for store in stores:
        rows = find_ids(dataset.sample_ids, store.sample_ids)
        absent = np.flatnonzero(rows < 0)
        if len(absent) == len(rows) or _renamed(store, [dataset.keys[index] for index in absent.tolist()]):
            join(store, dataset)
        there &= rows >= 0
    if not there.any():
        raise DatasetError(f"no '{dataset.split}' sample of {dataset.spec} has logits in all {len(stores)} stores.")
    return dataset if there.all() else dataset.subset(np.flatnonzero(there))


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
        how = " (same names, other pixels)" if knows_pixels(store) else ""
        raise DatasetError(
            f"{len(changed)} samples of {dataset.spec} have changed since {store.path} was made{how}, first "
            f"{changed[0]}. Restore them, or make a new store."
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


def knows_pixels(store: LogitStore) -> bool:
    """Return whether a store has digests of pixels, so that images that were saved again are recognized."""
    return any(each.read_pixels is not None for each in store.segments)


def changed_content(store: LogitStore, dataset: Dataset, rows: npt.NDArray[np.int64]) -> list[str]:
    """Return the keys of the samples whose image has changed since the teacher's pass; see ``differing``."""
    return [dataset.keys[index] for index in np.flatnonzero(differing(store, dataset, rows)).tolist()]


def verify_data(
    store: LogitStore, dataset: Dataset, *, complete: bool = False, say: Callable[[str], object] = lambda _: None
) -> list[str]:
    """Check that a dataset has samples of the store, unchanged, and the teacher's pixels; return a few faults.

    Samples that were moved are recognized by their content. ``say`` is called with what is no fault: other labels,
    samples that the dataset lacks, unless it must be ``complete``. One without any is a fault.
    """
    faults = []
    dataset = with_store_ids(store, dataset)
    shared = np.flatnonzero(find_ids(dataset.sample_ids, store.sample_ids) >= 0)
    absent, more = store.num_samples - len(shared), len(dataset) - len(shared)
    if absent:
        line = f"{absent:,} of the {store.num_samples:,} '{store.split}' samples are not in {dataset.spec}"
        if store.manifest.hides_names:
            return [f"its '{store.split}' samples have hidden names, which cannot be compared with {dataset.spec}"]
        if complete or not len(shared):
            faults.append(line)
        else:
            others = f", and {more:,} of its {len(dataset):,} {'is' if more == 1 else 'are'} not in the store"
            say(f"{line}{others if more else ''}.")
    if not len(shared):
        return faults
    dataset = dataset.subset(shared) if more else dataset
    rows = join(store, dataset)
    for line in remarks(store, dataset, rows):
        say(line)
    changed = changed_content(store, dataset, rows)
    if len(changed) > tree.SHOWN:
        faults.append(
            f"{len(changed):,} of {len(dataset):,} '{store.split}' samples have changed since it was made "
            f"(same names, other {'pixels' if knows_pixels(store) else 'content'}), first {changed[0]}"
        )
    else:
        faults += [f"{key}: its content has changed" for key in changed]
    missing = lacking(store, dataset)
    if missing:
        return [*faults, f"{missing} samples that are mixed into those of {dataset.spec} are not in it"]
    drifted = drift(store, dataset, rows)
    return faults if drifted is None else [*faults, str(drifted)]


def _listed(names: tuple[str, ...]) -> str:
    first = ", ".join(names[:4])
    return f"{first}, … ({len(names)} in all)" if len(names) > 4 else first
