"""Stage `train-student`: train students against a store, a live teacher, or hard labels alone."""

from __future__ import annotations

from collections.abc import Sequence

from kdpipe import models
from kdpipe.errors import DeviceError, DivergedError, KdpipeError, ParamsError
from kdpipe.stages.console import quiet, say
from kdpipe.stages.fleet import refuse_failed, students_of
from kdpipe.stages.ranks import PATIENCE, Ranks, launched
from kdpipe.stages.seed_runs import for_each_seed, wait_for_runs
from kdpipe.stages.settings.training import TrainStudent
from kdpipe.stages.students import train
from kdpipe.stages.training_data import load_student
from kdpipe.training.group import Group, joined
from kdpipe.training.runs import RunDirectory


def run(params: TrainStudent) -> None:
    """Train the students and write their run directories, or those of each seed, at or below ``--out``.

    Several ranks are dealt the students, or the seeds; one student is trained by all of them.
    """
    ranks = launched()
    if ranks is None:
        for_each_seed(params, lambda each: refuse_failed(_train(students := students_of(each)), of=len(students)))
        return
    together = not params.run.seeds and params.fleet is None and len(params.student) == 1
    _refuse(params, together=together)
    ranks.claim(params.run.device)
    if ranks.rank > 0:
        quiet()
    patience = max(PATIENCE, 10 * params.run.checkpoint_every)
    if together:
        _train_together(params, ranks)
    elif params.run.seeds:
        for_each_seed(params, lambda each: refuse_failed(_train(students_of(each)), of=1), ranks=ranks, wait=patience)
    else:
        _train_dealt(params, ranks, patience=patience)


def _train(students: Sequence[TrainStudent], group: Group | None = None) -> list[str]:
    """Train students together; return the names of those that failed. ``group`` are the processes that train one."""
    return train(
        students,
        stage="train-student",
        load=lambda student, samples: load_student(student, student.architecture, samples),
        group=group,
    ).failed


def _train_dealt(params: TrainStudent, ranks: Ranks, *, patience: float) -> None:
    """Train this rank's students, and wait for those of the others."""
    students = students_of(params)
    runs = [RunDirectory(student.run.out) for student in students]
    own = ranks.dealt(students)
    if params.run.resume:  # those that have failed are left out, as in one process
        own = [student for student in own if RunDirectory(student.run.out).failure() is None]
    if own and params.run.resume and not any((student.run.out / "run.json").is_file() for student in own):
        own = [student.but(resume=False) for student in own]
    if own:
        try:
            _train(own)
        except (DivergedError, DeviceError) as failure:
            _leave(own, failure)
    wait_for_runs(runs, patience=patience)
    if ranks.rank == 0:
        failed = [run.path.name for run in runs if run.failure() is not None and not run.finished]
        refuse_failed(failed, of=len(students))
        say(f"{len(students)} students are finished in {params.run.out}.")


def _leave(own: Sequence[TrainStudent], failure: KdpipeError) -> None:
    """Record the failure of a rank's only student, as that of one among several in a process.

    Raises:
        KdpipeError: ``failure``, if it ended several.
    """
    if len(own) > 1:
        raise failure
    RunDirectory(own[0].run.out).write_failure(str(failure))
    say(f"{own[0].run.out} is left out: {failure}")


def _train_together(params: TrainStudent, ranks: Ranks) -> None:
    """Train one student by all ranks, each on its part of every batch; the first writes its run directory."""
    if ranks.rank > 0:
        own = params.but(dvclive=False, tensorboard=False, wandb=False)
    elif params.run.resume and not (params.run.out / "run.json").is_file():  # it is also passed to ranks that start
        own = params.but(resume=False)
    else:
        own = params
    device = models.resolve_device(params.run.device)
    with joined(ranks.rank, ranks.world, device, patience=PATIENCE) as group:
        _train([own], group)


def _refuse(params: TrainStudent, *, together: bool) -> None:
    """Refuse what several ranks cannot do; ``together`` is one student of all.

    Raises:
        ParamsError: a run is to be replaced that another rank may have begun; or the objective needs more of a batch
            than its logits.
    """
    if not together:
        if params.run.overwrite:
            raise ParamsError(
                "--overwrite would remove what another rank may have begun: remove the runs before, or pass another "
                "--out."
            )
        return
    unfit = {
        "--distill live": params.targets.mode == "live",
        "--dot": params.optimization.dot is not None,
        "--aux": params.extra.aux is not None,
        "--adversarial": params.extra.adversarial is not None,
        "a learned temperature": params.learning.temperature is not None and params.learning.temperature.is_learned,
        "a loss on layers": params.targets.mode != "none" and bool(params.learning.loss.layers),
    }
    found = [what for what, present in unfit.items() if present]
    if found:
        raise ParamsError(
            f"one student is trained by several ranks from the logits of stores or from labels, without {found[0]}: "
            "start it without torchrun, or give several students or --seeds, which are dealt to the ranks."
        )
