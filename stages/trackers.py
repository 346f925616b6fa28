"""The logs of DVCLive, TensorBoard and Weights & Biases, each in its own folder of the run directory.

Each package is imported when its log starts.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdpipe.errors import RunError
from kdpipe.reading import read_bytes

if TYPE_CHECKING:
    import wandb
    from dvclive import Live

    from kdpipe.training.runs import RunDirectory


Row = Mapping[str, float]
"""A row of the history: the epoch, from 1, and its figures by name."""
Flat = dict[str, str | int | float | bool]


class DVCLive:
    """Writes ``OUT/dvclive``: a table for each column of the history, the latest values, and the parameters.

    It saves no experiment (``dvc exp run`` does that), and writes no ``dvc.yaml``.
    """

    title = "DVCLive"

    def __init__(self) -> None:
        """Create nothing before ``start``."""
        self._live: Live | None = None

    def start(self, run: RunDirectory, settings: Flat) -> None:
        """Open the repository and write ``params.yaml``."""
        from dvclive import Live

        self._live = Live(str(run.empty_log("dvclive")), save_dvc_exp=False, dvcyaml=None)
        self._live.log_params(dict(settings))

    def epoch(self, row: Row) -> None:
        """Add a line to each table; the step is the epoch, from 1."""
        assert self._live is not None
        self._live.step = int(row["epoch"])
        for name, value in row.items():
            if name != "epoch":
                self._live.log_metric(name, value)
        self._live.next_step()

    def finish(self, scores: Mapping[str, float], *, epoch: int) -> None:  # noqa: ARG002
        """Add the accuracies to ``metrics.json``."""
        assert self._live is not None
        for name, value in scores.items():
            self._live.log_metric(name, value, plot=False)

    def close(self, *, failed: bool) -> None:  # noqa: ARG002
        """Write ``metrics.json``, and send the rest to DVC Studio if that is set up."""
        if self._live is not None:
            self._live.end()


class TensorBoard:
    """Writes ``OUT/tensorboard``: a scalar for each column of the history, and the parameters for its HParams page."""

    title = "TensorBoard"

    def __init__(self) -> None:
        """Create nothing before ``start``."""
        self._writer: Any = None
        self._session_end: Any = None

    def start(self, run: RunDirectory, settings: Flat) -> None:
        """Open the event file and write the parameters."""
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams

        self._writer = SummaryWriter(str(run.empty_log("tensorboard")))
        experiment, session, self._session_end = hparams(settings, {"test/top1": None})
        self._writer.file_writer.add_summary(experiment)
        self._writer.file_writer.add_summary(session)

    def epoch(self, row: Row) -> None:
        """Write each figure at the step of its epoch, from 1."""
        for name, value in row.items():
            if name != "epoch":
                self._writer.add_scalar(name, value, int(row["epoch"]))
        self._writer.flush()

    def finish(self, scores: Mapping[str, float], *, epoch: int) -> None:
        """Write the accuracies at the step of the last epoch."""
        for name, value in scores.items():
            self._writer.add_scalar(name, value, epoch)
        self._writer.file_writer.add_summary(self._session_end)

    def close(self, *, failed: bool) -> None:
        """Write the rest, with the status of a ``failed`` run for the HParams page, and close the file."""
        if self._writer is None:
            return
        if failed and self._session_end is not None:
            self._writer.file_writer.add_summary(_as_failed(self._session_end))
        self._writer.close()


class WeightsAndBiases:
    """Writes ``OUT/wandb``; ``WANDB_*`` in the environment choose the project, by default ``kdpipe``, and the server.

    A resumed run keeps its id, in ``OUT/wandb/run-id``. Only epochs that the server lacks are sent to it; a run without
    a server is written again from its first epoch.
    """

    title = "Weights & Biases"

    def __init__(self) -> None:
        """Create nothing before ``start``."""
        self._run: wandb.Run | None = None

    def start(self, run: RunDirectory, settings: Flat) -> None:
        """Start the run on the server or on disk, or continue it."""
        import wandb

        kept = run.path / "wandb" / "run-id"
        id_before = _run_id(kept) if run.is_log("wandb") and kept.is_file() else None
        run.empty_log("wandb")
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "kdpipe"),
            name=os.environ.get("WANDB_NAME", str(run.path)),
            config=dict(settings),
            dir=run.path.absolute(),
            id=id_before,
            resume=None if id_before is None else "allow",
            reinit="create_new",  # students that are trained together have one run each
            settings=wandb.Settings(console="off"),
        )
        kept.write_text(self._run.id + "\n", encoding="utf-8")

    def epoch(self, row: Row) -> None:
        """Send an epoch that the server lacks; the step is the epoch, from 1."""
        assert self._run is not None
        if row["epoch"] >= self._run.step:
            self._run.log(dict(row), step=int(row["epoch"]), commit=True)

    def finish(self, scores: Mapping[str, float], *, epoch: int) -> None:  # noqa: ARG002
        """Add the accuracies to the run's summary."""
        assert self._run is not None
        self._run.summary.update(dict(scores))

    def close(self, *, failed: bool) -> None:
        """Send the rest."""
        if self._run is not None:
            self._run.finish(exit_code=int(failed))


def _run_id(path: Path) -> str:
    """Read the id of a run, which is part of an address on the server.

    Raises:
        RunError: the file is not one that kdpipe wrote.
    """
    content = read_bytes(path, limit=128, error=RunError).decode(errors="replace").strip()
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", content):
        raise RunError(f"{path} is damaged: it holds no id of a run")
    return content


def _as_failed(session_end: Any) -> Any:
    """Return the summary that ends a session with the status of a failure; PyTorch only makes successful ones."""
    from tensorboard.plugins.hparams.api_pb2 import Status
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    written = session_end.value[0].metadata.plugin_data
    plugin_data = HParamsPluginData.FromString(written.content)
    plugin_data.session_end_info.status = Status.Value("STATUS_FAILURE")
    written.content = plugin_data.SerializeToString()
    return session_end
