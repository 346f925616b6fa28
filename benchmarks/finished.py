"""Runs of a benchmark that are finished, which it does not repeat, and the spread of their figures."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scipy import stats

Run = dict[str, Any]


@dataclass(frozen=True)
class Finished:
    """The finished runs, one line of JSON each, of which those of other settings are passed over."""

    path: Path
    settings: dict[str, Any]

    def read(self) -> list[Run]:
        """Return the finished runs of these settings."""
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        kept = [json.loads(line) for line in lines]
        return [entry["run"] for entry in kept if entry["settings"] == self.settings]

    def has(self, arm: str, seed: int) -> bool:
        """Say whether a run is finished."""
        return any((run["arm"], run["seed"]) == (arm, seed) for run in self.read())

    def add(self, run: Run) -> None:
        """Append a run."""
        with self.path.open("a") as file:
            file.write(json.dumps({"settings": self.settings, "run": run}) + "\n")


def paired(runs: Mapping[int, Run], others: Mapping[int, Run]) -> dict[str, Any]:
    """Return the spread of the differences of top-1 between runs and others of the same seeds."""
    return spread([runs[seed]["top1"] - others[seed]["top1"] for seed in runs if seed in others])


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Return the values, their mean and their sample standard deviation, ``None`` where there are too few."""
    return {
        "values": list(values),
        "mean": statistics.fmean(values) if values else None,
        "std": statistics.stdev(values) if len(values) > 1 else None,
    }


def interval(values: Sequence[float]) -> dict[str, Any]:
    """Return ``spread`` with the 95 % interval of the mean by Student's t, where there are two values or more."""
    found = spread(values)
    if len(values) > 1:
        half = float(stats.t.ppf(0.975, len(values) - 1)) * found["std"] / len(values) ** 0.5
        found["interval_95"] = [found["mean"] - half, found["mean"] + half]
    return found
