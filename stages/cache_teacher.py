"""Stage `cache-teacher`: run the teacher once over every view and keep its logits in a store."""

from __future__ import annotations

import time
from datetime import UTC, datetime

import torch

from kdpipe import encoding, models
from kdpipe.dataset import Dataset
from kdpipe.models import Signal
from kdpipe.store import Builder, build
from kdpipe.teacher import Ensemble, Forward, FrozenTeacher, cache_plane, pilot, plan
from kdpipe.views import Geometry, Recipe, Renderer
from stages.console import progress, say
from stages.params import CacheTeacher
from stages.params.base import brings_weights
from stages.provenance import versions
from stages.sources import load_model, load_split
from stages.storing import check_top1, report, settle


def run(params: CacheTeacher) -> None:
    """Build, resume or confirm the store at ``params.out``."""
    recipe = Recipe.parse(params.recipe)
    asked = encoding.get(params.encoding)
    datasets = {split: load_split(params, split) for split in ("train", "test")}
    asked.width(len(datasets["train"].classes))
    forward = _teacher(params, datasets["train"])
    wanted = plan(
        forward,
        datasets,
        recipe=recipe,
        seed=params.seed,
        views=params.augmented_views,
        encoding=asked,
        batch_size=params.batch_size,
    )
    wanted = settle(wanted, params, pilot=lambda: _pilot(datasets["train"], recipe, params=params, forward=forward))
    with build(params.out, wanted, overwrite=params.overwrite) as builder:
        if builder.sealed:
            say(f"{params.out} is sealed and holds exactly this: nothing to do.")
        else:
            _fill(builder, datasets, recipe, params=params, forward=forward)
    report(params)


def _teacher(params: CacheTeacher, train: Dataset) -> FrozenTeacher:
    """Load the teacher, or all of them as one that averages."""
    device = models.resolve_device(params.device)
    members = [
        Forward(
            load_model(name, train, weights=weights, mean=params.mean, std=params.std, size=params.input_size),
            device=device,
            precision=params.precision,
            signals=[Signal.parse(name) for name in params.kept_signals],
        )
        for name, weights in params.members
    ]
    bare = [name for name, weights in params.members if weights is None and not brings_weights(name)]
    if bare:
        say(f"No --weights: unless {', '.join(bare)} loads its own, this teacher knows nothing.")
    return members[0] if len(members) == 1 else Ensemble(members)


def _pilot(train: Dataset, recipe: Recipe, *, params: CacheTeacher, forward: FrozenTeacher) -> torch.Tensor:
    geometry = Geometry.of(forward.preset)
    renderer = Renderer(train, recipe, seed=params.seed, geometry=geometry, device=forward.device)
    return pilot(forward, renderer, views=params.augmented_views, seed=params.seed, batch_size=params.batch_size)


def _fill(
    builder: Builder, datasets: dict[str, Dataset], recipe: Recipe, *, params: CacheTeacher, forward: FrozenTeacher
) -> None:
    began = time.perf_counter()
    geometry = Geometry.of(forward.preset)
    renderers = {
        split: Renderer(dataset, recipe, seed=params.seed, geometry=geometry, device=forward.device)
        for split, dataset in datasets.items()
    }
    say(f"{forward.identity.name} on {forward.device}: the plain test view first.")
    top1 = None
    for split in ("test", "train"):
        samples, planes = len(datasets[split]), builder.manifest.splits[split].planes
        with progress(f"caching {split}", total=samples * planes) as advance:
            for view in range(planes):
                cache_plane(
                    builder,
                    split,
                    view,
                    forward=forward,
                    renderer=renderers[split],
                    batch_size=params.batch_size,
                    advance=advance,
                )
            builder.drain()
        if split == "test":
            top1 = check_top1(builder.plane("test", 0), datasets["test"], min_top1=params.min_top1)
    seconds = time.perf_counter() - began
    sealed = builder.seal(
        {
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": round(seconds, 2),
            "versions": dict(versions()),
            "teacher_test_top1": top1,
        }
    )
    say(f"{builder.path} sealed after {seconds:.1f} s, digest {sealed.digest}.")
