"""Several students at once: from the settings of all of them to those of each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from kdpipe.distil.settings import ExtraSettings, LossSettings
from kdpipe.errors import ParamsError, RunError, did_you_mean
from kdpipe.reading import read_yaml
from kdpipe.stages.flags import as_sentence, in_words
from kdpipe.stages.settings.training import TrainStudent
from kdpipe.stages.trust import refuse_code_in
from kdpipe.training.settings import Optimization

_SHARED = ("epochs", "batch_size")
OWN = (
    *("student", "seed", "input_size", "init_weights"),
    *LossSettings.model_fields,
    *ExtraSettings.model_fields,
    *(key for key in Optimization.model_fields if key not in _SHARED),
)
"""Settings that may differ between students that are trained together."""

_MOST = 1000
"""Students of one fleet."""


def students_of(params: TrainStudent) -> list[TrainStudent]:
    """Return the settings of each student: those of a run of its own, with its own ``out``.

    Several students have directories in ``params.run.out``, called by their names.

    Raises:
        ParamsError: the fleet's file cannot be read, two students have one name, or one has a setting that all share or
            a value that is wrong.
    """
    if params.fleet is None and len(params.student) == 1:
        return [params]
    listed = [{"student": name} for name in params.student] if params.fleet is None else _read(params.fleet, params)
    named = [{"name": each["student"].rpartition(":")[2], **each} for each in listed]
    names = [each["name"] for each in named]
    for name in names:
        if names.count(name) > 1:
            raise ParamsError(f"two students are called '{name}': give each its own name in --fleet.")
        if name == ".." or Path(name).name != name or not name.isprintable() or not 0 < len(name) <= 100:
            raise ParamsError(f"'{name}' cannot be the name of a student: it is a directory below --out.")
    if params.run.out.is_file():
        raise ParamsError(f"{params.run.out} is a file: pass --out a directory.")
    return [_student(params, each) for each in named]


def refuse_failed(names: Sequence[str], *, of: int) -> None:
    """End the command with an error where some of ``of`` students failed.

    Raises:
        RunError: there are ``names`` of such students.
    """
    if names:
        others = "The others are finished." if len(names) < of else "None is finished."
        raise RunError(
            f"{len(names)} of {of} students could not be trained to their end ({', '.join(names)}); "
            f"failure.json in the run directory of each says why. {others}"
        )


def _read(path: Path, params: TrainStudent) -> list[dict[str, Any]]:
    written = read_yaml(path, error=ParamsError)
    if not isinstance(written, list) or not written or not all(isinstance(each, dict) for each in written):
        raise ParamsError(f"{path} must be a list of students, such as '- {{student: resnet8, loss: dkd}}'.")
    if len(written) > _MOST:
        raise ParamsError(f"{path} lists {len(written):,} students, expected at most {_MOST:,}.")
    for number, each in enumerate(written, start=1):
        trusted = {"trust_code": params.code.trust_code}
        refuse_code_in(each, trusted, file=path, section=str(number), where="student")
        for key in each:
            if key not in (*OWN, "name"):
                shared = key in TrainStudent.flat()
                why = "all students share it: give it on the command line" if shared else "there is no such setting"
                hint = "" if shared else did_you_mean(str(key), OWN)
                raise ParamsError(f"student {number} of {path} has '{key}', but {why}{hint}.")
        if "student" not in each:
            raise ParamsError(f"student {number} of {path} lacks 'student', the name of a model.")
        for key in ("student", "name"):
            if not isinstance(each.get(key, ""), str):
                raise ParamsError(f"student {number} of {path} has the {key} {each[key]}, expected text: quote it.")
    return written


def _student(params: TrainStudent, own: dict[str, Any]) -> TrainStudent:
    settings = {key: value for key, value in own.items() if key != "name"}
    try:
        return params.but(**{"fleet": None, **settings, "out": params.run.out / own["name"]})
    except ValidationError as error:
        raise ParamsError(f"student '{own['name']}': {as_sentence(in_words(error, TrainStudent))}") from None
