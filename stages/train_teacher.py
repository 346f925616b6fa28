"""Stage `train-teacher`: train a teacher on hard labels, for when there is none yet."""

from __future__ import annotations

from kdpipe import models
from kdpipe.stages.ranks import refuse_ranks
from kdpipe.stages.seed_runs import for_each_seed
from kdpipe.stages.settings.training import TrainTeacher
from kdpipe.stages.sources import load_test
from kdpipe.stages.training import Task, fit, objective_of
from kdpipe.stages.training_data import load_student, load_training, with_layout
from kdpipe.stages.views import Views


def run(params: TrainTeacher) -> None:
    """Train ``params.model`` and write its run directory, or one for each seed."""
    refuse_ranks("train-teacher")
    for_each_seed(params, _train)


def _train(params: TrainTeacher) -> None:
    data = load_training(params, taught=params.extra.aux is not None)
    test = load_test(params.dataset, data.whole)
    model = load_student(params, params.model, data.train)
    params = with_layout(params, model)
    views = Views.asked(params.view, data.train)
    rendering = views.rendering(data.train, models.resolve_device(params.run.device))
    fit(
        [Task(model, params, objective_of(params, model))],
        data,
        test,
        stage="train-teacher",
        views=views,
        rendering=rendering,
    )
