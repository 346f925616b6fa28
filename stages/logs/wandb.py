"""The log of Weights & Biases, on its server or, offline, on disk until `wandb sync`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import wandb

    from kdpipe.stages.logs import Flat, Row
    from kdpipe.training.runs import RunDirectory


class WeightsAndBiases:
    """Writes ``OUT/wandb``; ``WANDB_*`` in the environment say where the run goes, else to the project ``kdpipe``.

    A resumed run keeps its id, in ``OUT/wandb/run-id``. The server is sent the epochs that it has not got yet; what is
    kept on disk alone is written anew.
    """

    title = "Weights & Biases"

    def __init__(self) -> None:
        """Touch nothing yet."""
        self._run: wandb.Run | None = None

    def start(self, run: RunDirectory, settings: Flat) -> None:
        """Begin the run there, or go on with it."""
        import wandb

        kept = run.path / "wandb" / "run-id"
        id_before = kept.read_text(encoding="utf-8").strip() if kept.is_file() else None
        run.empty_log("wandb")
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "kdpipe"),
            name=os.environ.get("WANDB_NAME", str(run.path)),
            config=dict(settings),
            dir=run.path.absolute(),
            id=id_before,
            resume=None if id_before is None else "allow",
            reinit="create_new",  # each of several students has its own
            settings=wandb.Settings(console="off"),
        )
        Path(kept).write_text(self._run.id + "\n", encoding="utf-8")

    def epoch(self, row: Row) -> None:
        """Send an epoch, unless the server has it; the step is the epoch, from 1."""
        assert self._run is not None
        if row["epoch"] >= self._run.step:
            self._run.log(dict(row), step=int(row["epoch"]), commit=True)

    def finish(self, scores: Mapping[str, float], *, epoch: int) -> None:  # noqa: ARG002
        """Put the accuracies into the run's summary."""
        assert self._run is not None
        self._run.summary.update(dict(scores))

    def close(self, *, failed: bool) -> None:
        """Send what is left."""
        if self._run is not None:
            self._run.finish(exit_code=int(failed))
