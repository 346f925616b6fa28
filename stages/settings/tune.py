"""Parameters of the stage `tune`."""

from __future__ import annotations

from typing import Any, Self

from pydantic import Field, model_validator

from kdpipe.settings import Names, Positive, Setting
from kdpipe.stages.settings.training import TrainStudent

_FIXED = ("fleet", "seeds", "overwrite")
"""Settings of a training that a search does not have."""


class Tune(TrainStudent):
    """Search the settings of a student: many short trainings on one store, the best of them longer."""

    student: Names = ()
    """Model name; kdpipe list models."""
    search: Names = Field(min_length=1)
    """Setting and its values, KEY=LOW..HIGH, KEY=LOW..HIGH,log or KEY=A|B|C; repeat for several settings."""
    trials: Positive = 9
    """Settings that are drawn."""
    reduction: int = Field(3, ge=2)
    """Each rung keeps the best of this many trials, and trains them this many times longer; the last for --epochs."""
    search_seed: int = Field(0, ge=0)
    """Seed of the drawn settings."""

    @classmethod
    def flat(cls) -> dict[str, Setting]:
        """Return every setting by its key, without those that a search does not have."""
        return {key: setting for key, setting in super().flat().items() if key not in _FIXED}

    @model_validator(mode="before")
    @classmethod
    def _validated(cls, values: Any) -> Any:
        """Hold a tenth of the training samples out where nothing else is given."""
        return {**values, "run": {"validation": 0.1, **values.get("run", {})}}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(self.student) != 1:
            raise ValueError("give one --student; others can be searched: --search student=resnet8|resnet14")
        if not self.run.validation:
            raise ValueError("validation must be above 0: trials are compared on it, never on the test split")
        self._refuse_no_attack()
        return self
