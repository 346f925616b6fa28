"""A store without some of its parts, derived without a teacher: for teams that may not give away everything.

    derived = derive(Path("logits.zarr"), work, Withholding(views=4, no_labels=True))

Files whose content stays the same are not copied: ``Derived.files`` has the path of each file of the new store, in the
old one or in ``work``. Where logits are encoded again or ids are hidden, ``reencoding`` builds a store in ``work``,
shard by shard, and continues it after a kill.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kdpipe.encoding.registry import get_encoding
from kdpipe.errors import CorruptStoreError, ParamsError, UnsealedStoreError, did_you_mean
from kdpipe.progress import Progress, silent
from kdpipe.sharing.catalog import means
from kdpipe.sharing.reencoding import Hidden, Source, reencoded
from kdpipe.sharing.settings import Withholding
from kdpipe.store import arrays, manifest, partial, tree
from kdpipe.store.arrays import Spec
from kdpipe.store.manifest import Manifest
from kdpipe.store.plan import encoding_of, plane_digests, shards_of
from kdpipe.store.sections import DerivedFrom, File, Withheld
from kdpipe.store.segments import Segment, read_segments


@dataclass(frozen=True)
class Derived:
    """A sealed store whose files may be in several folders."""

    manifest: Manifest
    files: Mapping[str, Path]
    """The path of each file in ``manifest.files``."""


def derive(
    store: Path, work: Path, asked: Withholding, *, secret: bytes | None = None, progress: Progress = silent
) -> Derived:
    """Return the store at ``store`` without what is withheld; ``work`` is a folder for files that differ.

    ``secret`` are the 32 bytes that ids are keyed by, with ``hide_names``.

    Raises:
        ParamsError: the store lacks what is to be kept, or the encoding does not fit.
        StoreError: the store is not sealed, damaged, or what is in ``work`` is of another store.
    """
    found = manifest.read(store)
    if found.state != "sealed" or found.is_part:
        raise UnsealedStoreError(f"{store} is not sealed: finish its build with the same command, then publish it.")
    partial.refuse(store, found.checksum, what="publishing it")
    faults = [line for lines in manifest.missing_or_resized(store, found).values() for line in lines]
    if faults:
        raise CorruptStoreError(f"{store}: {faults[0]}. Run: kdpipe verify {store}")
    hidden = None
    if asked.hide_names:
        if secret is None or len(secret) != 32:
            raise ParamsError("hide_names needs a secret of 32 bytes.")
        hidden = Hidden(secret)
    kept = _kept(store, found, asked)
    withheld = _withheld(found, kept, asked)
    if hidden is None and _same_codes(found, asked):
        if not withheld:
            return Derived(found, {name: store / name for name in found.files})
        return _without(store, work, found, kept, withheld)
    source = Source(store, found, _segments_of(store, kept, found))
    sealed = reencoded(
        source,
        work,
        kept,
        asked,
        origin=_origin_of(found, withheld),
        recode=not _same_codes(found, asked),
        hidden=hidden,
        progress=progress,
    )
    return Derived(sealed, {name: work / name for name in sealed.files})


def _kept(store: Path, found: Manifest, asked: Withholding) -> Manifest:
    """Return the manifest, still with all files, of the splits, views, signals and labels that are kept."""
    names = found.names if asked.splits is None else asked.splits
    for name in names:
        if name not in found.names:
            raise ParamsError(
                f"{store} has no split '{name}', only {', '.join(found.names)}{did_you_mean(name, found.names)}"
            )
    groups = [group for group in found.splits if tree.segment_of(group)[0] in names]
    splits = {}
    for group in groups:
        cut = found.splits[group]
        if asked.views is not None and tree.segment_of(group)[0] == "train":
            if asked.views >= cut.planes:
                raise ParamsError(f"{store} has {cut.planes - 1} augmented views, not {asked.views}.")
            cut = cut.model_copy(update={"planes": 1 + asked.views})
        splits[group] = cut
    dataset = {group: found.fingerprint.dataset[group] for group in groups if group in found.fingerprint.dataset}
    sources = {} if found.rendering is None else found.rendering.sources
    rendering = found.rendering and found.rendering.model_copy(
        update={"sources": {group: sources[group] for group in groups if group in sources}}
    )
    measured = {
        group: figures
        for group, figures in found.fidelity.items()
        if group in splits and splits[group].planes == found.splits[group].planes
    }
    signals: dict[str, Any] = {"features": None, "signals": {}} if asked.no_signals else {}
    fingerprint = found.fingerprint.model_copy(update={"dataset": dataset})
    changed = {"fingerprint": fingerprint, "splits": splits, "rendering": rendering, "fidelity": measured, **signals}
    return found.model_copy(update=changed)


def _same_codes(found: Manifest, asked: Withholding) -> bool:
    """Return whether the logits stay as they are encoded."""
    if asked.encoding is not None and asked.max_temperature is not None:
        raise ParamsError("give one of --encoding and --max-temperature.")
    if asked.encoding is not None:
        return get_encoding(asked.encoding).name == found.fingerprint.encoding
    serves = get_encoding(found.fingerprint.encoding).max_temperature
    return asked.max_temperature is None or (serves is not None and serves <= asked.max_temperature)


def _withheld(found: Manifest, kept: Manifest, asked: Withholding) -> tuple[Withheld, ...]:
    """Return what is withheld, and what was withheld before, in order."""
    here: dict[Withheld, bool] = {
        "views": any(cut.planes < found.splits[group].planes for group, cut in kept.splits.items()),
        "splits": kept.names != found.names,
        "encoding": not _same_codes(found, asked),
        "signals": kept.kept != found.kept,
        "labels": asked.no_labels,
        "names": asked.hide_names,
    }
    return tuple(each for each, yes in here.items() if yes)


def _origin_of(found: Manifest, withheld: tuple[Withheld, ...]) -> DerivedFrom:
    """Return the entry ``derived_from`` of a store that lacks parts of the one with the manifest ``found``."""
    assert found.digest is not None
    before: tuple[Withheld, ...] = () if found.derived_from is None else found.derived_from.withheld
    measured = found.fidelity_of("train" if "train" in found.names else found.names[0])
    return DerivedFrom(
        digest=found.digest,
        encoding=found.fingerprint.encoding,
        withheld=tuple(dict.fromkeys((*before, *withheld))),
        source_kl={} if measured is None else means(measured),
    )


def _without(store: Path, work: Path, found: Manifest, kept: Manifest, withheld: tuple[Withheld, ...]) -> Derived:
    """Return the store without some of its files, and with other side arrays and metadata where they differ."""
    encoding = encoding_of(store, found)
    segments = _segments_of(store, kept, found)
    if work.is_dir():
        tree.remove(work)
    work.mkdir(parents=True)
    (work / "zarr.json").write_bytes(manifest.document(kept.model_copy(update={"state": "building"})))
    root = arrays.open_root(work, mode="r+")
    paths: dict[str, Path] = {}
    for group, cut in kept.splits.items():
        before, after = (
            arrays.specs(each.splits[group], encoding=encoding, classes=len(found.classes), signals=each.kept)
            for each in (found, kept)
        )
        arrays.create(root.create_group(group), after)
        sides = _side_arrays(segments[group], planes=cut.planes, labels="labels" not in withheld)
        same = {name for name, spec in after.items() if _alike(spec, before[name]) and name not in sides.changed}
        for name, values in sides.values.items():
            if name not in same:
                arrays.member(root, group, name)[...] = values
        for file in arrays.side_files(group, after):
            array = file.split("/")[1]
            described = array == "zarr.json" or (file.endswith("zarr.json") and _alike(after[array], before[array]))
            old = file in found.files and (described or array in same)
            if old or (work / file).is_file():
                paths[file] = store / file if old else work / file
        for view in range(cut.planes):
            paths |= {file: store / file for shard in shards_of(kept, group, view) for file in shard.paths}
    entries = {file: found.files[file] if path.is_relative_to(store) else _entry(path) for file, path in paths.items()}
    entries = dict(sorted(entries.items()))
    changed = {
        "files": entries,
        "planes": plane_digests(kept, entries),
        "derived_from": _origin_of(found, withheld),
    }
    return Derived(kept.model_copy(update=changed).sealed(), {name: paths[name] for name in entries})


def _alike(first: Spec, second: Spec) -> bool:
    return repr(first) == repr(second)  # a fill value of NaN is equal to no other


def _entry(path: Path) -> File:
    return File(size=path.stat().st_size, digest=manifest.digest_file(path))


@dataclass(frozen=True)
class _Sides:
    values: Mapping[str, npt.NDArray[Any]]
    changed: frozenset[str]
    """Names of arrays with other values than before."""


def _side_arrays(segment: Segment, *, planes: int, labels: bool) -> _Sides:
    """Return the side arrays of a segment with fewer planes, or without labels."""
    values: dict[str, npt.NDArray[Any]] = {
        "labels": segment.labels if labels else np.full_like(segment.labels, -1),
        "sample_id": segment.sample_ids,
        "content_digest": segment.content_digests,
        "probe_row": segment.probe_rows,
        "probe_hash": segment.probe_hashes[:planes],
    }
    return _Sides(values, frozenset(() if labels else ("labels",)))


def _segments_of(store: Path, kept: Manifest, found: Manifest) -> dict[str, Segment]:
    """Return the side arrays of the segments that are kept, by group."""
    encoding = encoding_of(store, found)
    segments: dict[str, Segment] = {}
    for split in kept.names:
        specs = {
            group: arrays.specs(found.splits[group], encoding=encoding, classes=len(found.classes))
            for group in found.segments(split)
        }
        segments |= {each.name: each for each in read_segments(store, found, specs)}
    return segments
