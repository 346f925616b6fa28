"""Stage `tune`: search the settings of a student by successive halving, on a validation part of the training samples.

All trials of a rung are trained together, on one pass over the data and one read of the store. Each has a whole
schedule, warm-up and drops included, in the epochs of its rung: its learning rate has fallen when it is compared.
"""

from __future__ import annotations

import csv
import io
import shlex
from pathlib import Path

import yaml
from pydantic import ValidationError

from kdpipe import durable
from kdpipe.errors import DivergedError, ParamsError, RunError
from kdpipe.printable import cell
from kdpipe.stages.console import say, show
from kdpipe.stages.flags import as_sentence, in_words
from kdpipe.stages.fleet import OWN
from kdpipe.stages.settings.training import TrainStudent
from kdpipe.stages.settings.tune import Tune
from kdpipe.stages.students import train
from kdpipe.stages.training_data import load_student
from kdpipe.training.runs import RunDirectory
from kdpipe.training.search import Draw, Rung, as_row, best_first, draws, parse_space, rungs

BEST, TABLE = "best.yaml", "trials.csv"
_OF_SEARCH = ("search", "trials", "reduction", "search_seed", "out", "resume")
_SHOWN = 5


def run(params: Tune) -> None:
    """Draw settings, train them rung by rung, and write the best as a params file.

    Raises:
        ParamsError: the search cannot be parsed, or draws settings that a student cannot have.
        RunError: no trial was trained to its end; or ``--out`` holds other runs.
    """
    space = parse_space(params.search, known=OWN)
    drawn = {
        f"trial-{number:03}": each for number, each in enumerate(draws(space, params.trials, seed=params.search_seed))
    }
    plan = rungs(params.trials, params.optimization.epochs, reduction=params.reduction)
    for each in drawn.values():
        _settings(params, each, params.run.out, epochs=params.optimization.epochs)
    if not params.run.resume and (params.run.out / "rung-1").exists():
        raise RunError(f"{params.run.out} holds a search. Pass --resume to go on with it, or --out another directory.")
    say(f"{params.trials} trials: {', then '.join(f'{each.trials} for {each.epochs} epochs' for each in plan)}.")
    scores: dict[str, list[float | None]] = {trial: [None] * len(plan) for trial in drawn}
    left = list(drawn)
    for place, rung in enumerate(plan):
        found = _train(params, {trial: drawn[trial] for trial in left[: rung.trials]}, rung, place)
        for trial, score in found.items():
            scores[trial][place] = score
        left = best_first(found)
        _write_table(params.run.out / TABLE, drawn, scores, plan)
        if not left:
            raise RunError(f"no trial of rung {place + 1} was trained to its end: search lower learning rates.")
    _report(params, drawn, left, scores)


def _train(params: Tune, drawn: dict[str, Draw], rung: Rung, place: int) -> dict[str, float | None]:
    """Train the trials of a rung that are not finished; return each validation top-1, ``None`` of those that failed.

    Raises:
        RunError: a finished one had other settings.
    """
    folder = params.run.out / f"rung-{place + 1}"
    runs = {trial: RunDirectory(folder / trial) for trial in drawn}
    if params.run.resume:
        waiting = [trial for trial, each in runs.items() if not each.finished and each.failure() is None]
        for trial in (each for each in drawn if each not in waiting):
            _refuse_other(runs[trial], _settings(params, drawn[trial], runs[trial].path, epochs=rung.epochs))
    else:
        waiting = list(drawn)
    begun = any((runs[trial].path / "run.json").is_file() for trial in waiting)
    students = [
        _settings(params, drawn[trial], runs[trial].path, epochs=rung.epochs, resume=params.run.resume and begun)
        for trial in waiting
    ]
    if students:
        try:
            train(
                students,
                stage="train-student",
                load=lambda student, samples: load_student(student, student.architecture, samples),
            )
        except DivergedError as error:
            if len(students) > 1:
                raise
            runs[waiting[0]].write_failure(str(error))
    return {trial: _score(each) for trial, each in runs.items()}


def _refuse_other(run: RunDirectory, expected: TrainStudent) -> None:
    """Refuse a finished trial with other settings, but for its directory, which may have been moved."""
    out = run.record()["parameters"].get("out")
    run.refuse_changes(
        {"parameters": {**expected.dump(), "out": out}},
        remedy="Go on with the same search, or pass --out another directory.",
    )


def _settings(params: Tune, drawn: Draw, out: Path, *, epochs: int, resume: bool = False) -> TrainStudent:
    """Return the settings of one trial.

    Raises:
        ParamsError: a student cannot have them.
    """
    given = {key: value for key, value in params.given.items() if key not in _OF_SEARCH}
    given["validation"] = params.run.validation
    asked = {**given, **drawn, "epochs": params.optimization.epochs, "out": out, "resume": resume}
    share = epochs / params.optimization.epochs
    try:
        whole = TrainStudent.of(asked)
        if share == 1:
            return whole
        asked["warmup_epochs"] = whole.optimization.warmup_epochs * share
        asked["lr_steps"] = [each * share for each in whole.optimization.lr_steps]
        return TrainStudent.of({**asked, "epochs": epochs})
    except ValidationError as error:
        shown = " ".join(f"{key}={value}" for key, value in drawn.items())
        raise ParamsError(f"the search draws {shown}: {as_sentence(in_words(error, TrainStudent))}") from None


def _score(run: RunDirectory) -> float | None:
    """Return the validation top-1 after the last epoch; ``None`` for a run that failed."""
    if not run.finished:
        return None
    top1: float = run.metrics()["last"]["validation"]["top1"]
    return top1


def _write_table(path: Path, drawn: dict[str, Draw], scores: dict[str, list[float | None]], plan: list[Rung]) -> None:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    first = next(iter(drawn.values()))
    writer.writerow(["trial", *first, *(f"validation_top1_after_{rung.epochs}_epochs" for rung in plan)])
    for trial, each in drawn.items():
        writer.writerow([cell(value) for value in as_row(trial, each, scores[trial])])
    durable.write_text(path, file.getvalue())


def _report(params: Tune, drawn: dict[str, Draw], left: list[str], scores: dict[str, list[float | None]]) -> None:
    """Print the trials of the last rung, and write the settings of the best one."""
    for trial in left[:_SHOWN]:
        shown = " ".join(f"{key}={value}" for key, value in drawn[trial].items())
        show(f"{scores[trial][-1]:.2%}  {trial}  {shown}")
    best = left[0]
    chosen = _settings(params, drawn[best], params.run.out / BEST, epochs=params.optimization.epochs)
    given = chosen.dump()
    section = {key: given[key] for key in chosen.given if key not in (*_OF_SEARCH, "device")}
    heading = (
        f"# The best of {params.trials} settings: {scores[best][-1]:.2%} of the validation samples after "
        f"{params.optimization.epochs} epochs ({best}).\n"
    )
    path = params.run.out / BEST
    durable.write_text(path, heading + yaml.safe_dump({"train_student": section}, sort_keys=False))
    say(f"Next: kdpipe train-student --params {shlex.quote(str(path))} --validation 0 --out DIR --seeds 0,1,2")
