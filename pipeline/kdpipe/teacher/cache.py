"""The teacher pass: logits of every view of every sample, shard by shard, into a store.

They are computed by a frozen teacher, or copied from files (``Imported``) where they were computed elsewhere.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from copy import copy
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from kdpipe.dataset import Dataset
from kdpipe.dataset.ids import names_fingerprint
from kdpipe.encoding.base import Encoding
from kdpipe.errors import ModelError
from kdpipe.models import AnyPreset
from kdpipe.models.interface import Interface, logarithms
from kdpipe.pairing.probes import probe_hashes, probe_rows, rendering
from kdpipe.store.manifest import digest_file, digest_json
from kdpipe.store.plan import Plan, Shard, SplitPlan
from kdpipe.store.sections import Fingerprint, RowOrder, Teacher, recorded
from kdpipe.store.sections import Recipe as StoredRecipe
from kdpipe.store.tree import CONTENTS, PIXELS, segment_of
from kdpipe.store.writer import Builder
from kdpipe.teacher.classes import Outputs, combine
from kdpipe.teacher.forward import FrozenTeacher, LogitSource
from kdpipe.views import Geometry, Recipe, Renderer, permutation
from kdpipe.views.rendering import Looked

PILOT_ROWS = 2_048
"""Rows of a pilot, unless the encoding needs more."""
_PILOT_STREAM = 0x9107


def plan(
    source: LogitSource,
    datasets: Mapping[str, Dataset],
    *,
    recipe: Recipe,
    seed: int,
    views: int,
    encoding: Encoding,
    batch_size: int,
    replaces: Mapping[str, int] | None = None,
    order: RowOrder | None = None,
    pixel_digests: bool = False,
    unread: bool = False,
) -> Plan:
    """Return the plan of a store: what it must hold of this source's logits for these datasets.

    ``datasets`` are by split, or by segment of a split, such as ``train.1``; those of ``train`` get ``views`` augmented
    views, the others the plain view only. ``replaces`` are the earlier rows that a segment replaces, and ``order`` is
    that of the datasets' samples. ``pixel_digests`` are kept of images that are decoded for the pass.
    With ``unread``, their content is learned in the pass, too; see ``kdpipe.dataset.learning``.

    Raises:
        StoreError: the teacher's preset, or another ingredient, is beyond the bounds of a manifest.
    """
    geometry = Geometry.of(source.preset)
    probes = {name: probe_rows(dataset) for name, dataset in datasets.items()}
    splits = {}
    for name, dataset in datasets.items():
        planes = 1 + views if segment_of(name)[0] == "train" else 1
        renderer = Renderer(dataset, recipe, seed=seed, geometry=geometry)
        rows = probes[name]
        splits[name] = SplitPlan(
            sample_ids=dataset.sample_ids,
            content_digests=np.zeros_like(dataset.sample_ids) if unread else dataset.content_digests,
            labels=dataset.labels,
            planes=planes,
            probe_rows=rows,
            probe_hashes=probe_hashes(renderer, rows, planes=planes),
            keys=dataset.keys,
            replaces=(replaces or {}).get(name, 0),
            pixel_digests=pixel_digests,
        )
    first = datasets.get("train") or next(iter(datasets.values()))
    with recorded():
        fingerprint = Fingerprint(
            teacher=source.identity,
            dataset={
                name: names_fingerprint(each.sample_ids, classes=each.classes) if unread else each.fingerprint
                for name, each in datasets.items()
            },
            recipe=StoredRecipe(name=str(recipe), version=recipe.version, seed=seed, thresholds=recipe.thresholds),
            encoding=encoding.name,
            precision=source.precision,
            batch_size=batch_size,
            device=source.device.type,
            memory_format=source.memory_format,
        )
    return Plan(
        fingerprint=fingerprint,
        teacher_probe=tuple(source.probe()),
        dataset=first.name,
        classes=first.classes,
        splits=splits,
        calibrated=encoding,
        signals=source.signals,
        order=order,
        unread=unread,
        rendering=rendering(recipe, geometry, datasets, probes),
    )


def pilot(
    forward: FrozenTeacher, renderer: Renderer, *, views: int, seed: int, batch_size: int, rows: int = PILOT_ROWS
) -> torch.Tensor:
    """Return the teacher's logits for up to ``rows`` random (sample, view) pairs, float32 ``(n, classes)`` on the CPU.

    ``seed`` draws the samples, which are distributed over the views 0 to ``views`` in turn: the pilot covers classes
    and views.
    """
    drawn = permutation(len(renderer.dataset), seed=seed, stream=_PILOT_STREAM)[:rows]
    blocks = []
    for view in range(views + 1):
        here = drawn[view :: views + 1]
        batches = [here[start : start + batch_size] for start in range(0, len(here), batch_size)]
        blocks += [forward(pixels).cpu() for pixels in renderer.batches(batches, view)]
    pooled = torch.cat(blocks)
    shuffled = permutation(len(pooled), seed=seed, stream=_PILOT_STREAM + 1)
    return pooled[torch.from_numpy(shuffled)].clone()


def cache_plane(
    builder: Builder,
    split: str,
    view: int,
    *,
    forward: FrozenTeacher,
    renderer: Renderer,
    batch_size: int,
    advance: Callable[[int], None],
    learn: Callable[[npt.NDArray[np.int64], Looked], None] | None = None,
) -> None:
    """Compute the unfinished shards of a plane, and pass them to the builder's writer.

    No batch crosses a shard boundary, so a resumed run computes the same ones. ``advance`` is called with the number
    of samples of each batch, and ``learn`` in the plain view with their rows and what was learned of their images.
    """
    begun: deque[Shard] = deque()
    given: deque[npt.NDArray[np.int64]] = deque()

    def batches() -> Iterator[npt.NDArray[np.int64]]:
        for shard in builder.unfinished(split, view):
            begun.append(shard)
            for rows in _cut(shard.start, shard.stop, batch_size):
                given.append(rows)
                yield rows

    rendered: Iterator[tuple[torch.Tensor, Looked | None]]
    if view == 0 and (builder.manifest.splits[split].pixel_digests or learn is not None):
        rendered = renderer.looks(batches())
    else:
        rendered = ((pixels, None) for pixels in renderer.batches(batches(), view))
    outputs: _Outputs | None = None
    for pixels, looked in rendered:
        outputs, rows = outputs or _Outputs(begun[0].stop - begun[0].start), given.popleft()
        logits, signals = forward.outputs(pixels)
        if looked is not None:
            if learn is not None:
                learn(rows, looked)
            digests = {PIXELS: looked["pixels"], CONTENTS: looked["digest"]}
            signals = {**signals, **{name: torch.from_numpy(digests[name].copy()) for name in begun[0].digests}}
        outputs.add(logits, signals)
        builder.touch()
        advance(len(pixels))
        if outputs.full:
            builder.submit(begun.popleft(), *outputs.take())
            outputs = None


class _Outputs:
    """Logits and signals of the batches of a shard, copied one after the other into memory that is allocated once."""

    def __init__(self, rows: int) -> None:
        self._rows, self._filled = rows, 0
        self._values: dict[str, torch.Tensor] = {}

    @property
    def full(self) -> bool:
        """Whether all rows are there."""
        return self._filled == self._rows

    def add(self, logits: torch.Tensor, signals: Mapping[str, torch.Tensor]) -> None:
        """Add those of the next batch."""
        here = slice(self._filled, self._filled + len(logits))
        self._filled = here.stop
        for name, value in {"": logits, **{each: _storable(each, found) for each, found in signals.items()}}.items():
            if name not in self._values:
                self._values[name] = value.new_empty((self._rows, *value.shape[1:]))
            self._values[name][here] = value

    def take(self) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the logits of all batches, and the signals by name, and forget them."""
        values, self._values = self._values, {}
        return values.pop(""), values


