"""Weights and temperatures over the epochs: closed forms, and one way of writing each."""

from __future__ import annotations

import math

import pytest
import torch

from kdpipe.distil.curves import Curve
from kdpipe.distil.losses import make, parse
from kdpipe.distil.objective import Distillation
from kdpipe.errors import ParamsError


def _values(written: str, epochs: int) -> list[float]:
    return Curve.parse(written).values(epochs)


def test_closed_forms() -> None:
    assert _values("0.9", 3) == [0.9] * 3
    assert _values("linear:1,0", 4) == [1, 0.75, 0.5, 0.25]
    assert _values("linear:0,1,over=2", 4) == [0, 0.5, 1, 1]
    assert _values("linear:1,0,every=2", 5) == pytest.approx([1, 1, 0.6, 0.6, 0.2])
    assert _values("step:0.8,0.5,every=2", 5) == [0.8, 0.8, 0.4, 0.4, 0.2]
    assert _values("cosine:4,2", 6) == pytest.approx([3 + math.cos(math.pi * epoch / 6) for epoch in range(6)])


def test_a_ratio_of_one_half_cosine_annealed_every_five_epochs() -> None:
    expected = [0.25 * (1 + math.cos(math.pi * (epoch // 5 * 5) / 100)) for epoch in range(100)]
    assert _values("cosine:0.5,0,every=5", 100) == pytest.approx(expected)


def test_long_trainings_do_not_overflow() -> None:
    """The end of a curve is no factor: 21 to the power of 480 is beyond a float."""
    assert _values("linear:1,21", 480)[240] == 11
    assert _values("cosine:1,21", 480)[240] == pytest.approx(11)
    assert _values("learned:1,21", 480) == [21.0] * 480


def test_dkd_s_warm_up() -> None:
    expected = [8 * min(epoch / 20, 1.0) for epoch in range(1, 241)]
    assert _values("constant:8,warmup=20", 240) == pytest.approx(expected)


STALLING = [0.5, 0.6, 0.6, 0.55, 0.59, 0.61, 0.61, 0.61, 0.61, 0.2, 0.3, 0.4, 0.62]
"""Validation accuracies. The best of 0.6 and then that of 0.61 are not exceeded for 3 and for 6 epochs."""


def _plateau(written: str, validated: list[float]) -> list[float]:
    """Return the value in each epoch, the one after the last accuracy included."""
    epochs = len(validated) + 1
    return [Curve.parse(written).at(epoch, epochs, validated=validated[:epoch]) for epoch in range(epochs)]


def test_a_weight_that_falls_when_validation_stalls() -> None:
    assert _plateau("plateau:0.8,0.5,patience=3", STALLING) == [0.8] * 5 + [0.4] * 4 + [0.2] * 3 + [0.1] * 2
    assert _plateau("plateau:0.8,0.5,patience=3,floor=0.3", STALLING) == [0.8] * 5 + [0.4] * 4 + [0.3] * 5
    assert _plateau("plateau:0.8,0,patience=3", STALLING) == [0.8] * 5 + [0.0] * 9
    assert _plateau("plateau:0.8,0.5,patience=7", STALLING) == [0.8] * 14
    warmed = _plateau("plateau:0.8,0.5,patience=3,warmup=2", STALLING)
    assert warmed == [0.4] + [0.8] * 4 + [0.4] * 4 + [0.2] * 3 + [0.1] * 2


@pytest.mark.parametrize("patience", [1, 2, 3, 5])
def test_it_falls_when_torch_s_schedule_does(patience: int) -> None:
    generator = torch.Generator().manual_seed(patience)
    validated = (torch.randint(0, 30, (100,), generator=generator).double() + torch.arange(100) / 4).tolist()
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, mode="max", factor=0.5, patience=patience - 1, threshold=0, eps=0
    )
    expected = [1.0]
    for accuracy in validated:
        schedule.step(accuracy)
        expected.append(optimizer.param_groups[0]["lr"])
    assert len(set(expected)) > 3
    assert _plateau(f"plateau:1,0.5,patience={patience}", validated) == expected


def test_it_needs_the_accuracy_of_every_epoch() -> None:
    distillation = Distillation(parse("kd"), kd_weight=Curve.parse("plateau:0.9,0.5,patience=3"))
    assert distillation.terms(0, 3).moving == {"kd_weight": 0.9}
    with pytest.raises(ParamsError, match="needs the validation accuracy of each epoch"):
        distillation.terms(1, 3)


@pytest.mark.parametrize(
    ("written", "canonical"),
    [
        ("1e-3", "0.001"),
        ("1/4", "0.25"),
        ("constant:2", "2"),
        (" cosine : 0.9 , .1 , every=5 ", "cosine:0.9,0.1,every=5"),
        ("linear:1,0,warmup=3,over=7", "linear:1,0,over=7,warmup=3"),
        ("constant:8,warmup=20", "constant:8,warmup=20"),
        ("step:1,0.5,every=30", "step:1,0.5,every=30"),
        ("cosine:start=0.9,end=0.1", "cosine:0.9,0.1"),
        ("plateau:0.9,.5,patience=3,floor=0", "plateau:0.9,0.5,patience=3"),
        ("plateau:0.9,1/2,floor=0.1,patience=3,warmup=2", "plateau:0.9,0.5,warmup=2,patience=3,floor=0.1"),
    ],
)
def test_a_curve_is_written_in_one_way(written: str, canonical: str) -> None:
    curve = Curve.parse(written)
    assert str(curve) == canonical
    assert Curve.parse(canonical) == curve


@pytest.mark.parametrize(
    ("written", "part"),
    [
        ("much", "expected a number of 0 or more"),
        ("nan", "expected a number of 0 or more"),
        ("-1", "expected a number of 0 or more"),
        ("", "has a name missing"),
        ("cosine:0.9,-1", "the curve cosine cannot take end=-1, expected a number, 0 or more"),
        ("cosinus:1,0", "did you mean 'cosine'"),
        ("cosine:1", "the curve cosine lacks end: write cosine:START,END"),
        ("cosine:1,0,5", "takes 2 values without a key at most, found 3"),
        ("step:1,0.5", "the curve step lacks every: write step:START,FACTOR,every=EVERY"),
        ("linear:1,0,evry=5", "did you mean 'every'"),
        ("constant:1,every=5", "the curve constant has no parameter 'every'"),
        ("linear:1,0,every=0", "cannot take every=0, expected a whole number, 1 or more"),
        ("linear:1,0,over=1.5", "cannot take over=1.5, expected a whole number"),
        ("plateau:1,0.5", "the curve plateau lacks patience: write plateau:START,FACTOR,patience=PATIENCE"),
        ("plateau:1,2,patience=3", "cannot take factor=2, expected a number, 0 to 1"),
        ("plateau:1,0.5,patience=3,floor=2", "starts at 1, below its floor of 2"),
        ("cosine:1,0+linear:1,0", "is 2 terms, expected one curve"),
    ],
)
def test_what_cannot_be_parsed(written: str, part: str) -> None:
    with pytest.raises(ParamsError, match=part):
        Curve.parse(written)


def test_a_loss_changes_its_temperature() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(5, 4, generator=generator) for _ in range(2))
    distillation = Distillation(
        parse("kd"),
        temperature=Curve.parse("linear:8,2"),
        kd_weight=Curve.parse("step:1,0.5,every=1"),
        ce_weight=0.1,
    )
    for epoch, temperature in enumerate((8, 6, 4)):
        terms = distillation.terms(epoch, 3)
        labels = torch.zeros(5, dtype=torch.int64)
        assert terms.loss(student, teacher, labels) == make("kd", temperature=temperature)(student, teacher, labels)
        assert (terms.kd_weight, terms.ce_weight) == (0.5**epoch, 0.1)
        assert terms.moving == {"kd_weight": 0.5**epoch, "temperature": temperature}
