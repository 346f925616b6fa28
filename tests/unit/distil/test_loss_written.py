"""Losses as ``--loss`` takes them: settings, weights, temperatures, layers, and the text that is recorded."""

from __future__ import annotations

import pytest
import torch

from kdpipe.distil.losses import DistillationLoss, make, parse
from kdpipe.errors import UnsupportedLossError

BATCH = (
    torch.randn(6, 5, generator=torch.Generator().manual_seed(0)),
    torch.randn(6, 5, generator=torch.Generator().manual_seed(1)),
    torch.tensor([0, 1, -1, 3, 4, 2]),
)


def _value(loss: DistillationLoss) -> float:
    return loss(*BATCH).item()


def test_a_lone_loss_is_the_published_one() -> None:
    assert parse("kd").at() == make("kd")
    assert parse("dkd:alpha=1,beta=2").at() == make("dkd", alpha=1.0, beta=2.0)
    assert parse("kd:2").at() == parse("kd:temperature=2").at() == make("kd", temperature=2.0)
    assert parse("kd:standardize=true").at() == make("kd", standardize=True)
    assert (parse("dkd").at().kd_weight, parse("dkd").at().warmup_epochs) == (1.0, 20)


def test_a_weight_makes_a_sum() -> None:
    loss = parse("dkd:weight=3").at()
    assert (loss.kd_weight, loss.ce_weight, loss.warmup_epochs, loss.needs_label) == (1.0, 1.0, 0, True)
    assert _value(loss) == pytest.approx(3 * _value(make("dkd")))


def test_several_losses_add_up_with_published_or_given_weights() -> None:
    loss = parse("kd:weight=0.5,temperature=2+mse:weight=3+hard").at()
    parts = 0.5 * _value(make("kd", temperature=2.0)) + 3 * _value(make("mse")) + 0.5 * _value(make("hard"))
    assert _value(loss) == pytest.approx(parts, rel=1e-6)
    assert (loss.kd_weight, loss.ce_weight, loss.teacher_temperature) == (1.0, 0.1, None)
    z_scores = parse("kd:standardize=true+hard:weight=0").at()
    assert _value(z_scores) == pytest.approx(9 * _value(make("kd", standardize=True)), rel=1e-6)


def test_a_loss_may_stand_twice_at_two_temperatures() -> None:
    loss = parse("kd:temperature=2,weight=1+kd:temperature=4,weight=1").at()
    parts = _value(make("kd", temperature=2.0)) + _value(make("kd", temperature=4.0))
    assert _value(loss) == pytest.approx(parts, rel=1e-6)


def test_a_temperature_is_for_the_losses_that_do_not_give_their_own() -> None:
    assert parse("kd").at(3.0) == make("kd", temperature=3.0)
    assert parse("kd:standardize=true").at(3.0) == make("kd", temperature=3.0, standardize=True)
    loss = parse("kd:temperature=2,weight=1+dist:weight=1+mse:weight=1")
    assert loss.takes_temperature
    parts = _value(make("kd", temperature=2.0)) + _value(make("dist", temperature=3.0)) + _value(make("mse"))
    assert _value(loss.at(3.0)) == pytest.approx(parts, rel=1e-6)
    assert parse("kd:temperature=2+dist").at(8.0).teacher_temperature == 8.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mse", "--temperature 4 has no effect: the loss mse has no parameter 'temperature'. Leave --temperature out."),
        ("rkd", "the loss rkd has no parameter 'temperature'"),
        ("kd:temperature=2", "kd:temperature=2 gives another. Leave one of them out."),
        ("kd:temperature=2+mse+dist:temperature=3", "kd:temperature=2 and dist:temperature=3 give another"),
    ],
)
def test_a_temperature_that_nothing_takes_is_refused(text: str, message: str) -> None:
    assert not parse(text).takes_temperature
    with pytest.raises(UnsupportedLossError) as raised:
        parse(text).at(4.0)
    assert message in str(raised.value)


def test_a_temperature_of_0_is_refused() -> None:
    with pytest.raises(UnsupportedLossError, match=r"cannot take temperature=0\.0, expected a number, above 0"):
        parse("kd").at(0.0)


