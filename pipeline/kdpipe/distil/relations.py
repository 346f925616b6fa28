"""Relations between the classes of a store: cosines between what its teacher said of each class on average.

The loss ``wkd`` moves probability between classes, which is cheap among related ones. They are computed once, when a
training starts, from the plain view of the training samples in the store; no teacher is needed.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from kdpipe.errors import UnsupportedLossError
from kdpipe.models.signals import FEATURES, PENULTIMATE
from kdpipe.store.reader import LogitStore

_ROWS = 8192
"""Rows that are decoded at once."""


def class_relations(
    store: LogitStore, rows: npt.NDArray[np.int64], labels: npt.NDArray[np.integer], *, features: bool = False
) -> torch.Tensor:
    """Return the cosine between the mean vectors of two classes for all of them, float32 ``(classes, classes)``.

    The vectors are the logits of the store's ``rows``, each minus its mean, or with ``features`` the penultimate
    features. ``labels`` are the classes of these rows, -1 for none. A class without a labeled row is related to none.

    Raises:
        UnsupportedLossError: the store keeps no penultimate features.
    """
    wanted = f"{FEATURES}:{PENULTIMATE}"
    if features and wanted not in store.signals:
        raise UnsupportedLossError(
            f"the loss wkd:features=true relates classes by {wanted}, which {store.path} does not keep. Leave features "
            f"out to relate them by their logits, or make a store with: kdpipe cache-teacher --signals {wanted}"
        )
    known = np.flatnonzero(labels >= 0)
    known = known[np.argsort(rows[known], kind="stable")]  # the order in which chunks are read
    total = torch.zeros(store.num_classes, 0, dtype=torch.float64)
    for start in range(0, len(known), _ROWS):
        part = known[start : start + _ROWS]
        if features:
            vectors = torch.from_numpy(store.signal(wanted, rows[part])).double()
        else:
            vectors = store.gather(0, rows[part]).logits(slice(None)).double()
            vectors = vectors - vectors.mean(dim=1, keepdim=True)
        if not total.shape[1]:
            total = torch.zeros(store.num_classes, vectors.shape[1], dtype=torch.float64)
        total.index_add_(0, torch.from_numpy(labels[part].astype(np.int64)), vectors)
    units = F.normalize(total, dim=1)  # a sum points where the mean does
    return (units @ units.T).clamp(-1, 1).fill_diagonal_(1).float()
