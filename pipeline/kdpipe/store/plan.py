"""Plan of a store, known before the teacher runs: its fingerprint, its splits, and their cut into shards."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kdpipe.encoding.base import Encoding
from kdpipe.encoding.registry import get_encoding, restore_encoding
from kdpipe.errors import CorruptStoreError
from kdpipe.store import arrays
from kdpipe.store.manifest import Manifest, digest_json
from kdpipe.store.sections import (
    PENULTIMATE,
    Choice,
    DerivedFrom,
    Digest,
    File,
    Fingerprint,
    Rendering,
    RowOrder,
    Shape,
    Split,
    array_name,
    recorded,
)
from kdpipe.store.settings import Provenance
from kdpipe.store.tree import CONTENTS, PIXELS


@dataclass(frozen=True)
class Limits:
    """Bounds of a layout."""

    chunk_bytes: int = 2 * 1024**2
    """Approximate bytes of a decoded chunk."""
    shard_bytes: int = 128 * 1024**2
    """Bytes of a shard's codes before compression."""
    shard_rows: int = 65_536
    split_rows: int = 4_096
    """Planes of more rows have at least four shards, so that an interrupted build keeps part of its work."""


LIMITS = Limits()
"""The sizes of format 1."""


@dataclass(frozen=True)
class Layout:
    """Rows per chunk and per shard of one split; the chunk divides the shard."""

    chunk_rows: int
    shard_rows: int

    @classmethod
    def choose(cls, *, samples: int, row_bytes: int, limits: Limits | None = None) -> Layout:
        """Choose a layout for ``samples`` rows of ``row_bytes`` uncompressed bytes, within ``limits`` or ``LIMITS``."""
        limits = limits or LIMITS
        limit = max(1, min(limits.shard_rows, limits.shard_bytes // row_bytes))
        shard = min(limit, -(-samples // 4) if samples > limits.split_rows else samples)
        chunks = -(-shard // max(1, limits.chunk_bytes // row_bytes))
        chunk = -(-shard // chunks)
        if chunk * chunks > limit:
            chunk -= 1
        return cls(chunk_rows=chunk, shard_rows=chunk * chunks)

    def shards(self, samples: int) -> list[tuple[int, int]]:
        """Return the ``(start, stop)`` rows of each shard of a plane."""
        return [(start, min(start + self.shard_rows, samples)) for start in range(0, samples, self.shard_rows)]


@dataclass(frozen=True)
class SplitPlan:
    """The part of a split's segment that is known before the teacher runs."""

    sample_ids: npt.NDArray[np.uint8]
    """``(n, 16)``: BLAKE3-128 of each sample's key."""
    content_digests: npt.NDArray[np.uint8]
    """``(n, 16)``: BLAKE3-128 of each sample's file or pixels."""
    labels: npt.NDArray[np.int32]
    """``(n,)``, -1 for none."""
    planes: int
    """Number of views, the plain one included."""
    probe_rows: npt.NDArray[np.int64]
    """``(p,)``: rows whose rendered pixels are hashed."""
    probe_hashes: npt.NDArray[np.uint64]
    """``(planes, p)``: 64-bit hashes of these pixels."""

    keys: Sequence[str] = ()
    """Keys of the samples, for error messages."""
    replaces: int = 0
    """Rows of the store's earlier segments whose samples are among these."""
    pixel_digests: bool = False
    """Whether digests of the decoded images are written with the shards of the plain view."""

    def side_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return the side arrays by name."""
        return {
            "labels": self.labels,
            "sample_id": self.sample_ids,
            "content_digest": self.content_digests,
            "probe_row": self.probe_rows,
            "probe_hash": self.probe_hashes,
        }


@dataclass(frozen=True)
class Shard:
    """One shard of a plane: rows ``start`` to ``stop - 1`` of a view."""

    split: str
    view: int
    number: int
    start: int
    stop: int
    signals: tuple[str, ...] = ()
    """Names of the signals beside the logits."""
    digests: tuple[str, ...] = ()
    """Names of the digests of its images that come with it: those of pixels, which are written, and of content."""

    @property
    def pixels(self) -> bool:
        """Whether digests of the decoded images are written with it."""
        return PIXELS in self.digests

    @property
    def paths(self) -> tuple[str, ...]:
        """Its files, relative to the store: codes, row maxima and signals, and digests of the decoded images."""
        names = ("codes", "row_max", *map(array_name, self.signals), *((PIXELS,) if self.pixels else ()))
        return tuple(arrays.shard_path(self.split, name, view=self.view, shard=self.number) for name in names)


@dataclass(frozen=True)
class Plan:
    """Everything needed to start or to resume a store."""

    fingerprint: Fingerprint
    teacher_probe: tuple[float, ...]
    dataset: str
    classes: tuple[str, ...]
    splits: dict[str, SplitPlan]
    calibrated: Encoding | None = None
    """The fingerprint's encoding fitted to a pilot of logits; ``None`` if nothing is fitted."""
    choice: Choice | None = None
    """The budget and table that the encoding was chosen by; ``None`` for an encoding by name."""
    signals: Mapping[str, Shape] = field(default_factory=dict)
    """Shape of each signal beside the logits, by name."""
    provenance: Provenance = field(default_factory=Provenance)
    rendering: Rendering | None = None
    """Decoder and trial of the rendered pixels."""
    order: RowOrder | None = None
    """Order of the rows, as in a manifest."""
    derived_from: DerivedFrom | None = None
    """The store that it is derived from, as in a manifest."""
    limits: Limits | None = None
    """Bounds of chunks and shards; ``None`` for those of format 1."""
    unread: bool = False
    """Whether the content of the images is learned in the pass, as in a manifest."""

    @property
    def keys(self) -> dict[str, Sequence[str]]:
        """Keys of the samples by split, for error messages."""
        return {name: split.keys for name, split in self.splits.items()}

    def encoded_by(self, fitted: Encoding, choice: Choice | None) -> Plan:
        """Return the plan with another encoding, and how it was chosen."""
        fingerprint = self.fingerprint.model_copy(update={"encoding": fitted.name})
        return replace(self, fingerprint=fingerprint, calibrated=fitted, choice=choice)

    def manifest(self) -> Manifest:
        """Return the manifest of the store under construction.

        Raises:
            StoreError: a value is beyond the bounds of a manifest.
        """
        with recorded():
            return self._manifest()

    def _manifest(self) -> Manifest:
        chosen = self.calibrated or get_encoding(self.fingerprint.encoding)
        code_bytes = np.dtype(chosen.dtype).itemsize * chosen.width(len(self.classes))
        row_bytes = max([code_bytes, *(2 * math.prod(shape) for shape in self.signals.values())])
        signals = dict(self.signals)
        penultimate = signals.pop(PENULTIMATE, None)
        splits = {}
        for name, split in self.splits.items():
            samples = len(split.sample_ids)
            layout = Layout.choose(samples=samples, row_bytes=row_bytes, limits=self.limits)
            splits[name] = Split(
                samples=samples,
                planes=split.planes,
                chunk_rows=layout.chunk_rows,
                shard_rows=layout.shard_rows,
                probes=len(split.probe_rows),
                replaces=split.replaces,
                pixel_digests=split.pixel_digests,
            )
        return Manifest(
            state="building",
            fingerprint=self.fingerprint,
            classes=self.classes,
            encoding=chosen.describe(),
            splits=splits,
            dataset=self.dataset,
            teacher_probe=self.teacher_probe,
            features=None if penultimate is None else penultimate[0],
            signals=signals,
            provenance=self.provenance,
            rendering=self.rendering,
            choice=self.choice,
            order=self.order,
            unread=self.unread,
            derived_from=self.derived_from,
        )


def planes_of(found: Manifest) -> list[tuple[str, int]]:
    """Return the planes of a store, by group and view."""
    return [(group, view) for group in sorted(found.splits) for view in range(found.splits[group].planes)]


def shards_of(found: Manifest, group: str, view: int) -> list[Shard]:
    """Return the shards of a plane, in order."""
    cut = found.splits[group]
    bounds = Layout(cut.chunk_rows, cut.shard_rows).shards(cut.samples)
    kept = {PIXELS: cut.pixel_digests, CONTENTS: found.unread} if view == 0 else {}
    signals, digests = tuple(found.kept), tuple(name for name, given in kept.items() if given)
    return [Shard(group, view, number, *rows, signals, digests) for number, rows in enumerate(bounds)]


def plane_digests(found: Manifest, files: Mapping[str, File]) -> dict[str, Digest]:
    """Return the digest of each plane's files, as a sealed store has them."""
    return {
        f"{group}/{view}": digest_json(
            [files[path].digest for shard in shards_of(found, group, view) for path in shard.paths]
        )
        for group, view in planes_of(found)
    }


def encoding_of(store: Path, found: Manifest) -> Encoding:
    """Return the encoding of the store at ``store``, calibration included.

    Raises:
        CorruptStoreError: its description is not what an encoding writes.
    """
    try:
        return restore_encoding(found.encoding)
    except CorruptStoreError as error:
        raise CorruptStoreError(f"{store}: {error}") from None
