"""Sources of soft targets: a store, or a teacher in the loop; and the teacher passes that a store saves."""

from __future__ import annotations

import math
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from kdpipe.dataset import Dataset
from kdpipe.distil.losses import Loss
from kdpipe.errors import UnsupportedLossError
from kdpipe.store.blocks import Pool, windows
from kdpipe.store.planes import Plane
from kdpipe.store.reader import LogitStore
from kdpipe.training.batches import Signals
from kdpipe.views import Recipe, Renderer


@dataclass(frozen=True)
class Savings:
    """Trainings from a store, compared with the same trainings with a live teacher."""

    epochs: int
    """Teacher passes over the training samples that each student saved."""
    samples: int
    seconds: float
    """Duration of one student's passes at the speed of the cache."""
    store_seconds: float
    """Duration of the teacher pass that filled the store."""
    students: int = 1
    """Students that were trained to their end."""
    unit: str = "images"
    """The word for several samples."""

    @property
    def passes(self) -> int:
        """Teacher passes that all students saved."""
        return self.students * self.epochs

    @property
    def pays_from(self) -> int:
        """Number of such students after which the store breaks even."""
        return math.ceil(self.store_seconds / self.seconds)

    def __str__(self) -> str:
        """Return one line for a person."""
        each = "" if self.students == 1 else f" ({self.epochs} for each of {self.students} students)"
        return (
            f"Saved {self.passes} passes of the teacher over {self.samples:,} {self.unit}{each}, about "
            f"{self.students * self.seconds:.0f} s at the speed of its cache; that took {self.store_seconds:.0f} s and "
            f"breaks even after {self.pays_from} such student{'s' * (self.pays_from > 1)}."
        )


def savings(store: LogitStore, *, samples: int, epochs: int, students: int = 1, unit: str = "images") -> Savings | None:
    """Compare ``epochs`` of each of ``students`` on ``samples`` with the teacher pass that filled the store.

    Returns ``None`` where its duration is unknown.
    """
    seconds = store.manifest.about.get("seconds")
    if not isinstance(seconds, int | float) or seconds <= 0 or store.manifest.fingerprint.precision == "imported":
        return None
    rows = sum(split.samples * split.planes for split in store.manifest.splits.values())
    return Savings(epochs, samples, epochs * samples * seconds / rows, seconds, students, unit)


class CachedTargets:
    """Soft targets from a store whose planes fit in memory; the next plane is decoded during an epoch."""

    renderer = None

    def __init__(self, store: LogitStore, rows: npt.NDArray[np.int64]) -> None:
        """Serve a dataset whose sample ``i`` is the store's row ``rows[i]``; see ``soft_targets``."""
        self._store = store
        self._rows = torch.from_numpy(rows)
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="kdpipe-plane")
        self._coming: dict[int, Future[Plane]] = {}
        self._plane: Plane | None = None

    def start_epoch(self, view: int, next_view: int | None) -> None:
        """Wait for the view's plane and begin to decode the next one."""
        wanted = self._coming.pop(view, None) or self._executor.submit(self._store.codes, view)
        self._plane = wanted.result()
        self._coming.clear()
        if next_view is not None and next_view != view:
            self._coming[next_view] = self._executor.submit(self._store.codes, next_view)

    def order(self, samples: npt.NDArray[np.int64], *, data_seed: int, epoch: int) -> None:
        """Return ``None``: any order will do."""

    def skip(self, samples: int) -> None:
        """Do nothing: no order is kept."""

    def logits(self, indices: npt.NDArray[np.int64], pixels: torch.Tensor) -> torch.Tensor:
        """Gather and decode the rows of a batch."""
        return self.take(indices, pixels)[0]

    def take(self, indices: npt.NDArray[np.int64], pixels: torch.Tensor) -> tuple[torch.Tensor, Signals]:
        """Gather and decode the rows of a batch, with the signals that the store was opened with."""
        assert self._plane is not None
        return _decoded(self._plane.take(self._rows[torch.from_numpy(indices)]), pixels.device)