def _storable(name: str, signal: torch.Tensor) -> torch.Tensor:
    """Return a signal in float16, and digests as they are; attention maps are divided by their largest entry.

    Every use normalizes them, and squared activations may exceed float16.
    """
    if name in (PIXELS, CONTENTS):
        return signal
    if name.startswith("attention:"):
        signal = signal / signal.amax((1, 2), keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    return signal.to(torch.float16)


def _cut(start: int, stop: int, size: int) -> list[npt.NDArray[np.int64]]:
    return [np.arange(first, min(first + size, stop)) for first in range(start, stop, size)]


_IMPORTED_STREAM = 0x9109
_ROWS = 4_096
"""Rows whose classes are mapped at once."""
_CHECKED = 1_024
"""Samples that are checked for being logits, not probabilities."""


class Imported:
    """The logits of ``.npy`` files, by split, which are mapped into memory while they are read."""

    device = torch.device("cpu")
    precision = "imported"
    memory_format = None
    signals: Mapping[str, tuple[int, ...]] = {}

    def __init__(
        self,
        files: Mapping[str, Path],
        datasets: Mapping[str, Dataset],
        *,
        name: str,
        preset: AnyPreset,
        views: int,
        outputs: Outputs | None = None,
        total: int | None = None,
        interface: Interface = Interface(),  # noqa: B008 (it is frozen)
    ) -> None:
        """Map the files; ``preset`` has the size of the teacher's images, ``interface`` says whether they are logits.

        Each class is made of ``outputs`` of the teacher's ``total``, where its classes are not those of the dataset.
        The array of ``train`` has shape ``(n, classes)``, or ``(1 + views, n, classes)`` with the plain view first;
        those of other splits ``(n, classes)``. Samples and classes are in the dataset's order.

        Raises:
            ModelError: a file is not an array of floats, has another shape, or holds probabilities, or none where they
                are expected.
        """
        self.preset = preset
        self._name = name
        self._outputs, self._total = outputs, total
        self._interface = interface
        self._files = {
            split: (path, datasets[split], 1 + views if split == "train" else 1) for split, path in files.items()
        }
        for split in files:
            self._planes(split)
        self._digest = digest_json({split: digest_file(path) for split, path in files.items()})

    @property
    def identity(self) -> Teacher:
        """The given name, and a digest of the files' bytes; the number of parameters is unknown, 0."""
        return Teacher(
            name=self._name,
            digest=self._digest,
            preset={**self.preset.describe(), **self._interface.describe()},
            parameters=0,
            class_maps=() if self._outputs is None else (self._outputs,),
        )

    def of(self, teacher: Teacher) -> Imported:
        """Return the same logits as those of a teacher of the same name, whose digest is that of earlier files."""
        found = copy(self)
        found._digest = teacher.digest
        return found

    def probe(self) -> list[float]:
        """Return an empty list: there is no model."""
        return []

    def plane(self, split: str, view: int) -> npt.NDArray[np.floating]:
        """Return the values of a view, ``(n, classes)``, as they are in the file, and mapped into memory anew.

        What was read of it counts as memory of this process for as long as the array is kept. Those of a teacher of
        other classes are an array of the dataset's classes.
        """
        plane: npt.NDArray[np.floating] = self._planes(split)[view]
        if self._outputs is None:
            return plane
        parts = [self._mapped(plane[start : start + _ROWS]) for start in range(0, len(plane), _ROWS)]
        return np.concatenate(parts)

    def take(self, split: str, view: int, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Return the logits of some rows of a view, float32 ``(k, classes)``."""
        return self._mapped(self._planes(split)[view][rows])

    def _mapped(self, logits: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
        values = torch.from_numpy(logits.astype(np.float32))
        if self._interface.outputs == "probabilities":
            values = logarithms(values)
        found: npt.NDArray[np.float32] = (values if self._outputs is None else combine(values, self._outputs)).numpy()
        return found

    def pilot(self, *, seed: int, rows: int = PILOT_ROWS) -> torch.Tensor:
        """Return the logits of up to ``rows`` random (sample, view) pairs, float32 ``(n, classes)``."""
        planes = self._planes("train")
        views, samples = planes.shape[:2]
        drawn = np.sort(permutation(views * samples, seed=seed, stream=_IMPORTED_STREAM)[:rows])
        values = self._mapped(planes.reshape(views * samples, -1)[drawn])
        return torch.from_numpy(values[permutation(len(values), seed=seed, stream=_IMPORTED_STREAM)])

    def _planes(self, split: str) -> npt.NDArray[np.floating]:
        path, dataset, planes = self._files[split]
        return _open(path, dataset, planes=planes, total=self._total, interface=self._interface)


def copy_plane(
    builder: Builder,
    split: str,
    view: int,
    *,
    source: Imported,
    order: npt.NDArray[np.int64],
    dataset: Dataset,
    advance: Callable[[int], None],
) -> None:
    """Pass the unfinished shards of a plane to the builder's writer; ``split`` may be a further segment of one.

    ``order`` is the file's row of each row of the store, and ``dataset`` has the order of the store. ``advance`` is
    called with the number of samples of each shard.
    """
    for shard in builder.unfinished(split, view):
        rows = source.take(segment_of(split)[0], view, order[shard.start : shard.stop])
        beside = {}
        if shard.pixels:
            beside[PIXELS] = torch.from_numpy(dataset.pixel_digests(np.arange(shard.start, shard.stop)))
        builder.submit(shard, torch.from_numpy(rows), beside)
        del rows
        advance(shard.stop - shard.start)


def columns(path: Path) -> int | None:
    """Return the number of columns of a file of logits; ``None`` where it is none."""
    with suppress(OSError, ValueError, EOFError):
        found = np.load(path, mmap_mode="r", allow_pickle=False)
        if isinstance(found, np.ndarray) and found.ndim > 1:
            return int(found.shape[-1])
    return None


def _open(
    path: Path, dataset: Dataset, *, planes: int, total: int | None, interface: Interface
) -> npt.NDArray[np.floating]:
    """Map a file as ``(planes, n, total)``, and check that its shape, type and values fit the dataset."""
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ModelError(
            f"{path} is not an array in NumPy's .npy format ({error}). Save one with numpy.save."
        ) from None
    if not isinstance(found, np.ndarray) or found.dtype.kind != "f":
        kind = found.dtype if isinstance(found, np.ndarray) else "an archive"
        raise ModelError(f"{path} holds {kind}, expected an array of floats: the logits before any softmax.")
    expected = (planes, len(dataset), total or len(dataset.classes))
    if found.shape != expected and (planes, *found.shape) != (1, *expected[1:]):
        shape = expected[1:] if planes == 1 else expected
        raise ModelError(
            f"{path} has shape {found.shape}, expected {shape} for the {dataset.split} split of {dataset.spec}"
            f"{'' if planes == 1 else ': the plain view first, then the augmented ones'}. Samples and classes "
            "must be in the dataset's order; for a teacher of other classes, give --class-map FILE."
        )
    shaped = found.reshape(expected)
    first = shaped[0, :_CHECKED].astype(np.float64)
    sums = (first >= 0).all() and np.allclose(first.sum(axis=1), 1, atol=1e-2)
    if interface.outputs == "probabilities":
        if not sums:
            raise ModelError(f"{path} holds no probabilities that sum to 1: leave out --outputs probabilities.")
    elif first.shape[1] > 1 and sums:
        raise ModelError(
            f"{path} holds probabilities: its rows are not negative and sum to 1. Give --outputs probabilities, which "
            "takes their logarithms, or pass the logits; a second softmax would give wrong soft targets."
        )
    return shaped
