"""Stage `cache-teacher`: run the teacher once over every view and keep its logits in a store."""

from __future__ import annotations

import time
from datetime import UTC, datetime

from kdpipe import encoding, models
from kdpipe.dataset import Dataset
from kdpipe.encoding import Encoding
from kdpipe.errors import ModelError
from kdpipe.store import Builder, build, summary
from kdpipe.student.accuracy import accuracy
from kdpipe.teacher import Ensemble, Forward, FrozenTeacher, cache_plane, pilot, plan
from kdpipe.views import Geometry, Recipe, Renderer
from stages.console import progress, say
from stages.params import CacheTeacher
from stages.provenance import versions
from stages.sources import load_model, load_split


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
        encoding=_fitted(asked, params, forward=forward, train=datasets["train"]),
        batch_size=params.batch_size,
    )
    with build(params.out, wanted, overwrite=params.overwrite) as builder:
        if builder.sealed:
            say(f"{params.out} is sealed and holds exactly this: nothing to do.")
        else:
            _fill(
                builder,
                datasets,
                params=params,
                forward=forward,
            )
    _report(params)


def _teacher(params: CacheTeacher, train: Dataset) -> FrozenTeacher:
    """Load the teacher, or all of them as one that averages."""
    device = models.resolve_device(params.device)
    members = [
        Forward(
            load_model(name, train, weights=weights, mean=params.mean, std=params.std, size=params.input_size),
            device=device,
            precision=params.precision,
            features=params.features,
        )
        for name, weights in zip(params.teacher, params.weights or (None,) * len(params.teacher), strict=True)
    ]
    if not params.weights and not all(name.startswith("file:") for name in params.teacher):
        say(f"No --weights: unless {', '.join(params.teacher)} loads its own, this teacher knows nothing.")
    return members[0] if len(members) == 1 else Ensemble(members)


def _fitted(asked: Encoding, params: CacheTeacher, *, forward: FrozenTeacher, train: Dataset) -> Encoding:
    """Fit the encoding to a pilot of the teacher's logits, or choose it by one; without need, run nothing."""
    if params.max_kl is None and "table" not in asked.describe():
        return asked
    geometry = Geometry.of(forward.preset)
    renderer = Renderer(train, params.recipe, seed=params.seed, geometry=geometry, device=forward.device)
    logits = pilot(forward, renderer, views=params.augmented_views, seed=params.seed, batch_size=params.batch_size)
    if params.max_kl is None:
        return asked.calibrate(logits)
    choice = encoding.choose(logits, max_kl=params.max_kl, temperatures=params.at_temperature)
    headings = "".join(f"{f'KL at T={temperature:g}':>14}" for temperature in choice.temperatures)
    say(f"{'encoding':10}{'bytes/sample':>14}{headings}   (pilot of {len(logits):,} rows)")
    for row in sorted(choice.table, key=lambda row: row.bytes_per_sample):
        figures = "".join(f"{kl:14.2e}" for kl in row.kl)
        chosen = " <- chosen" if row.name == choice.encoding.name else ""
        say(f"{row.name:10}{row.bytes_per_sample:14.1f}{figures}   {'within' if row.within else 'not within'}{chosen}")
    return choice.encoding


def _fill(builder: Builder, datasets: dict[str, Dataset], *, params: CacheTeacher, forward: FrozenTeacher) -> None:
    began = time.perf_counter()
    geometry = Geometry.of(forward.preset)
    renderers = {
        split: Renderer(dataset, params.recipe, seed=params.seed, geometry=geometry, device=forward.device)
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
            top1 = _test_top1(builder, datasets["test"], params=params)
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


def _test_top1(builder: Builder, test: Dataset, *, params: CacheTeacher) -> float | None:
    scores = accuracy(builder.plane("test", 0), test.labels)
    if scores.top1 is None:
        say("The test split has no labels: the teacher's accuracy is unknown.")
        return None
    say(f"Teacher's test top-1: {scores.top1:.2%}, top-5: {scores.top5:.2%} ({len(test):,} samples).")
    if params.min_top1 is not None and scores.top1 < params.min_top1:
        raise ModelError(
            f"the teacher's test top-1 is {scores.top1:.2%}, below --min-top1 {params.min_top1:.2%}. Check --weights, "
            "--mean/--std and the order of the classes; the training views were not begun."
        )
    return scores.top1


def _report(params: CacheTeacher) -> None:
    found = summary(params.out)
    say(
        f"{found['samples']:,} samples x {found['views'] + 1} views x {found['classes']} classes, "
        f"{found['bytes'] / 1e6:.2f} MB, {found['bytes_per_sample']:.1f} bytes per row. "
        f"Next: kdpipe train-student --data {params.data} --store {params.out} --student NAME --out DIR"
    )
