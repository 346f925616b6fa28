"""Stage `cache-teacher`: run the teacher once over every view and keep its logits in a store."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, cast

import numpy as np
import torch

from kdpipe import models
from kdpipe.dataset import Dataset
from kdpipe.encoding.registry import get_encoding
from kdpipe.errors import ParamsError, StoreError
from kdpipe.models import Preset
from kdpipe.pairing.join import as_stored, remarks
from kdpipe.stages.console import aloud, progress, quiet, say
from kdpipe.stages.provenance import versions
from kdpipe.stages.ranks import Ranks, launched
from kdpipe.stages.settings.storing import CacheTeacher
from kdpipe.stages.sources import load_split, load_test
from kdpipe.stages.storing import check_top1, report, settle
from kdpipe.stages.teachers import Normalization, load_teacher
from kdpipe.store.manifest import read
from kdpipe.store.plan import Plan
from kdpipe.store.reader import open_store
from kdpipe.store.writer import Builder, build, build_together
from kdpipe.teacher.cache import cache_plane, pilot, plan
from kdpipe.teacher.forward import Ensemble, Forward, FrozenTeacher
from kdpipe.teacher.recompute import refuse_unfit
from kdpipe.teacher.settings import brings_weights
from kdpipe.views import Geometry, Recipe, Renderer


def run(params: CacheTeacher) -> None:
    """Build, resume or confirm the store at ``params.output.out``, alone or as one of several processes."""
    ranks = launched()
    if ranks is not None and params.output.part is not None:
        raise ParamsError(
            "--part is for processes without torchrun, which deals the shards to its ranks: leave it out."
        )
    if ranks is not None:
        ranks.claim(params.teacher.device)
        if ranks.rank > 0:
            quiet()
    recipe, view = params.view.recipe, params.view
    asked = get_encoding(params.encoding.encoding)
    train = load_split(params.dataset, "train")
    test = load_test(params.dataset, train)
    datasets = _as_stored(params, {"train": train} if test is None else {"train": train, "test": test})
    asked.width(len(datasets["train"].classes))
    forward = _teacher(params, datasets["train"])
    geometry = Geometry.of(forward.preset)
    plain = Renderer(datasets["train"], recipe, seed=view.seed, geometry=geometry, device=forward.device)
    refuse_unfit(forward, plain, name=forward.identity.name)
    wanted = plan(
        forward,
        datasets,
        recipe=recipe,
        seed=view.seed,
        views=view.augmented,
        encoding=asked,
        batch_size=params.teacher.batch_size,
    )
    with _builder(params, ranks, lambda: _settled(wanted, datasets["train"], recipe, params, forward)) as builder:
        if builder.sealed:
            say(f"{params.output.out} is sealed and holds exactly this: nothing to do.")
        else:
            _fill(builder, datasets, recipe, params=params, forward=forward)
    report(params)


def _builder(params: CacheTeacher, ranks: Ranks | None, plan: Callable[[], Plan]) -> AbstractContextManager[Builder]:
    """Return the build of the store: alone, or together with other ranks or parts."""
    output = params.output
    part = output.part if ranks is None else ranks.part
    if part is None:
        return build(output.out, plan(), overwrite=output.overwrite)
    return build_together(output.out, plan, part, overwrite=output.overwrite)


def _settled(wanted: Plan, train: Dataset, recipe: Recipe, params: CacheTeacher, forward: FrozenTeacher) -> Plan:
    # Of several ranks, any may be the first, which alone computes the pilot.
    with aloud():
        return settle(wanted, params, pilot=lambda: _pilot(train, recipe, params=params, forward=forward))


def _as_stored(params: CacheTeacher, datasets: dict[str, Dataset]) -> dict[str, Dataset]:
    """Return the datasets as the store at ``--out`` knows them, where files were only moved or renamed since."""
    found = {}
    for split, dataset in datasets.items():
        found[split] = dataset
        with suppress(StoreError):
            store = open_store(params.output.out, split=split)
            found[split] = as_stored(store, dataset)
            if found[split] is not dataset:
                for line in remarks(store, found[split], np.arange(len(dataset))):
                    say(line)
    return found


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
    builder: Builder, datasets: dict[str, Dataset], recipe: Recipe, *, params: CacheTeacher, forward: FrozenTeacher
) -> None:
    began = time.perf_counter()
    geometry = Geometry.of(forward.preset)
    renderers = {
        split: Renderer(dataset, recipe, seed=params.view.seed, geometry=geometry, device=forward.device)
        for split, dataset in datasets.items()
    }
    scored = "test" if "test" in datasets else "train"
    say(f"{forward.identity.name} on {forward.device}: the plain {scored} view first.")
    top1 = None
    for split in sorted(datasets):
        total = len(datasets[split]) * builder.manifest.splits[split].planes
        with progress(f"caching {split}", total=total) as advance:
            count = _counted(builder, split, advance)
            count(0)
            while True:
                for view in builder.views(split):
                    cache_plane(
                        builder,
                        split,
                        view,
                        forward=forward,
                        renderer=renderers[split],
                        batch_size=params.teacher.batch_size,
                        advance=count,
                    )
                if builder.complete(split):
                    break
        if split == "test":
            top1 = check_top1(builder.plane("test", 0), datasets["test"], min_top1=params.teacher.min_top1)
    seconds = time.perf_counter() - began
    sealed = builder.seal(
        {
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            **builder.work(),
            "versions": dict(versions()),
            "teacher_test_top1": top1,
        }
    )
    say(f"{builder.path} sealed after {seconds:.1f} s, digest {sealed.digest}.")


def _counted(builder: Builder, split: str, advance: Callable[[int], None]) -> Callable[[int], None]:
    """Return a function that takes the rows which this process has done, and reports those of other processes, too."""
    reported = own = 0

    def count(rows: int) -> None:
        nonlocal reported, own
        own += rows
        done = own + builder.rows_elsewhere(split)
        advance(done - reported)
        reported = done

    return count
