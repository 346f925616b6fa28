"""Published training recipes with their results, read from the YAML files of this folder.

A file has ``sources``, ``defaults`` of all its presets, ``methods`` that several share, and ``presets``. Settings of a
preset are the defaults, updated with its method's and then with its own; notes are joined. Figures are test top-1 in
percent, each read from the page that its source names, ``null`` where no page has one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Annotated

import yaml
from pydantic import BaseModel, ConfigDict, Field

from kdpipe.errors import ParamsError, did_you_mean

Text = Annotated[str, Field(min_length=1)]
Setting = str | bool | int | float
Top1 = Annotated[float, Field(strict=True, ge=0, le=100)]
_FILES = ("cifar100.yaml", "imagenet.yaml", "short.yaml")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Reference(_Strict):
    """Publication of a recipe and its figures."""

    short: str
    """Author, year and repository, for a table."""
    paper: str
    page: str
    """Page or file that the figures were read from."""


class Figures(_Strict):
    """Test top-1 in percent, as published."""

    teacher: Top1 | None
    baseline: Top1 | None
    """The student, trained alone."""
    distilled: Top1 | None


class Preset(_Strict):
    """A published recipe: settings of ``cache-teacher`` and ``train-student``, and the accuracy they led to."""

    name: str
    what: Text
    """Data, length and method in a few words."""
    data: Text
    """The dataset as ``--data`` takes it, with PATH for its location."""
    cache_teacher: Mapping[str, Setting]
    train_student: Mapping[str, Setting]
    source: Reference
    figures: Figures
    notes: tuple[str, ...] = ()
    """Differences from the publication, and what is needed to read the figures."""

    @property
    def pair(self) -> str:
        """Teacher and student, without the prefix of their library."""
        names = (self.cache_teacher["teacher"], self.train_student["student"])
        return " -> ".join(str(name).rpartition(":")[2] for name in names)


class _Part(_Strict):
    """Fields that defaults, methods and presets share."""

    what: str = ""
    data: str = ""
    source: str = ""
    cache_teacher: Mapping[str, Setting] = {}
    train_student: Mapping[str, Setting] = {}
    notes: tuple[str, ...] = ()


class _Entry(_Part):
    name: str
    method: str | None = None
    pair: tuple[str, str]
    """Teacher and student."""
    top1: tuple[Top1 | None, Top1 | None, Top1 | None]
    """Teacher, student alone, distilled."""


class _File(_Strict):
    sources: Mapping[str, Reference]
    defaults: _Part
    methods: Mapping[str, _Part] = {}
    presets: tuple[_Entry, ...]


@cache
def presets() -> tuple[Preset, ...]:
    """Return all published recipes, in the order of the files."""
    folder = resources.files(__name__)
    return tuple(preset for name in _FILES for preset in read((folder / name).read_text(encoding="utf-8")))


def find(name: str) -> Preset:
    """Return the preset called ``name``.

    Raises:
        ParamsError: there is none; the message names the nearest.
    """
    known = {preset.name: preset for preset in presets()}
    if name not in known:
        raise ParamsError(f"unknown preset '{name}'{did_you_mean(name, known)}; kdpipe presets lists them.")
    return known[name]


def read(text: str) -> list[Preset]:
    """Return the presets of a file.

    Raises:
        ValidationError: a key is unknown, or a value has the wrong type.
        ValueError: two presets share a name, or one has an unknown source or method.
    """
    file = _File.model_validate(yaml.safe_load(text))
    names = [entry.name for entry in file.presets]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ValueError(f"two presets are called '{twice[0]}'")
    return [_preset(file, entry) for entry in file.presets]


def _preset(file: _File, entry: _Entry) -> Preset:
    if entry.method is not None and entry.method not in file.methods:
        raise ValueError(f"{entry.name} has the method '{entry.method}', expected one of {', '.join(file.methods)}")
    parts: list[_Part] = [file.defaults, *([] if entry.method is None else [file.methods[entry.method]]), entry]
    source = _last([part.source for part in parts])
    if source not in file.sources:
        raise ValueError(f"{entry.name} has the source '{source}', expected one of {', '.join(file.sources)}")
    teacher, student = entry.pair
    return Preset(
        name=entry.name,
        what=_last([part.what for part in parts]),
        data=_last([part.data for part in parts]),
        cache_teacher=_merged({"teacher": teacher}, [part.cache_teacher for part in parts]),
        train_student=_merged({"student": student}, [part.train_student for part in parts]),
        source=file.sources[source],
        figures=Figures(**dict(zip(("teacher", "baseline", "distilled"), entry.top1, strict=True))),
        notes=tuple(note for part in parts for note in part.notes),
    )


def _last(texts: Sequence[str]) -> str:
    """Return the last text that is not empty."""
    return next((text for text in reversed(texts) if text), "")


def _merged(first: Mapping[str, Setting], others: Sequence[Mapping[str, Setting]]) -> dict[str, Setting]:
    found = dict(first)
    for settings in others:
        found.update(settings)
    return found
