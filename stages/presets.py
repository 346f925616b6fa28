"""The command `kdpipe presets`: list published recipes, or print one as a params file."""

from __future__ import annotations

from collections.abc import Sequence

import yaml
from rich.table import Table
from rich.text import Text

from kdpipe.presets import Preset, find, presets
from kdpipe.stages.console import on_terminal, show, show_columns, show_json, show_table

_COLUMNS = ("name", "teacher -> student", "teacher", "alone", "distilled", "source")


def show_presets(name: str | None, *, as_json: bool) -> None:
    """Print a table of all presets, or the one called ``name`` as a params file, or either as JSON.

    Raises:
        ParamsError: there is no such preset.
    """
    chosen = presets() if name is None else (find(name),)
    if as_json:
        show_json([preset.model_dump() for preset in chosen])
    elif name is None:
        _show_table(chosen)
    else:
        for line in as_yaml(*chosen).splitlines():
            show(line)


def as_yaml(preset: Preset) -> str:
    """Return a preset as a params file with a section for each of the two stages; comments give its source."""
    figures = preset.figures
    values = ("teacher", figures.teacher), ("student alone", figures.baseline), ("distilled", figures.distilled)
    known = [f"{name} {value:.2f}" for name, value in values if value is not None]
    weights = "" if "weights" in preset.cache_teacher else "--weights WEIGHTS "
    stages = ("cache-teacher", f"{weights}--out logits.zarr"), ("train-student", "--store logits.zarr --out RUN")
    comments = [
        f"{preset.name}: {preset.what}",
        f"source: {preset.source.paper}, {preset.source.page}",
        f"top-1 in %: {', '.join(known) or 'none published'}",
        *(f"note: {note}" for note in preset.notes),
        *(f"kdpipe {stage} --params FILE --data {preset.data} {paths}" for stage, paths in stages),
    ]
    sections = {"cache_teacher": dict(preset.cache_teacher), "train_student": dict(preset.train_student)}
    return "".join(f"# {comment}\n" for comment in comments) + yaml.safe_dump(sections, sort_keys=False)


def _show_table(chosen: Sequence[Preset]) -> None:
    """Print presets: a drawn table on a terminal, columns of plain text elsewhere."""
    rows = [_row(preset) for preset in chosen]
    if not on_terminal():
        show_columns([_COLUMNS, *rows])
        return
    table = Table(caption=Text("test top-1 in %, as published; kdpipe presets NAME has settings, notes and links"))
    for column in _COLUMNS:
        table.add_column(
            column, justify="right" if column in {"teacher", "alone", "distilled"} else "left", no_wrap=column == "name"
        )
    for row in rows:
        table.add_row(*map(Text, row))
    show_table(table)


def _row(preset: Preset) -> tuple[str, ...]:
    figures = (preset.figures.teacher, preset.figures.baseline, preset.figures.distilled)
    top1 = ("-" if value is None else f"{value:.2f}" for value in figures)
    return preset.name, preset.pair, *top1, preset.source.short
