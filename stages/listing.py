"""The tables of `kdpipe list` and `kdpipe models`: everything that can be chosen by name."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from kdpipe.errors import ParamsError, did_you_mean
from kdpipe.registry import Registry
from kdpipe.stages.console import show, show_json

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
    columns = list(rows[0])
    cells = [[str(row[column]) for column in columns] for row in rows]
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    for line in ([column.replace("_", " ") for column in columns], *cells):
        show("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


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


def _registered(registry: Registry[Any]) -> list[Row]:
    return [{"written_as": each.usage, "help": each.help, "source": each.source} for each in registry]


def _kinds(kinds: Iterable[Any]) -> list[Row]:
    return [{"written_as": each.usage, "help": each.help, "source": each.source} for each in kinds]


def _losses() -> list[Row]:
    from kdpipe.distil.losses import LOSSES

    return _registered(LOSSES)


def _recipes() -> list[Row]:
    from kdpipe.views import OPERATIONS

    return _registered(OPERATIONS)


def _encodings() -> list[Row]:
    import kdpipe.encoding.kinds  # noqa: F401 (registers the encodings)
    from kdpipe.encoding.base import ENCODINGS

    return _registered(ENCODINGS)


def _models() -> list[Row]:
    from kdpipe.models import registry

    zoo = [{"written_as": each.name, "help": each.help, "source": each.source} for each in registry.architectures()]
    return [*zoo, *_kinds(registry.all_kinds())]


def _datasets() -> list[Row]:
    from kdpipe.dataset import all_kinds

    return _kinds(all_kinds())


def _presets() -> list[Row]:
    from kdpipe.presets import presets

    return [
        {"name": each.name, "teacher_and_student": each.pair, "help": each.what, "source": each.source.short}
        for each in presets()
    ]


def _curves() -> list[Row]:
    from kdpipe.distil.curves import CURVES

    return _registered(CURVES)


def _attacks() -> list[Row]:
    from kdpipe.distil.adversary import ATTACKS

    return _registered(ATTACKS)


def _corruptions() -> list[Row]:
    from kdpipe.views.corruptions import CORRUPTIONS

    return _registered(CORRUPTIONS)


def _engines() -> list[Row]:
    from kdpipe.benchmark.engines import ENGINES

    return _registered(ENGINES)


def _tasks() -> list[Row]:
    from kdpipe.distil.rotation import AUXILIARY_TASKS

    return _registered(AUXILIARY_TASKS)


def _formats() -> list[Row]:
    from kdpipe.export.formats import FORMATS

    return _registered(FORMATS)


def _metrics() -> list[Row]:
    from kdpipe.metrics import METRICS

    return [{"name": each.figure.name, "help": each.figure.help, "unit": each.figure.unit} for each in METRICS.values()]


KINDS: dict[str, Callable[[], list[Row]]] = {
    "losses": _losses,
    "recipes": _recipes,
    "encodings": _encodings,
    "models": _models,
    "datasets": _datasets,
    "presets": _presets,
    "metrics": _metrics,
    "curves": _curves,
    "attacks": _attacks,
    "corruptions": _corruptions,
    "tasks": _tasks,
    "engines": _engines,
    "formats": _formats,
}
"""Returns the rows of each list, by its name."""

NEED_TORCH = ("losses", "recipes", "encodings", "attacks", "corruptions", "tasks", "engines", "formats")
"""The kinds whose things are registered by modules that import torch."""
