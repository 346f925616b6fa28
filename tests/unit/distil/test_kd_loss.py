"""Knowledge distillation's loss against closed forms and an independent float64 implementation."""

import math

import numpy as np
import pytest
import torch

from kdpipe.distil.losses import make
from kdpipe.errors import UnsupportedLossError


def _reference(student: np.ndarray, teacher: np.ndarray, temperature: float) -> float:
    total = 0.0
    for row_student, row_teacher in zip(student, teacher, strict=True):
        p = [math.exp(z / temperature) for z in row_teacher]
        q = [math.exp(z / temperature) for z in row_student]
        p, q = [value / sum(p) for value in p], [value / sum(q) for value in q]
        total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    return temperature**2 * total / len(student)


@pytest.fixture
def logits() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (3 * torch.randn(17, 10, dtype=torch.float64, generator=generator) for _ in range(2))
    return student, teacher


NO_LABELS = torch.empty(0)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0, 20.0])
def test_equals_the_definition(logits: tuple[torch.Tensor, torch.Tensor], temperature: float) -> None:
    student, teacher = logits
    loss = make("kd", temperature=temperature)(student, teacher, NO_LABELS)
    assert loss.item() == pytest.approx(_reference(student.numpy(), teacher.numpy(), temperature), rel=1e-9)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_gradient_is_the_closed_form(logits: tuple[torch.Tensor, torch.Tensor], temperature: float) -> None:
    student, teacher = logits
    student.requires_grad_(True)
    make("kd", temperature=temperature)(student, teacher, NO_LABELS).backward()
    difference = torch.softmax(student / temperature, 1) - torch.softmax(teacher / temperature, 1)
    torch.testing.assert_close(student.grad, temperature * difference.detach() / len(student))


def test_two_classes_by_hand() -> None:
    teacher, student = torch.tensor([[math.log(3.0), 0.0]]), torch.tensor([[0.0, 0.0]])
    expected = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert make("kd", temperature=1.0)(student, teacher, NO_LABELS).item() == pytest.approx(expected, rel=1e-6)


def test_mean_does_not_depend_on_the_batch_size(logits: tuple[torch.Tensor, torch.Tensor]) -> None:
    student, teacher = logits
    loss = make("kd", temperature=4.0)
    twice = loss(student.repeat(2, 1), teacher.repeat(2, 1), NO_LABELS)
    torch.testing.assert_close(twice, loss(student, teacher, NO_LABELS))


def test_vanishes_only_for_equal_answers(logits: tuple[torch.Tensor, torch.Tensor]) -> None:
    student, teacher = logits
    loss = make("kd", temperature=4.0)
    assert loss(teacher + 5.0, teacher, NO_LABELS).item() == pytest.approx(0.0, abs=1e-12)
    assert loss(student, teacher, NO_LABELS).item() > 0.1


def test_unknown_loss_suggests_the_nearest() -> None:
    with pytest.raises(UnsupportedLossError, match="did you mean 'kd'"):
        make("kdd", temperature=4.0)
