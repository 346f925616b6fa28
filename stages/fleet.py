"""Several students at once: from the parameters of all of them to those of each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from kdpipe.errors import ParamsError, RunError, did_you_mean
from stages.params import TrainStudent
from stages.params.learning import Learning
from stages.resolution import in_words

_OWN = (
    *("student", "seed", "input_size", "init_weights", "loss", "standardize", "temperature", "kd_weight", "ce_weight"),
    *("alpha", "beta", "gamma", "soft_weight", "aux", "aux_weight", "adversarial", "robust_loss"),
    *Learning.model_fields,
)
"""What students that are trained together may each have their own of."""


def members(params: TrainStudent) -> list[TrainStudent]:
    """Return the parameters of each student: those of a run that was asked for alone, with its own ``out``.

    A single student is itself. Several have directories below ``params.out``, of their names.

    Raises:
        ParamsError: the fleet's file cannot be read, two students have one name, or one has a setting that all share or
            a value that is wrong.
    """
    if params.fleet is None and len(params.student) == 1:
        return [params]
    listed = [{"student": name} for name in params.student] if params.fleet is None else _read(params.fleet)
    named = [{"name": each["student"].rpartition(":")[2], **each} for each in listed]
    names = [each["name"] for each in named]
    for name in names:
        if names.count(name) > 1:
            raise ParamsError(f"two students are called '{name}': give each a name of its own in --fleet.")
        if name == ".." or Path(name).name != name or not name:
            raise ParamsError(f"'{name}' cannot be the name of a student: it is a directory below --out.")
    if params.out.is_file():
        raise ParamsError(f"{params.out} is a file: pass --out a directory.")
    return [_member(params, each) for each in named]


def refuse_failed(names: list[str], *, of: int) -> None:
    """End the command with an error where some ``of`` several students could not be trained to their end.

    Raises:
        RunError: there are ``names`` of such students.
    """
    if names:
        others = "The others are finished." if len(names) < of else "None is finished."
        raise RunError(
            f"{len(names)} of {of} students could not be trained to their end ({', '.join(names)}); "
            f"failure.json in the run directory of each says why. {others}"
        )


def _read(path: Path) -> list[dict[str, Any]]:
    try:
        written = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ParamsError(f"{path} cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(written, list) or not written or not all(isinstance(each, dict) for each in written):
        raise ParamsError(f"{path} must be a list of students, such as '- {{student: resnet8, loss: dkd}}'.")
    for number, each in enumerate(written, start=1):
        for key in each:
            if key not in (*_OWN, "name"):
                shared = key in TrainStudent.model_fields
                why = "all students share it: give it on the command line" if shared else "there is no such setting"
                hint = "" if shared else did_you_mean(str(key), _OWN)
                raise ParamsError(f"student {number} of {path} has '{key}', but {why}{hint}.")
        if "student" not in each:
            raise ParamsError(f"student {number} of {path} lacks 'student', the name of a model.")
        for key in ("student", "name"):
            if not isinstance(each.get(key, ""), str):
                raise ParamsError(f"student {number} of {path} has the {key} {each[key]}, expected text: quote it.")
    return written


def _member(params: TrainStudent, own: dict[str, Any]) -> TrainStudent:
    given = {name: getattr(params, name) for name in params.model_fields_set}
    settings = {key: value for key, value in own.items() if key != "name"}
    try:
        return TrainStudent.model_validate({**given, "fleet": None, **settings, "out": params.out / own["name"]})
    except ValidationError as error:
        raise ParamsError(f"student '{own['name']}': {in_words(error)}") from None
