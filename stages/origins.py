"""The origin of the runs of a benchmark, from their records: what each was given, and what the stores saved."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from kdpipe.benchmark.origin import Ledger, LedgerLine, Origin
from kdpipe.benchmark.results import StudentResult
from kdpipe.distil.targets import savings
from kdpipe.settings import Settings
from kdpipe.stages.flags import flag
from kdpipe.stages.settings.compress import Compress
from kdpipe.stages.settings.training import TrainStudent, TrainTeacher
from kdpipe.store.reader import LogitStore
from kdpipe.training.runs import RunDirectory

_STAGES: Mapping[str, type[Settings]] = {
    "train-teacher": TrainTeacher,
    "train-student": TrainStudent,
    "compress": Compress,
}
_NOT_SETTINGS = ("resume", "overwrite", "checkpoint_every")
"""Parameters of a command that change nothing about the run."""


def origin_of(run: RunDirectory) -> Origin:
    """Return what a finished run was given, as far as it recorded it.

    Raises:
        RunError: its records are damaged.
    """
    record, metrics = run.record(), run.metrics()
    parameters, lineage = record["parameters"], record["lineage"]
    dataset, recipe, parent = lineage.get("dataset") or {}, record.get("recipe") or {}, lineage.get("parent") or {}
    initial = lineage.get("init_weights")
    return Origin(
        data=dataset.get("spec"),
        samples=record.get("samples"),
        fingerprint=dataset.get("train"),
        epochs=parameters.get("epochs"),
        batch_size=parameters.get("batch_size"),
        optimizer=parameters.get("optimizer"),
        recipe=recipe.get("name"),
        views=record.get("views"),
        seeds=tuple((record.get("seeds") or {}).items()),
        stores=tuple((each["path"], each["digest"]) for each in lineage.get("stores") or ()),
        teachers=tuple((each["name"], each["digest"]) for each in lineage.get("teachers") or ()),
        initial=None if initial is None else (initial["name"], initial["digest"]),
        parent=parent.get("name"),
        parent_digest=parent.get("digest"),
        weights=(record.get("weights") or {}).get("model.safetensors"),
        git_revision=record.get("git_revision"),
        seconds=metrics.get("seconds"),
        device=record.get("device"),
        command=command_of(record.get("stage"), parameters),
    )


def command_of(stage: str | None, parameters: Mapping[str, Any]) -> str:
    """Return a command with the recorded settings, those that are not defaults; empty for an unknown stage."""
    settings = _STAGES.get(stage or "")
    if settings is None:
        return ""
    words = ["kdpipe", str(stage)]
    for key, setting in settings.flat().items():
        value = parameters.get(key)
        if (
            value is None
            or key in _NOT_SETTINGS
            or value == _plain(setting.field.get_default(call_default_factory=True))
        ):
            continue
        if isinstance(value, bool):
            words.append(flag(key) if value else f"--no-{flag(key)[2:]}")
        elif isinstance(value, list) and get_args(setting.field.annotation)[-1] is Ellipsis:
            words += [word for each in value for word in (flag(key), shlex.quote(str(each)))]
        else:
            written = ",".join(map(str, value)) if isinstance(value, list) else str(value)
            words += [flag(key), shlex.quote(written)]
    return " ".join(words)


def ledger_of(students: Sequence[StudentResult], stores: Sequence[LogitStore]) -> Ledger | None:
    """Return what the stores cost and saved; None where no student learned from a store or none is at hand."""
    cached = [student for student in students if student.distill == "cache"]
    if not cached or not stores:
        return None
    return Ledger(
        store_seconds=_sum([_seconds(store) for store in stores]),
        lines=tuple(_line(student, stores) for student in cached),
    )


def _line(student: StudentResult, stores: Sequence[LogitStore]) -> LedgerLine:
    """Return the account of one student, whose runs passed each store's teacher once an epoch."""
    origins = [run.origin for run in student.runs]
    passes = len(stores) * sum(origin.epochs or 0 for origin in origins)
    saved = []
    for origin in origins:
        for store in stores:
            known = origin.samples is not None and origin.epochs is not None
            found = savings(store, samples=origin.samples or 0, epochs=origin.epochs or 0) if known else None
            saved.append(None if found is None else found.seconds)
    return LedgerLine(
        student=student.name,
        runs=len(origins),
        passes=passes,
        saved_seconds=_sum(saved),
        training_seconds=_sum([origin.seconds for origin in origins]),
    )


def _seconds(store: LogitStore) -> float | None:
    found = savings(store, samples=0, epochs=0)
    return None if found is None else found.store_seconds


def _sum(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def _plain(default: Any) -> Any:
    """Return a default as ``run.json`` has it."""
    if isinstance(default, tuple | list):
        return [_plain(each) for each in default]
    return default if default is None or isinstance(default, bool | int | float) else str(default)
