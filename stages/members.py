"""The runs that a training with ``--seeds`` left in a directory: all there, finished, and alike but for their seeds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kdpipe.errors import RunError
from kdpipe.training.runs import RunDirectory

_SHARED = ("stage", "model", "preset", "classes", "distill", "loss", "recipe", "views", "lineage")
_OWN_PARAMETERS = ("seed", "data_seed", "out", "resume", "checkpoint_every")


def members(path: Path) -> list[RunDirectory]:
    """Return the runs of several seeds in the order of ``metrics.json``; nothing where ``path`` is not of ``--seeds``.

    Raises:
        RunError: A run is missing, unfinished or not counted in ``metrics.json``, or differs from the first in more
            than its seed.
    """
    present = sorted(found.name for found in path.glob("seed-*") if found.is_dir())
    seeds = _counted(RunDirectory(path))
    if (path / "run.json").exists() or not (present or seeds):
        return []
    runs = {seed: RunDirectory(path / f"seed-{seed}") for seed in seeds}
    names = [run.path.name for run in runs.values()]
    for name in present:
        if not RunDirectory(path / name).finished:
            raise _incomplete(path, f"{name} has no metrics.json")
    if not seeds:
        raise _incomplete(path, "it has no metrics.json that counts them")
    for name in sorted({*names}.symmetric_difference(present)):
        what = f"does not count {name}" if name in present else f"counts {name}, which is not there"
        raise _incomplete(path, f"its metrics.json {what}")
    _refuse_unlike(runs)
    return list(runs.values())


def _counted(summary: RunDirectory) -> list[int]:
    """Return the seeds that a ``metrics.json`` counts; none where there is no such file or it is of something else."""
    metrics: Any = summary.metrics() if summary.finished else None
    seeds = metrics.get("seeds") if isinstance(metrics, dict) else None
    return seeds if isinstance(seeds, list) else []


def _incomplete(path: Path, what: str) -> RunError:
    return RunError(
        f"{path} does not hold all runs of its seeds: {what}. Run the same training again with --seeds and --resume."
    )


def _refuse_unlike(runs: dict[int, RunDirectory]) -> None:
    """Refuse runs that differ in more than the seed, or of another seed than their name says."""
    first: dict[str, Any] = {}
    for seed, run in runs.items():
        record = run.record()
        trained = record["parameters"]["seed"]
        if trained != seed:
            raise RunError(f"{run.path} was trained with seed {trained}. Train it again with --seeds {seed}.")
        shared = _flat({key: value for key, value in record["parameters"].items() if key not in _OWN_PARAMETERS})
        shared |= _flat({key: record.get(key) for key in _SHARED})  # views and recipe as they were resolved
        first = first or shared
        differing = [key for key in {**first, **shared} if first.get(key) != shared.get(key)]
        if differing:
            key = differing[0]
            raise RunError(
                f"{run.path} was trained with {key} {shared.get(key)}, the first seed with {first.get(key)}: expected "
                "runs that differ only in their seeds. Train them again with --seeds, or benchmark each with its own "
                "--run."
            )


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """Return the leaves of nested JSON values by their dotted names."""
    if not isinstance(value, dict | list):
        return {name: value}
    parts = value.items() if isinstance(value, dict) else enumerate(value)
    return {
        key: leaf
        for part, inner in parts
        for key, leaf in _flat(inner, f"{name}.{part}" if name else str(part)).items()
    }
