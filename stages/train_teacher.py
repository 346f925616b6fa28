"""Stage `train-teacher`: train a teacher on hard labels, for when there is none yet."""

from __future__ import annotations

from kdpipe.views import Recipe
from stages.auxiliary import rotation
from stages.params import TrainTeacher
from stages.seeds import for_each_seed
from stages.sources import load_model, load_split, load_training
from stages.training import Shown, Task, fit


def run(params: TrainTeacher) -> None:
    """Train ``params.model`` and leave its run directory, or that of each seed, at ``params.out``."""
    for_each_seed(params, _train)


def _train(params: TrainTeacher) -> None:
    data, test = load_training(params, taught=params.aux is not None), load_split(params, "test")
    model = load_model(params.model, data.train, weights=params.init_weights, size=params.input_size, seed=params.seed)
    shown = Shown(Recipe.parse(params.recipe or "crop-flip"), params.recipe_seed or 0, params.views)
    fit([Task(model, params, rotation=rotation(params, model))], data, test, stage="train-teacher", shown=shown)
