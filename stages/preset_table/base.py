"""What a published recipe is, and what several of them share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

Settings = Mapping[str, str | int | float]
"""Parameters of a stage by name."""


@dataclass(frozen=True)
class Source:
    """Who published a recipe and its figures, and where."""

    short: str
    """Author, year and repository, for a table."""
    paper: str
    page: str
    """The page or file that the figures were read from."""


@dataclass(frozen=True)
class Figures:
    """Test top-1 in percent, as published."""

    teacher: float | None
    baseline: float | None
    """The student, trained alone."""
    distilled: float | None


@dataclass(frozen=True)
class Preset:
    """A recipe: what ``cache-teacher`` and ``train-student`` are told, and what came of it."""

    name: str
    what: str
    data: str
    """The data set as ``--data`` takes it, with PATH for where it lies."""
    caching: Settings
    """Parameters of ``cache-teacher``."""
    settings: Settings
    """Parameters of ``train-student``."""
    source: Source
    figures: Figures
    notes: tuple[str, ...] = ()
    """How this differs from what was published, and what else the figures need to be read."""

    @property
    def pair(self) -> str:
        """Teacher and student, without where they come from."""
        teacher, student = (
            str(name).rpartition(":")[2] for name in (self.caching["teacher"], self.settings["student"])
        )
        return f"{teacher} -> {student}"


MDISTILLER = Source(
    "Zhao 2022, mdistiller",
    'Zhao et al., "Decoupled Knowledge Distillation" (2022)',
    "https://github.com/megvii-research/mdistiller",
)

_FRESH_VIEWS = "published with new crops in every epoch; here the epochs take turns with the store's views"
_BEST = "the published code keeps its best epoch on the test set; here it is the last one that is reported"
PUBLISHED = (_FRESH_VIEWS, _BEST)

KD: Settings = {"loss": "kd", "temperature": 4, "kd_weight": 0.9, "ce_weight": 0.1}
DKD: Settings = {
    "loss": "dkd",
    "temperature": 4,
    "alpha": 1,
    "kd_weight": "constant:1,warmup=20",
    "ce_weight": 1,
}
