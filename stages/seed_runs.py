"""Seed runs: trainings that differ only in their seeds, in ``seed-N`` below one directory with a summary of all."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, TypeVar

from kdpipe import durable
from kdpipe.directories import locked
from kdpipe.errors import RunError
from kdpipe.stages.console import say
from kdpipe.stages.ranks import PATIENCE, Ranks
from kdpipe.stages.settings.training import Training
from kdpipe.training.holding import Place
from kdpipe.training.records import counted_seeds, flat
from kdpipe.training.runs import RunDirectory

P = TypeVar("P", bound=Training)

_POLL = 0.1
_SHOWN = 5

_SHARED = ("stage", "model", "preset", "classes", "distill", "loss", "recipe", "views", "lineage", "labels")
_OWN_PARENT = ("lineage.parent.name", "lineage.parent.digest")
"""Of compressed runs: each seed's parent is the run of its own seed in the directory that the parameters name."""
_OWN_PARAMETERS = ("seed", "data_seed", "out", "resume", "overwrite", "checkpoint_every")


def for_each_seed(
    params: P,
    train: Callable[[P], None],
    *,
    complete: Callable[[P], bool] = lambda _params: True,
    ranks: Ranks | None = None,
    wait: float = PATIENCE,
) -> None:
    """Call ``train`` once, or for each of the seeds into ``seed-N`` below ``params.run.out``, and summarize these.

    With ``--resume``, finished runs that are ``complete`` are left as they are. Of several ``ranks`` each trains those
    that it is dealt, and waits for the others for ``wait`` seconds without a sign; the first summarizes all.

    Raises:
        RunError: ``params.run.out`` is something else, or a run in it was started with other parameters.
    """
    if not params.run.seeds:
        train(params)
        return
    _refuse_other_files(params.run.out)
    first = ranks is None or ranks.rank == 0
    with locked(params.run.out) if first else nullcontext():
        runs = [_with_seed(params, seed) for seed in params.run.seeds]
        waiting = [run for run in (ranks.dealt(runs) if ranks else runs) if not (_is_done(run) and complete(run))]
        for run in waiting:
            if not run.run.resume:
                RunDirectory(run.run.out).refuse_results(overwrite=run.run.overwrite)
        place = Place()
        place.settle(params.run.out)
        if first:
            with durable.writing(params.run.out):
                (params.run.out / "metrics.json").unlink(missing_ok=True)
        for run in waiting:
            say(f"Seed {run.run.seed}:")
            train(run)
        if ranks is not None:
            wait_for_runs([RunDirectory(run.run.out) for run in runs], patience=wait)
        if not first:
            return
        summary = {
            "seeds": list(params.run.seeds),
            **summarize([RunDirectory(run.run.out).metrics() for run in runs]),
        }
        place.check(params.run.out)
        durable.write_json(params.run.out / "metrics.json", summary)
        say(f"{params.run.out}: test top-1 {_words(summary['test']['top1'])} over {len(runs)} seeds.")


