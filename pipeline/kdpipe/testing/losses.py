"""A test suite that every loss on logits must pass.

    class TestMine(LossSuite):
        @pytest.fixture
        def loss(self) -> DistillationLoss:
            return make("mine", sharpness=2.0)

pytest collects the suite's tests for the loss that the fixture returns.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from kdpipe.distil.losses import DistillationLoss
from kdpipe.encoding.registry import get_encoding

Batch = tuple[Tensor, Tensor, Tensor]
"""Student's and teacher's logits ``(n, classes)``, and labels ``(n,)``."""


def batch(samples: int, classes: int, *, spread: float = 2.0, unlabeled: bool = False) -> Batch:
    """Return a batch of normal logits, float64, always the same; if ``unlabeled``, every third label is -1."""
    generator = torch.Generator().manual_seed(0)
    shape = (samples, classes)
    student, teacher = (spread * torch.randn(shape, dtype=torch.float64, generator=generator) for _ in range(2))
    labels = torch.randint(classes, (samples,), generator=generator)
    if unlabeled:
        labels[::3] = -1
    return student, teacher, labels


def value_and_gradient(
    loss: DistillationLoss, student: Tensor, teacher: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the loss, a scalar, and its gradient with respect to the student's logits."""
    student = student.clone().requires_grad_(True)
    value = loss(student, teacher, labels)
    assert value.shape == (), f"expected a scalar, found the shape {tuple(value.shape)}"
    (gradient,) = torch.autograd.grad(value, student)
    return value.detach(), gradient


def confident(dtype: torch.dtype = torch.float32) -> Iterator[Batch]:
    """Yield float32 batches with logits up to 50, the teacher's rounded to ``dtype``.

    Rows are all alike, opposite, or sure of one class; student and teacher may be equal or without preference.
    """
    for classes in (2, 3, 100):
        student, teacher, labels = batch(8, classes, spread=20.0, unlabeled=True)
        student[0], teacher[0] = 50.0, -50.0
        student[1], teacher[1] = -50.0, -50.0
        student[1, 0], teacher[1, -1], labels[1] = 50.0, 50.0, classes - 1
        student[2, 0], teacher[2, 0], labels[2] = 50.0, 50.0, 0
        student, teacher = student.clamp(-50, 50).float(), teacher.clamp(-50, 50).to(dtype).float()
        yield student, teacher, labels
        yield teacher, teacher, labels
        yield torch.zeros_like(student), teacher, labels
        yield student, torch.zeros_like(teacher), labels
        yield student[1:2], teacher[1:2], labels[1:2]


