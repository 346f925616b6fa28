"""Logs of a training's figures besides `history.csv`: DVCLive, TensorBoard and Weights & Biases.

Each log has its own folder in the run directory. A log that is requested and cannot start stops the run before it
trains; a log that fails later is dropped with a warning, and the training continues. A resumed run writes its logs
again from the history in its checkpoint, so they hold each epoch once. A package is imported when its log starts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from kdpipe.errors import ParamsError, RunError
from kdpipe.stages.console import say
from kdpipe.stages.trackers import DVCLive, Flat, Row, TensorBoard, WeightsAndBiases
from kdpipe.training.records import flat
from kdpipe.training.runs import RunDirectory
from kdpipe.training.settings import LogSettings

_EXTRAS = {"dvclive": "dvc", "tensorboard": "tensorboard", "wandb": "wandb"}
"""The extra that installs each log's package; the flags have the packages' names."""


class Log(Protocol):
    """A log of one run; any method may raise any exception."""

    title: str
    """Name of the program, for messages."""

    def start(self, run: RunDirectory, settings: Flat) -> None:
        """Start the log of ``run`` with its parameters and lineage."""
        ...

    def epoch(self, row: Row) -> None:
        """Log an epoch."""
        ...

    def finish(self, scores: Mapping[str, float], *, epoch: int) -> None:
        """Log the accuracies on the test set, measured after the last epoch."""
        ...

    def close(self, *, failed: bool) -> None:
        """End the log, also of a run that was stopped or ``failed``."""
        ...


class Logs:
    """All logs of one run; those that fail while it trains are dropped."""

    def __init__(self, logs: Mapping[str, Log], *, requested: frozenset[str]) -> None:
        """Take logs by the name of their package; those in ``requested`` must not fail when they start."""
        self._logs = dict(logs)
        self._requested = requested

    @contextmanager
    def of(self, run: RunDirectory, record: dict[str, Any]) -> Iterator[None]:
        """Start every log with the run's record, and close it at the end of the block.

        Raises:
            RunError: a requested log cannot start.
        """
        settings = hyperparameters(record)
        failed = True
        try:
            for name in list(self._logs):
                self._start(name, run, settings)
            if self._logs:
                say(f"Logging to {', '.join(str(run.path / name) for name in self._logs)}.")
            yield
            failed = False
        finally:
            if run.in_place:  # a log would make the directory anew
                self._each(lambda log: log.close(failed=failed))

    def refuse_foreign(self, run: RunDirectory) -> None:
        """Refuse to start where something else made the folder of a requested log; nothing is changed.

        Raises:
            RunError: it did.
        """
        for name in self._requested:
            run.refuse_log(name)

    def epochs(self, rows: list[dict[str, float]]) -> None:
        """Log several epochs, in their order."""
        for row in rows:
            self.epoch(row)

    def epoch(self, row: Row) -> None:
        """Log an epoch."""
        self._each(lambda log: log.epoch(row))

    def finish(self, metrics: Mapping[str, Any], *, epoch: int) -> None:
        """Log the numbers in ``metrics``, under names such as ``test/top1``."""
        scores = {name: value for name, value in _known(metrics, "/").items() if not isinstance(value, str)}
        self._each(lambda log: log.finish(scores, epoch=epoch))

    def fail(self) -> None:
        """End the logs of a student that failed while others continue."""
        self._each(lambda log: log.close(failed=True))
        self._logs.clear()

    def _start(self, name: str, run: RunDirectory, settings: Flat) -> None:
        log = self._logs.pop(name)
        try:
            log.start(run, settings)
        except Exception as error:
            run.remove_log(name)
            if name in self._requested:
                raise RunError(f"{log.title} cannot log this run ({_words(error)}). Leave out --{name}.") from error
            say(f"warning: {log.title} cannot log this run ({_words(error)}).")
        else:
            self._logs[name] = log

    def _each(self, act: Callable[[Log], None]) -> None:
        for name, log in list(self._logs.items()):
            try:
                act(log)
            except Exception as error:
                del self._logs[name]
                say(f"warning: {log.title} failed and logs no more of this run ({_words(error)}). The run continues.")


def choose(settings: LogSettings, out: Path) -> Logs:
    """Return the requested logs of a run in ``out``, and DVCLive's by default in a DVC repository.

    Raises:
        ParamsError: a package is not installed, or DVCLive is requested outside of a DVC repository.
    """
    requested = [name for name in _EXTRAS if getattr(settings, name)]
    missing = [name for name in requested if find_spec(name) is None]
    if missing:
        extras = ",".join(_EXTRAS[name] for name in missing)
        raise ParamsError(f"--{missing[0]} needs {missing[0]}, which is not installed: pip install 'kdpipe[{extras}]'.")
    inside = _in_dvc_repository(out)
    if settings.dvclive and not inside:
        raise ParamsError(
            f"--dvclive needs a DVC repository that holds both {out} and the working directory. "
            "Run it in one, make one with dvc init, or leave out --dvclive."
        )
    chosen = list(requested)
    if settings.dvclive is None and inside and find_spec("dvclive") is not None:
        chosen.append("dvclive")
    return Logs({name: _make(name) for name in chosen}, requested=frozenset(requested))


def hyperparameters(record: Mapping[str, Any]) -> Flat:
    """Return the parameters, model, data and stores of a ``run.json``, with dotted names."""
    kept = {key: record[key] for key in ("stage", "distill", "model", "num_parameters", "device", "lineage")}
    own = {key: value[0] if key == "student" else value for key, value in record["parameters"].items()}
    return _known({**own, **kept}, ".")


def _make(name: str) -> Log:
    kinds: dict[str, type[Log]] = {"dvclive": DVCLive, "tensorboard": TensorBoard, "wandb": WeightsAndBiases}
    return kinds[name]()


def _in_dvc_repository(out: Path) -> bool:
    """Return whether the working directory is in a DVC repository, and ``out`` in the same one.

    DVCLive searches from the working directory only, and initializes DVC in a git repository without it.
    """
    here = Path.cwd()
    root = next((folder for folder in (here, *here.parents) if (folder / ".dvc").is_dir()), None)
    return root is not None and out.resolve().is_relative_to(root)


def _known(nested: Mapping[str, Any], separator: str) -> Flat:
    """Return nested mappings and lists as one mapping; ``None`` and empty lists are left out."""
    return {name: value for name, value in flat(nested, separator).items() if value is not None}


def _words(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
