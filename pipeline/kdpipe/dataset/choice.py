"""Choice of some samples by their ids alone, independent of the order of the others."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def ranks_in_class(ids: npt.NDArray[np.uint8], labels: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
    """Return each sample's rank within its class by the bytes of its id, from 0. No label (-1) is a class, too."""
    order = np.lexsort([*ids.T[::-1], labels])
    grouped = labels[order]
    starts = np.searchsorted(grouped, grouped, side="left")
    ranks = np.empty(len(ids), dtype=np.int64)
    ranks[order] = np.arange(len(ids)) - starts
    return ranks


def balanced_indices(
    ids: npt.NDArray[np.uint8], labels: npt.NDArray[np.int32], *, limit: int | None
) -> npt.NDArray[np.int64]:
    """Return the indices of a fixed, class-balanced subset of at most ``limit`` samples, in dataset order.

    Samples are taken by their rank within their class, then by class, so that a smaller limit gives a subset of a
    larger one. Samples without a label (-1) are a class, too.
    """
    if limit is None or limit >= len(ids):
        return np.arange(len(ids), dtype=np.int64)
    return np.sort(np.lexsort((labels, ranks_in_class(ids, labels)))[:limit]).astype(np.int64)
