"""Certainty: how sure a store's teacher is of the class of each sample, over the views that the store has."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kdpipe.pairing.probes import stored_recipe
from kdpipe.store.reader import LogitStore

_BLOCK = 16_384
"""Rows whose probabilities are in memory as float64 at a time."""


def margins(store: LogitStore, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Return the difference between the two largest mean probabilities of each row, 0..1, float64 ``(n,)``.

    The mean is over the augmented views, at temperature 1: what the teacher believes of a sample, by Monte Carlo. With
    a recipe that mixes images, or without augmented views, it is that of the plain view. A single class has a margin of
    1.

    Raises:
        StaleStoreError: the recipe of the store is unknown.
    """
    plain = store.num_views == 0 or stored_recipe(store).mixes
    views = [0] if plain else list(range(1, store.num_views + 1))
    found = np.ones(len(rows))
    order = np.argsort(rows, kind="stable")  # a store is read faster in its own order
    for start in range(0, len(rows), _BLOCK):
        block = order[start : start + _BLOCK]
        mean = sum(_probabilities(store.logits(rows[block], view)) for view in views) / len(views)
        if store.num_classes > 1:
            largest = np.partition(mean, -2, axis=1)
            found[block] = largest[:, -1] - largest[:, -2]
    return found


def _probabilities(logits: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    values = logits.astype(np.float64)
    powers = np.exp(values - values.max(axis=1, keepdims=True))
    found: npt.NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
    return found
