"""One run, or one for each of several seeds and what they reach on average."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, TypeVar

from kdpipe import durable
from kdpipe.errors import RunError
from kdpipe.stages.console import say
from kdpipe.stages.settings import TrainStudent, TrainTeacher
from kdpipe.training.runs import RunDirectory

P = TypeVar("P", TrainTeacher, TrainStudent)


def for_each_seed(params: P, train: Callable[[P], None]) -> None:
    """Call ``train`` once, or for each of the seeds into ``seed-N`` below ``params.run.out``, and summarise these.

    With ``--resume``, finished runs are left as they are.

    Raises:
        RunError: ``params.run.out`` is something else, or a run in it was started with other parameters.
    """
    if not params.run.seeds:
        train(params)
        return
    _refuse_strangers(params.run.out)
    (params.run.out / "metrics.json").unlink(missing_ok=True)
    runs = [_with_seed(params, seed) for seed in params.run.seeds]
    waiting = [run for run in runs if not _is_done(run)]
    for run in waiting:
        say(f"Seed {run.run.seed}:")
        train(run)
    found = [RunDirectory(run.run.out).metrics() for run in runs]
    summary = {"seeds": list(params.run.seeds), **summarise(found)}
    durable.write_json(params.run.out / "metrics.json", summary)
    say(f"{params.run.out}: test top-1 {_shown(summary['test']['top1'])} over {len(runs)} seeds.")


def summarise(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the runs' top-1 accuracies, where their ``metrics.json`` has them, as mean, deviation and values.

    ``std`` is the sample standard deviation, with ``n - 1``; ``None`` for a single run. The figures are ``None``
    where there are no labels.
    """
    summary: dict[str, Any] = {"test": {"top1": _spread([run["test"]["top1"] for run in runs])}}
    for chosen in ("last", "best_on_validation"):
        if all(chosen in run for run in runs):
            summary[chosen] = {
                split: {"top1": _spread([run[chosen][split]["top1"] for run in runs])}
                for split in ("validation", "test")
            }
    return summary


def _spread(values: Sequence[float | None]) -> dict[str, Any]:
    known = [value for value in values if value is not None]
    return {
        "mean": fmean(known) if known else None,
        "std": stdev(known) if len(known) > 1 else None,
        "values": list(values),
    }


def _with_seed(params: P, seed: int) -> P:
    """Return the parameters of one run, which are those of a run that was asked for alone."""
    out = params.run.out / f"seed-{seed}"
    changed = {"seed": seed, "seeds": (), "out": out, "resume": params.run.resume and (out / "run.json").is_file()}
    if "data_seed" not in params.given:
        changed["data_seed"] = seed
    return params.but(**changed)


def _is_done(params: TrainTeacher | TrainStudent) -> bool:
    """Whether a run that may be gone on with is finished."""
    run = RunDirectory(params.run.out)
    if not params.run.resume or not run.finished:
        return False
    run.refuse_changes({"parameters": params.dump()})
    return True


def _refuse_strangers(out: Path) -> None:
    """Refuse a directory that holds something else than runs of several seeds."""
    if out.is_file():
        raise RunError(f"{out} is a file: pass --out a directory.")
    present = sorted(path.name for path in out.iterdir()) if out.exists() else []
    for name in present:
        if name != "metrics.json" and not name.startswith(("seed-", ".")):
            raise RunError(f"{out} holds {name}, so it is not of --seeds. Pass --out another directory.")


def _shown(spread: dict[str, Any]) -> str:
    if spread["mean"] is None:
        return "n/a (no labels)"
    return f"{spread['mean']:.2%}" + ("" if spread["std"] is None else f" +- {spread['std']:.2%}")
