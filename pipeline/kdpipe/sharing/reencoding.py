"""A store built again from another one without its teacher: in another encoding, or with hidden ids.

The logits are those that the other store decodes to, so the loss is measured against them. A shard is in memory at a
time, besides those that wait to be written. A build that was killed is continued.

Hidden ids are BLAKE3 of the ids, keyed by a secret, and rows are in their order: neither ids nor places tell which
image a row is of. Digests of content and hashes of pixels are left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from blake3 import blake3

from kdpipe.encoding.base import Encoding
from kdpipe.encoding.chooser import choose_encoding, pilot_rows
from kdpipe.encoding.registry import get_encoding
from kdpipe.progress import Progress
from kdpipe.sharing.catalog import means
from kdpipe.sharing.settings import Withholding
from kdpipe.store import manifest
from kdpipe.store.manifest import Manifest
from kdpipe.store.plan import Plan, Shard, SplitPlan, encoding_of
from kdpipe.store.planes import Plane, PlaneReader
from kdpipe.store.sections import Candidate, Choice, DerivedFrom
from kdpipe.store.segments import Segment
from kdpipe.store.tree import PIXELS
from kdpipe.store.writer import Builder, build

HIDDEN = "(hidden)"
"""Name of the dataset of a store with hidden ids."""

_PILOT_ROWS = 2_048
_IN_MEMORY = 1024**3
"""Bytes of a plane below which its rows are reordered in memory; of larger ones, each shard is gathered."""
_TOP = (5, 10, 20, 50, 100)
"""Values of K that are measured for temperature 1."""


@dataclass(frozen=True)
class Source:
    """The store that another one is built from."""

    path: Path
    manifest: Manifest
    segments: Mapping[str, Segment]
    """Those that are kept, by group."""


@dataclass(frozen=True)
class Hidden:
    """The secret that ids are keyed by."""

    secret: bytes
    """32 bytes."""

    def digest(self, content: bytes) -> bytes:
        """Return 16 bytes that nobody can compute or compare without the secret."""
        return blake3(content, key=self.secret).digest(length=16)

    def ids(self, ids: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Return the hidden ids of ids ``(n, 16)``."""
        joined = b"".join(self.digest(each.tobytes()) for each in ids)
        return np.frombuffer(joined, dtype=np.uint8).reshape(-1, 16)


def reencoded(
    source: Source,
    work: Path,
    kept: Manifest,
    asked: Withholding,
    *,
    origin: DerivedFrom,
    recode: bool,
    hidden: Hidden | None,
    progress: Progress,
) -> Manifest:
    """Build the store at ``work``, and return its manifest; ``kept`` is the source's without what is withheld.

    With ``recode``, logits are encoded again; otherwise codes are copied.

    Raises:
        ParamsError: no encoding fits.
        StoreError: the source is damaged, or there is another store in ``work``.
    """
    rows = {group: _order(segment, hidden) for group, segment in source.segments.items()}
    fitted, choice = _encoding(source, kept, asked, recode=recode, work=work)
    plan = _plan(source, kept, asked, fitted=fitted, hidden=hidden, rows=rows)
    with build(work, replace(plan, choice=choice, derived_from=origin)) as builder:
        if not builder.sealed:
            total = sum(cut.samples * cut.planes for cut in kept.splits.values())
            with progress("encoding" if recode else "copying", total=total, unit="rows") as done:
                for group, cut in kept.splits.items():
                    reader = _reader(source, group, kept)
                    read_pixels = source.segments[group].read_pixels
                    pixels = None if hidden is not None or read_pixels is None else read_pixels()
                    for view in range(cut.planes):
                        _write(builder, reader, rows[group], pixels, group, view, recode=recode)
                        done(reader.rows)
            builder.seal(source.manifest.about)
        sealed = _described(builder.manifest, kept, origin, recode=recode)
        if sealed != builder.manifest:
            manifest.write(work, sealed)
    return sealed


def _write(
    builder: Builder,
    reader: PlaneReader,
    rows: npt.NDArray[np.int64] | None,
    pixels: npt.NDArray[np.uint8] | None,
    group: str,
    view: int,
    *,
    recode: bool,
) -> None:
    """Write the unfinished shards of a plane, with the digests of decoded images where the store has them."""
    waiting = list(builder.unfinished(group, view))
    whole: Plane | None = None
    if rows is not None and len(waiting) > 1 and reader.rows * reader.row_bytes <= _IN_MEMORY:
        whole = reader.read(view, 0, reader.rows)
    for shard in waiting:
        plane = _taken(reader, shard, rows, whole)
        digests = pixels[shard.start : shard.stop] if shard.pixels and pixels is not None else None
        if recode:
            beside = {} if digests is None else {PIXELS: torch.from_numpy(digests)}
            builder.submit(shard, plane.logits(slice(None)), {**plane.beside, **beside})
        else:
            builder.copy(shard, plane, digests)


def _taken(reader: PlaneReader, shard: Shard, rows: npt.NDArray[np.int64] | None, whole: Plane | None) -> Plane:
    """Return the rows of a shard; of a plane in another order, from memory if it is there."""
    if rows is None:
        return reader.read(shard.view, shard.start, shard.stop)
    wanted = rows[shard.start : shard.stop]
    return reader.gather(shard.view, wanted) if whole is None else whole.take(torch.from_numpy(wanted))


def _order(segment: Segment, hidden: Hidden | None) -> npt.NDArray[np.int64] | None:
    """Return the source's row of each row: in the order of the hidden ids, or ``None`` for all as they are."""
    return None if hidden is None else np.lexsort(hidden.ids(segment.sample_ids).T[::-1]).astype(np.int64)


