"""The encoding, the check of the test split and the closing report of the stages that make a store."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from kdpipe.dataset import Dataset
from kdpipe.encoding.chooser import choose_encoding, pilot_rows, usual
from kdpipe.encoding.registry import get_encoding
from kdpipe.errors import ModelError, StoreError
from kdpipe.metrics import Logits, accuracy
from kdpipe.pairing.growth import in_order
from kdpipe.stages.console import say
from kdpipe.stages.once import settle as settle_contents
from kdpipe.stages.provenance import now, versions
from kdpipe.stages.settings.storing import Storing
from kdpipe.store import adoption, manifest
from kdpipe.store.inspect import fidelity_lines, summary
from kdpipe.store.plan import Plan
from kdpipe.store.sections import Candidate, Choice, RowOrder
from kdpipe.store.skeleton import settled
from kdpipe.store.writer import continue_alone
from kdpipe.teacher.cache import PILOT_ROWS


def ordered(
    datasets: Mapping[str, Dataset], params: Storing, *, seed: int
) -> tuple[dict[str, Dataset], RowOrder | None]:
    """Return the datasets in the order of the store's rows, and that order."""
    order: RowOrder | None = None if params.output.order == "dataset" else "shuffled"
    if params.output.order is None:
        with suppress(StoreError):
            order = manifest.read(params.output.out).order
    return {split: in_order(dataset, order, seed=seed) for split, dataset in datasets.items()}, order


def settle(wanted: Plan, params: Storing, *, pilot: Callable[[int], torch.Tensor]) -> Plan:
    """Return the plan of the store with its encoding and provenance settled.

    ``pilot`` gives so many logits to fit or to choose the encoding by; it is not called without need.
    """
    return replace(_encoded(wanted, params, pilot=pilot), provenance=params.provenance)


def _encoded(wanted: Plan, params: Storing, *, pilot: Callable[[int], torch.Tensor]) -> Plan:
    asked, settings = get_encoding(params.encoding.encoding), params.encoding
    if settings.max_kl is None and "table" not in asked.describe():
        return wanted
    known = settled(params.output.out, wanted, max_kl=settings.max_kl, temperatures=settings.at_temperature)
    if known is not None:
        return known
    names = [asked.name] if settings.max_kl is None else usual(len(wanted.classes))
    logits = pilot(pilot_rows(names, classes=len(wanted.classes), least=PILOT_ROWS))
    if settings.max_kl is None:
        return wanted.encoded_by(asked.calibrate(logits), None)
    rows = sum(len(split.sample_ids) * split.planes for split in wanted.splits.values())
    choice = choose_encoding(logits, max_kl=settings.max_kl, temperatures=settings.at_temperature, rows=rows)
    headings = "".join(f"{f'KL at T={temperature:g}':>14}" for temperature in choice.temperatures)
    say(f"{'encoding':10}{'bytes/sample':>14}{headings}   (pilot of {len(logits):,} rows)")
    for row in sorted(choice.table, key=lambda row: row.bytes_per_sample):
        figures = "".join(f"{kl:14.2e}" for kl in row.kl)
        chosen = " <- chosen" if row.name == choice.encoding.name else ""
        most = "" if row.largest is None else f", {row.largest:.2e} at most between"
        within = "within" if row.within else "not within"
        say(f"{row.name:10}{row.bytes_per_sample:14.1f}{figures}   {within}{most}{chosen}")
    table = tuple(
        Candidate(name=row.name, bytes_per_sample=row.bytes_per_sample, kl=row.kl, within=row.within)
        for row in choice.table
    )
    return wanted.encoded_by(
        choice.encoding, Choice(max_kl=settings.max_kl, temperatures=choice.temperatures, table=table)
    )


def check_top1(logits: Logits, dataset: Dataset, *, min_top1: float | None) -> float | None:
    """Report the accuracy of plain-view logits ``(n, classes)``, and refuse one below ``min_top1``."""
    scores = accuracy(logits, dataset.labels)
    if scores.top1 is None:
        say(f"The {dataset.split} split has no labels: the teacher's accuracy is unknown.")
        return None
    say(f"Teacher's {dataset.split} top-1: {scores.top1:.2%}, top-5: {scores.top5:.2%} ({len(dataset):,} samples).")
    if min_top1 is not None and scores.top1 < min_top1:
        raise ModelError(
            f"the teacher's {dataset.split} top-1 is {scores.top1:.2%}, below --min-top1 {min_top1:.2%}. Check its "
            "weights or logits, --mean/--std and the order of the classes; no more views were begun."
        )
    return scores.top1


def about(work: Mapping[str, Any], scores: Mapping[str, float | None]) -> dict[str, Any]:
    """Return what a store records of its making besides its ingredients: time, work, versions and accuracies."""
    return {"created": now(), **work, "versions": versions(), **scores}


def seal(path: Path) -> None:
    """Seal a store, or its growth, whose shards are all finished, if none of the processes that computed them did.

    Raises:
        CorruptStoreError: shards are missing.
        StoreLockedError: a process is still writing the store.
    """
    with continue_alone(path) as builder:
        if builder.sealed:
            _seal_growth(path)
            return
        top1 = None
        if "test" in builder.manifest.splits:
            top1 = accuracy(builder.plane("test", 0), builder.labels("test")).top1
        if builder.manifest.unread:
            settle_contents(builder)
        sealed = builder.seal(about(builder.work(), {"teacher_test_top1": top1}))
        say(f"{path} sealed, digest {sealed.digest}.")
    _report(path)


def _seal_growth(path: Path) -> None:
    """Seal further segments of a sealed store, and put them in their place; the caller holds the store's lock."""
    part = adoption.part_path(path)
    if not part.is_dir():
        say(f"{path} is sealed already.")
        return
    with continue_alone(part) as builder:
        if not builder.sealed:
            tested = "test" in builder.manifest.names
            builder.seal(about(builder.work(), {"teacher_test_top1": None} if tested else {}))
    grown = adoption.recover(path)
    say(f"{path} has not grown." if grown is None else f"{path} has grown, digest {grown.digest}.")
    _report(path)


def report(params: Storing) -> None:
    """Report what the finished store holds and lost, and the next command."""
    data, out = shlex.quote(params.dataset.data), shlex.quote(str(params.output.out))
    _report(params.output.out, f" Next: kdpipe train-student --data {data} --store {out} --student NAME --out DIR")


def _report(path: Path, then: str = "") -> None:
    found = summary(path)
    for line in fidelity_lines(found):
        say(line)
    for name, signal in found["signals"].items():
        shape = " x ".join(map(str, signal["shape"]))
        say(f"{name} ({shape}): {signal['bytes'] / 1e6:.2f} MB, {signal['bytes_per_sample']:.1f} bytes per row.")
    say(
        f"{found['samples']:,} samples x {found['views'] + 1} views x {found['classes']} classes, "
        f"{found['bytes'] / 1e6:.2f} MB, {found['bytes_per_sample']:.1f} bytes per row.{then}"
    )
