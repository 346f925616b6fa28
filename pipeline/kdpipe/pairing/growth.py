"""A dataset that may have changed since a store was sealed: the samples that the store serves, and those it lacks.

A sample needs a row if the store has none for its id, if its image has changed, or if its recipe mixes another sample
into it whose image was removed or has changed. Renamed images are recognized by content, as in every join.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from kdpipe.dataset import Dataset, find_ids
from kdpipe.dataset.ids import fingerprint
from kdpipe.pairing.join import with_store_ids
from kdpipe.pairing.probes import Drift, drift, stored_recipe
from kdpipe.pairing.recognition import differing
from kdpipe.store.reader import LogitStore
from kdpipe.store.sections import RowOrder
from kdpipe.store.segments import Segment
from kdpipe.views import Population, permutation

_ORDER_STREAM = 0x0_0DE8
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Standing:
    """The samples of a dataset, compared with those of a store's split."""

    store: LogitStore
    dataset: Dataset
    """With the store's ids of samples that were renamed."""
    renamed: bool
    """Whether there are such samples."""
    rows: npt.NDArray[np.int64]
    """The store's row of each sample, -1 for none, ``(n,)``."""
    changed: Bools
    """Samples whose image has changed, ``(n,)``."""
    unmixed: Bools
    """Unchanged samples with a mixing partner that was removed or has changed, ``(n,)``."""

    @classmethod
    def of(cls, store: LogitStore, dataset: Dataset) -> Standing:
        """Compare a loaded dataset with a store that was made with this version's recipe.

        Raises:
            StaleStoreError: the store's recipe cannot be drawn.
        """
        given, dataset = dataset, with_store_ids(store, dataset)
        rows = find_ids(dataset.sample_ids, store.sample_ids)
        changed = differing(store, dataset, rows)
        unmixed = np.zeros(len(dataset), dtype=bool)
        same = np.flatnonzero((rows >= 0) & ~changed)
        if stored_recipe(store).mixes and len(same):
            seed = store.manifest.fingerprint.recipe.seed
            population = Population(dataset.subset(same), store.populations, seed=seed)
            unmixed[same] = population.alone(range(1, store.num_views + 1))
        return cls(store, dataset, dataset is not given, rows, changed, unmixed)

    @property
    def served(self) -> Bools:
        """Which samples have a row that fits them, ``(n,)``."""
        return (self.rows >= 0) & ~self.changed & ~self.unmixed

    @property
    def new(self) -> int:
        """Number of samples whose id the store lacks."""
        return int((self.rows < 0).sum())

    @property
    def removed(self) -> int:
        """Number of the store's samples that the dataset lacks."""
        return self.store.num_samples - int((self.rows >= 0).sum())

    @property
    def replaces(self) -> int:
        """Number of the store's rows that newer ones would take the place of."""
        return int((self.changed | self.unmixed).sum())

    @property
    def fresh(self) -> Dataset | None:
        """The samples that need a row, as a dataset of their own; ``None`` if there are none."""
        return None if self.served.all() else alone(self.dataset, np.flatnonzero(~self.served))

    def drift(self) -> Drift | None:
        """Compare the teacher's pixels of the probes among the served samples; see ``probes.drift``."""
        served = np.flatnonzero(self.served & np.isin(self.rows, self.store.probe_rows))
        return drift(self.store, self.dataset.subset(served), self.rows[served]) if len(served) else None

    def __str__(self) -> str:
        """Return what has changed, in one line; nothing if nothing has."""
        parts = {
            "new": self.new,
            "changed": int(self.changed.sum()),
            "removed": self.removed,
            "mixed with images that were removed or have changed": int(self.unmixed.sum()),
        }
        listed = ", ".join(f"{count:,} {what}" for what, count in parts.items() if count)
        return f"{listed} since {self.store.path} was sealed" if listed else ""


def alone(dataset: Dataset, indices: npt.NDArray[np.int64]) -> Dataset:
    """Return some samples as a dataset of their own, in which recipes that mix find their partners."""
    return replace(dataset.subset(indices), origin=None)


def row_order(samples: int, *, seed: int) -> npt.NDArray[np.int64]:
    """Return the dataset's index of each row of a segment whose rows are shuffled; ``seed`` is the recipe's."""
    return permutation(samples, seed=seed, stream=_ORDER_STREAM)


def in_order(dataset: Dataset, order: RowOrder | None, *, seed: int) -> Dataset:
    """Return a dataset in the order of a segment's rows."""
    return dataset if order is None else alone(dataset, row_order(len(dataset), seed=seed))


def by_segment(segments: Iterable[Segment], dataset: Dataset) -> Mapping[str, Dataset] | None:
    """Return the images of each segment as a dataset, by group; ``None`` if some were removed or have changed.

    ``dataset`` has the store's ids; it is returned as it is if it has the samples and the order of a single segment.
    """
    found = {}
    for each in segments:
        if np.array_equal(each.sample_ids, dataset.sample_ids):
            indices = np.arange(len(dataset))
        else:
            indices = find_ids(each.sample_ids, dataset.sample_ids)
        if (indices < 0).any() or (dataset.content_digests[indices] != each.content_digests).any():
            return None
        same = np.array_equal(indices, np.arange(len(dataset)))
        # A dataset with the store's ids of renamed samples still has the fingerprint of its own.
        own = fingerprint(dataset.sample_ids, dataset.content_digests, classes=dataset.classes)
        found[each.name] = dataset if same and own == dataset.fingerprint else alone(dataset, indices)
    return found
