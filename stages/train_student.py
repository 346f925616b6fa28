"""Stage `train-student`: train students against a store, a live teacher, or hard labels alone."""

from __future__ import annotations

from kdpipe.stages.fleet import refuse_failed, students_of
from kdpipe.stages.ranks import refuse_ranks
from kdpipe.stages.seed_runs import for_each_seed
from kdpipe.stages.settings.training import TrainStudent
from kdpipe.stages.students import train
from kdpipe.stages.training_data import load_student


def run(params: TrainStudent) -> None:
    """Train the students and write their run directories, or those of each seed, at or below ``--out``."""
    refuse_ranks("train-student")
    for_each_seed(params, _train)


def _train(params: TrainStudent) -> None:
    students = students_of(params)
    trained = train(
        students,
        stage="train-student",
        load=lambda student, samples: load_student(student, student.architecture, samples),
    )
    refuse_failed(trained.failed, of=len(students))
