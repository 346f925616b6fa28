"""The runs that a training with ``--seeds`` left in a directory: all there, finished, and alike but for their seeds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kdpipe.errors import RunError
from kdpipe.student import RunDirectory

_SHARED = ("stage", "model", "preset", "classes", "distill", "loss", "recipe", "views", "lineage")
_OWN_PARAMETERS = ("seed", "data_seed", "out", "resume", "checkpoint_every")


def members(path: Path) -> list[RunDirectory]:
    """Return the runs of several seeds in the order of ``metrics.json``; nothing where ``path`` is not of ``--seeds``.

    Raises:
        RunError: A run is missing, unfinished or not counted in ``metrics.json``, or differs from the first in more
            than its seed.
    """
    present = {found.name for found in path.glob("seed-*") if found.is_dir()}
    summary = RunDirectory(path)
    if (path / "run.json").exists() or not (present or summary.finished):
        return []
    unfinished = [name for name in sorted(present) if not RunDirectory(path / name).finished]
    if unfinished:
        raise _incomplete(path, f"{unfinished[0]} has no metrics.json")
    if not summary.finished:
        raise _incomplete(path, "it has no metrics.json")
    seeds = summary.metrics().get("seeds", [])
    lacking = [f"seed-{seed}" for seed in seeds if f"seed-{seed}" not in present]
    if lacking:
        raise _incomplete(path, f"its metrics.json counts {lacking[0]}, which is not there")
    runs = {seed: RunDirectory(path / f"seed-{seed}") for seed in seeds}
    strangers = sorted(present.difference(run.path.name for run in runs.values()))
    if strangers:
        raise _incomplete(path, f"its metrics.json does not count {strangers[0]}")
    _refuse_unlike(runs)
    return list(runs.values())


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
        shared = _flat({key: record.get(key) for key in _SHARED})
        shared |= _flat({key: value for key, value in record["parameters"].items() if key not in _OWN_PARAMETERS})
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