class LossSuite:
    """The properties that ``DistillationLoss`` promises; subclasses define the fixture ``loss``."""

    has_constant_parts = False
    """Whether a part is a constant for the gradient, which then is not the derivative of the value."""

    def test_the_gradient_is_the_derivative(self, loss: DistillationLoss) -> None:
        """The gradient equals finite differences of the value, in float64."""
        if self.has_constant_parts:
            return
        for samples, classes in ((1, 2), (2, 3), (5, 4)):
            student, teacher, labels = batch(samples, classes)
            assert torch.autograd.gradcheck(
                lambda logits, rest=(teacher, labels): loss(logits, *rest), student.requires_grad_(True)
            )

    def test_confident_logits_are_finite_and_right(self, loss: DistillationLoss) -> None:
        """Value and gradient are finite for logits up to 50, and equal those of float64."""
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            for student, teacher, labels in confident(dtype):
                value, gradient = value_and_gradient(loss, student, teacher, labels)
                assert value.dtype == gradient.dtype == torch.float32
                assert value.isfinite()
                assert gradient.isfinite().all()
                exact, exact_gradient = value_and_gradient(loss, student.double(), teacher.double(), labels)
                torch.testing.assert_close(value.double(), exact, rtol=1e-4, atol=1e-4)
                torch.testing.assert_close(gradient.double(), exact_gradient, rtol=1e-3, atol=1e-4)

    def test_half_precision_is_computed_in_float32(self, loss: DistillationLoss) -> None:
        """Half-precision logits give the float32 value, and a half-precision gradient."""
        for dtype in (torch.float16, torch.bfloat16):
            student, teacher, labels = batch(6, 5)
            student, teacher = student.to(dtype), teacher.to(dtype)
            value, gradient = value_and_gradient(loss, student, teacher, labels)
            assert value.dtype == torch.float32
            assert gradient.dtype == dtype
            torch.testing.assert_close(value, loss(student.float(), teacher.float(), labels))

    def test_a_batch_given_twice_has_the_same_loss(self, loss: DistillationLoss) -> None:
        """The loss is a mean: repeating all samples does not change it."""
        student, teacher, labels = batch(6, 5)
        once, twice = loss(student, teacher, labels), loss(student.repeat(2, 1), teacher.repeat(2, 1), labels.repeat(2))
        torch.testing.assert_close(twice, once)

    def test_the_order_of_samples_does_not_matter(self, loss: DistillationLoss) -> None:
        """The loss does not depend on the order of the samples."""
        student, teacher, labels = batch(6, 5)
        order = torch.tensor([3, 1, 5, 0, 2, 4])
        found = loss(student[order], teacher[order], labels[order])
        torch.testing.assert_close(found, loss(student, teacher, labels))

    def test_the_order_of_classes_does_not_matter(self, loss: DistillationLoss) -> None:
        """The loss does not depend on the order of the classes."""
        student, teacher, labels = batch(6, 5)
        order = torch.tensor([2, 4, 0, 1, 3])
        found = loss(student[:, order], teacher[:, order], order.argsort()[labels])
        torch.testing.assert_close(found, loss(student, teacher, labels))

    def test_a_constant_added_to_a_row_does_not_matter(self, loss: DistillationLoss) -> None:
        """The loss does not depend on a constant added to all logits of a row."""
        student, teacher, labels = batch(6, 5)
        rows = torch.arange(6.0, dtype=torch.float64)[:, None]
        found = loss(student + rows, teacher - 2 * rows, labels)
        torch.testing.assert_close(found, loss(student, teacher, labels))

    def test_the_need_for_labels_is_declared(self, loss: DistillationLoss) -> None:
        """Other labels change the loss if and only if ``needs_label``."""
        student, teacher, labels = batch(7, 4)
        others = (labels + 1) % 4
        assert (loss(student, teacher, labels) != loss(student, teacher, others)).item() == loss.needs_label

    def test_unlabeled_samples_are_left_out_if_labels_are_needed(self, loss: DistillationLoss) -> None:
        """Samples with the label -1 have no share in a loss that needs labels; without any label it is 0."""
        student, teacher, labels = batch(7, 4, unlabeled=True)
        value, gradient = value_and_gradient(loss, student, teacher, labels)
        if not loss.needs_label:
            assert value == loss(student, teacher, torch.full((7,), -1))
            return
        kept = labels >= 0
        only, their_gradient = value_and_gradient(loss, student[kept], teacher[kept], labels[kept])
        torch.testing.assert_close(value, only)
        torch.testing.assert_close(gradient[kept], their_gradient)
        assert not gradient[~kept].any()
        none, no_gradient = value_and_gradient(loss, student, teacher, torch.full((7,), -1))
        assert none == 0
        assert not no_gradient.any()

    def test_the_declared_temperature_of_the_teacher_suffices(self, loss: DistillationLoss) -> None:
        """An encoding that is made for the temperature changes the gradient by less than half a percent."""
        if loss.teacher_temperature is None:
            return
        student, teacher, labels = (
            tensor.float() if tensor.is_floating_point() else tensor for tensor in batch(256, 10)
        )
        teacher[torch.arange(256), labels] += 12
        if loss.teacher_temperature == 0:
            decoded = F.one_hot(teacher.argmax(dim=1), 10).float()
        else:
            encoding = get_encoding(f"sqrtp8@{loss.teacher_temperature:g}").calibrate(teacher)
            decoded = encoding.decode(*encoding.encode(teacher).tensors(), 10)
        _, exact = value_and_gradient(loss, student, teacher, labels)
        _, found = value_and_gradient(loss, student, decoded, labels)
        assert (found - exact).norm() < 0.005 * exact.norm()

    def test_the_random_state_is_left_alone(self, loss: DistillationLoss) -> None:
        """The loss draws nothing from torch's generator."""
        before = torch.get_rng_state()
        loss(*batch(3, 4))
        assert torch.equal(before, torch.get_rng_state())

    def test_weights_are_declared(self, loss: DistillationLoss) -> None:
        """Published weights and epochs of warm-up are 0 or more."""
        assert loss.kd_weight >= 0
        assert loss.ce_weight >= 0
        assert loss.warmup_epochs >= 0
