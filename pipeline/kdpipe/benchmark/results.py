"""What a benchmark found: students of one run or of several seeds, their teacher, and where they were measured."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Literal

from kdpipe.benchmark.latency import Latency
from kdpipe.errors import RunError

Distill = Literal["cache", "live", "none"]
Figure = Literal["top1", "adversarial_top1", "top5", "loss_value", "agreement", "gap_recovered"]
"""What differs between runs of several seeds, as a field of ``StudentResult``."""


@dataclass(frozen=True, kw_only=True)
class StudentResult:
    """One training run, measured; or the mean of several that differ in their seed, see ``average()``."""

    name: str
    """Name of the run, unique within a benchmark."""
    path: Path
    """Directory of the run, or of the runs of several seeds."""
    architecture: str
    distill: Distill
    """Where the soft targets came from: a store, a teacher in the loop, or nowhere."""
    loss: str
    """Name of the loss that the student was trained with."""
    seed: int | None
    """None for several seeds."""
    top1: float | None
    """Test accuracy, 0..1; None without labels."""
    top5: float | None
    """Test top-5 accuracy, 0..1; None without labels."""
    loss_value: float | None
    """Mean cross-entropy on the test set, in nats; None without labels."""
    parameters: int
    """Number of parameters."""
    file_bytes: int
    """Size of the weights on disk, in bytes."""
    latencies: Mapping[int, Latency] = field(default_factory=dict)
    """Latency by batch size."""
    adversarial_top1: float | None = None
    """Test accuracy under the benchmark's attack, 0..1; None where there is none."""
    agreement: float | None = None
    """Share of test samples on which student and teacher name the same class; None without a teacher."""
    gap_recovered: float | None = None
    """See ``gap_recovered()``; filled by ``compare()``."""
    on_front: bool = False
    """Whether no other student is at once as accurate and as fast, and better in one; see ``compare()``."""
    members: tuple[StudentResult, ...] = ()
    """The runs, in the order of their seeds, that the figures are means of; empty for a single run."""

    @property
    def single_image_ms(self) -> float | None:
        """Median latency at batch size 1, in milliseconds; None if it was not measured."""
        return self.latencies[1].p50_ms if 1 in self.latencies else None

    @property
    def runs(self) -> tuple[StudentResult, ...]:
        """The runs of several seeds, or the single run itself."""
        return self.members or (self,)

    @property
    def shipped(self) -> Path:
        """Directory of the run to ship: of several seeds the first, which was named before anything was tested.

        The best on the test set would be one that luck chose, with an accuracy that new images do not confirm.
        """
        return self.runs[0].path

    def std(self, figure: Figure) -> float | None:
        """Return the sample standard deviation, with ``n - 1``, of a figure over the seeds.

        None for fewer than two runs, or where one of them lacks the figure or has one that is not finite.
        """
        values = [value for run in self.runs if (value := getattr(run, figure)) is not None and math.isfinite(value)]
        return stdev(values) if 1 < len(values) == len(self.runs) else None


def average(members: Sequence[StudentResult], *, name: str, path: Path) -> StudentResult:
    """Return runs of one student that differ in their seed as one student: the means of what they reach.

    Size and latencies are those of the first run, since all have the same architecture. A figure that one of the
    runs lacks is None.
    """

    def mean(figure: Figure) -> float | None:
        values = [value for run in members if (value := getattr(run, figure)) is not None]
        return fmean(values) if len(values) == len(members) else None

    return replace(
        members[0],
        name=name,
        path=path,
        seed=members[0].seed if len(members) == 1 else None,
        top1=mean("top1"),
        adversarial_top1=mean("adversarial_top1"),
        top5=mean("top5"),
        loss_value=mean("loss_value"),
        agreement=mean("agreement"),
        members=tuple(members),
    )


def mean_history(histories: Sequence[Sequence[Mapping[str, float]]]) -> list[dict[str, float]]:
    """Return the mean of training histories by epoch, for as many epochs and figures as all of them have."""
    return [
        {key: fmean(row[key] for row in rows) for key in rows[0] if all(key in row for row in rows)}
        for rows in zip(*histories, strict=False)
    ]


@dataclass(frozen=True)
class TeacherResult:
    """The teacher's accuracy on the test set."""

    name: str
    top1: float | None
    top5: float | None


@dataclass(frozen=True)
class AttackIdentity:
    """The attack that the students were measured under."""

    written: str
    """As the user wrote it, such as ``pgd:8/255,20``."""
    samples: int
    """Number of test samples that were attacked."""


@dataclass(frozen=True)
class StoreIdentity:
    """One of the stores that the students learnt from."""

    path: str
    digest: str
    weight: float = 1.0
    """Its share of the mean of all stores' logits."""


@dataclass(frozen=True, kw_only=True)
class BenchmarkResult:
    """All students of one benchmark, measured on the same samples and the same machine.

    Raises:
        RunError: There is no student, or two of them share a name.

    """

    dataset: str
    """The dataset as the user wrote it."""
    samples: int
    """Number of test samples."""
    students: tuple[StudentResult, ...]
    machine: Mapping[str, str | int | None]
    """What ``machine()`` returned."""
    created: str
    """When the benchmark ran, as an ISO 8601 time."""
    teacher: TeacherResult | None = None
    stores: tuple[StoreIdentity, ...] = ()
    """The stores whose mean is the teacher; empty where the students had none."""
    attack: AttackIdentity | None = None

    def __post_init__(self) -> None:
        """Refuse results that cannot be told apart by name."""
        names = [student.name for student in self.students]
        if not names:
            raise RunError("a benchmark needs at least one student run, got none. Train one with train-student.")
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise RunError(f"two student runs are called '{twice[0]}'. Rename one of them, or benchmark only one.")
