"""Stage `benchmark`: compare trained students, and recommend which one to ship."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from kdpipe import models, report
from kdpipe.benchmark.comparison import compare
from kdpipe.benchmark.machine import machine
from kdpipe.benchmark.origin import Budget
from kdpipe.benchmark.quality import Quality, Samples
from kdpipe.benchmark.results import (
    AttackIdentity,
    BenchmarkResult,
    StoreIdentity,
    StudentResult,
    TeacherResult,
    average,
    mean_history,
)
from kdpipe.benchmark.timing import Network
from kdpipe.dataset import Dataset, find_ids
from kdpipe.errors import MissingSplitError, RunError
from kdpipe.metrics import measure
from kdpipe.models import Model, TensorPreset, parse_preset
from kdpipe.models.layout import settle
from kdpipe.models.saved import refuse_damaged
from kdpipe.pairing.classes import ClassMap, in_classes_of, read_class_map
from kdpipe.pairing.join import join, remarks, with_store_ids
from kdpipe.sharing.remote import is_url
from kdpipe.sharing.streaming import open_store
from kdpipe.stages.console import say, show_table
from kdpipe.stages.origins import ledger_of, origin_of
from kdpipe.stages.provenance import now
from kdpipe.stages.quality import Attacked, Examiner, attack_of, refuse_images_only
from kdpipe.stages.seed_runs import seed_runs
from kdpipe.stages.settings.benchmark import Benchmark
from kdpipe.stages.sources import content_digest, load_split
from kdpipe.stages.teachers import Normalization, load_teacher
from kdpipe.stages.timing import Timer
from kdpipe.store.reader import LogitStore
from kdpipe.teacher.settings import brings_weights
from kdpipe.training.records import FinishedRecord, epochs_of
from kdpipe.training.runs import RunDirectory


def run(params: Benchmark) -> None:
    """Measure every run and write the report to ``params.measurement.out``."""
    with report.held(params.measurement.out):
        _run(params)


def _run(params: Benchmark) -> None:
    device = models.resolve_device(params.measurement.device)
    test = _test_split(params)
    runs = {path.name: seed_runs(path) or [RunDirectory(path)] for path in params.measurement.run}
    test = None if test is None else _in_classes_of(next(iter(runs.values()))[0], test, params.stores.class_map)
    _check(params, [run for of_a_student in runs.values() for run in of_a_student], test)
    if len(runs) < len(params.measurement.run):
        raise RunError("two --run directories have the same name; rename one, so that their rows can be told apart.")
    refuse_images_only(params.measurement, test)
    attack = attack_of(params, test)
    stores = [] if test is None else _stores(params, [run for of_a_student in runs.values() for run in of_a_student])
    teacher = None if test is None else _mean_logits(stores, test, next(iter(runs.values()))[0])
    timer = Timer(params, test, device=device)
    model, network = _add_teacher(timer, params, test)
    examine = Examiner(params, test, teacher, device, model)
    students = [
        _student(path, runs[path.name], examine, attack=attack, params=params, device=device, timer=timer)
        for path in params.measurement.run
    ]
    teaching = None if test is None else _teacher_result(stores, examine.teacher, test, params.measurement.teacher)
    measured = timer.measure()
    students = [student.with_timings(measured.timings, measured.costs) for student in students]
    if network is not None:
        teaching = teaching or TeacherResult(params.measurement.teacher or "", {})
        teaching = teaching.with_timings(network, measured.timings, measured.costs)
        teaching = replace(teaching, ship_engine=params.decision.ship_engine or "")
    result = BenchmarkResult(
        dataset=params.dataset.data,
        samples=0 if test is None else len(test),
        students=compare(
            students,
            teacher_top1=None if teaching is None else teaching.top1,
            samples=0 if test is None else int((test.labels >= 0).sum()),
        ),
        machine=machine(),
        created=now(),
        teacher=teaching,
        stores=tuple(StoreIdentity(str(store.path), store.digest, share) for store, share in stores),
        attack=None if attack is None else AttackIdentity(str(attack.attack), len(attack.samples)),
        corruptions=examine.corruptions,
        cams=examine.explanations(students),
        test=None if test is None else Samples(test.sample_ids, test.labels, test.classes),
        rules=params.decision,
        ledger=ledger_of(students, [store for store, _ in stores]),
        load=measured.load,
        timing_notes=(*measured.notes, *measured.warnings),
    )
    histories = {name: mean_history([run.history() for run in of_a_student]) for name, of_a_student in runs.items()}
    written = report.write(result, params.measurement.out, histories=histories)
    show_table(report.table(result))
    for line in report.sentences(result):
        say(line)
    say(f"Report: {written['report.html']}")


def _test_split(params: Benchmark) -> Dataset | None:
    """Load the test split; ``None``, and a line that says so, where the dataset has none."""
    try:
        return load_split(params.dataset, "test")
    except MissingSplitError as missing:
        say(f"warning: {missing}. Going on without: latency and size are measured, and nothing on images.")
        return None


def _in_classes_of(run: RunDirectory, test: Dataset, class_map: Path | None) -> Dataset:
    """Return the test split with the classes of a run, where the data has them under other names or in another order.

    The run knows their names, if it was trained on this data; else ``class_map`` does, a file.
    """
    record = run.record(FinishedRecord)
    classes: tuple[str, ...] = tuple(record["classes"])
    if test.classes == classes:
        return test
    known = dict(record["lineage"].get("class_map") or {}) if class_map is None else read_class_map(class_map)
    found = ClassMap.of_names(classes, test.classes, {name: own for name, own in known.items() if own in classes})
    if not found.recorded or (class_map is None and len(found.recorded) < min(len(classes), len(test.classes))):
        return test
    say(found.lines(run.path, test.spec)[0])
    return found.of(test)


def _check(params: Benchmark, runs: Sequence[RunDirectory], test: Dataset | None) -> None:
    """Check the files of all runs, before anything is measured.

    Raises:
        RunError: a run is not finished, its files are damaged, or it was made for other classes or test images.
        ModelError: weights are damaged.
    """
    for run in runs:
        record, _ = run.record(FinishedRecord), run.metrics()
        run.history()
        for weights in (run.weights, run.best_weights):
            if weights == run.weights or weights.exists():
                refuse_damaged(weights)
        if test is None:
            continue
        if tuple(record["classes"]) != test.classes:
            raise RunError(
                f"{run.path} was trained for other classes than those of {params.dataset.data}. If only their names "
                "differ, write them to a file of lines class,store_class and pass --class-map FILE."
            )
        tested = (record["lineage"].get("dataset") or {}).get("test")
        if tested is not None and tested != test.fingerprint and not _of_same_content(record, test):
            raise RunError(
                f"{run.path} was tested on other images ({tested[:8]}) than the test split of {params.dataset.data} "
                f"with these flags ({test.fingerprint[:8]}): its figures could not be compared. Pass the --data and "
                "--limit-test of its training."
            )


def _of_same_content(record: Mapping[str, Any], test: Dataset) -> bool:
    """Return whether a run was tested on the same images under other names, such as those of a table or a folder."""
    tested = (record.get("content") or {}).get("test")
    return tested is not None and tested == content_digest(test)


def _budget(record: dict[str, Any]) -> Budget:
    parameters, recipe = record["parameters"], record.get("recipe") or {}
    dataset: dict[str, Any] = record["lineage"].get("dataset") or {}
    return Budget(
        epochs=epochs_of(record),
        samples=record.get("samples"),
        batch_size=parameters.get("batch_size"),
        optimizer=parameters.get("optimizer"),
        recipe=recipe.get("version") or recipe.get("name"),
        data=(dataset.get("spec"), parameters.get("limit_train")),
        fingerprint=dataset.get("train"),
        left_out=record.get("left_out") or 0,
    )


def _stores(params: Benchmark, runs: list[RunDirectory]) -> list[tuple[LogitStore, float]]:
    """Open the test split of the given stores, or of those that the runs name, each with its share of the mean."""
    if params.stores.store:
        return [
            (open_store(path, split="test", say=say), share)
            for path, share in zip(params.stores.store, params.stores.shares, strict=True)
        ]
    lineages = [directory.record()["lineage"].get("stores") for directory in runs]
    named = [stores for stores in lineages if stores]
    if not named:
        return []
    if len({tuple((store["digest"], store["weight"]) for store in stores) for stores in named}) > 1:
        raise RunError(
            "the runs were trained from different stores, or weighed them differently; name what to compare with by "
            "--store and --store-weight."
        )
    absent = [store["path"] for store in named[0] if not is_url(store["path"]) and not Path(store["path"]).exists()]
    if absent:
        say(f"{absent[0]}, the runs' store, is not here: no comparison with the teacher. Pass --store to give it.")
        return []
    opened = []
    for known in named[0]:
        if "test" not in open_store(known["path"]).manifest.names:
            say(f"{known['path']}, the runs' store, has no test split: no comparison with the teacher.")
            return []
        store = open_store(known["path"], split="test")
        if store.digest != known["digest"]:
            raise RunError(
                f"{store.path} is no longer the store that the runs were trained from; pass the right one by --store."
            )
        opened.append((store, known["weight"]))
    return opened


def _mean_logits(
    stores: list[tuple[LogitStore, float]], test: Dataset, run: RunDirectory
) -> npt.NDArray[np.float32] | None:
    """Return the stores' logits of the plain test view, float32 ``(n, classes)``: the mean by their weights.

    Students of the data's classes are compared over the store's columns of these; ``None`` where it lacks one.
    """
    if not stores:
        return None
    known = dict(run.record(FinishedRecord)["lineage"].get("class_map") or {})
    mean = np.zeros((len(test), len(test.classes)), dtype=np.float32)
    for store, share in stores:
        named, columns = in_classes_of(store, test, known)
        paired = with_store_ids(store, named)
        absent = int((find_ids(paired.sample_ids, store.sample_ids) < 0).sum())
        if absent or columns is None:
            which = f"classes of {test.spec}" if columns is None else f"{absent:,} of the {len(test):,} test samples"
            say(f"{store.path} has no logits for {which}: no comparison with the teacher.")
            return None
        rows = join(store, paired)
        for line in remarks(store, paired, rows):
            say(line)
        mean += np.float32(share) * store.logits(rows)[:, columns]
    return mean


def _student(
    path: Path,
    runs: list[RunDirectory],
    examine: Examiner,
    *,
    attack: Attacked | None,
    params: Benchmark,
    device: torch.device,
    timer: Timer,
) -> StudentResult:
    """Measure a single run, or the runs of several seeds in the directory ``path``, and have their network timed."""
    names = [run.path.relative_to(path.parent).as_posix() for run in runs]
    measured = [
        _measure(name, run, examine, attack=attack, params=params, device=device, timer=timer)
        for name, run in zip(names, runs, strict=True)
    ]
    return measured[0] if runs[0].path == path else average(measured, name=path.name, path=path)


def _measure(
    name: str,
    directory: RunDirectory,
    examine: Examiner,
    *,
    attack: Attacked | None,
    params: Benchmark,
    device: torch.device,
    timer: Timer,
) -> StudentResult:
    record = directory.record(FinishedRecord)
    load = partial(_load, directory, record, trust_code=params.code.trust_code)
    model = load(directory.weights)
    module = model.module.to(device)
    settle(module, model.preset.size)
    examined = examine(model, directory, name=name, load=load)
    figures = examined.figures
    attacked = None if attack is None else attack.withstood(model, device)
    if attacked is not None:
        figures["adversarial_top1"] = float(attacked.mean())
    parameters: dict[str, Any] = record["parameters"]
    return StudentResult(
        name=name,
        path=directory.path,
        architecture=record["model"],
        distill=record.get("distill", "none"),
        loss=record.get("loss", "ce"),
        seed=parameters["seed"],
        budget=_budget(record),
        figures=figures,
        quality=examined.quality,
        corrupted=examined.corrupted,
        attacked=attacked,
        origin=origin_of(directory),
        ship_engine=params.decision.ship_engine or "",
        parameters=model.parameters,
        file_bytes=directory.weights.stat().st_size,
        network=timer.add(model, name=record["model"], weights=directory.weights, num_classes=len(record["classes"])),
    )


def _add_teacher(timer: Timer, params: Benchmark, test: Dataset | None) -> tuple[Model | None, Network | None]:
    """Load the teacher of ``--teacher`` and have it timed; return the model if it is trained, and its network."""
    asked = params.measurement
    if asked.teacher is None:
        return None, None
    trained = asked.weights is not None or brings_weights(asked.teacher)
    if not trained:
        say(f"warning: no --weights; {asked.teacher} is randomly initialized, which its times do not depend on.")
    data = test if test is not None else load_split(params.dataset, "train")
    model = load_teacher(
        asked.teacher,
        data,
        Normalization(asked.mean, asked.std, interface=params.network),
        weights=asked.weights,
        trust_code=params.code.trust_code,
        quiet=True,
    )
    network = timer.add(model, name=asked.teacher, weights=asked.weights, num_classes=len(data.classes))
    return (model if trained else None), network


def _load(directory: RunDirectory, record: dict[str, Any], weights: Path, *, trust_code: bool) -> Model:
    models.refuse_code(record["model"], origin=directory.path, trust_code=trust_code)
    if models.runs_code(record["model"]):
        say(f"{directory.path} is made by {record['model']}, whose code is run (--trust-code).")
    preset = parse_preset(record["preset"])
    if isinstance(preset, TensorPreset):
        return models.load(
            record["model"],
            num_classes=len(record["classes"]),
            weights=weights,
            fallback_statistics=None,
            form=preset.form,
            trust_code=trust_code,
        )
    return models.load(
        record["model"],
        num_classes=len(record["classes"]),
        weights=weights,
        mean=preset.mean,
        std=preset.std,
        size=preset.size,
        fallback_statistics=lambda: (preset.mean, preset.std),
    )


def _teacher_result(
    stores: list[tuple[LogitStore, float]], logits: npt.NDArray[np.float32] | None, test: Dataset, teacher: str | None
) -> TeacherResult | None:
    """Return the figures of the stores' teacher, or without stores those of ``--teacher``."""
    if logits is None:
        return None
    names = [(share, store.manifest.fingerprint.teacher.name) for store, share in stores]
    names = names or [(1.0, teacher or "")]
    name = names[0][1] if len(names) == 1 else " + ".join(f"{share:.3g} {name}" for share, name in names)
    return TeacherResult(name=name, figures=measure(logits, test.labels), quality=Quality(logits, test.labels))
