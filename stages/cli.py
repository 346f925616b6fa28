"""The command line, `kdpipe`: one command per stage, and four that look at things.

Rooms are imported inside the commands, so that help needs neither torch nor zarr.
"""

from __future__ import annotations

import importlib
import inspect
import json
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, get_args, get_origin

import typer

from kdpipe.errors import KdpipeError, ParamsError
from stages.params import Benchmark, CacheTeacher, ImportLogits, StageParams, TrainStudent, TrainTeacher
from stages.resolution import resolve

app = typer.Typer(
    name="kdpipe",
    help="Offline knowledge distillation: cache the teacher once, train many students, ship the best.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

STAGES: dict[str, tuple[type[StageParams], str]] = {
    "train-teacher": (
        TrainTeacher,
        "kdpipe train-teacher --data digits --model resnet20 --out runs/teacher --epochs 12",
    ),
    "cache-teacher": (
        CacheTeacher,
        "kdpipe cache-teacher --data digits --teacher resnet20 --weights runs/teacher/model.safetensors "
        "--out logits.zarr --views 4",
    ),
    "import-logits": (
        ImportLogits,
        "kdpipe import-logits --data digits --logits train.npy --test-logits test.npy --teacher-name 'our ViT-B' "
        "--out logits.zarr",
    ),
    "train-student": (
        TrainStudent,
        "kdpipe train-student --data digits --store logits.zarr --student resnet8 --out runs/resnet8-kd --epochs 12",
    ),
    "benchmark": (
        Benchmark,
        "kdpipe benchmark --data digits --run runs/resnet8-kd --run runs/resnet8-none --out reports",
    ),
}
"""Each stage's parameters and an example, by the name of its command."""


def _stage_command(name: str, model: type[StageParams], example: str) -> Callable[..., None]:
    """Make the command of a stage: a flag for each parameter, all of them optional and read as text."""
    section = name.replace("-", "_")

    def command(**given: Any) -> None:
        file = given.pop("params")
        flags = {key: value for key, value in given.items() if value not in (None, [])}
        params = resolve(model, section=section, file=file, flags=flags)
        importlib.import_module(f"stages.{section}").run(params)

    options = [
        inspect.Parameter(
            "params",
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[
                Path | None,
                typer.Option(help=f"YAML file whose section '{section}' gives parameters; flags win."),
            ],
        )
    ]
    fields = sorted(model.model_fields.items(), key=lambda item: not item[1].is_required())
    options += [_option(key, field) for key, field in fields]
    command.__signature__ = inspect.Signature(options)  # type: ignore[attr-defined]
    command.__annotations__ = {option.name: option.annotation for option in options}
    command.__doc__ = f"{inspect.getdoc(model)}\n\nExample:\n\n    {example}"
    return command


def _option(key: str, field: Any) -> inspect.Parameter:
    text = field.description
    if field.is_required():
        text += " Required."
    elif field.default is not None and field.default is not False and field.default != ():
        text += f" Default: {field.default}."
    flag = f"--{key.replace('_', '-')}"
    annotation = field.annotation
    if annotation in (bool, bool | None):
        kind: Any = Annotated[bool | None, typer.Option(f"{flag}/--no-{flag[2:]}", help=text)]
    elif get_origin(annotation) is tuple and get_args(annotation)[-1] is Ellipsis:
        kind = Annotated[list[str] | None, typer.Option(flag, help=text, metavar=_metavar(get_args(annotation)[0]))]
    else:
        kind = Annotated[str | None, typer.Option(flag, help=text, metavar=_metavar(annotation))]
    return inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind)


def _metavar(annotation: Any) -> str:
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    kinds = [kind for kind in (get_args(annotation) or (annotation,)) if kind is not type(None)]
    kind = kinds[0]
    if get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    if get_origin(kind) is tuple:
        return "R,G,B"
    if isinstance(kind, str):
        return "|".join(kinds)
    if get_args(kind) and isinstance(get_args(kind)[0], str):
        return "|".join(get_args(kind))
    return {int: "N", float: "X", Path: "PATH"}.get(kind, "TEXT")


for _name, (_model, _example) in STAGES.items():
    app.command(_name)(_stage_command(_name, _model, _example))