def _reader(source: Source, group: str, kept: Manifest) -> PlaneReader:
    found = source.manifest
    return PlaneReader(source.path, found, {group: None}, encoding_of(source.path, found), beside=tuple(kept.kept))


def _described(sealed: Manifest, kept: Manifest, origin: DerivedFrom, *, recode: bool) -> Manifest:
    """Return the manifest with the loss against the source in its origin; that of copied codes is the source's."""
    if not recode:
        return sealed.model_copy(update={"fidelity": kept.fidelity, "derived_from": origin}).sealed()
    measured = sealed.fidelity_of("train" if "train" in sealed.names else sealed.names[0])
    lost = {} if measured is None else means(measured)
    return sealed.model_copy(update={"derived_from": origin.model_copy(update={"kl": lost})}).sealed()


def _plan(
    source: Source,
    kept: Manifest,
    asked: Withholding,
    *,
    fitted: Encoding,
    hidden: Hidden | None,
    rows: Mapping[str, npt.NDArray[np.int64] | None],
) -> Plan:
    splits = {
        group: _split(source.segments[group], cut.planes, cut.replaces, asked, hidden=hidden, rows=rows[group])
        for group, cut in kept.splits.items()
    }
    dataset, rendering = kept.fingerprint.dataset, kept.rendering
    if hidden is not None:
        dataset = {group: hidden.digest(bytes.fromhex(digest)).hex() for group, digest in dataset.items()}
        rendering = rendering and rendering.model_copy(update={"sources": {}})
    return Plan(
        fingerprint=kept.fingerprint.model_copy(update={"dataset": dataset, "encoding": fitted.name}),
        teacher_probe=kept.teacher_probe,
        dataset=kept.dataset if hidden is None else HIDDEN,
        classes=kept.classes,
        splits=splits,
        calibrated=fitted,
        signals=kept.kept,
        provenance=kept.provenance,
        rendering=rendering,
        order=kept.order if hidden is None else None,
    )


def _split(
    segment: Segment,
    planes: int,
    replaces: int,
    asked: Withholding,
    *,
    hidden: Hidden | None,
    rows: npt.NDArray[np.int64] | None,
) -> SplitPlan:
    labels = np.full_like(segment.labels, -1) if asked.no_labels else segment.labels
    ids, digests, probes = segment.sample_ids, segment.content_digests, segment.probe_rows
    hashes = segment.probe_hashes[:planes]
    if hidden is not None and rows is not None:
        ids, labels, digests = hidden.ids(ids)[rows], labels[rows], np.zeros_like(digests)
        probes, hashes = probes[:0], hashes[:, :0]
    return SplitPlan(
        sample_ids=ids,
        content_digests=digests,
        labels=labels,
        planes=planes,
        probe_rows=probes,
        probe_hashes=hashes,
        replaces=replaces,
        pixel_digests=hidden is None and segment.read_pixels is not None,
    )


def _encoding(
    source: Source, kept: Manifest, asked: Withholding, *, recode: bool, work: Path
) -> tuple[Encoding, Choice | None]:
    """Return the encoding to build with, fitted to a pilot of the source's logits, and how it was chosen.

    It is that of a build that was interrupted, if there is one.
    """
    if (work / "zarr.json").exists():
        begun = manifest.read(work)
        return encoding_of(work, begun), begun.choice
    if not recode:
        return encoding_of(source.path, source.manifest), source.manifest.choice
    if asked.encoding is not None:
        wanted = get_encoding(asked.encoding)
        wanted.width(len(kept.classes))
        if "table" not in wanted.describe():
            return wanted, None
        return wanted.calibrate(_pilot(source, kept, names=[wanted.name])), None
    assert asked.max_temperature is not None
    names = _capped(asked.max_temperature, classes=len(kept.classes))
    temperatures = sorted({min(1.0, asked.max_temperature), asked.max_temperature})
    chosen = choose_encoding(
        _pilot(source, kept, names=names), max_kl=asked.max_kl, temperatures=temperatures, candidates=names
    )
    table = tuple(
        Candidate(name=row.name, bytes_per_sample=row.bytes_per_sample, kl=row.kl, within=row.within)
        for row in chosen.table
    )
    return chosen.encoding, Choice(max_kl=asked.max_kl, temperatures=chosen.temperatures, table=table)


def _capped(temperature: float, *, classes: int) -> list[str]:
    """Return the names of encodings that serve this temperature and no higher one."""
    names = [f"sqrtp{bits}@{temperature:g}" for bits in range(8, 3, -1)]
    names += [f"tailp{bits}@{temperature / 2:g}" for bits in range(8, 1, -1)]
    names += [f"topk{k}" for k in _TOP if temperature == 1 and k < classes]
    for name in names:
        get_encoding(name)
    return names


def _pilot(source: Source, kept: Manifest, *, names: list[str]) -> torch.Tensor:
    """Return the logits of random rows of all views that are kept, float32 ``(n, classes)``."""
    group = "train" if "train" in kept.splits else next(iter(kept.splits))
    reader = _reader(source, group, kept.model_copy(update={"features": None, "signals": {}}))
    planes = kept.splits[group].planes
    count = min(pilot_rows(names, classes=len(kept.classes), least=_PILOT_ROWS), reader.rows * planes)
    random = np.random.default_rng(kept.fingerprint.recipe.seed)
    drawn = random.choice(reader.rows * planes, count, replace=False)
    blocks = []
    for view in range(planes):
        own = np.sort(drawn[drawn // reader.rows == view] % reader.rows)
        if own.size:
            blocks.append(reader.gather(view, own).logits(slice(None)))
    pooled = torch.cat(blocks)
    return pooled[torch.from_numpy(random.permutation(len(pooled)))]
