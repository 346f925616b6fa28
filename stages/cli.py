"""The command line, `kdpipe`: one command per stage, and those that look and tidy.

Rooms are imported inside the commands, so that help needs neither torch nor zarr.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdpipe.errors import KdpipeError, ParamsError
from kdpipe.stages import commands, exchange

if TYPE_CHECKING:
    from kdpipe.settings import Settings

app = typer.Typer(
    name="kdpipe",
    help="Offline knowledge distillation for classifiers: cache the teacher once, train many students, ship the best.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

EXAMPLES = {
    "train-teacher": "kdpipe train-teacher --data digits --model resnet20 --out runs/teacher --epochs 12",
    "cache-teacher": "kdpipe cache-teacher --data digits --teacher run:runs/teacher --out logits.zarr --views 4",
    "plan": "kdpipe plan --data digits --teacher run:runs/teacher --student resnet8 --views 4",
    "import-logits": "kdpipe import-logits --data digits --logits train.npy --test-logits test.npy "
    "--teacher-name 'our ViT-B' --out logits.zarr",
    "train-student": "kdpipe train-student --data digits --store logits.zarr --student resnet8 --out runs/resnet8-kd",
    "tune": "kdpipe tune --data digits --store logits.zarr --student resnet8 --search lr=0.01..0.3,log "
    "--search temperature=1..8 --search 'loss=kd|dkd|dist' --trials 9 --epochs 9 --out tuned",
    "compress": "kdpipe compress --data digits --run runs/resnet8-kd --store logits.zarr --prune 0.5 "
    "--out runs/resnet8-p50",
    "benchmark": "kdpipe benchmark --data digits --run runs/resnet8-kd --run runs/resnet8-none --out reports",
    "export": "kdpipe export runs/resnet8-kd --to onnx,pt2 --quantize int8 --out exported/resnet8-kd",
}
"""An example of each stage, by the name of its command."""

_SETTINGS = {
    **dict.fromkeys(("train-teacher", "train-student"), "training"),
    **dict.fromkeys(("cache-teacher", "import-logits"), "storing"),
    "compress": "compress",
    "tune": "tune",
    "plan": "plan",
    "benchmark": "benchmark",
    "export": "export",
}
"""The module of each command's settings."""

_AS_THEY_COME = {"allow_extra_args": True, "ignore_unknown_options": True}
"""A stage's flags are read by ``flags.parser_of``, which is made from its settings."""


def settings_of(command: str) -> type[Settings]:
    """Return the parameters of a stage's command."""
    module = importlib.import_module(f"kdpipe.stages.settings.{_SETTINGS[command]}")
    stage: type[Settings] = getattr(module, command.title().replace("-", ""))
    return stage


def _run_stage(command: str, arguments: Sequence[str]) -> None:
    """Read a stage's flags and run it."""
    from kdpipe.models.parts import keep_memory
    from kdpipe.stages.flags import parser_of, resolve

    keep_memory()
    section = command.replace("-", "_")
    stage = settings_of(command)
    given = vars(parser_of(stage, command=command, example=EXAMPLES[command]).parse_intermixed_args(arguments))
    file = given.pop("params", None)
    params = resolve(stage, section=section, file=file, flags=given)
    importlib.import_module(f"kdpipe.stages.{section}").run(params)


@app.command("train-teacher", context_settings=_AS_THEY_COME, add_help_option=False)
def train_teacher(context: typer.Context) -> None:
    """Train a teacher on hard labels."""
    _run_stage("train-teacher", context.args)


@app.command("cache-teacher", context_settings=_AS_THEY_COME, add_help_option=False)
def cache_teacher(context: typer.Context) -> None:
    """Run the teacher once over every view and keep its logits in a store."""
    _run_stage("cache-teacher", context.args)


@app.command("plan", context_settings=_AS_THEY_COME, add_help_option=False)
def plan(context: typer.Context) -> None:
    """Forecast a store before it is made: seconds, bytes, and the students after which it pays for itself."""
    _run_stage("plan", context.args)


@app.command("import-logits", context_settings=_AS_THEY_COME, add_help_option=False)
def import_logits(context: typer.Context) -> None:
    """Make a store of logits that someone already has, from any teacher in any framework."""
    _run_stage("import-logits", context.args)


@app.command("train-student", context_settings=_AS_THEY_COME, add_help_option=False)
def train_student(context: typer.Context) -> None:
    """Train students, with soft targets from a store, from a live teacher, or without any."""
    _run_stage("train-student", context.args)


@app.command("tune", context_settings=_AS_THEY_COME, add_help_option=False)
def tune(context: typer.Context) -> None:
    """Search the settings of a student: many short trainings on one store, the best of them longer."""
    _run_stage("tune", context.args)


@app.command("compress", context_settings=_AS_THEY_COME, add_help_option=False)
def compress(context: typer.Context) -> None:
    """Make a smaller network of a trained one: prune, factor, train on, quantize."""
    _run_stage("compress", context.args)


@app.command("benchmark", context_settings=_AS_THEY_COME, add_help_option=False)
def benchmark(context: typer.Context) -> None:
    """Compare trained students: accuracy, agreement with the teacher, size and latency."""
    _run_stage("benchmark", context.args)