class WindowedTargets:
    """Soft targets from a store whose planes do not fit in memory, in the order of ``blocks.windows``."""

    renderer = None

    def __init__(self, store: LogitStore, rows: npt.NDArray[np.int64]) -> None:
        """Serve a dataset whose sample ``i`` is the store's row ``rows[i]``."""
        self._store, self._rows = store, rows
        self._view = 0
        self._parts: list[npt.NDArray[np.int64]] = []
        self._pool: Pool | None = None

    def start_epoch(self, view: int, next_view: int | None) -> None:
        """Set the view; files of the next one that are not here are fetched meanwhile."""
        self._view = view
        if next_view is not None:
            self._store.expect(next_view)

    def order(self, samples: npt.NDArray[np.int64], *, data_seed: int, epoch: int) -> npt.NDArray[np.int64]:
        """Draw the epoch's windows and begin to decode them."""
        parts = windows(self._store, self._rows[samples], data_seed=data_seed, epoch=epoch)
        self._parts = [samples[part] for part in parts]
        self._open(self._parts)
        return np.concatenate(self._parts)

    def skip(self, samples: int) -> None:
        """Start at the window of the sample after these."""
        ends = np.cumsum([len(part) for part in self._parts])
        number = int(np.searchsorted(ends, samples, side="right"))
        if number < len(self._parts):
            used = len(self._parts[number]) - int(ends[number] - samples)
            self._open([self._parts[number][used:], *self._parts[number + 1 :]])

    def _open(self, parts: list[npt.NDArray[np.int64]]) -> None:
        if self._pool is not None:
            self._pool.close()
        self._pool = Pool(self._store, self._rows, parts, view=self._view)

    def logits(self, indices: npt.NDArray[np.int64], pixels: torch.Tensor) -> torch.Tensor:
        """Decode the next rows of the windows, which must be those of the batch."""
        return self.take(indices, pixels)[0]

    def take(self, indices: npt.NDArray[np.int64], pixels: torch.Tensor) -> tuple[torch.Tensor, Signals]:
        """Decode the next rows, with the signals that the store was opened with."""
        assert self._pool is not None
        return _decoded(self._pool.take(indices), pixels.device)


def _decoded(rows: Plane, device: torch.device) -> tuple[torch.Tensor, Signals]:
    return rows.logits(slice(None), device), rows.signals(slice(None), device)


def soft_targets(store: LogitStore, rows: npt.NDArray[np.int64]) -> CachedTargets | WindowedTargets:
    """Return soft targets from ``store`` for a dataset whose sample ``i`` is its row ``rows[i]``, as memory allows."""
    return CachedTargets(store, rows) if store.fits else WindowedTargets(store, rows)


class LiveTargets:
    """Soft targets from a teacher that is run on every batch."""

    def __init__(self, forward: TeacherForward, renderer: Renderer | None) -> None:
        """Call ``forward`` on pixels of ``renderer``; ``None`` where its input is that of all students."""
        self.renderer = renderer
        self._forward = forward

    def start_epoch(self, view: int, next_view: int | None) -> None:
        """Do nothing."""

    def order(self, samples: npt.NDArray[np.int64], *, data_seed: int, epoch: int) -> None:
        """Return ``None``: any order will do."""

    def skip(self, samples: int) -> None:
        """Do nothing: no order is kept."""

    def logits(self, indices: npt.NDArray[np.int64], pixels: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        """Run the teacher on the batch."""
        return self._forward(pixels).clone()

    def take(self, indices: npt.NDArray[np.int64], pixels: torch.Tensor) -> tuple[torch.Tensor, Signals]:
        """Run the teacher on the batch, without signals."""
        return self.logits(indices, pixels), {}


def refuse_unsupported(store: LogitStore, loss: Loss, temperature: float | None = None) -> None:
    """Refuse losses that need what the store's encoding does not keep; ``temperature`` is the largest of the training.

    Raises:
        UnsupportedLossError: a loss reads the teacher at a temperature above the one that the encoding is made for, or
            depends on the logits of unlikely classes.
    """
    limit, wanted = store.encoding.max_temperature, loss.at(temperature).teacher_temperature
    if limit is None or (wanted is not None and wanted <= limit):
        return
    kept = f"{store.path} keeps its logits as {store.encoding.name}, which serves temperatures up to {limit:g}"
    if wanted is None:
        raise UnsupportedLossError(
            f"{kept}; the loss {loss} depends on the logits of unlikely classes at any temperature. Use a store with "
            "--encoding fp16 or fp32, or another loss, such as kd."
        )
    lowest = loss.at(limit).teacher_temperature if loss.takes_temperature else limit
    lower = f"a temperature of {limit:g} or less" if lowest is not None and lowest <= limit else "another loss"
    raise UnsupportedLossError(
        f"{kept}; the loss {loss} needs {wanted:g}. Use {lower}, or a store with --encoding sqrtp8@{wanted:g} or fp16."
    )


def refuse_unlabeled(loss: Loss, dataset: Dataset, recipe: Recipe) -> None:
    """Refuse losses that read labels where samples have none, or two of them.

    Raises:
        UnsupportedLossError: the recipe mixes samples, or no sample has a label.
    """
    if not loss.needs_label:
        return
    if recipe.mixes:
        raise UnsupportedLossError(
            f"the loss {loss} needs one true class per image; the recipe {recipe} mixes two. Use a loss without "
            "labels, such as kd, or a store without mixup and cutmix."
        )
    if (dataset.labels < 0).all():
        raise UnsupportedLossError(
            f"the loss {loss} needs labels and {dataset.spec} has none: it would always be 0. Use kd, for example."
        )


class TeacherForward(Protocol):
    """A teacher: rendered uint8 pixels ``(n, 3, H, W)`` to float32 logits ``(n, classes)``."""

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        """Run the teacher."""
