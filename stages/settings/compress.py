"""Parameters of the stage `compress`."""

from __future__ import annotations

from typing import Any, Self

from pydantic import model_validator

from kdpipe.compress.settings import CompressionSettings, Recovery
from kdpipe.settings import Setting
from kdpipe.stages.settings.training import StudentTraining

_FIXED = ("epochs", "init_weights", "input_size")
"""Settings of a training that the parent or another setting gives."""


class Compress(StudentTraining):
    """Make a smaller network of a trained one, and train it on against the same store."""

    compression: CompressionSettings
    optimization: Recovery

    @classmethod
    def flat(cls) -> dict[str, Setting]:
        """Return every setting by its key: ``recover_epochs`` are the epochs, and the parent gives weights and size."""
        return {key: setting for key, setting in super().flat().items() if key not in _FIXED}

    def dump(self) -> dict[str, Any]:
        """Return all settings by key, as JSON values, and the epochs by the name that other trainings have for them."""
        return {**super().dump(), "epochs": self.optimization.epochs}

    @model_validator(mode="before")
    @classmethod
    def _with_epochs(cls, values: Any) -> Any:
        """Take the epochs of the training from those of the recovery, which are checked there."""
        given = values.get("compression", {})
        asked = given.get("recover_epochs")
        if asked is None:
            trained = any(given.get(key) not in (None, False) for key in ("prune", "low_rank", "qat"))
            asked = 5 if trained else 0
        try:
            epochs = max(0, int(asked))
        except (TypeError, ValueError):
            return values
        return {**values, "optimization": {**values.get("optimization", {}), "epochs": epochs}}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        self._refuse_no_attack()
        if not self.optimization.epochs and (self.targets.mode != "none" or self.extra.aux or self.extra.adversarial):
            raise ValueError("recover-epochs 0 learns nothing: leave store, teacher, aux and adversarial out")
        return self