def test_losses_on_layers() -> None:
    loss = parse("kd:weight=0.5+features:layer3:layer2,penultimate,weight=3+rkd:angle=7+attention")
    features, rkd, attention = loss.layers
    assert (features.name, features.kind, features.weight) == ("features", "features", 3.0)
    assert list(features.pairs) == [("layer3", "layer2"), ("penultimate", "penultimate")]
    assert (rkd.weight, dict(rkd.settings), rkd.pairs) == (1.0, {"distance": 25.0, "angle": 7.0}, ())
    assert (attention.kind, attention.weight, attention.pairs) == ("attention", 1000.0, ())
    assert _value(loss.at()) == pytest.approx(0.5 * _value(make("kd")), rel=1e-6)


def test_a_published_weight_is_inside_the_sum_beside_losses_on_layers() -> None:
    loss = parse("kd+features").at()
    assert (loss.kd_weight, loss.ce_weight) == (1.0, 0.1)
    assert _value(loss) == pytest.approx(0.9 * _value(make("kd")), rel=1e-6)


def test_losses_on_layers_alone_leave_cross_entropy_its_whole_weight() -> None:
    loss = parse("attention:layer2").at()
    assert (loss.kd_weight, loss.ce_weight, loss.needs_label, loss.teacher_temperature) == (1.0, 1.0, False, 0.0)
    assert _value(loss) == 0


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("kd", "kd"),
        (" kd : temperature = 4.0 ", "kd:temperature=4"),
        ("kd:4", "kd:temperature=4"),
        ("dkd:beta=8,temperature=4,alpha=1", "dkd:temperature=4,alpha=1,beta=8"),
        ("kd:standardize=true,weight=0.50", "kd:weight=0.5,standardize=true"),
        ("kd:standardize=false", "kd"),
        (
            "kd:weight=1e+3 + features:layer2,layer1:layer3,weight=10",
            "kd:weight=1000+features:layer2,layer1:layer3,weight=10",
        ),
        ("rkd:angle=1/3", f"rkd:angle={1 / 3!r}"),
        ("attention:block2:layer2", "attention:block2:layer2"),
        ("features:layer2:layer2", "features:layer2"),
    ],
)
def test_the_text_of_a_loss_parses_to_the_same(text: str, canonical: str) -> None:
    loss = parse(text)
    assert str(loss) == canonical
    assert parse(canonical) == loss
    assert hash(parse(canonical)) == hash(loss)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("feature", "unknown loss 'feature'; did you mean 'features'"),
        ("dk", r"unknown loss 'dk'; did you mean 'dkd'\? Known: kd, .*rkd, .*attention, .*\.$"),
        ("kd+atention", "unknown loss 'atention'; did you mean 'attention'"),
        ("kd:wieght=1", "no parameter 'wieght'; did you mean 'weight'"),
        ("kd:standardise=true", "did you mean 'standardize'"),
        (
            "rkd:angel=3",
            r"no parameter 'angel'; did you mean 'angle'\? Its parameters: distance \(0 or more\), .*weight",
        ),
        ("rkd:angle=-3", "cannot take angle=-3, expected a number, 0 or more"),
        ("dkd:alpha=-1", "the loss dkd cannot take alpha=-1"),
        ("kd:weight=-1", "cannot take weight=-1, expected a number, 0 or more"),
        ("kd:weight=inf", "cannot take weight=inf"),
        ("features:weight=-1", "the loss features cannot take weight=-1"),
        ("features:weight=true", "cannot take weight=true"),
        ("features:standardize=true", "the loss features has no parameter 'standardize'"),
        ("features:a:b:c", "layers=a:b:c, expected a layer, or STUDENT:TEACHER"),
        ("features:layer2:", "expected a layer, or STUDENT:TEACHER"),
        ("features::layer2", "expected a layer, or STUDENT:TEACHER"),
        ("features:,layer2", "expected a layer, or STUDENT:TEACHER"),
        ("features:layer2+features:layer3", "the loss features stands twice .* features:LAYER,LAYER"),
        ("kd:standardize=often", "cannot take standardize=often, expected true or false"),
        ("hard:standardize=true", "the loss hard reads only which class the teacher finds likeliest"),
        ("kd:4,5", r"write kd:temperature=4\.$"),
        ("kd:temperature=4,temperature=5", "'kd' has temperature twice"),
        ("", "a name missing"),
        ("kd+", "a name missing"),
        ("kd:temperature=(4", "parentheses .* not balanced"),
    ],
)
def test_what_cannot_be_parsed_is_refused(text: str, message: str) -> None:
    with pytest.raises(UnsupportedLossError, match=message):
        parse(text)


def test_a_loss_on_layers_is_not_made_of_logits() -> None:
    with pytest.raises(UnsupportedLossError, match=r"the loss rkd reads features of layers, not logits.*kd\+rkd"):
        make("rkd")