@app.command("inspect")
def inspect_command(
    store: Annotated[Path, typer.Argument(help="The store, NAME.zarr.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what a store holds, sealed or not.

    Example:

        kdpipe inspect logits.zarr --json
    """
    from kdpipe.store import summary
    from stages.storing import fidelity_lines

    found = summary(store)
    if as_json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
        return
    for key, value in _lines(found):
        if not key.startswith(("budget.chosen_from", *(f"splits.{split}.fidelity" for split in found["splits"]))):
            print(f"{key:32} {value}")
    for line in fidelity_lines(found):
        print(line)


@app.command()
def verify(
    store: Annotated[Path, typer.Argument(help="The store, NAME.zarr.")],
    data: Annotated[str | None, typer.Option(help="Also compare with this dataset, as in the other commands.")] = None,
    deep: Annotated[bool, typer.Option("--deep", help="Also decode everything and check its values.")] = False,
    teacher: Annotated[
        list[str] | None, typer.Option(help="Also recompute random rows with this model or run:DIR; repeat for each.")
    ] = None,
    weights: Annotated[list[str] | None, typer.Option(help="The teacher's weights; repeat for each teacher.")] = None,
    rows: Annotated[int, typer.Option(min=1, help="Rows to recompute.")] = 64,
    device: Annotated[str, typer.Option(help="Where to recompute: auto, cpu, cuda, cuda:N or mps.")] = "auto",
) -> None:
    """Check every file of a store against its manifest, its samples against a dataset, its logits against a teacher.

    Example:

        kdpipe verify logits.zarr --data digits --teacher resnet20 --weights runs/teacher/model.safetensors
    """
    from kdpipe.store import verify_deep, verify_files
    from stages.console import progress

    if teacher and data is None:
        raise ParamsError("verify --teacher needs --data, the images that the teacher is shown.")
    faults = verify_files(store, progress=progress)
    if deep and not faults:
        faults = verify_deep(store, progress=progress)
    if data is not None and not faults:
        from kdpipe import dataset
        from kdpipe.pairing import verify_data
        from kdpipe.store import open_store, summary

        for split in summary(store)["splits"]:
            opened = open_store(store, split=split)
            faults += verify_data(opened, dataset.load(data, split, progress=progress))
    if teacher and data is not None and not faults:
        from stages.recomputing import recomputed

        faults += recomputed(store, data, teachers=teacher, weights=weights or [], rows=rows, device=device)
    for fault in faults:
        print(f"{store}: {fault}", file=sys.stderr)
    if faults:
        raise typer.Exit(1)
    checked = ["every file matches the manifest"]
    checked += ["everything decodes to valid values"] if deep else []
    checked += [] if data is None else [f"{data} matches the store"]
    checked += [f"{' and '.join(teacher)} says the same"] if teacher else []
    print(f"{store}: {', '.join(checked)}.")


@app.command("models")
def models_command(
    name: Annotated[str | None, typer.Argument(help="Show this model only; any name that a stage takes.")] = None,
    num_classes: Annotated[int, typer.Option(help="Number of classes.")] = 10,
    size: Annotated[
        int | None, typer.Option(help="Side of the input in pixels: 32, or with --layers the model's own.")
    ] = None,
    layers: Annotated[bool, typer.Option("--layers", help="List the layers of NAME instead, for --signals.")] = False,
) -> None:
    """List the models that can teach or learn, with parameters, multiply-accumulates and penultimate features.

    Example:

        kdpipe models resnet20 --num-classes 100
    """
    from kdpipe import models

    if layers:
        from stages.layers import show_layers

        show_layers(name, num_classes=num_classes, size=size)
        return
    size = size or 32
    rows = []
    for listed in models.names() if name is None else [name]:
        module = models.create(listed, num_classes)
        penultimate = models.find_penultimate(module, size)
        features = "none" if penultimate is None else f"{penultimate.dim:,}"
        rows.append((listed, models.count_parameters(module), models.macs(module, size) / 1e6, features))
    print(f"{'model':24} {'parameters':>12} {'MMACs':>10} {'features':>10}   ({num_classes} classes, {size} x {size})")
    for listed, parameters, millions, features in rows:
        print(f"{listed:24} {parameters:12,} {millions:10.1f} {features:>10}")
    if name is None:
        print("also: torchvision:NAME, timm:NAME, run:DIR, file:PATH.pt2, package.module:function")


@app.command("presets")
def presets_command(
    name: Annotated[str | None, typer.Argument(help="Print this one as a params file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List published training recipes with their results, or print one for --params.

    Example:

        kdpipe presets cifar100-kd-wrn_40_2-wrn_16_2 > params.yaml
    """
    from stages import presets
    from stages.preset_table import PRESETS

    chosen = PRESETS if name is None else (presets.find(name),)
    if as_json:
        print(presets.as_json(chosen))
    elif name is None:
        presets.show(chosen)
    else:
        print(presets.as_yaml(*chosen), end="")


def _lines(found: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    lines: list[tuple[str, Any]] = []
    for key, value in found.items():
        if isinstance(value, dict):
            lines += _lines(value, f"{prefix}{key}.")
        else:
            lines.append((prefix + key, value))
    return lines


class _Stopped(BaseException):
    """A signal asked the program to stop; not a ``KeyboardInterrupt``, which typer would swallow."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def _stop(number: int, _frame: FrameType | None) -> None:
    raise _Stopped(number)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; errors of the user are one line on stderr and exit code 1.

    Ctrl-C and SIGTERM end it with 128 plus the signal's number; finished shards and epochs stay.
    """
    usage_error: type[Exception] = typer.BadParameter.__bases__[0]
    handlers = {number: signal.signal(number, _stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        code = app(args=arguments, standalone_mode=False)
    except (KdpipeError, OSError) as error:
        _fail(str(error), 1)
    except usage_error as error:
        _fail(error.format_message() + " See --help.", 1)  # type: ignore[attr-defined]
    except _Stopped as stopped:
        _fail(
            "stopped; what is finished (shards, epochs) is kept. Run the same command again to go on, a training "
            "with --resume.",
            128 + stopped.number,
        )
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    sys.exit(code or 0)


def _fail(message: str, code: int) -> None:
    print(f"kdpipe: {' '.join(message.split())}", file=sys.stderr, flush=True)
    sys.exit(code)