@app.command("export", context_settings=_AS_THEY_COME, add_help_option=False)
def export(context: typer.Context) -> None:
    """Write a trained student as files for other runtimes, and test them."""
    _run_stage("export", context.args)


@app.command("inspect")
def inspect_command(
    store: Annotated[str, typer.Argument(help="The store, NAME.zarr, or URL/NAME@VERSION.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what a store holds, sealed or not.

    Example:

        kdpipe inspect logits.zarr --json
    """
    from kdpipe.sharing.streaming import localize
    from kdpipe.stages.console import say, show, show_json
    from kdpipe.store.inspect import fidelity_lines, summary

    local = localize(store, say=say)
    found = summary(local.path) | {"path": local.place}
    if as_json:
        show_json(found)
        return
    for key, value in _lines(found):
        if not key.startswith(("budget.chosen_from", *(f"splits.{split}.fidelity" for split in found["splits"]))):
            show(f"{key:32} {value}")
    for line in fidelity_lines(found):
        show(line)


@app.command("seal")
def seal_command(store: Annotated[Path, typer.Argument(help="The store, NAME.zarr.")]) -> None:
    """Seal a store whose parts were all computed, where the last process was killed before it did.

    Example:

        kdpipe seal logits.zarr
    """
    from kdpipe.stages.storing import seal

    seal(store)


@app.command()
def verify(
    store: Annotated[str, typer.Argument(help="The store, NAME.zarr, or URL/NAME@VERSION.")],
    data: Annotated[str | None, typer.Option(help="Also compare with this dataset, as in the other commands.")] = None,
    complete: Annotated[
        bool, typer.Option("--complete", help="With --data: refuse a dataset that lacks samples of the store.")
    ] = False,
    class_map: Annotated[
        Path | None, typer.Option(help="With --data: CSV file, class,store_class, of classes with other names.")
    ] = None,
    deep: Annotated[bool, typer.Option("--deep", help="Also decode everything and check its values.")] = False,
    teacher: Annotated[
        list[str] | None, typer.Option(help="Also recompute random rows with this model or run:DIR; repeat for each.")
    ] = None,
    weights: Annotated[list[str] | None, typer.Option(help="The teacher's weights; repeat for each teacher.")] = None,
    rows: Annotated[int, typer.Option(min=1, help="Rows to recompute.")] = 64,
    device: Annotated[str, typer.Option(help="Where to recompute: auto, cpu, cuda, cuda:N or mps.")] = "auto",
    trust_code: Annotated[bool, typer.Option("--trust-code", help="Run the code that a run or a .pt2 names.")] = False,
) -> None:
    """Check every file of a store against its manifest, its samples against a dataset, its logits against a teacher.

    Example:

        kdpipe verify logits.zarr --data digits --teacher resnet20 --weights runs/teacher/model.safetensors
    """
    from kdpipe.sharing.signature import signer_in
    from kdpipe.sharing.streaming import localize
    from kdpipe.stages.console import progress, say, show
    from kdpipe.store import manifest
    from kdpipe.store.inspect import not_here
    from kdpipe.store.verify import verify_deep, verify_files

    if teacher and data is None:
        raise ParamsError("verify --teacher needs --data, the images that the teacher takes.")
    path = localize(store, say=say).complete()
    faults = verify_files(path, progress=progress)
    signer = None if faults else signer_in(path, manifest.read(path).checksum or "")
    if deep and not faults:
        faults = verify_deep(path, progress=progress)
    if data is not None and not faults:
        from kdpipe.stages.verifying import against

        faults, notes = against(path, data, complete=complete, class_map=class_map)
        for line in notes:
            say(line)
    if teacher and data is not None and not faults:
        from kdpipe.stages.recomputing import recomputed

        named = {"teachers": teacher, "weights": weights or []}
        faults += recomputed(path, data, **named, rows=rows, device=device, trust_code=trust_code)
    for fault in faults:
        say(f"{store}: {fault}")
    if faults:
        raise typer.Exit(1)
    checked = ["every file matches the manifest", *([] if signer is None else [f"signed by {signer}"])]
    checked += ["everything decodes to valid values"] if deep else []
    checked += [] if data is None else [f"{data} matches the store"]
    checked += [f"{' and '.join(teacher)} computes the same logits"] if teacher else []
    absent = not_here(path)
    show(f"{store}: {', '.join(checked)}{'' if absent is None else f'; {absent}'}.")


for _name, _command in (commands.NAMED | exchange.NAMED).items():
    app.command(_name)(_command)


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
        _fail(f"{error.format_message().rstrip('.')}. See --help.", 1)  # type: ignore[attr-defined]
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
    from kdpipe.stages.console import aloud, say

    rank = os.environ.get("RANK", "") if os.environ.get("WORLD_SIZE", "1") != "1" else ""
    who = f"kdpipe, rank {rank[:9]}" if rank.isdecimal() else "kdpipe"
    with aloud():
        say(f"{who}: {' '.join(message.split())}")
    sys.exit(code)
