"""Soft targets over a part of a store's columns and samples, in closed form."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch

from kdpipe.distil.losses import make
from kdpipe.distil.objective import Distillation, DistillationObjective
from kdpipe.distil.selection import COVERED, SelectedLoss, SelectedTargets, Selection
from kdpipe.models import Preset
from kdpipe.testing.doubles import IndexedTargets
from kdpipe.training.batches import Batch, Signals

PRESET = Preset(size=2, resize=2, interpolation="bilinear", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
PIXELS = torch.zeros(6, 3, 2, 2, dtype=torch.uint8)
COVERS = np.array([True, False, True, True, False, True])
LABELS = torch.tensor([4, 2, 0, 1, 3, -1])
MORE = Selection(classes=(0, 1, 4), columns=(7, 0, 5), total=5, covered=COVERS)
"""Of a store of 8 classes and a student of 5, of which 3 and two thirds of the samples are in the store."""


def drawn(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 3


def softmax(values: torch.Tensor, temperature: float) -> npt.NDArray[np.float64]:
    p = np.exp(values.double().numpy() / temperature)
    found: npt.NDArray[np.float64] = p / p.sum(axis=1, keepdims=True)
    return found


def test_soft_targets_of_a_part_are_the_softmax_over_the_columns_of_the_store() -> None:
    part = Selection(classes=(0, 1), columns=(6, 2), total=2, covered=np.ones(6, dtype=bool))
    source = IndexedTargets(8)
    indices = np.array([5, 0, 3])
    taken, signals = SelectedTargets(source, part).take(indices, PIXELS)
    assert part.whole
    assert COVERED not in signals
    whole = softmax(source.logits(indices, PIXELS), 4.0)
    # At any temperature it is the store's distribution, given one of these classes.
    np.testing.assert_allclose(
        softmax(taken, 4.0), whole[:, [6, 2]] / whole[:, [6, 2]].sum(1, keepdims=True), rtol=1e-6
    )


def test_samples_without_soft_targets_are_marked() -> None:
    _, signals = SelectedTargets(IndexedTargets(8), MORE).take(np.array([1, 2, 5]), PIXELS)
    assert signals[COVERED].tolist() == [False, True, True]


@pytest.mark.parametrize("name", ["kd", "soft-ce", "hard", "mixed", "mse", "dist", "dkd", "nkd", "wsld"])
def test_a_loss_is_that_of_the_samples_and_classes_that_both_have(name: str) -> None:
    student, teacher = drawn(6, 5, seed=0).requires_grad_(), drawn(6, 3, seed=1)
    loss = make(name)
    found = SelectedLoss(MORE).of(loss, student, teacher, LABELS, covered=torch.from_numpy(COVERS))
    found.backward()  # type: ignore[no-untyped-call]
    rows = [0, 2, 3, 5]
    expected = loss(student.detach()[rows][:, [0, 1, 4]], teacher[rows], torch.tensor([2, 0, 1, -1]))
    torch.testing.assert_close(found.detach(), expected)
    assert student.grad is not None
    assert not student.grad[[1, 4]].any()
    assert not student.grad[:, [2, 3]].any()
    assert student.grad[rows][:, [0, 1, 4]].any()


def test_kd_is_its_formula_and_cross_entropy_is_over_all_classes() -> None:
    student, teacher = drawn(6, 5, seed=0), drawn(6, 3, seed=1)
    signals: Signals = {COVERED: torch.from_numpy(COVERS)}
    batch = Batch((PIXELS,), LABELS, None, teacher, signals)
    objective = DistillationObjective(
        PRESET, Distillation(make("kd", temperature=4.0), kd_weight=0.9, ce_weight=0.1, selection=MORE)
    )
    objective.begin(0, 1)
    _, terms = objective(lambda _: student, batch, PIXELS)
    p, q = softmax(teacher, 4.0)[COVERS], softmax(student[:, [0, 1, 4]], 4.0)[COVERS]
    kd = 16 * (p * np.log(p / q)).sum(axis=1).mean()
    ce = -np.log(softmax(student, 1.0)[np.arange(5), LABELS[:5].numpy()]).mean()
    assert terms["kd"].item() == pytest.approx(kd, rel=1e-5)
    assert terms["ce"].item() == pytest.approx(ce, rel=1e-5)
    assert terms["loss"].item() == pytest.approx(0.9 * kd + 0.1 * ce, rel=1e-5)


def test_a_batch_without_soft_targets_has_no_distillation_term() -> None:
    student = drawn(6, 5, seed=0).requires_grad_()
    none = torch.zeros(6, dtype=torch.bool)
    found = SelectedLoss(MORE).of(make("kd"), student, drawn(6, 3, seed=1), LABELS, covered=none)
    found.backward()  # type: ignore[no-untyped-call]
    assert found.item() == 0
    assert student.grad is not None
    assert not student.grad.any()
