"""Segments of a split: the samples that were cached together, each in its own group.

Segments never change. A sample may have rows in several: the newest counts, and the others are not read any more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kdpipe.store import arrays
from kdpipe.store.arrays import Spec
from kdpipe.store.manifest import Manifest
from kdpipe.store.plan import encoding_of
from kdpipe.store.tree import PIXELS

Rows = npt.NDArray[np.int64]
Ids = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Segment:
    """The side arrays of one segment, and its rows that count."""

    name: str
    """Its group: ``train``, then ``train.1`` and so on."""
    sample_ids: Ids
    content_digests: Ids
    labels: npt.NDArray[np.int32]
    probe_rows: Rows
    probe_hashes: npt.NDArray[np.uint64]
    live: Rows
    """Rows without a newer one in a later segment, in order."""
    read_pixels: Callable[[], Ids] | None = None
    """Reads the digests of the decoded images, ``(N, 16)``; ``None`` where there are none."""

    @property
    def is_whole(self) -> bool:
        """Whether every row counts."""
        return len(self.live) == len(self.sample_ids)

    @property
    def live_probes(self) -> npt.NDArray[np.bool_]:
        """Which of the probes are of rows that count, ``(p,)``."""
        return np.isin(self.probe_rows, self.live)


def read_segments(store: Path, found: Manifest, specs: dict[str, dict[str, Spec]]) -> tuple[Segment, ...]:
    """Read the side arrays of a split's segments; ``specs`` are the arrays of each, the oldest first.

    Raises:
        CorruptStoreError: a file is damaged, or differs from the manifest.
    """
    # Ids first: their file is never absent, so a manifest that claims many samples needs a large file.
    ids = [arrays.read_side(store, found, name, "sample_id", spec["sample_id"]) for name, spec in specs.items()]
    segments = []
    for name, own, live in zip(specs, ids, newest(ids), strict=True):
        sides = {
            side: arrays.read_side(store, found, name, side, specs[name][side])
            for side in ("labels", "content_digest", "probe_row", "probe_hash")
        }
        segments.append(
            Segment(
                name=name,
                sample_ids=own,
                content_digests=sides["content_digest"],
                labels=sides["labels"],
                probe_rows=sides["probe_row"],
                probe_hashes=sides["probe_hash"],
                live=live,
                read_pixels=partial(arrays.read_side, store, found, name, PIXELS, specs[name][PIXELS])
                if PIXELS in specs[name]
                else None,
            )
        )
    return tuple(segments)


def pixel_digests(segments: Sequence[Segment]) -> Ids | None:
    """Return the digest of each decoded image of the rows that count, ``(n, 16)``; zeros where it is unknown.

    ``None`` if no segment has any.

    Raises:
        CorruptStoreError: a file is damaged.
    """
    if all(each.read_pixels is None for each in segments):
        return None
    found = [np.zeros_like(each.sample_ids) if each.read_pixels is None else each.read_pixels() for each in segments]
    return np.concatenate([own[each.live] for own, each in zip(found, segments, strict=True)])


@dataclass(frozen=True)
class Samples:
    """The samples of a split whose store may be under construction."""

    segments: tuple[Segment, ...]

    @classmethod
    def of(cls, store: Path, found: Manifest, split: str) -> Samples:
        """Read the side arrays of a split.

        Raises:
            CorruptStoreError: a file is damaged.
        """
        encoding, classes = encoding_of(store, found), len(found.classes)
        specs = {
            group: arrays.specs(found.splits[group], encoding=encoding, classes=classes)
            for group in found.segments(split)
        }
        return cls(read_segments(store, found, specs))

    @property
    def num_samples(self) -> int:
        """Number of samples."""
        return len(self.sample_ids)

    @property
    def sample_ids(self) -> Ids:
        """``(n, 16)``, of the rows that count."""
        return np.concatenate([each.sample_ids[each.live] for each in self.segments])

    @property
    def content_digests(self) -> Ids:
        """``(n, 16)``."""
        return np.concatenate([each.content_digests[each.live] for each in self.segments])


def newest(ids: Sequence[Ids]) -> list[Rows]:
    """Return the rows of each segment whose sample no later segment has; ``ids`` are theirs, the oldest first."""
    live = [np.arange(len(ids[-1]))]
    later = _keys(ids[-1])
    for own in map(_keys, reversed(ids[:-1])):
        live.append(np.flatnonzero(~np.isin(own, later)))
        later = np.concatenate([own, later])
    return live[::-1]


def populations(segments: Sequence[Segment]) -> tuple[Ids, ...]:
    """Return the ids ``(N, 16)`` among which each segment's mixing partners are, the oldest segment first.

    A sample whose image has changed since has an id of zeros there, which no sample has: its pixels are lost.
    """
    images = [_keys(each.sample_ids, each.content_digests) for each in segments]
    current = np.concatenate([own[each.live] for own, each in zip(images, segments, strict=True)])
    return tuple(
        each.sample_ids if each.is_whole else np.where(np.isin(own, current)[:, None], each.sample_ids, np.uint8(0))
        for own, each in zip(images, segments, strict=True)
    )


def _keys(*parts: Ids) -> npt.NDArray[np.void]:
    """Return rows of bytes, ``(n, ...)`` side by side, as values that can be compared, ``(n,)``."""
    joined = np.ascontiguousarray(np.concatenate(parts, axis=1))
    return joined.view(np.dtype((np.void, joined.shape[1]))).reshape(-1)
