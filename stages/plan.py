"""Stage `plan`: what a store would cost, measured on a pilot of the images, before it is made."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from kdpipe import durable
from kdpipe.benchmark.machine import machine
from kdpipe.dataset import Dataset
from kdpipe.encoding.base import Encoding
from kdpipe.encoding.chooser import Choice, choose_encoding, usual
from kdpipe.encoding.registry import get_encoding
from kdpipe.printable import printable_json
from kdpipe.stages import pilot
from kdpipe.stages.console import amount, say, show
from kdpipe.stages.ranks import refuse_ranks
from kdpipe.stages.settings.plan import Plan
from kdpipe.stages.sources import load_split, load_test
from kdpipe.stages.teachers import Normalization, frozen, load_all
from kdpipe.store.plan import Layout
from kdpipe.teacher.forecast import Pass, Rates, Training, teacher_pass
from kdpipe.teacher.forward import FrozenTeacher
from kdpipe.teacher.recompute import refuse_unfit
from kdpipe.views import Geometry, Renderer

USUAL = ("fp32", "fp16", "fp16r5", "sqrtp8@4", "sqrtp6@8", "tailp6@8")
"""Encodings that are shown beside the one that is asked for, without ``--max-kl``."""

SIDE_BYTES = 36
"""Bytes of a sample beside its logits: id, content digest and label."""


@dataclass(frozen=True)
class Forecast:
    """The forecast, and what it was computed from."""

    data: Mapping[str, Any]
    rates: Rates
    choice: Choice
    encoding: Encoding
    stores: Sequence[Mapping[str, int]]
    """Views, rows, bytes and files of stores with fewer and with more views."""
    plane_bytes: int
    """Memory of the codes of one view."""
    passes: Sequence[Pass]
    training: Training | None
    pays_from: int | None


def run(params: Plan) -> None:
    """Measure the pilot, and print the forecast."""
    refuse_ranks("plan")
    began = time.perf_counter()
    train_split = load_split(params.dataset, "train")
    test = load_test(params.dataset, train_split)
    listed = time.perf_counter() - began
    forward = _teacher(params, train_split)
    drawn = pilot.draw(train_split, params)
    say(f"A pilot of {len(drawn):,} of {len(train_split):,} training {train_split.unit}.")
    renderer = Renderer(
        drawn, params.view.recipe, seed=params.view.seed, geometry=Geometry.of(forward.preset), device=forward.device
    )
    refuse_unfit(forward, renderer, name=forward.identity.name)
    logits, start, rows = pilot.passes(forward, renderer, params)
    classes = len(train_split.classes)
    samples = {"train": len(train_split), "test": 0 if test is None else len(test)}
    plain, augmented = sum(samples.values()), samples["train"] * params.view.augmented
    choice, encoding = _encoding(logits, params, rows=plain + augmented)
    rates = pilot.rates(forward, renderer, encoding, logits, start=start, rows=rows, params=params)
    passes = [
        teacher_pass(rates, plain=plain, augmented=augmented, devices=devices)
        for devices in sorted({1, params.forecast.devices})
    ]
    training = None if params.forecast.student is None else pilot.time_training(params, train_split, drawn, forward)
    numbers = {0, 1, 4, params.view.augmented} if params.view.recipe.augments else {0}
    stores = [_store(samples, views, encoding, choice, classes=classes) for views in sorted(numbers)]
    found = Forecast(
        data={"spec": train_split.spec, **samples, "classes": classes, "listed_seconds": listed},
        rates=rates,
        choice=choice,
        encoding=encoding,
        stores=stores,
        plane_bytes=samples["train"] * (encoding.width(classes) * _itemsize(encoding) + 4),
        passes=passes,
        training=training,
        pays_from=None if training is None else training.pays_from(passes[0].seconds),
    )
    for line in _lines(found, params, unit=train_split.unit):
        show(line)
    if params.forecast.out is not None:
        durable.write_text(params.forecast.out, printable_json(_json(found)) + "\n")


def _teacher(params: Plan, train_split: Dataset) -> FrozenTeacher:
    settings = params.teacher
    given = [Normalization.asked(settings, params.network)] * len(settings.teacher)
    loaded = load_all(settings, train_split, given, trust_code=params.code.trust_code)
    return frozen(loaded, settings, channels_last=settings.channels_last)


def _encoding(logits: torch.Tensor, params: Plan, *, rows: int) -> tuple[Choice, Encoding]:
    """Return the table of encodings, and the one of the store: the smallest within the budget, or the one asked for."""
    asked, settings = get_encoding(params.encoding.encoding), params.encoding
    candidates = usual(logits.shape[1]) if settings.max_kl is not None else tuple(dict.fromkeys((*USUAL, asked.name)))
    choice = choose_encoding(
        logits,
        max_kl=settings.max_kl or 1e-3,
        temperatures=settings.at_temperature,
        candidates=candidates,
        rows=rows,
    )
    return choice, choice.encoding if settings.max_kl is not None else asked.calibrate(logits)


def _itemsize(encoding: Encoding) -> int:
    return int(np.dtype(encoding.dtype).itemsize)


def _store(
    samples: Mapping[str, int], views: int, encoding: Encoding, choice: Choice, *, classes: int
) -> dict[str, int]:
    """Return rows, bytes and shard files of a store with ``views`` augmented views."""
    bytes_per_row = next(row.bytes_per_sample for row in choice.table if row.name == encoding.name)
    row_bytes = _itemsize(encoding) * encoding.width(classes)
    rows, files = 0, 0
    for split, count in samples.items():
        planes = 1 + views if split == "train" else 1
        rows += count * planes
        layout = Layout.choose(samples=max(1, count), row_bytes=row_bytes)
        files += 2 * planes * len(layout.shards(count))  # of codes and of row maxima
    return {
        "views": views,
        "rows": rows,
        "bytes": round(rows * bytes_per_row) + SIDE_BYTES * sum(samples.values()),
        "files": files,
    }


def _lines(found: Forecast, params: Plan, *, unit: str) -> Iterator[str]:
    """Return the forecast for people."""
    data, rates = found.data, found.rates
    yield (
        f"Data      {data['spec']}: {data['train']:,} train and {data['test']:,} test {unit}, "
        f"{data['classes']:,} classes, listed in {data['listed_seconds']:.1f} s"
    )
    yield f"Encodings bytes per row, mean KL at T = {', '.join(f'{each:g}' for each in found.choice.temperatures)}"
    for row in sorted(found.choice.table, key=lambda each: each.bytes_per_sample):
        if row.within or row.name in (*USUAL, found.encoding.name):
            chosen = " <- of the store" if row.name == found.encoding.name else ""
            lost = " ".join(f"{kl:.1e}" for kl in row.kl)
            yield f"          {row.name:10}{row.bytes_per_sample:10.1f}  {lost}{chosen}"
    for store in found.stores:
        yield (
            f"Store     {store['views']} views: {store['rows']:,} rows, {amount(store['bytes'])} in {store['files']:,} "
            "shard files"
        )
    fits = 2 * found.plane_bytes <= params.forecast.memory_limit * 1024**3
    yield (
        f"Memory    {amount(found.plane_bytes)} for each view, two at a time: "
        f"{'within' if fits else 'above'} --memory-limit {params.forecast.memory_limit:g}"
        f"{'' if fits else ', so that samples are shuffled in windows'}"
    )
    yield (
        f"Rates     ms per row: rendering {rates.render * 1e3:.3g} in each of {rates.processes} "
        f"process{'es' * (rates.processes > 1)}, teacher {rates.forward * 1e3:.3g}, encoding {rates.encode * 1e3:.3g}"
    )
    for each in found.passes:
        where = f"{each.devices} device{'s' * (each.devices > 1)}"
        helps = f"; {each.processes} processes would keep up" if each.limit == "rendering" else ""
        yield f"Pass      {_duration(each.seconds)} on {where}, limited by {each.limit}{helps}"
    if found.training is not None:
        training = found.training
        yield (
            f"Student   {_duration(training.epoch_seconds)} for an epoch of {params.forecast.student} with the store, "
            f"{_duration(training.live_epoch_seconds)} with a live teacher"
        )
        pays = found.pays_from
        yield (
            "Pays      never: a live teacher is not slower"
            if pays is None
            else f"Pays      from the {_ordinal(pays)} student of {training.epochs} epochs on"
        )


def _ordinal(number: int) -> str:
    ending = {1: "st", 2: "nd", 3: "rd"}.get(number % 10 if number % 100 not in (11, 12, 13) else 0, "th")
    return f"{number}{ending}"


def _duration(seconds: float) -> str:
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds:.3g} s"


def _json(found: Forecast) -> dict[str, Any]:
    return {
        "data": dict(found.data),
        "machine": machine(),
        "seconds_per_row": asdict(found.rates),
        "encoding": found.encoding.name,
        "encodings": [
            {"name": row.name, "bytes_per_row": row.bytes_per_sample, "kl": list(row.kl), "within": row.within}
            for row in found.choice.table
        ],
        "temperatures": list(found.choice.temperatures),
        "stores": list(found.stores),
        "plane_bytes": found.plane_bytes,
        "passes": [asdict(each) for each in found.passes],
        "training": None
        if found.training is None
        else {
            **asdict(found.training),
            "epoch_seconds": found.training.epoch_seconds,
            "live_epoch_seconds": found.training.live_epoch_seconds,
            "pays_from": found.pays_from,
        },
    }
