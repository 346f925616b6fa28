"""The kinds of values that parameters have, and how they are written in YAML and on the command line."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field


def _split_numbers(value: Any) -> Any:
    """Return one list of numbers: on the command line they are separated by commas, or the flag is repeated."""
    parts = value if isinstance(value, list | tuple) else [value]
    split: list[Iterable[Any]] = [part.split(",") if isinstance(part, str) else [part] for part in parts]
    return [number for part in split for number in part]


def _one_as_many(value: Any) -> Any:
    return value if isinstance(value, list | tuple) else (value,)


def _recipe_text(value: Any) -> Any:
    """Return a recipe as text: YAML stays a short string or becomes JSON, and a ``.yaml`` file is read."""
    if isinstance(value, list | dict):
        return json.dumps(value)
    if isinstance(value, str) and value.endswith((".yaml", ".yml")):
        try:
            return Path(value).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"the recipe file cannot be read: {error}") from None
    return value.strip() if isinstance(value, str) else value


def _curve_text(value: Any) -> Any:
    """Return a curve as text, and a constant as a number."""
    from kdpipe.student.curves import Curve

    if value is None:
        return None
    curve = Curve.parse(value)
    return curve.first if curve.is_constant else str(curve)


def _attack_text(value: Any) -> Any:
    """Return an attack as it is written, if it can be read."""
    from kdpipe.student.attack import Attack

    if isinstance(value, str):
        Attack.parse(value)
        return value.strip()
    return value


def _signal_names(value: Any) -> Any:
    """Return the names of signals, each once: they are written with commas between, or the flag is repeated."""
    from kdpipe.models import parse_signals

    parts = value if isinstance(value, list | tuple) else [value]
    return tuple(map(str, parse_signals(",".join(map(str, parts)))))


def _loss_text(value: Any) -> Any:
    """Return a loss as text: several, a mapping in YAML, become JSON."""
    return json.dumps(value) if isinstance(value, dict) else value


Channels = Annotated[tuple[float, float, float], BeforeValidator(_split_numbers)]
"""Three numbers, one for each of red, green and blue; on the command line with commas between."""
Names = Annotated[tuple[str, ...], BeforeValidator(_one_as_many)]
"""One name or several; in YAML a lone name needs no list."""
RecipeText = Annotated[str, BeforeValidator(_recipe_text)]
"""A view recipe; see ``kdpipe.views.recipe``."""
LossText = Annotated[str, BeforeValidator(_loss_text)]
"""A distillation loss, or several as YAML; see ``kdpipe.student.losses``."""
AttackText = Annotated[str, BeforeValidator(_attack_text)]
"""An attack on a model; see ``kdpipe.student.attack``."""
SignalNames = Annotated[tuple[str, ...], BeforeValidator(_signal_names)]
"""What to keep of a teacher's layers; see ``kdpipe.models.signals``."""
Paths = Annotated[tuple[Path, ...], BeforeValidator(_one_as_many)]
Weights = Annotated[tuple[Annotated[float, Field(gt=0)], ...], BeforeValidator(_one_as_many)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Seeds = Annotated[tuple[Seed, ...], BeforeValidator(_split_numbers)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(gt=0)]
Epochs = Annotated[tuple[Annotated[float, Field(gt=0)], ...], BeforeValidator(_split_numbers)]
CurveText = Annotated[float | str | None, BeforeValidator(_curve_text)]
"""A number, or how it follows the epochs; see ``kdpipe.student.curves``. ``None`` where it is left to the loss."""
