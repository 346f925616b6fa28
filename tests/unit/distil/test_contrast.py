"""The contrastive loss against the authors' formula in float64, its memory, and its state."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from kdpipe.distil.losses import LayerLoss, parse
from kdpipe.distil.losses.contrast import CRD
from kdpipe.errors import UnsupportedLossError

N, SAMPLES, WIDTH, NEGATIVES = 6, 40, 7, 50
LABELS = torch.randint(4, (SAMPLES,), generator=torch.Generator().manual_seed(0))
INDICES = torch.tensor([3, 17, 0, 39, 21, 8])


def _features(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(N, 5, generator=generator), torch.randn(N, 9, generator=generator)


def _crd(labels: torch.Tensor = LABELS, seed: int = 1) -> CRD:
    torch.manual_seed(seed)
    return CRD((5,), (9,), labels, negatives=NEGATIVES, width=WIDTH)


def _plain(
    loss: CRD, student: torch.Tensor, teacher: torch.Tensor, drawn: list[int], scales: list[float]
) -> torch.Tensor:
    """Return the authors' loss, sample by sample; ``scales`` are set where they are 0."""
    ours, theirs = loss.student(student), loss.teacher(teacher)
    labels, batch = loss.labels.tolist(), INDICES.tolist()
    noise, total = NEGATIVES / SAMPLES, torch.zeros((), dtype=torch.float64)
    for side, (rows, memory) in enumerate(((ours, loss.memory_teacher), (theirs, loss.memory_student))):
        units = [row / row.square().sum().sqrt() for row in rows]
        scores, counts = [], []
        for unit, index in zip(units, batch, strict=True):
            others = [k for k in drawn if k != index and (labels[index] < 0 or labels[k] != labels[index])]
            scores.append([(unit @ memory[k] / 0.07).exp() for k in (index, *others)])
            counts.append(NEGATIVES / len(others))
        if not scales[side]:
            whole = sum(
                each[0].item() + count * sum(each[1:]).item() for each, count in zip(scores, counts, strict=True)
            )
            scales[side] = whole / (N * (NEGATIVES + 1)) * SAMPLES
        for each, count in zip(scores, counts, strict=True):
            positive, *negatives = (score / scales[side] for score in each)
            total = total - (positive / (positive + noise + 1e-7)).log() / N
            total = total - count * sum((noise / (score + noise + 1e-7)).log() for score in negatives) / N
    return total


@pytest.mark.parametrize("unlabeled", [False, True])
def test_value_gradient_and_memory_are_the_authors(unlabeled: bool) -> None:
    labels = torch.where(torch.arange(SAMPLES) % 3 == 0, -1, LABELS) if unlabeled else LABELS
    loss = _crd(labels)
    plain, scales = copy.deepcopy(loss).double(), [0.0, 0.0]
    for step in range(3):
        student, teacher = _features(10 + step)
        torch.manual_seed(step)
        value = loss(student, teacher, INDICES)
        torch.manual_seed(step)
        drawn = torch.randint(SAMPLES, (NEGATIVES,)).tolist()
        expected = _plain(plain, student.double(), teacher.double(), drawn, scales)
        torch.testing.assert_close(value.double(), expected, rtol=1e-4, atol=1e-5)
        found = torch.autograd.grad(value, list(loss.parameters()))
        wanted = torch.autograd.grad(expected, list(plain.parameters()))
        for ours, theirs in zip(found, wanted, strict=True):
            assert (ours.double() - theirs).norm() <= 1e-3 * theirs.norm()
        with torch.no_grad():
            for memory, rows in (
                (plain.memory_student, plain.student(student.double())),
                (plain.memory_teacher, plain.teacher(teacher.double())),
            ):
                for index, row in zip(INDICES.tolist(), rows, strict=True):
                    mixed = 0.5 * memory[index] + 0.5 * row / row.norm()
                    memory[index] = mixed / mixed.norm()
        torch.testing.assert_close(loss.memory_student.double(), plain.memory_student, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(loss.memory_teacher.double(), plain.memory_teacher, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(loss.scale.double(), torch.tensor(scales, dtype=torch.float64), rtol=1e-4, atol=0)


def test_a_first_batch_that_tells_nothing_apart_costs_its_closed_form() -> None:
    """All ``P`` are 1 over the number of samples, so the term is that of a classifier with one right of K + 1."""
    loss = _crd()
    loss.memory_student.fill_(0.0)
    loss.memory_teacher.fill_(0.0)
    value = loss(*_features(5), INDICES)
    expected = 2 * (math.log(1 + NEGATIVES) + NEGATIVES * math.log(1 + 1 / NEGATIVES))
    assert value.item() == pytest.approx(expected, rel=1e-4)


def test_what_it_remembers_and_draws_is_part_of_the_state() -> None:
    def run(loss: CRD, steps: range) -> list[float]:
        return [loss(*_features(step), INDICES).item() for step in steps]

    straight = _crd()
    torch.manual_seed(3)
    expected = run(straight, range(6))
    first, second = _crd(), _crd(seed=9)
    torch.manual_seed(3)
    begun = run(first, range(3))
    saved, random = copy.deepcopy(first.state_dict()), torch.get_rng_state()
    second.load_state_dict(saved)
    torch.rand(5)
    torch.set_rng_state(random)
    assert begun + run(second, range(3, 6)) == expected
    assert set(saved) >= {"memory_student", "memory_teacher", "scale"}
    assert "labels" not in saved


def test_samples_of_one_class_have_no_negatives() -> None:
    value = _crd(torch.zeros(SAMPLES, dtype=torch.int64))(*_features(5), INDICES)
    assert value.isfinite()


def test_it_is_written_like_other_losses_on_layers() -> None:
    loss = parse("kd+crd:penultimate,negatives=100,weight=2")
    (crd,) = loss.layers
    assert (crd.kind, crd.weight, dict(crd.settings)["negatives"]) == ("features", 2.0, 100)
    assert str(loss) == "kd+crd:penultimate,negatives=100,weight=2"
    assert LayerLoss.module(crd, (5,), (9,), LABELS).state_dict()["memory_student"].shape == (SAMPLES, 128)
    with pytest.raises(UnsupportedLossError, match="momentum=2, expected a number, 0 to 1"):
        parse("crd:momentum=2")
