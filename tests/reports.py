"""Results of benchmarks for tests of decisions and reports: made up, with predictions and rounds to match."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from blake3 import blake3

from kdpipe.benchmark.cam import Explained, Explanations
from kdpipe.benchmark.comparison import compare
from kdpipe.benchmark.corrupted import CorruptionIdentity
from kdpipe.benchmark.origin import Ledger, LedgerLine, Origin
from kdpipe.benchmark.quality import Quality, Samples
from kdpipe.benchmark.results import (
    BenchmarkResult,
    StoreIdentity,
    StudentResult,
    TeacherResult,
    average,
)
from kdpipe.benchmark.settings import DecisionSettings
from kdpipe.benchmark.timing import Cost, Load, Network, Start, Timing, Workload
from kdpipe.metrics.significance import Correct

ROUNDS = 21


def right(share: float, samples: int = 10_000, *, shift: int = 0) -> Correct:
    """Return the correctness of predictions: bool ``(samples,)``, true for a share that begins at sample ``shift``."""
    found = np.zeros(samples, dtype=bool)
    found[: round(share * samples)] = True
    return np.roll(found, shift)


def quality(correct: Correct, *, classes: int = 10, seed: int = 0) -> Quality:
    """Return predictions of balanced classes that are right where ``correct`` is; the wrong ones are less sure."""
    generator = np.random.default_rng(seed)
    labels = np.arange(len(correct)) % classes
    predicted = np.where(correct, labels, (labels + generator.integers(1, 3, len(correct))) % classes)
    logits = generator.normal(size=(len(correct), classes)).astype(np.float32).clip(-2, 2)
    sure = np.where(correct, 5.0, 4.2) + generator.exponential(np.where(correct, 2.0, 0.6))
    logits[np.arange(len(correct)), predicted] = sure
    return Quality(logits, labels.astype(np.int32))


def timing(ms: float, *, batch_size: int = 1, spread: float = 0.0, start: Start | None = None) -> Timing:
    """Return a timing of ``ms`` per pass; its rounds lie evenly within ``1 ± spread`` times that."""
    factors = np.linspace(1 - spread, 1 + spread, ROUNDS)
    rounds = tuple((round(ms * 1e6 * factor),) for factor in np.random.default_rng(0).permutation(factors))
    return Timing(wall_ns=rounds, cpu_ns=rounds, batch_size=batch_size, device="cpu", start=start)


def timed(
    architecture: str,
    ms: float | Mapping[tuple[str, str], float],
    *,
    spread: float = 0.0,
    batch_sizes: Sequence[int] = (1, 64),
) -> dict[str, Any]:
    """Return network and timings of a student: milliseconds at batch size 1, of eager or by engine and precision."""
    network = Network(architecture, f"{len(architecture):016x}", 32)
    by_engine = ms if isinstance(ms, Mapping) else {("eager", "fp32"): ms}
    start = Start(load_ms=12.5, libraries_bytes=150_000_000, peak_bytes=190_000_000)
    return {
        "network": network,
        "timings": {
            Workload(network=network, engine=engine, precision=precision, batch_size=batch): timing(
                each * (1 if batch == 1 else 0.5 * batch), batch_size=batch, spread=spread, start=start
            )
            for (engine, precision), each in by_engine.items()
            for batch in batch_sizes
        },
    }  # fmt: skip


def student(
    name: str, *, top1: float | None, ms: Any = None, samples: int = 10_000, shift: int = 0, **other: Any
) -> StudentResult:
    """Return a single run, whose figures may be given by name, too; ``ms`` is as for ``timed``."""
    figures = {"top1": top1, "top5": 0.99, "cross_entropy": 0.25, "agreement": 0.875}
    figures |= {key: other.pop(key) for key in list(other) if key in figures}
    architecture = other.pop("architecture", "resnet8")
    plain = StudentResult(
        name=name,
        path=Path("runs") / name.replace("/", "-"),
        architecture=architecture,
        distill="cache",
        loss="kd",
        seed=3,
        figures=figures,
        parameters=78_000,
        file_bytes=320_000,
        quality=None if top1 is None else quality(right(top1, samples, shift=shift)),
        **({} if ms is None else timed(architecture, ms, spread=other.pop("spread", 0.0))),
    )
    return replace(plain, **other)


def result(
    *students: StudentResult, teacher: float | None = None, samples: int = 10_000, **other: Any
) -> BenchmarkResult:
    """Return a benchmark of some students, compared."""
    given: dict[str, Any] = {"dataset": "d", "machine": {}, "created": "2025-05-01T12:00:00+00:00"}
    if teacher is not None:
        given["teacher"] = TeacherResult("resnet56", {"top1": teacher, "top5": 0.999})
    compared = compare(students, teacher_top1=teacher, samples=samples)
    return BenchmarkResult(samples=samples, students=compared, **given | other)


KINDS = ("noise", "blur", "jpeg")
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
ENGINES = (("eager", "fp32"), ("onnx", "fp32"), ("onnx", "int8"))


def weights_of(name: str, seed: int) -> str:
    return blake3(f"{name}/{seed}".encode()).hexdigest(length=16)


def full(*names: str) -> BenchmarkResult:
    """Return a benchmark with all that a report can show: engines, seeds, compression, constraints, origins, costs.

    It is of the students ``names``, or of all seven.
    """
    specs = [
        ("resnet8-kd", "resnet8", (0.8712, 0.8735, 0.8690), (0.61, 0.105, 0.07), 78_042, 12_500_000, "cache", "kd"),
        ("resnet8-labels", "resnet8", (0.8531, 0.8560, 0.8507), (0.61, 0.105, 0.07), 78_042, 12_500_000, "none", "ce"),
        ("resnet14-kd", "resnet14", (0.9021, 0.9008, 0.9040), (1.1, 0.21, 0.13), 175_258, 26_800_000, "cache", "kd"),
        ("resnet20-dkd", "resnet20", (0.9123,), (1.62, 0.31, 0.19), 272_474, 41_000_000, "cache", "dkd:beta=8"),
        ("resnet20-live", "resnet20", (0.9110,), (1.62, 0.31, 0.19), 272_474, 41_000_000, "live", "kd"),
        ("mobilenetv2-x0.5", "mobilenetv2", (0.8950,), (2.6, 0.17, 0.12), 701_066, 14_700_000, "cache", "kd+dist"),
        ("resnet20-dkd-pruned50", "resnet20p", (0.9050,), (1.2, 0.2, 0.125), 136_000, 20_500_000, "cache", "dkd"),
    ]  # fmt: skip
    students = []
    for name, architecture, shares, ms, parameters, macs, distill, loss in specs:
        if names and name not in names:
            continue
        runs = []
        for seed, share in enumerate(shares):
            path = f"{name}/seed-{seed}" if len(shares) > 1 else name
            origin = Origin(
                data="folder:cifar10", samples=50_000, fingerprint="5ad0c1" * 5, epochs=60, batch_size=128,
                optimizer="sgd", recipe="crop-flip", views=60 if distill == "cache" else None,
                seeds=(("seed", seed), ("data_seed", seed)),
                stores=(("data/logits.zarr", "b3f0" * 8),) if distill == "cache" else (),
                teachers=() if distill == "none" else (("resnet56", "77aa" * 8),),
                parent="runs/resnet20-dkd" if "pruned" in name else None,
                parent_digest=weights_of("resnet20-dkd", 0) if "pruned" in name else None,
                weights=weights_of(name, seed), git_revision="4f80a72c" * 5, seconds=1804.3, device="cpu",
                command=f"kdpipe train-student --data folder:cifar10 --student {architecture} --loss {loss} "
                f"--epochs 60 --recipe crop-flip --seed {seed} --out runs/{path}",
            )  # fmt: skip
            runs.append(
                student(
                    path, top1=share, ms=dict(zip(ENGINES, ms, strict=True)), spread=0.04, shift=37 * seed + len(name),
                    architecture=architecture, distill=distill, loss=loss, seed=seed, parameters=parameters,
                    file_bytes=4 * parameters + 8_000, cross_entropy=1.2 * (1 - share) * 2.7, agreement=share + 0.02,
                    top5=0.9 + share / 10.5, path=Path("runs") / path, origin=origin, ship_engine="onnx",
                    corrupted={kind: tuple(share - (0.02 + 0.03 * place) * step for step in range(1, 6))
                               for place, kind in enumerate(KINDS)},
                    cost=Cost(parameters=parameters, macs=macs, format_bytes={"onnx": 4 * parameters + 12_000}),
                )
            )  # fmt: skip
        students.append(runs[0] if len(runs) == 1 else average(runs, name=name, path=Path("runs") / name))
    lines = tuple(
        LedgerLine(
            student=each.name, runs=len(each.runs), passes=60 * len(each.runs),
            saved_seconds=60 * len(each.runs) * 41.5, training_seconds=1804.3 * len(each.runs),
        )
        for each in students if each.distill == "cache"
    )  # fmt: skip
    found = result(
        *students, teacher=0.9345, dataset="folder:cifar10",
        machine={"platform": "Linux-6.8", "processor": "Some CPU", "memory_bytes": 16_000_000_000, "gpu": None},
        rules=DecisionSettings(max_ms=0.5, max_macs=30e6, min_top1=0.86),
        stores=(StoreIdentity("data/logits.zarr", "b3f0" * 8),),
        corruptions=CorruptionIdentity(KINDS, 10_000),
        cams=_cams(*(each.name for each in students)),
        ledger=Ledger(store_seconds=2531.5, lines=lines),
        test=Samples(np.zeros((10_000, 16), np.uint8), (np.arange(10_000) % 10).astype(np.int32), CLASSES),
        load=Load(cores=2, before=0.4, after=1.9, others=0.05),
    )  # fmt: skip
    assert found.teacher is not None
    taught = replace(
        found.teacher, **timed("resnet56", {("eager", "fp32"): 4.4, ("onnx", "fp32"): 0.95}), ship_engine="onnx"
    )
    return replace(found, teacher=taught)


def _cams(*names: str) -> Explanations:
    """Return made-up maps on four images of noise."""
    draw = np.random.default_rng(0)
    maps = [
        Explained(draw.random((4, 64, 64), dtype=np.float32), draw.integers(0, 10, 4), "layer3")
        for _ in range(1 + len(names))
    ]
    images = draw.integers(0, 256, (4, 3, 32, 32), dtype=np.uint8)
    return Explanations(images, np.arange(4, dtype=np.int32), maps[0], dict(zip(names, maps[1:], strict=True)))


def histories(found: BenchmarkResult, epochs: int = 20) -> dict[str, list[dict[str, float]]]:
    """Return made-up histories of the students of a benchmark."""
    made = {}
    for index, each in enumerate(found.students):
        top = (each.top1 or 0.5) + 0.02
        rows = []
        for epoch in range(1, epochs + 1):
            share = top * (1 - 0.6 * 0.8**epoch) - 0.004 * ((epoch * (index + 3)) % 4)
            loss = (8.0 if each.distill != "none" else 2.0) * 0.85**epoch + 0.3
            rows.append({"epoch": float(epoch), "loss": loss, "train_top1": share, "validation_top1": share - 0.02})
        made[each.name] = rows
    return made
