"""Stage `cache-teacher`: run the teacher once over every view and keep its logits in a store."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, cast

import torch

from kdpipe import models
from kdpipe.dataset import Dataset
from kdpipe.encoding.registry import get_encoding
from kdpipe.errors import StoreError
from kdpipe.models import Preset
from kdpipe.stages.console import progress, say
from kdpipe.stages.growth import Continued, Planner, begun, describe, finish_growth
from kdpipe.stages.provenance import versions
from kdpipe.stages.ranks import refuse_ranks
from kdpipe.stages.settings.storing import CacheTeacher
from kdpipe.stages.sources import load_split, load_test
from kdpipe.stages.storing import check_top1, ordered, report, settle
from kdpipe.stages.teachers import Normalization, load_teacher
from kdpipe.store.manifest import read
from kdpipe.store.tree import segment_of
from kdpipe.store.writer import Builder, build, grow
from kdpipe.teacher.cache import cache_plane, pilot, plan
from kdpipe.teacher.forward import Ensemble, Forward, FrozenTeacher
from kdpipe.teacher.recompute import refuse_unfit
from kdpipe.teacher.settings import brings_weights
from kdpipe.views import Geometry, Recipe, Renderer


def run(params: CacheTeacher) -> None:
    """Build, resume or confirm the store at ``params.output.out``."""
    refuse_ranks("cache-teacher")
    recipe, view = params.view.recipe, params.view
    asked = get_encoding(params.encoding.encoding)
    train = load_split(params.dataset, "train")
    test = load_test(params.dataset, train)
    datasets: Mapping[str, Dataset] = {"train": train} if test is None else {"train": train, "test": test}
    datasets, order = ordered(datasets, params, seed=view.seed)
    asked.width(len(train.classes))
    forward = _teacher(params, train)
    geometry = Geometry.of(forward.preset)
    plain = Renderer(datasets["train"], recipe, seed=view.seed, geometry=geometry, device=forward.device)
    refuse_unfit(forward, plain, name=forward.identity.name)
    planned = partial(
        plan, forward, recipe=recipe, seed=view.seed, encoding=asked, batch_size=params.teacher.batch_size, order=order
    )
    out = params.output.out
    finish_growth(out)
    wanted = planned(datasets, views=view.augmented)
    store = Continued.of(params, wanted, datasets)
    if store is not None:
        store.say_changes()
        grows = bool(store.fresh)
        if grows:
            _grow(store, recipe, params=params, forward=forward, planned=planned)
            store = store.again(datasets)
        segments = store.segments
        if segments is None or (grows and store.views == view.augmented):
            describe(out, params.provenance)
            say(f"{out} is sealed and has all of these samples.")
            report(params)
            return
        if any(segments[name] is not datasets.get(name) for name in segments):
            datasets, wanted = segments, store.whole(planned, segments, views=view.augmented)
    elif (unfinished := begun(out, datasets)) is not None:
        datasets = unfinished.images
        wanted = planned(datasets, views=view.augmented, replaces=unfinished.replaces)
    wanted = settle(wanted, params, pilot=lambda: _pilot(train, recipe, params=params, forward=forward))
    with build(out, wanted, overwrite=params.output.overwrite) as builder:
        if builder.sealed:
            say(f"{out} is sealed and holds exactly this: nothing to do.")
        else:
            _fill(builder, datasets, recipe, params=params, forward=forward)
    report(params)


def _grow(store: Continued, recipe: Recipe, *, params: CacheTeacher, forward: FrozenTeacher, planned: Planner) -> None:
    """Compute the samples that a sealed store lacks, as further segments of it."""
    part = replace(store.growth(planned), provenance=params.provenance)
    with grow(store.path, part, onto=store.found) as builder:
        if not builder.sealed:
            _fill(builder, store.fresh, recipe, params=params, forward=forward, grown=store)


def _teacher(params: CacheTeacher, train: Dataset) -> FrozenTeacher:
    """Load the teacher, or all of them as one that averages."""
    settings = params.teacher
    device = models.resolve_device(settings.device)
    teachers = [
        Forward(
            load_teacher(name, train, given, weights=weights, trust_code=params.code.trust_code),
            device=device,
            precision=settings.precision,
            signals=settings.signals,
        )
        for (name, weights), given in zip(settings.with_weights, _normalizations(params), strict=True)
    ]
    bare = [name for name, weights in settings.with_weights if weights is None and not brings_weights(name)]
    if bare:
        say(f"warning: no --weights; {', '.join(bare)} is randomly initialized unless it loads its own weights.")
    return teachers[0] if len(teachers) == 1 else Ensemble(teachers)


def _normalizations(params: CacheTeacher) -> list[Normalization]:
    """Return what is known of each teacher's images, with the statistics that a store of the same teacher records."""
    settings, out = params.teacher, params.output.out
    given = Normalization(settings.mean, settings.std, settings.input_size, settings.statistics is not None)
    recorded: list[dict[str, Any]] = []
    if given.of_data and not params.output.overwrite:
        with suppress(StoreError):
            preset = read(out).fingerprint.teacher.preset
            recorded = cast(list[dict[str, Any]], preset.get("members", [preset]))
    if len(recorded) != len(settings.teacher):
        return [given] * len(settings.teacher)
    return [replace(given, recorded=Preset.parse(each), recorded_in=out) for each in recorded]


def _pilot(train: Dataset, recipe: Recipe, *, params: CacheTeacher, forward: FrozenTeacher) -> torch.Tensor:
    geometry = Geometry.of(forward.preset)
    renderer = Renderer(train, recipe, seed=params.view.seed, geometry=geometry, device=forward.device)
    return pilot(
        forward, renderer, views=params.view.augmented, seed=params.view.seed, batch_size=params.teacher.batch_size
    )


def _fill(
    builder: Builder,
    datasets: Mapping[str, Dataset],
    recipe: Recipe,
    *,
    params: CacheTeacher,
    forward: FrozenTeacher,
    grown: Continued | None = None,
) -> None:
    """Compute what is missing and seal the store; ``grown`` is that whose further segments these are."""
    began = time.perf_counter()
    geometry = Geometry.of(forward.preset)
    renderers = {
        split: Renderer(dataset, recipe, seed=params.view.seed, geometry=geometry, device=forward.device)
        for split, dataset in datasets.items()
    }
    scored = "test" if "test" in datasets else "train"
    say(f"{forward.identity.name} on {forward.device}: the plain {scored} view first.")
    known: dict[str, float | None] = {} if grown is not None else {"teacher_test_top1": None}
    for split in sorted(datasets):
        samples, planes = len(datasets[split]), builder.manifest.splits[split].planes
        with progress(f"caching {split}", total=samples * planes) as advance:
            for view in range(planes):
                cache_plane(
                    builder,
                    split,
                    view,
                    forward=forward,
                    renderer=renderers[split],
                    batch_size=params.teacher.batch_size,
                    advance=advance,
                )
            builder.drain()
        if segment_of(split) == ("test", 0):
            test, logits = datasets["test"], builder.plane("test", 0)
        elif segment_of(split)[0] == "test" and grown is not None:
            test, logits = grown.standings["test"].dataset, grown.test_logits(builder)
        else:
            continue
        known["teacher_test_top1"] = check_top1(logits, test, min_top1=params.teacher.min_top1)
    seconds = time.perf_counter() - began
    sealed = builder.seal(
        {
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": round(seconds, 2),
            "versions": dict(versions()),
            **known,
        }
    )
    say(f"{builder.path} sealed after {seconds:.1f} s, digest {sealed.digest}.")
