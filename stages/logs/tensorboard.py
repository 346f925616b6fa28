"""The log that `tensorboard --logdir` reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kdpipe.stages.logs import Flat, Row
    from kdpipe.training.runs import RunDirectory


class TensorBoard:
    """Writes ``OUT/tensorboard``: a scalar for each column of the history, and the parameters for its HParams page."""

    title = "TensorBoard"

    def __init__(self) -> None:
        """Touch nothing yet."""
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
        """Write what is left, for the HParams page also that the run ``failed``, and close the file."""
        if self._writer is None:
            return
        if failed and self._session_end is not None:
            self._writer.file_writer.add_summary(_as_failed(self._session_end))
        self._writer.close()


def _as_failed(session_end: Any) -> Any:
    """Return the summary that ends a session, which PyTorch only makes for those that succeed."""
    from tensorboard.plugins.hparams.api_pb2 import Status
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    written = session_end.value[0].metadata.plugin_data
    told = HParamsPluginData.FromString(written.content)
    told.session_end_info.status = Status.Value("STATUS_FAILURE")
    written.content = told.SerializeToString()
    return session_end
