"""A temperature that is learned against the student: closed forms, its gradient, and what takes it."""

from __future__ import annotations

import math

import pytest
import torch

from kdpipe.distil.curves import Curve
from kdpipe.distil.learned import LearnedTemperature
from kdpipe.distil.losses import DistillationLoss, make, parse
from kdpipe.distil.objective import Distillation, DistillationObjective
from kdpipe.errors import ParamsError, UnsupportedLossError
from kdpipe.models import Preset
from kdpipe.training.batches import Batch

LEARNED = Curve.parse("learned:1,21")
SIGMOID = 1 / (1 + math.exp(-1))
PRESET = Preset(size=8, resize=8, interpolation="bilinear", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


def _drawn(*shape: int, seed: int) -> torch.Tensor:
    return 2 * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_it_is_written_and_read() -> None:
    assert LEARNED.is_learned
    assert str(LEARNED) == "learned:1,21,over=10"
    assert Curve.parse(str(LEARNED)) == LEARNED == Curve.parse("learned")
    assert LEARNED.values(3) == [21.0] * 3  # the highest, which a store must serve
    assert not Curve.parse("cosine:8,2").is_learned


def test_it_begins_where_the_authors_begin_and_follows_their_curriculum() -> None:
    temperature = LearnedTemperature(Curve.parse("learned:1,21,over=10"))
    for epoch in (0, 4, 9, 300):
        temperature.begin(epoch)
        value = temperature()
        assert value.item() == pytest.approx(1 + 20 * SIGMOID)
        (gradient,) = torch.autograd.grad(value, temperature.parameter)
        place = min(epoch + 1, 10)
        decay = (math.cos(place * math.pi / 10) + 1) * 0.5 * (0 - -1) - 1  # CosineDecay(0, -1, 10).get_value(place)
        assert gradient.item() == pytest.approx(decay * 20 * SIGMOID * (1 - SIGMOID), rel=1e-5)


def _plain_kd(student: torch.Tensor, teacher: torch.Tensor, heat: torch.Tensor) -> torch.Tensor:
    p, q = (torch.exp(rows / heat) for rows in (teacher, student))
    p, q = p / p.sum(1, keepdim=True), q / q.sum(1, keepdim=True)
    return heat**2 * (p * (p / q).log()).sum() / len(p)


@pytest.mark.parametrize("name", ["kd", "soft-ce", "mixed", "dist", "dkd", "nkd", "wsld", "wttm"])
def test_every_loss_with_a_temperature_passes_gradients_to_it(name: str) -> None:
    """The gradient equals finite differences of the loss at that temperature."""
    student, teacher, labels = _drawn(6, 5, seed=0), _drawn(6, 5, seed=1), torch.tensor([0, 1, -1, 3, 4, 2])
    heat = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    loss = parse(name).at(heat)
    value = loss(student, teacher, labels)
    torch.testing.assert_close(value, make(name, temperature=3.0)(student, teacher, labels))
    (gradient,) = torch.autograd.grad(value, heat)
    higher, lower = (make(name, temperature=3.0 + step)(student, teacher, labels) for step in (1e-5, -1e-5))
    assert gradient.item() == pytest.approx((higher - lower).item() / 2e-5, rel=1e-5, abs=1e-7)


def test_only_losses_without_their_own_temperature_take_it() -> None:
    student, teacher, labels = _drawn(6, 5, seed=0), _drawn(6, 5, seed=1), torch.arange(6) % 5
    heat = torch.tensor(3.0, dtype=torch.float64)
    loss = parse("kd:weight=2+dist:temperature=1,weight=1").at(heat)
    expected = 2 * make("kd", temperature=3.0)(student, teacher, labels)
    expected = expected + make("dist", temperature=1.0)(student, teacher, labels)
    torch.testing.assert_close(loss(student, teacher, labels), expected)
    for text in ("mse", "kd:temperature=2"):
        with pytest.raises(UnsupportedLossError, match=r"--temperature .* has no effect"):
            Distillation(parse(text), temperature=LEARNED)


def _objective(text: str = "kd") -> DistillationObjective:
    return DistillationObjective(PRESET, Distillation(parse(text), temperature=LEARNED, kd_weight=0.9, ce_weight=0.1))


def test_a_step_moves_the_student_down_and_the_temperature_up_a_plain_loss() -> None:
    """Against a plain loop in float64 with one parameter for each, three SGD steps in the sixth epoch."""
    teacher, labels = _drawn(8, 5, seed=2).float(), torch.arange(8) % 5
    pixels = torch.randint(256, (8, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    logits = torch.nn.Parameter(_drawn(8, 5, seed=4).float())
    objective = _objective()
    objective.begin(5, 100)
    (learned,) = objective.beside.parameters()
    optimizer = torch.optim.SGD([logits, learned], lr=0.5, momentum=0.9, weight_decay=0.01)
    plain = torch.nn.Parameter(logits.detach().double())
    place = torch.nn.Parameter(torch.ones((), dtype=torch.float64))
    theirs = torch.optim.SGD([plain, place], lr=0.5, momentum=0.9, weight_decay=0.01)
    batch = Batch((pixels,), labels, None, teacher, {})
    for _ in range(3):
        _, terms = objective(lambda _images: logits, batch, pixels)
        optimizer.zero_grad()
        terms["loss"].backward()
        optimizer.step()
        heat = 1 + 20 * torch.sigmoid(place)
        kd = _plain_kd(plain, teacher.double(), heat)
        whole = 0.9 * kd + 0.1 * torch.nn.functional.cross_entropy(plain, labels)
        theirs.zero_grad()
        whole.backward()
        assert place.grad is not None
        place.grad *= -(1 - math.cos(math.pi * 0.6)) / 2
        theirs.step()
        assert terms["kd"].item() == pytest.approx(kd.item(), rel=1e-4)
        assert learned.item() == pytest.approx(place.item(), rel=1e-5)
    torch.testing.assert_close(logits.detach().double(), plain.detach(), rtol=1e-4, atol=1e-5)
    assert objective.moving["temperature"] == pytest.approx(1 + 20 * torch.sigmoid(place).item(), rel=1e-5)


def test_its_state_is_restored() -> None:
    first, second = _objective(), _objective()
    with torch.no_grad():
        next(iter(first.beside.parameters())).fill_(-0.3)
    second.beside.load_state_dict(first.beside.state_dict())
    assert first.moving == second.moving != _objective().moving


@pytest.mark.parametrize("text", ["learned:21,1", "learned:4,4"])
def test_an_empty_range_is_refused(text: str) -> None:
    with pytest.raises(ParamsError, match="needs a HIGH above LOW"):
        Curve.parse(text)


def test_weights_are_not_learned() -> None:
    with pytest.raises(ParamsError, match=r"--kd-weight learned:1,21 is for --temperature"):
        Distillation(parse("kd"), kd_weight=LEARNED)


def test_a_made_loss_has_its_temperature() -> None:
    loss: DistillationLoss = make("kd")
    with pytest.raises(UnsupportedLossError, match="pass a Loss"):
        Distillation(loss, temperature=LEARNED)
