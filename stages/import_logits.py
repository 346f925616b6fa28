"""Stage `import-logits`: make a store of logits that someone already has."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import torch

from kdpipe.dataset import Dataset
from kdpipe.encoding.registry import get_encoding
from kdpipe.errors import DatasetError, StaleStoreError, StoreError
from kdpipe.models import AnyPreset, Preset, TensorPreset
from kdpipe.models.interface import Interface
from kdpipe.pairing.growth import row_order
from kdpipe.stages.console import progress, say
from kdpipe.stages.growth import Continued, describe, finish_growth
from kdpipe.stages.settings.storing import ImportLogits
from kdpipe.stages.sources import load_split
from kdpipe.stages.storing import about, check_top1, ordered, report, settle
from kdpipe.stages.teachers import ClassNames, imported_outputs
from kdpipe.store.manifest import read
from kdpipe.store.plan import Plan
from kdpipe.store.writer import build
from kdpipe.teacher.cache import Imported, columns, copy_plane, plan
from kdpipe.teacher.settings import ImportSettings

_COMPARED = 1024
"""Samples of a split whose logits are compared with those of a store that is to grow."""


def run(params: ImportLogits) -> None:
    """Build, resume, grow or confirm the store at ``params.output.out``."""
    view, given = params.view, params.source
    asked = get_encoding(params.encoding.encoding)
    files = {"train": given.logits} | ({} if given.test_logits is None else {"test": given.test_logits})
    datasets = {split: load_split(params.dataset, split) for split in files}
    asked.width(len(datasets["train"].classes))
    classes = ClassNames(given.class_map, given.teacher_classes)
    total = columns(given.logits) or len(datasets["train"].classes)
    outputs = imported_outputs(datasets["train"], classes, total=total, teacher=given.teacher_name)
    source = Imported(
        files,
        datasets,
        name=given.teacher_name,
        preset=_preset(given, datasets["train"]),
        views=view.augmented,
        outputs=outputs,
        total=None if outputs is None else total,
        interface=Interface(outputs=given.outputs),
    )
    scored = "test" if "test" in datasets else "train"
    top1 = check_top1(source.plane(scored, 0), datasets[scored], min_top1=given.min_top1)
    finish_growth(params.output.out, part=None)
    stored, order = ordered(datasets, params, seed=view.seed)
    planned = partial(
        plan,
        recipe=view.recipe,
        seed=view.seed,
        encoding=asked,
        batch_size=1,
        order=order,
        pixel_digests=all(each.in_memory or each.digests_pixels for each in stored.values()),
    )
    if _grown(source, datasets, stored, planned=planned, params=params, scores={f"teacher_{scored}_top1": top1}):
        report(params)
        return
    wanted = planned(source, stored, views=view.augmented)
    wanted = settle(wanted, params, pilot=lambda rows: source.pilot(seed=view.seed, rows=rows))
    with build(params.output.out, wanted, overwrite=params.output.overwrite) as builder:
        builder.memory_limit = params.output.memory_bytes
        if builder.sealed:
            say(f"{params.output.out} is sealed and holds exactly this: nothing to do.")
        else:
            began = time.perf_counter()
            for split, dataset in datasets.items():
                planes = builder.manifest.splits[split].planes
                rows = np.arange(len(dataset)) if order is None else row_order(len(dataset), seed=view.seed)
                with progress(f"importing {split}", total=len(dataset) * planes, unit=dataset.unit) as advance:
                    advance(builder.rows_elsewhere(split))
                    for number in range(planes):
                        copy_plane(
                            builder, split, number, source=source, order=rows, dataset=stored[split], advance=advance
                        )
                    builder.drain()
            work = {"seconds": round(time.perf_counter() - began, 2)}
            sealed = builder.seal(about(work, {f"teacher_{scored}_top1": top1}))
            say(f"{builder.path} sealed, digest {sealed.digest}.")
    report(params)


def _grown(
    source: Imported,
    datasets: Mapping[str, Dataset],
    stored: Mapping[str, Dataset],
    *,
    planned: Callable[..., Plan],
    params: ImportLogits,
    scores: Mapping[str, float | None],
) -> bool:
    """Add the samples that a sealed store of the same teacher lacks; return whether there is such a store.

    ``datasets`` have the order of the files, and ``stored`` that of a new store.

    Raises:
        StaleStoreError: the files have other logits for samples that the store has, and it is not to be overwritten.
    """
    path, began = params.output.out, time.perf_counter()
    try:
        recorded = read(path).fingerprint
    except StoreError:
        return False
    if recorded.precision != source.precision or recorded.teacher.name != source.identity.name:
        return False
    if recorded.teacher == source.identity and all(
        recorded.dataset.get(split) == dataset.fingerprint for split, dataset in stored.items()
    ):
        return False
    source = source.of(recorded.teacher)
    store = Continued.of(params, planned(source, stored, views=params.view.augmented), stored)
    if store is None or store.views != params.view.augmented:
        return False
    place = {split: {key: index for index, key in enumerate(dataset.keys)} for split, dataset in datasets.items()}
    differing, compared = _other_logits(store, source, place)
    if differing:
        if params.output.overwrite:
            return False
        raise StaleStoreError(
            f"{path}: the files have other logits for {differing:,} of {compared:,} compared samples that it has: of "
            "another teacher, or in another order. Rebuild it with --overwrite, or pass --out another path."
        )
    store.say_changes()
    if not store.fresh:
        describe(path, params.provenance, part=None)
        say(f"{path} is sealed and has all of these samples.")
        return True
    _import_fresh(store, source, place, planned=planned, params=params, scores=scores)
    say(f"{path} has grown after {time.perf_counter() - began:.1f} s, digest {read(path).digest}.")
    return True


def _import_fresh(
    store: Continued,
    source: Imported,
    place: Mapping[str, Mapping[str, int]],
    *,
    planned: Callable[..., Plan],
    params: ImportLogits,
    scores: Mapping[str, float | None],
) -> None:
    """Write the segments of the samples that a store lacks; ``place`` is the file's row of each key, by split."""
    with store.building(partial(planned, source), params, part=None) as builder:
        builder.memory_limit = params.output.memory_bytes
        for group, fresh in store.fresh.items():
            planes = builder.manifest.splits[group].planes
            rows = np.array([place[fresh.split][key] for key in fresh.keys], dtype=np.int64)
            with progress(f"importing {group}", total=len(fresh) * planes, unit=fresh.unit) as advance:
                for view in range(planes):
                    copy_plane(builder, group, view, source=source, order=rows, dataset=fresh, advance=advance)
                builder.drain()
        builder.seal(about(builder.work(), scores))


