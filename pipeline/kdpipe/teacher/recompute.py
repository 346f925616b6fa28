"""Ask the teacher again about some rows of a store, and say whether it still answers what the store holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from kdpipe.dataset import Dataset
from kdpipe.encoding.fidelity import kl
from kdpipe.pairing.join import join
from kdpipe.pairing.probes import replay
from kdpipe.store.reader import LogitStore
from kdpipe.teacher.forward import FrozenTeacher
from kdpipe.views import Geometry

TOLERANCES = {"fp32": 1e-4, "fp16": 1e-2, "bf16": 5e-2}
"""How much the logits of equal teachers may differ between batch sizes, by the precision of the pass.

Relative to the mean distance of a logit from its row's maximum. On one CPU a resnet20 stays below 1e-6.
"""
OTHER_DEVICE = 10
"""How many times as much they may differ on another type of device, whose resize may differ in a pixel's last bit."""


@dataclass(frozen=True)
class Difference:
    """How recomputed logits differ from the ones that a store decodes to."""

    rows: int
    """Pairs of sample and view that were compared."""
    largest: float
    """Largest absolute difference of a logit, encoding loss included."""
    mean: float
    """Mean absolute difference."""
    kl: float
    """Mean KL of the store's from the recomputed, at temperature 1."""
    unexplained: float
    """Mean difference beyond the one that encoding the recomputed logits makes, relative as in ``TOLERANCES``."""
    tolerance: float
    """The largest ``unexplained`` that an equal teacher may have."""

    @property
    def explained(self) -> bool:
        """Whether the encoding and the arithmetic explain the difference."""
        return self.unexplained <= self.tolerance


def recompute(
    stores: Mapping[str, LogitStore],
    datasets: Mapping[str, Dataset],
    forward: FrozenTeacher,
    *,
    rows: int,
    seed: int,
) -> Difference:
    """Run the teacher on ``rows`` random pairs of sample and view and compare with what the store holds of them.

    ``stores`` are the splits of one store, ``datasets`` the same splits of its dataset; the samples that both have are
    drawn from, all pairs alike, without repetition.

    The measure is per logit: by how much the stored one is farther from the recomputed one than that one is from itself
    encoded and decoded. A logit that falls on the other side of a rounding step counts next to nothing.
    """
    shared = {split: _shared(stores[split], datasets[split]) for split in stores}
    planes = [(split, view) for split, store in stores.items() for view in range(store.num_views + 1)]
    ends = np.cumsum([len(shared[split][1]) for split, _ in planes])
    drawn = np.sort(np.random.default_rng(seed).choice(ends[-1], size=min(rows, int(ends[-1])), replace=False))
    plane_of = np.searchsorted(ends, drawn, side="right")
    said, held = [], []
    for number in np.unique(plane_of):
        split, view = planes[number]
        dataset, positions = shared[split]
        indices = drawn[plane_of == number] - (ends[number] - len(positions))
        renderer = replay(stores[split], dataset, geometry=Geometry.of(forward.preset), device=forward.device)
        said.append(forward(renderer(indices, view)).cpu())
        held.append(stores[split].gather(view, positions[indices]).logits(slice(None)))
    return _compare(next(iter(stores.values())), torch.cat(said), torch.cat(held), device=forward.device)


def _compare(store: LogitStore, said: torch.Tensor, held: torch.Tensor, *, device: torch.device) -> Difference:
    encoded = store.encoding.encode(said)
    codes, row_max = torch.from_numpy(encoded.codes), torch.from_numpy(encoded.row_max)
    explained = (store.encoding.decode(codes, row_max, said.shape[1]) - said).abs()
    difference = (held - said).abs()
    fingerprint = store.manifest.fingerprint
    scale = (said.amax(dim=1, keepdim=True) - said).mean()
    return Difference(
        rows=len(said),
        largest=float(difference.max()),
        mean=float(difference.mean()),
        kl=float(kl(said, held, 1.0).mean()),
        unexplained=float((difference - explained).clamp(min=0).mean() / scale.clamp(min=1e-6)),
        tolerance=TOLERANCES[fingerprint.precision] * (1 if device.type == fingerprint.device else OTHER_DEVICE),
    )


def _shared(store: LogitStore, dataset: Dataset) -> tuple[Dataset, npt.NDArray[np.int64]]:
    """Return the samples that the store has, and its row of each."""
    known = {bytes(sample_id) for sample_id in store.sample_ids}
    both = dataset.subset([index for index, sample_id in enumerate(dataset.sample_ids) if bytes(sample_id) in known])
    return both, join(store, both)
