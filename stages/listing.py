"""The tables of `kdpipe list` and `kdpipe models`: everything that can be chosen by name."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from kdpipe.errors import ParamsError, did_you_mean
from kdpipe.stages.console import show, show_columns, show_json

Row = dict[str, Any]
"""One line of a table, by column: name or form, help, source."""

LISTED = Path(__file__).with_name("listed.json")
"""The tables of ``NEED_TORCH``, written by ``docs/tables.py``: torch takes longer to import than all else."""

_HALF = (0.5, 0.5, 0.5)


def show_list(kind: str, *, as_json: bool) -> None:
    """Print the table of one of ``KINDS``.

    Raises:
        ParamsError: there is no such kind.
    """
    rows = known(kind)
    if as_json:
        show_json(rows)
        return
    headings = [column.replace("_", " ") for column in rows[0]]
    show_columns([headings, *([str(value) for value in row.values()] for row in rows)])


def known(kind: str) -> list[Row]:
    """Return the rows of one of ``KINDS`` without importing torch; see ``table`` for errors."""
    if kind not in NEED_TORCH:
        return table(kind)
    rows: list[Row] = json.loads(LISTED.read_text(encoding="utf-8"))[kind]
    return rows


def kept() -> str:
    """Return what ``LISTED`` must hold: the tables of ``NEED_TORCH`` as they are registered now."""
    return json.dumps({kind: table(kind) for kind in NEED_TORCH}, indent=1, ensure_ascii=False) + "\n"


def table(kind: str) -> list[Row]:
    """Return the rows of one of ``KINDS``, as its things are registered.

    Raises:
        ParamsError: there is no such kind.
    """
    if kind not in KINDS:
        raise ParamsError(f"there is no list '{kind}'{did_you_mean(kind, KINDS) or '.'} Known: {', '.join(KINDS)}.")
    return KINDS[kind]()


def show_layers(name: str | None, *, num_classes: int, size: int | None, trust_code: bool = False) -> None:
    """Print the layers of a model whose output is one tensor, in the order of their computation, with its shape.

    Raises:
        ParamsError: there is no name.
        ModelError: there is no such model.
    """
    from kdpipe import models

    if name is None:
        raise ParamsError("models --layers needs the name of one model, such as: kdpipe models resnet20 --layers")
    model = models.load(
        name, num_classes=num_classes, size=size, fallback_statistics=lambda: (_HALF, _HALF), trust_code=trust_code
    )
    side = model.preset.size
    found = models.layers(model.module, side)
    width = max(map(len, ("layer", *found)))
    takes = f"{side} x {side}" if isinstance(side, int) else str(side)
    show(f"{'layer':{width}}  output   ({name}, {num_classes} classes, {takes})")
    for layer, shape in found.items():
        show(f"{layer:{width}}  {' x '.join(map(str, shape))}")
    penultimate = model.penultimate
    if penultimate is not None:
        show(f"{'penultimate':{width}}  {penultimate.dim}, the input of {penultimate.layer}")


def show_costs(name: str | None, *, num_classes: int, size: int) -> None:
    """Print parameters, multiply-accumulates and length of the penultimate features of one model, or of the zoo.

    Raises:
        ModelError: there is no such model.
    """
    from kdpipe import models

    show(f"{'model':24} {'parameters':>12} {'MMACs':>10} {'features':>10}   ({num_classes} classes, {size} x {size})")
    for listed in models.names() if name is None else [name]:
        module = models.create(listed, num_classes)
        penultimate = models.find_penultimate(module, size)
        features = "none" if penultimate is None else f"{penultimate.dim:,}"
        millions = models.macs(module, size) / 1e6
        show(f"{listed:24} {models.count_parameters(module):12,} {millions:10.1f} {features:>10}")
    if name is None:
        show(f"also: {', '.join(kind.usage for kind in models.all_kinds())}")


def _registered(place: str) -> Callable[[], list[Row]]:
    """Return a function that lists the things of the registry at ``module:name``, which it imports."""
    return lambda: _rows(resolve_name(place))


def _rows(things: Iterable[Any]) -> list[Row]:
    return [{"written_as": each.usage, "help": each.help, "source": each.source} for each in things]


def _encodings() -> list[Row]:
    import kdpipe.encoding.kinds  # noqa: F401 (registers the encodings)
    from kdpipe.encoding.base import ENCODINGS

    return _rows(ENCODINGS)


def _models() -> list[Row]:
    from kdpipe.models import registry

    zoo = [{"written_as": each.name, "help": each.help, "source": each.source} for each in registry.architectures()]
    return [*zoo, *_rows(registry.all_kinds())]


def _datasets() -> list[Row]:
    from kdpipe.dataset import all_kinds

    return _rows(all_kinds())


def _presets() -> list[Row]:
    from kdpipe.presets import presets

    return [
        {"name": each.name, "teacher_and_student": each.pair, "help": each.what, "source": each.source.short}
        for each in presets()
    ]


def _metrics() -> list[Row]:
    from kdpipe.metrics import METRICS

    return [{"name": each.figure.name, "help": each.figure.help, "unit": each.figure.unit} for each in METRICS.values()]


KINDS: dict[str, Callable[[], list[Row]]] = {
    "losses": _registered("kdpipe.distil.losses:LOSSES"),
    "recipes": _registered("kdpipe.views:OPERATIONS"),
    "encodings": _encodings,
    "models": _models,
    "datasets": _datasets,
    "presets": _presets,
    "metrics": _metrics,
    "curves": _registered("kdpipe.distil.curves:CURVES"),
    "attacks": _registered("kdpipe.distil.adversary:ATTACKS"),
    "corruptions": _registered("kdpipe.views.corruptions:CORRUPTIONS"),
    "tasks": _registered("kdpipe.distil.rotation:AUXILIARY_TASKS"),
    "engines": _registered("kdpipe.benchmark.engines:ENGINES"),
    "formats": _registered("kdpipe.export.formats:FORMATS"),
}
"""Returns the rows of each list, by its name."""

NEED_TORCH = ("losses", "recipes", "encodings", "attacks", "corruptions", "tasks", "engines", "formats")
"""The kinds whose things are registered by modules that import torch."""
