"""The log that DVC, its VS Code extension and DVC Studio read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dvclive import Live

    from kdpipe.stages.logs import Flat, Row
    from kdpipe.training.runs import RunDirectory


class DVCLive:
    """Writes ``OUT/dvclive``: a table for each column of the history, the latest values, and the parameters.

    It saves no experiment, which ``dvc exp run`` does, and writes no ``dvc.yaml``.
    """

    title = "DVCLive"

    def __init__(self) -> None:
        """Touch nothing yet."""
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
        """Write ``metrics.json`` and send what DVC Studio has not got yet, where that is set up."""
        if self._live is not None:
            self._live.end()
