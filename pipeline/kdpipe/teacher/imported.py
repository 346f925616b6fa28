"""Logits that were computed elsewhere, as the source of a store."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from kdpipe.dataset import Dataset
from kdpipe.errors import ModelError
from kdpipe.models import Preset
from kdpipe.store.manifest import digest_file, digest_json
from kdpipe.store.sections import Teacher
from kdpipe.store.writer import Builder
from kdpipe.views import permutation

_PILOT_ROWS = 2_048
_PILOT_STREAM = 0x9109
_CHECKED = 1_024
"""Samples that are checked for being logits, not probabilities."""


class Imported:
    """The logits of ``.npy`` files, by split; the files are memory-mapped."""

    device = torch.device("cpu")
    precision = "imported"
    signals: Mapping[str, tuple[int, ...]] = {}

    def __init__(
        self, files: Mapping[str, Path], datasets: Mapping[str, Dataset], *, name: str, preset: Preset, views: int
    ) -> None:
        """Map the files; ``preset`` has the size of the teacher's images.

        The array of ``train`` has shape ``(n, classes)``, or ``(1 + views, n, classes)`` with the plain view first;
        those of other splits ``(n, classes)``. Samples and classes are in the dataset's order.

        Raises:
            ModelError: a file is not an array of floats, has another shape, or holds probabilities.
        """
        self.preset = preset
        self._name = name
        self._planes = {
            split: _open(path, datasets[split], planes=1 + views if split == "train" else 1)
            for split, path in files.items()
        }
        self._digest = digest_json({split: digest_file(path) for split, path in files.items()})

    @property
    def identity(self) -> Teacher:
        """The given name, and a digest of the files' bytes; the number of parameters is unknown, 0."""
        return Teacher(name=self._name, digest=self._digest, preset=self.preset.describe(), parameters=0)

    def probe(self) -> list[float]:
        """Return an empty list: there is no model."""
        return []

    def plane(self, split: str, view: int) -> npt.NDArray[np.floating]:
        """Return the logits of a view as they are in the file, ``(n, classes)``, memory-mapped."""
        plane: npt.NDArray[np.floating] = self._planes[split][view]
        return plane

    def pilot(self, *, seed: int) -> torch.Tensor:
        """Return the logits of up to 2,048 random (sample, view) pairs, float32 ``(n, classes)``."""
        planes = self._planes["train"]
        views, samples = planes.shape[:2]
        drawn = np.sort(permutation(views * samples, seed=seed, stream=_PILOT_STREAM)[:_PILOT_ROWS])
        rows = planes.reshape(views * samples, -1)[drawn].astype(np.float32)
        return torch.from_numpy(rows[permutation(len(rows), seed=seed, stream=_PILOT_STREAM)])


def copy_plane(builder: Builder, split: str, view: int, *, source: Imported, advance: Callable[[int], None]) -> None:
    """Pass the shards of a plane that are not on disk yet to the builder's writer.

    ``advance`` is called with the number of samples of each shard.
    """
    plane = source.plane(split, view)
    for shard in builder.shards(split, view):
        if not builder.is_done(shard):
            builder.submit(shard, torch.from_numpy(plane[shard.start : shard.stop].astype(np.float32)))
        advance(shard.stop - shard.start)


def _open(path: Path, dataset: Dataset, *, planes: int) -> npt.NDArray[np.floating]:
    """Map a file as ``(planes, n, classes)``, and check that its shape, type and values fit the dataset."""
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ModelError(
            f"{path} is not an array in NumPy's .npy format ({error}). Save one with numpy.save."
        ) from None
    if not isinstance(found, np.ndarray) or found.dtype.kind != "f":
        kind = found.dtype if isinstance(found, np.ndarray) else "an archive"
        raise ModelError(f"{path} holds {kind}, expected an array of floats: the logits before any softmax.")
    expected = (planes, len(dataset), len(dataset.classes))
    if found.shape != expected and (planes, *found.shape) != (1, *expected[1:]):
        shape = expected[1:] if planes == 1 else expected
        raise ModelError(
            f"{path} has shape {found.shape}, expected {shape} for the {dataset.split} split of {dataset.spec}"
            f"{'' if planes == 1 else ': the plain view first, then the augmented ones'}. Samples and classes "
            "must be in the dataset's order."
        )
    shaped = found.reshape(expected)
    first = shaped[0, :_CHECKED].astype(np.float64)
    if first.shape[1] > 1 and (first >= 0).all() and np.allclose(first.sum(axis=1), 1, atol=1e-2):
        raise ModelError(
            f"{path} holds probabilities: its rows are not negative and sum to 1. Pass the logits, or the logarithms "
            "of the probabilities; a second softmax would give wrong soft targets."
        )
    return shaped
