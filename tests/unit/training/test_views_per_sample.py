"""Two views of each sample in a batch: against a plain loop, their cycle, and a resumption."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from kdpipe.distil.losses import make
from kdpipe.distil.objective import Distillation, DistillationObjective
from kdpipe.errors import RunError
from kdpipe.testing.doubles import IndexedTargets, StopAfter, differences, small_network
from kdpipe.training.batches import Batches, Indices, Signals
from kdpipe.training.loop import train
from kdpipe.training.schedule import Order, epoch_batches, rate
from kdpipe.views import Recipe, render
from kdpipe.views.settings import ViewSettings
from tests.students import PRESET, SETTINGS, STEPS, digits, renderer, student, taught

ORDER = Order(data_seed=3, views=3, views_per_sample=2)
MEAN, STD = (torch.tensor(values).view(1, 3, 1, 1) for values in (PRESET.mean, PRESET.std))


class OfViews(IndexedTargets):
    """Logits that are a function of the sample and the epoch's view."""

    view = -1

    def start_epoch(self, view: int, next_view: int | None) -> None:
        self.view, self.next_view = view, next_view

    def take(self, indices: Indices, pixels: torch.Tensor) -> tuple[torch.Tensor, Signals]:
        return logits_of(indices, self.view), {}


def logits_of(indices: Indices, view: int) -> torch.Tensor:
    return 3 * torch.sin(torch.from_numpy(indices)[:, None] * torch.arange(1.0, 11) + view)


def test_views_go_on_where_the_epoch_before_ended() -> None:
    assert [ORDER.views_of(epoch) for epoch in range(4)] == [(1, 2), (3, 1), (2, 3), (1, 2)]
    endless = Order(data_seed=0, views=None, views_per_sample=2)
    assert [endless.views_of(epoch) for epoch in range(3)] == [(1, 2), (3, 4), (5, 6)]
    assert Order(data_seed=0, views=3).views_of(4) == (2,)


def test_a_batch_has_both_views_with_their_soft_targets() -> None:
    targets = [OfViews(10), OfViews(10)]
    images = renderer()
    batches = Batches([images], targets, order=ORDER, batch_size=32, epochs=2)
    expected = epoch_batches(200, batch_size=32, data_seed=3, epoch=1)
    seen, found = batches.epoch(1, done=3)
    assert seen == 96
    for rows, batch in zip(expected[3:], found, strict=True):
        for view, each in zip((3, 1), (batch, *batch.others), strict=True):
            assert torch.equal(each.pixels[0], images(rows, view))
            assert each.soft_targets is not None
            assert torch.equal(each.soft_targets, logits_of(rows, view))
            assert each.indices is not None
            assert torch.equal(each.indices, torch.from_numpy(rows))
    assert [len(each) for each in (batch.head(3), *batch.head(3).others)] == [3, 3]
    assert [each.next_view for each in targets] == [None, None]


@pytest.mark.parametrize("dot", [None, 0.05])
def test_equals_a_plain_loop(dot: float | None, tmp_path: Path) -> None:
    settings = SETTINGS.but(dot=dot, nesterov=False, lr=0.02)
    distillation = Distillation(make("kd"), kd_weight=0.9, ce_weight=0.1)
    objective = DistillationObjective(PRESET, distillation, separate=dot is not None)
    ours = student(tmp_path, objective=objective, settings=settings)
    train(ours, [OfViews(10), OfViews(10)], order=ORDER)
    model, kd, losses = small_network().train(), make("kd"), []
    buffers = [[torch.zeros_like(each), torch.zeros_like(each)] for each in model.parameters()]
    momenta = (0.9, 0.9) if dot is None else (0.9 - dot, 0.9 + dot)
    for epoch in range(2):
        for step, rows in enumerate(epoch_batches(200, batch_size=32, data_seed=3, epoch=epoch)):
            labels = torch.from_numpy(digits().labels[rows]).long()
            of_labels, of_teacher = [], []
            for view in ORDER.views_of(epoch):
                pixels = render(digits(), "crop-flip", seed=0, indices=rows, view=view, size=16)
                logits = model((pixels.float() / 255 - MEAN) / STD)
                of_labels.append(0.1 * F.cross_entropy(logits, labels))
                of_teacher.append(0.9 * kd(logits, logits_of(rows, view), labels))
            rest, apart = torch.stack(of_labels).mean(), torch.stack(of_teacher).mean()
            losses.append((rest + apart).item() * len(rows))
            parameters = list(model.parameters())
            gradients = [torch.autograd.grad(each, parameters, retain_graph=True) for each in (rest, apart)]
            with torch.no_grad():
                for place, parameter in enumerate(parameters):
                    decayed = gradients[0][place] + 5e-4 * parameter
                    for side, gradient in enumerate((decayed, gradients[1][place])):
                        buffers[place][side].mul_(momenta[side]).add_(gradient)
                    parameter.sub_(rate(settings, epoch * STEPS + step, STEPS) * sum(buffers[place]))
    for (name, mine), other in zip(ours.module.state_dict().items(), model.state_dict().values(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-5, msg=name)
    rows_of_history = ours.run.history()
    assert rows_of_history[0]["loss"] == pytest.approx(sum(losses[:STEPS]) / 200, rel=1e-4)
    assert [row["view"] for row in rows_of_history] == [1, 3]


def test_a_resumed_training_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    def run(folder: Path, **others: object) -> torch.nn.Module:
        ours = student(folder, objective=taught())
        train(ours, [OfViews(10), OfViews(10)], order=ORDER, **others)  # type: ignore[arg-type]
        return ours.module

    whole = run(tmp_path / "whole")
    with pytest.raises(RunError, match="stopped at step 3 of epoch 2"):
        run(tmp_path / "stopped", should_stop=StopAfter(STEPS + 3))
    resumed = run(tmp_path / "stopped", resume=True)
    assert not differences(resumed.state_dict(), whole.state_dict())


def test_settings_of_one_view_are_refused() -> None:
    assert ViewSettings(views_per_sample=2, views=2).views_per_sample == 2
    for others in ({"views": 1}, {"views": 0}, {"recipe": Recipe.parse("none")}):
        with pytest.raises(ValidationError, match="views-per-sample 2 needs two different views"):
            ViewSettings(views_per_sample=2, **others)  # type: ignore[arg-type]
    with pytest.raises(ValidationError, match="less than or equal to 2"):
        ViewSettings(views_per_sample=3)
    assert np.array_equal(Order(0, None).views_of(0), [1])
