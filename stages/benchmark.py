"""Stage `benchmark`: compare trained students, and say which one to ship."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console

from kdpipe import models, report
from kdpipe.benchmark import (
    BenchmarkResult,
    StoreIdentity,
    StudentResult,
    TeacherResult,
    agreement,
    compare,
    latency,
    machine,
)
from kdpipe.dataset import Dataset
from kdpipe.errors import RunError
from kdpipe.models import Model, Preset
from kdpipe.store import LogitStore, join, open_store
from kdpipe.student import RunDirectory, predict
from kdpipe.student.accuracy import accuracy
from kdpipe.views import Geometry, Renderer
from stages.console import progress, say
from stages.params import Benchmark
from stages.sources import load_split

BATCH_SIZES = (1, 64)


def run(params: Benchmark) -> None:
    """Measure every run and write the report to ``params.out``."""
    device = models.resolve_device(params.device)
    test = load_split(params, "test")
    runs = {str(path.name): RunDirectory(path) for path in params.run}
    if len(runs) < len(params.run):
        raise RunError("two --run directories have the same name; rename one, so that their rows can be told apart.")
    store = _store(params, runs)
    teacher = None if store is None else store.logits(join(store, test))
    with _threads(params.threads):
        students = [
            _measure(name, directory, test, teacher=teacher, params=params, device=device)
            for name, directory in runs.items()
        ]
    teaching = _teacher_result(store, teacher, test)
    result = BenchmarkResult(
        dataset=params.data,
        samples=len(test),
        students=compare(students, teacher_top1=None if teaching is None else teaching.top1),
        machine=machine(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        teacher=teaching,
        store=None if store is None else StoreIdentity(path=str(store.path), digest=store.digest),
    )
    written = report.write(
        result, params.out, histories={name: directory.history() for name, directory in runs.items()}
    )
    terminal = Console()
    (terminal if terminal.is_terminal else Console(width=140)).print(report.table(result))
    say(f"Report: {written['report.html']}")


def _store(params: Benchmark, runs: dict[str, RunDirectory]) -> LogitStore | None:
    """Open the given store's test split, or the one store that the runs name."""
    if params.store is not None:
        return open_store(params.store, split="test")
    named = {
        (lineage["path"], lineage["digest"])
        for directory in runs.values()
        if (lineage := directory.record()["lineage"].get("store")) is not None
    }
    if not named:
        return None
    if len({digest for _, digest in named}) > 1:
        raise RunError("the runs were trained from different stores; name the one to compare with by --store.")
    path, digest = sorted(named)[0]
    if not Path(path).exists():
        say(f"{path}, the runs' store, is not here: no comparison with the teacher. Pass --store to give it.")
        return None
    store = open_store(path, split="test")
    if store.digest != digest:
        raise RunError(f"{path} is no longer the store that the runs were trained from; pass the right one by --store.")
    return store


def _measure(
    name: str,
    directory: RunDirectory,
    test: Dataset,
    *,
    teacher: npt.NDArray[np.float32] | None,
    params: Benchmark,
    device: torch.device,
) -> StudentResult:
    record, _ = directory.record(), directory.metrics()
    if tuple(record["classes"]) != test.classes:
        raise RunError(f"{directory.path} was trained for other classes than those of {params.data}.")
    model = _load(directory, record)
    module = model.module.to(device)
    renderer = Renderer(test, "none", seed=0, geometry=Geometry.of(model.preset), device=device)
    logits = predict(module, renderer, preset=model.preset, progress=progress)
    scores = accuracy(logits, test.labels)
    say(f"Timing {name}.")
    parameters: dict[str, Any] = record["parameters"]
    return StudentResult(
        name=name,
        path=directory.path,
        architecture=record["model"],
        distill=record.get("distill", "none"),
        loss=record.get("loss", "ce"),
        seed=parameters["seed"],
        top1=scores.top1,
        top5=scores.top5,
        loss_value=scores.loss,
        agreement=None if teacher is None else agreement(logits, teacher),
        parameters=model.parameters,
        file_bytes=directory.weights.stat().st_size,
        latencies={
            batch: latency(
                module,
                size=model.preset.size,
                device=device,
                batch_size=batch,
                repeats=params.latency_repeats,
            )
            for batch in BATCH_SIZES
        },
    )


def _load(directory: RunDirectory, record: dict[str, Any]) -> Model:
    preset = Preset.parse(record["preset"])
    return models.load(
        record["model"],
        num_classes=len(record["classes"]),
        weights=directory.weights,
        mean=preset.mean,
        std=preset.std,
        size=preset.size,
        fallback_statistics=lambda: (preset.mean, preset.std),
    )


def _teacher_result(
    store: LogitStore | None, logits: npt.NDArray[np.float32] | None, test: Dataset
) -> TeacherResult | None:
    if store is None or logits is None:
        return None
    scores = accuracy(logits, test.labels)
    return TeacherResult(name=store.manifest.fingerprint.teacher.name, top1=scores.top1, top5=scores.top5)


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
