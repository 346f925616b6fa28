"""The weights and the temperature of a distillation term over the epochs."""

from __future__ import annotations

import pytest

from kdpipe.distil.curves import Curve
from kdpipe.distil.losses import LOSSES, LogitLoss, Loss, make, parse
from kdpipe.distil.objective import Distillation
from kdpipe.errors import UnsupportedLossError


def test_weights_that_are_left_out_are_the_published_ones_with_their_warmup() -> None:
    dkd = Distillation(parse("dkd"))
    assert [dkd.terms(epoch, 40).kd_weight for epoch in (0, 1, 19, 39)] == [1 / 20, 2 / 20, 1, 1]
    assert dkd.terms(0, 40).moving == {"kd_weight": 1 / 20}
    assert dkd.terms(0, 40).ce_weight == 1
    of_z_scores = Distillation(make("kd", standardize=True)).terms(0, 1)
    assert (of_z_scores.kd_weight, of_z_scores.ce_weight, of_z_scores.moving) == (9, 0.1, {})
    assert Distillation(parse("dkd"), kd_weight=1).terms(0, 40).kd_weight == 1


@pytest.mark.parametrize("name", [entry.name for entry in LOSSES if isinstance(entry.make(), LogitLoss)])
def test_every_loss_has_its_published_weights(name: str) -> None:
    published = make(name)
    for epoch in (0, 1, 30):
        terms = Distillation(parse(name)).terms(epoch, 40)
        share = min(1.0, (epoch + 1) / published.warmup_epochs) if published.warmup_epochs else 1.0
        assert terms.kd_weight == pytest.approx(published.kd_weight * share)
        assert (terms.loss, terms.ce_weight) == (published, published.ce_weight)


@pytest.mark.parametrize(
    ("loss", "part"),
    [
        (parse("mse"), "the loss mse has no parameter 'temperature'"),
        (parse("kd:temperature=2"), "gives another"),
        (make("kd"), "has its temperature"),
    ],
)
def test_a_temperature_that_no_loss_takes_is_refused(loss: Loss, part: str) -> None:
    with pytest.raises(UnsupportedLossError, match=part):
        Distillation(loss, temperature=Curve.parse("linear:8,2"))
