"""Run directories: the files of one training run.

model.safetensors   the weights of the last epoch, with preset and class names
best.safetensors    with --validation, those of the epoch that was best on it
model.int8.onnx     of a compression with --quantize int8, the model in int8
checkpoint.pt       the state for --resume; until the run is finished, checkpoint.previous.pt is the one before it
run.json            all parameters, seeds and lineage
history.csv         one row per epoch
metrics.json        accuracy on the test split after the last epoch, and the cost of the run; with --validation, also
                    the accuracy of the epoch that was best on it
failure.json        the error that ended a student that was trained with others
dvclive/, tensorboard/, wandb/
                    the history and the test accuracies, for those programs
"""

from __future__ import annotations

import csv
import io
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from kdpipe import durable
from kdpipe.errors import RunError
from kdpipe.printable import printable_json
from kdpipe.training import checkpoint, records
from kdpipe.training.checkpoint import State
from kdpipe.training.holding import Place
from kdpipe.training.records import LOGS, Failure, Metrics, RunRecord

History = list[dict[str, float]]

Labels = Mapping[str, npt.NDArray[np.int32]]
"""The labels of each split, in the order of its samples."""

_FILES = (
    *("model.safetensors", "best.safetensors", "model.int8.onnx", "checkpoint.pt", "checkpoint.previous.pt"),
    *("run.json", "history.csv", "metrics.json", "failure.json"),
)

_LOG_MARK = ".kdpipe"
"""File in a log's folder that kdpipe made and may replace with the run."""

_RESULTS = ("model.safetensors", "best.safetensors", "checkpoint.pt", "history.csv", "metrics.json")
"""Files that hold what a training has computed."""