def _other_logits(store: Continued, source: Imported, place: Mapping[str, Mapping[str, int]]) -> tuple[int, int]:
    """Return how many of some samples that a store has are other ones in the files, and how many were compared."""
    differing = compared = 0
    for split, standing in store.standings.items():
        served = np.flatnonzero(standing.served)
        served = np.sort(np.random.default_rng(0).permutation(served)[:_COMPARED])
        at = [place[split][standing.dataset.keys[index]] for index in served.tolist()]
        other = np.zeros(len(served), dtype=bool)
        for view in range(standing.store.num_views + 1):
            logits = torch.from_numpy(source.take(split, view, np.array(at, dtype=np.int64)))
            encoded, known = store.encoding.encode(logits), standing.store.gather(view, standing.rows[served])
            other |= (encoded.codes != known.codes.numpy()).any(axis=1) | (encoded.row_max != known.row_max.numpy())
        differing, compared = differing + int(other.sum()), compared + len(served)
    return differing, compared


def _preset(settings: ImportSettings, train: Dataset) -> AnyPreset:
    """Return the preset of the teacher's images; without a size, that of the dataset."""
    if train.form is not None:
        return TensorPreset(train.form)
    if settings.input_size is None and train.image_size is None:
        raise DatasetError(
            f"{train.spec} has images of different sizes: give --input-size, the side of the teacher's input in pixels."
        )
    side = settings.input_size or min(train.image_size or (0,))
    return Preset(size=side, resize=side, interpolation="bilinear", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