def summarize(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the top-1 accuracies in the runs' ``metrics.json``, each as mean, deviation and values.

    ``std`` is the sample standard deviation, with ``n - 1``; ``None`` for a single run. The figures are ``None``
    without labels.
    """
    summary: dict[str, Any] = {"test": {"top1": _spread([run["test"]["top1"] for run in runs])}}
    for chosen in ("last", "best_on_validation"):
        if all(chosen in run for run in runs):
            summary[chosen] = {
                split: {"top1": _spread([run[chosen][split]["top1"] for run in runs])}
                for split in ("validation", "test")
            }
    return summary


def wait_for_runs(runs: Sequence[RunDirectory], *, patience: float) -> None:
    """Wait until the runs of all ranks have ended, finished or failed.

    Raises:
        RunError: no file of theirs has changed for ``patience`` seconds.
    """
    seen, since = None, time.monotonic()
    while waiting := [run for run in runs if not run.finished and run.failure() is None]:
        signs = [_newest(run.path) for run in waiting]
        if signs != seen:
            seen, since = signs, time.monotonic()
        elif time.monotonic() - since > patience:
            names = ", ".join(str(run.path) for run in waiting[:_SHOWN])
            raise RunError(
                f"waited {patience:.0f} s for the runs of other ranks, which have written nothing: {names}. End what "
                "hangs, and run the same command with --resume."
            )
        time.sleep(_POLL)


def seed_runs(path: Path) -> list[RunDirectory]:
    """Return the runs below ``path`` in the order of its ``metrics.json``; empty if it is not of ``--seeds``.

    Raises:
        RunError: a run is missing, unfinished or not counted in ``metrics.json``, or differs from the first in more
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
        what = f"does not count {name}" if name in present else f"counts {name}, which does not exist"
        raise _incomplete(path, f"its metrics.json {what}")
    _refuse_other_settings(runs)
    return list(runs.values())


def run_of_seed(path: Path, seed: int) -> Path:
    """Return ``path``, or the run of ``seed`` below it if it is a directory of seed runs.

    Raises:
        RunError: there is no run of this seed.
    """
    runs = {run.path.name: run.path for run in seed_runs(path)}
    if not runs:
        return path
    found = runs.get(f"seed-{seed}")
    if found is None:
        raise RunError(f"{path} has no run of seed {seed}, only {', '.join(runs)}. Pass --seed or --seeds of these.")
    return found


def _newest(folder: Path) -> int:
    with suppress(OSError):
        return max([path.stat().st_mtime_ns for path in folder.iterdir()], default=0)
    return 0


def _spread(values: Sequence[float | None]) -> dict[str, Any]:
    known = [value for value in values if value is not None]
    return {
        "mean": fmean(known) if known else None,
        "std": stdev(known) if len(known) > 1 else None,
        "values": list(values),
    }


def _words(spread: Mapping[str, Any]) -> str:
    if spread["mean"] is None:
        return "n/a (no labels)"
    return f"{spread['mean']:.2%}" + ("" if spread["std"] is None else f" +- {spread['std']:.2%}")


def _with_seed(params: P, seed: int) -> P:
    """Return the parameters of one seed run: those of a single run with ``--seed``."""
    out = params.run.out / f"seed-{seed}"
    changed = {"seed": seed, "seeds": (), "out": out, "resume": params.run.resume and (out / "run.json").is_file()}
    if "data_seed" not in params.given:
        changed["data_seed"] = seed
    return params.but(**changed)


def _is_done(params: Training) -> bool:
    """Return whether a run that ``--resume`` would continue is finished."""
    run = RunDirectory(params.run.out)
    if not params.run.resume or not run.finished:
        return False
    run.refuse_changes({"parameters": params.dump()})
    return True


def _refuse_other_files(out: Path) -> None:
    """Refuse a directory that holds anything but seed runs; hidden files are ignored."""
    if out.is_file():
        raise RunError(f"{out} is a file: pass --out a directory.")
    present = sorted(path.name for path in out.iterdir()) if out.exists() else []
    for name in present:
        if name != "metrics.json" and not name.startswith(("seed-", ".")):
            raise RunError(f"{out} holds {name}, so it is not of --seeds. Pass --out another directory.")


def _counted(summary: RunDirectory) -> list[int]:
    """Return the seeds in a ``metrics.json`` of seed runs; empty if the file is missing or of something else."""
    return counted_seeds(summary.path / "metrics.json") if summary.finished else []


def _incomplete(path: Path, what: str) -> RunError:
    return RunError(
        f"{path} does not hold all of its seed runs: {what}. Run the same training again with --seeds and --resume."
    )


def _refuse_other_settings(runs: Mapping[int, RunDirectory]) -> None:
    """Refuse runs that differ in more than the seed, or whose seed is not that of their name."""
    first: dict[str, Any] = {}
    for seed, run in runs.items():
        record = run.record()
        trained = record["parameters"].get("seed")
        if trained != seed:
            raise RunError(f"{run.path} was trained with seed {trained}. Train it again with --seeds {seed}.")
        shared = flat({key: value for key, value in record["parameters"].items() if key not in _OWN_PARAMETERS})
        shared |= flat({key: record.get(key) for key in _SHARED})  # views and recipe as they were resolved
        shared = {key: value for key, value in shared.items() if key not in _OWN_PARENT}
        first = first or shared
        differing = [key for key in {**first, **shared} if first.get(key) != shared.get(key)]
        if differing:
            key = differing[0]
            raise RunError(
                f"{run.path} was trained with {key} {shared.get(key)}, the first seed with {first.get(key)}: expected "
                "runs that differ only in their seeds. Train them again with --seeds, or benchmark each with its own "
                "--run."
            )