@dataclass(frozen=True)
class RunDirectory:
    """The files of one run, by name."""

    path: Path
    follows: bool = False
    """Whether another process writes the run, which this one only reads."""
    _place: Place = field(default_factory=Place, init=False, repr=False, compare=False)
    _labels: dict[str, npt.NDArray[np.int32]] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def weights(self) -> Path:
        """``model.safetensors``"""
        return self.path / "model.safetensors"

    @property
    def best_weights(self) -> Path:
        """``best.safetensors``"""
        return self.path / "best.safetensors"

    @property
    def int8(self) -> Path:
        """``model.int8.onnx``"""
        return self.path / "model.int8.onnx"

    @property
    def checkpoint(self) -> Path:
        """``checkpoint.pt``"""
        return self.path / "checkpoint.pt"

    @property
    def finished(self) -> bool:
        """Whether the run is finished."""
        return (self.path / "metrics.json").is_file()

    @property
    def holds_results(self) -> bool:
        """Whether a training has written something here that a new run would replace."""
        if any(os.path.lexists(self.path / name) for name in _RESULTS):
            return True
        return (self.path / "run.json").is_file() and checkpoint.exists(self.checkpoint)

    @property
    def in_place(self) -> bool:
        """Whether the directory is still the one in which ``start`` began."""
        return self._place.kept(self.path)

    def refuse_start(
        self, record: dict[str, Any], *, resume: bool, overwrite: bool = False, labels: Labels | None = None
    ) -> None:
        """Check that ``start`` can begin, and change nothing.

        Raises:
            RunError: the directory holds something else than a run, a run that is neither to be resumed nor to be
                replaced, or a run with other settings is resumed.
        """
        if self.follows:
            return
        written = self.path / "run.json"
        if not written.is_file():
            self._refuse_strangers()
        if resume:
            if not written.is_file():
                raise RunError(f"{self.path} holds no run to resume. Start it without --resume.")
            self.refuse_changes({key: record[key] for key in ("parameters", "lineage")})
            self._refuse_other_labels(record, labels or {})
            if self.finished and not checkpoint.exists(self.checkpoint):
                raise RunError(f"{self.path} is finished, and its checkpoint is gone: there is nothing to resume.")
        else:
            self.refuse_results(overwrite=overwrite)

    def refuse_results(self, *, overwrite: bool) -> None:
        """Refuse a directory with results of a run, unless they are to be replaced.

        Raises:
            RunError: it holds some.
        """
        if overwrite or not self.holds_results:
            return
        if self.finished:
            raise RunError(
                f"{self.path} holds a finished run. Pass --overwrite to replace it, or --out another directory."
            )
        raise RunError(
            f"{self.path} holds a run that was begun. Pass --resume to go on with it, --overwrite to replace it, or "
            "--out another directory."
        )

    def start(
        self, record: dict[str, Any], *, resume: bool, overwrite: bool = False, labels: Labels | None = None
    ) -> None:
        """Prepare the directory for a run that ``record`` describes.

        A run made earlier in the same directory is continued by ``resume``, or replaced by ``overwrite``. From now on,
        nothing is written once the directory is deleted or moved away. Checkpoints hold the ``labels``, so that a
        resumption with others can tell how many have changed.

        Raises:
            RunError: as ``refuse_start`` does.
            UnwritableError: the disk is full or fails; a run made earlier is kept.
        """
        if self.follows:
            return
        self.refuse_start(record, resume=resume, overwrite=overwrite, labels=labels)
        self._labels.update(labels or {})
        self._place.settle(self.path)

        def fill(temporary: Path) -> None:
            temporary.write_text(printable_json(record) + "\n", encoding="utf-8")
            durable.fsync_file(temporary)
            self._clear(resume=resume, kept=temporary.name)

        durable.replace(self.path / "run.json", fill)

    def _clear(self, *, resume: bool, kept: str) -> None:
        """Remove what kills have left, but for the file ``kept``, and what a run wrote that is not resumed."""
        for name in _FILES:
            for unfinished in self.path.glob(f".{name}.*tmp"):
                if unfinished.name != kept:
                    unfinished.unlink(missing_ok=True)
        if not resume:
            checkpoint.remove(self.checkpoint)
            for name in _FILES:
                (self.path / name).unlink(missing_ok=True)
            for name in LOGS:
                self.remove_log(name)

    def check_place(self) -> None:
        """Refuse to go on where the directory was deleted, moved or replaced since ``start``.

        Raises:
            RunError: it was.
        """
        self._place.check(self.path)

    def empty_log(self, name: str) -> Path:
        """Return the folder of the log ``name``, one of dvclive, tensorboard and wandb, without what was in it.

        Raises:
            RunError: it was made by something else.
        """
        folder = self.path / name
        self.refuse_log(name)
        self.remove_log(name)
        with durable.writing(folder):
            folder.mkdir()
            (folder / _LOG_MARK).write_text("A log of kdpipe. The next run in this directory replaces it.\n")
        return folder

    def refuse_log(self, name: str) -> None:
        """Refuse a folder in the place of the log ``name`` that was made by something else.

        Raises:
            RunError: there is one.
        """
        if os.path.lexists(self.path / name) and not self.is_log(name):
            raise RunError(
                f"{self.path / name} is not a log of kdpipe. Leave out --{name}, move it away, or pass --out another "
                "directory."
            )

    def remove_log(self, name: str) -> None:
        """Remove the folder of a log, unless it was made by something else."""
        if self.is_log(name):
            with durable.writing(self.path / name):
                shutil.rmtree(self.path / name)

    def is_log(self, name: str) -> bool:
        """Whether kdpipe made the folder of the log ``name``; a link to a folder is none."""
        folder = self.path / name
        return name in LOGS and not folder.is_symlink() and (folder / _LOG_MARK).is_file()

    def refuse_changes(
        self, asked: dict[str, Any], *, remedy: str = "Start it without --resume and with --overwrite."
    ) -> None:
        """Check that the run was started with these sections of its record; the message ends with ``remedy``.

        Raises:
            RunError: it was started with others, but for what may change when a run is resumed.
        """
        before = self.record()
        found = {section: records.difference(before.get(section), asked[section]) for section in asked}
        differing = {section: difference for section, difference in found.items() if difference is not None}
        if differing:
            raise RunError(
                f"{self.path} was started with other {' and '.join(differing)} than asked for "
                f"({next(iter(differing.values()))}). {remedy}"
            )

    def _refuse_other_labels(self, record: dict[str, Any], labels: Labels) -> None:
        """Refuse to go on with other labels; runs of before they were recorded have none."""
        before, now = self.record().get("labels") or {}, record.get("labels") or {}
        changed = [split for split in before if before[split] != now.get(split)]
        if changed:
            split = changed[0]
            number = self._changed_labels(split, labels)
            what = f"other labels of the {split} images than these"
            if number:
                what = f"other labels than these: {number:,} of {len(labels[split]):,} {split} labels have changed"
            raise RunError(
                f"{self.path} was started with {what}. Restore the labels, or pass --overwrite to start it again."
            )

    def _changed_labels(self, split: str, labels: Labels) -> int | None:
        """Return how many labels differ from the checkpoint's; ``None`` where it has none of as many samples."""
        for read in (checkpoint.peek, checkpoint.read_earlier):
            held = ((read(self.checkpoint) or {}).get("labels") or {}).get(split)
            if isinstance(held, torch.Tensor) and split in labels and held.shape == labels[split].shape:
                return int((held.numpy() != labels[split]).sum())
        return None

    def _refuse_strangers(self) -> None:
        """Refuse a directory that was made by something else; hidden files, such as DVC's, are ignored."""
        if self.path.is_file():
            raise RunError(f"{self.path} is a file: pass --out a directory.")
        present = [path.name for path in self.path.iterdir()] if self.path.exists() else []
        known = {*_FILES, *filter(self.is_log, present)}
        strangers = sorted(name for name in present if name not in known and not name.startswith("."))
        if strangers:
            raise RunError(
                f"{self.path} is not a run: it holds {strangers[0]}, and no run.json. Pass --out another directory."
            )

    def record(self, model: type[RunRecord] = RunRecord) -> dict[str, Any]:
        """Read ``run.json``, which must fit the model.

        Raises:
            RunError: it is missing, damaged or of something else.
        """
        return records.read_run(self.path / "run.json", model)

    def metrics(self) -> dict[str, Any]:
        """Read ``metrics.json``; raises ``RunError`` where the run is not finished."""
        return records.read(self.path / "metrics.json", Metrics)

    def save_checkpoint(self, state: State) -> None:
        """Write ``checkpoint.pt`` atomically and keep the one before."""
        if self.follows:
            return
        self.check_place()
        held = {split: torch.from_numpy(labels) for split, labels in self._labels.items()}
        checkpoint.write(self.checkpoint, {**state, "labels": held} if held else state)

    def load_checkpoint(self, *, say: Callable[[str], None] = lambda _message: None) -> State | None:
        """Read the newest checkpoint that is not damaged; ``None`` where the run was stopped before the first.

        ``say`` is told where it is not the newest one.
        """
        return checkpoint.read(self.checkpoint, say=say) if checkpoint.exists(self.checkpoint) else None

    def load_earlier_checkpoint(self) -> State | None:
        """Read the checkpoint before the newest; ``None`` where there is none that is not damaged."""
        return checkpoint.read_earlier(self.checkpoint)

    def drop_newest_checkpoint(self) -> None:
        """Remove the newest checkpoint; the one before it is resumed from."""
        if self.follows:
            return
        self.checkpoint.unlink()

    def failure(self) -> str | None:
        """Return the error that ended this student among others; ``None`` where there is none."""
        path = self.path / "failure.json"
        return str(records.read(path, Failure)["message"]) if path.exists() else None

    def write_failure(self, message: str) -> None:
        """Record the error that ended this student, so that the others are resumed without it."""
        if self.follows:
            return
        self.check_place()
        durable.write_json(self.path / "failure.json", {"message": message})

    def write_history(self, history: History) -> None:
        """Write ``history.csv`` atomically."""
        if self.follows:
            return
        self.check_place()
        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames=list(history[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(history)
        durable.write_text(self.path / "history.csv", text.getvalue())

    def history(self) -> History:
        """Read ``history.csv``; empty where there is none.

        Raises:
            RunError: it is no table of finite numbers.
        """
        path = self.path / "history.csv"
        return records.read_history(path) if path.exists() else []

    def write_int8(self, model: bytes) -> None:
        """Write ``model.int8.onnx`` atomically."""
        self.check_place()
        durable.write_bytes(self.int8, model)

    def write_metrics(self, metrics: dict[str, Any]) -> None:
        """Write ``metrics.json``, and its digests of weights also to ``run.json``; the run is finished then."""
        self.check_place()
        with durable.writing(self.path / "metrics.json"):
            (self.path / "failure.json").unlink(missing_ok=True)
            if "weights" in metrics:
                durable.write_json(self.path / "run.json", {**self.record(), "weights": metrics["weights"]})
            durable.write_json(self.path / "metrics.json", metrics)
            checkpoint.before(self.checkpoint).unlink(missing_ok=True)
        self.check_place()
