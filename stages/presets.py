"""Lists the recipes of ``preset_table``, and writes one as a params file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

import yaml
from rich.console import Console
from rich.table import Table
from rich.text import Text

from kdpipe.errors import ParamsError, did_you_mean
from kdpipe.stages.preset_table import PRESETS, Preset

_COLUMNS = ("name", "teacher -> student", "teacher", "alone", "distilled", "source")


def find(name: str) -> Preset:
    """Return the recipe called ``name``.

    Raises:
        ParamsError: there is none.
    """
    known = {preset.name: preset for preset in PRESETS}
    if name not in known:
        raise ParamsError(f"unknown preset '{name}'{did_you_mean(name, known)}; kdpipe presets lists them.")
    return known[name]


def as_json(presets: Sequence[Preset]) -> str:
    """Return recipes as a JSON list, all fields by name; figures that are not known are null."""
    return json.dumps([asdict(preset) for preset in presets], indent=2, ensure_ascii=False)


def as_yaml(preset: Preset) -> str:
    """Return a recipe as a params file with a section for each of the two stages, and comments on where it is from."""
    figures = preset.figures
    values = ("teacher", figures.teacher), ("student alone", figures.baseline), ("distilled", figures.distilled)
    known = [f"{name} {value:.2f}" for name, value in values if value is not None]
    weights = "" if "weights" in preset.caching else "--weights WEIGHTS "
    stages = ("cache-teacher", f"{weights}--out logits.zarr"), ("train-student", "--store logits.zarr --out RUN")
    comments = [
        f"{preset.name}: {preset.what}",
        f"source: {preset.source.paper}, {preset.source.page}",
        f"top-1 in %: {', '.join(known) or 'none published'}",
        *(f"note: {note}" for note in preset.notes),
        *(f"kdpipe {stage} --params FILE --data {preset.data} {paths}" for stage, paths in stages),
    ]
    sections = {"cache_teacher": dict(preset.caching), "train_student": dict(preset.settings)}
    return "".join(f"# {comment}\n" for comment in comments) + yaml.safe_dump(sections, sort_keys=False)


def show(presets: Sequence[Preset]) -> None:
    """Print a table of recipes: drawn on a terminal, columns of plain text with two spaces between them elsewhere."""
    console = Console(highlight=False)
    rows = [_row(preset) for preset in presets]
    if not console.is_terminal:
        widths = [max(map(len, column)) for column in zip(_COLUMNS, *rows, strict=True)]
        for row in (_COLUMNS, *rows):
            print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        return
    table = Table(caption=Text("test top-1 in %, as published; kdpipe presets NAME has the recipe, notes and links"))
    for column in _COLUMNS:
        table.add_column(
            column, justify="right" if column in {"teacher", "alone", "distilled"} else "left", no_wrap=column == "name"
        )
    for row in rows:
        table.add_row(*map(Text, row))
    console.print(table)


def _row(preset: Preset) -> tuple[str, ...]:
    figures = (preset.figures.teacher, preset.figures.baseline, preset.figures.distilled)
    top1 = ("-" if value is None else f"{value:.2f}" for value in figures)
    return preset.name, preset.pair, *top1, preset.source.short
