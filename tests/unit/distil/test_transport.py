"""Optimal transport among related classes: against a linear program, Sinkhorn's steps in plain NumPy, and limits."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy.optimize import linprog

from kdpipe.distil.losses import LogitLoss, make, parse
from kdpipe.testing.losses import LossSuite, confident, value_and_gradient

Rows = npt.NDArray[np.float64]
GENERATOR = np.random.default_rng(0)
CLASSES = 5
VECTORS = GENERATOR.standard_normal((CLASSES, 3))
UNITS = VECTORS / np.linalg.norm(VECTORS, axis=1, keepdims=True)
RELATIONS = UNITS @ UNITS.T
STUDENT, TEACHER = 2 * GENERATOR.standard_normal((2, 6, CLASSES))
LABELS = np.array([0, 4, -1, 2, 2, 3])


def _softmax(row: Rows) -> Rows:
    powers = np.exp(row - row.max())
    return powers / powers.sum()


def _sinkhorn(q: Rows, p: Rows, cost: Rows, blur: float, steps: int) -> float:
    """Return the cost as in the authors' code, without what they add to divisors."""
    kernel, u = np.exp(-cost / blur), np.full(len(q), 1 / len(q))
    for _ in range(steps):
        v = p / (kernel.T @ u)
        u = q / (kernel @ v)
    return float((u[:, None] * kernel * v[None] * cost).sum())


def _plain(student: Rows, *, temperature: float = 8.0, gamma: float = 800.0, sharpness: float = 1.0) -> float:
    values = []
    for s, t, label in zip(student, TEACHER, LABELS, strict=True):
        if label < 0:
            continue
        rest = np.arange(CLASSES) != label
        cost = (1 - np.exp(-sharpness * (1 - RELATIONS)))[np.ix_(rest, rest)]
        q, p = _softmax(s[rest] / temperature), _softmax(t[rest] / temperature)
        values.append(-_softmax(t)[label] * np.log(_softmax(s)[label]) + gamma * _sinkhorn(q, p, cost, 0.05, 10))
    return float(np.mean(values))


def _ours(**settings: float) -> LogitLoss:
    return make("wkd", **settings).among(torch.from_numpy(RELATIONS))


@pytest.mark.parametrize("settings", [{}, {"temperature": 2.0, "gamma": 5.0}, {"sharpness": 3.0}], ids=str)
def test_value_and_gradient_are_the_authors(settings: dict[str, float]) -> None:
    value, gradient = value_and_gradient(
        _ours(**settings), torch.from_numpy(STUDENT), torch.from_numpy(TEACHER), torch.from_numpy(LABELS)
    )
    assert value.item() == pytest.approx(_plain(STUDENT, **settings), rel=1e-9)
    expected = np.zeros(STUDENT.shape)
    for place in np.ndindex(STUDENT.shape):
        change = np.zeros(STUDENT.shape)
        change[place] = 1e-5
        expected[place] = (_plain(STUDENT + change, **settings) - _plain(STUDENT - change, **settings)) / 2e-5
    np.testing.assert_allclose(gradient.numpy(), expected, rtol=1e-5, atol=1e-6)


def test_many_steps_with_little_blur_reach_the_least_cost() -> None:
    """A linear program finds the optimal plan between the rows without the label."""
    loss = _ours(temperature=1.0, gamma=1.0, blur=0.02, steps=3000)
    for s, t, label in zip(STUDENT[:2], TEACHER[:2], LABELS[:2], strict=True):
        rest = np.arange(CLASSES) != label
        cost = (1 - np.exp(-(1 - RELATIONS)))[np.ix_(rest, rest)]
        sums = np.concatenate([np.kron(np.eye(4), np.ones(4)), np.kron(np.ones(4), np.eye(4))])
        found = linprog(cost.ravel(), A_eq=sums, b_eq=np.concatenate([_softmax(s[rest]), _softmax(t[rest])])).fun
        target = -_softmax(t)[label] * np.log(_softmax(s)[label])
        batch = (torch.from_numpy(s[None]), torch.from_numpy(t[None]), torch.tensor([label]))
        assert loss(*batch).item() - target == pytest.approx(found, rel=0.02)


def test_among_related_classes_a_batch_is_the_mean_of_its_labeled_samples() -> None:
    batch = (torch.from_numpy(STUDENT), torch.from_numpy(TEACHER), torch.from_numpy(LABELS))
    loss = _ours()
    singles = [loss(*(each[i : i + 1] for each in batch)) for i in range(len(LABELS)) if LABELS[i] >= 0]
    torch.testing.assert_close(loss(*batch), torch.stack(singles).mean())
    assert loss(*(each[2:3] for each in batch)) == 0, "a batch of one without a label"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_among_related_classes_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    student, teacher, labels = torch.from_numpy(STUDENT), torch.from_numpy(TEACHER), torch.from_numpy(LABELS)
    student, teacher = student.to(dtype), teacher.to(dtype)
    loss = _ours()
    value, gradient = value_and_gradient(loss, student, teacher, labels)
    exact, exact_gradient = value_and_gradient(loss, student.float(), teacher.float(), labels)
    assert (value.dtype, gradient.dtype) == (torch.float32, dtype)
    torch.testing.assert_close(value, exact)
    torch.testing.assert_close(gradient.float(), exact_gradient, rtol=1e-2, atol=1e-4)


def test_related_classes_are_near() -> None:
    """Probability on the wrong one of two classes costs less where they are related."""
    teacher, student = torch.tensor([[0.0, 4.0, 0.0, 0.0]]), torch.tensor([[0.0, 0.0, 4.0, 0.0]])
    near = torch.eye(4)
    near[1, 2] = near[2, 1] = 0.9
    loss = make("wkd", temperature=1.0)
    apart, together = (loss.among(each)(student, teacher, torch.tensor([0])) for each in (torch.eye(4), near))
    assert together < 0.6 * apart


def test_without_relations_all_classes_are_unrelated() -> None:
    batch = (torch.from_numpy(STUDENT), torch.from_numpy(TEACHER), torch.from_numpy(LABELS))
    torch.testing.assert_close(make("wkd")(*batch), make("wkd").among(torch.eye(CLASSES))(*batch))


def test_written_losses_get_the_relations_that_they_name() -> None:
    assert parse("kd+dkd").related_by == frozenset()
    assert parse("kd+wkd:features=true,weight=1+wkd").related_by == {"features", "logits"}
    loss = parse("wkd:gamma=5")
    related = loss.among({"logits": torch.from_numpy(RELATIONS)}).at()
    batch = (torch.from_numpy(STUDENT), torch.from_numpy(TEACHER), torch.from_numpy(LABELS))
    torch.testing.assert_close(related(*batch), _ours(gamma=5.0)(*batch))
    assert str(loss) == "wkd:gamma=5"


class TestAmongUnrelatedClasses(LossSuite):
    @pytest.fixture(
        params=["wkd", "wkd:temperature=2,gamma=1,steps=1", "wkd:standardize=true", "wttm", "dkd+wkd", "mlkd"]
    )
    def loss(self, request: pytest.FixtureRequest) -> LogitLoss:
        return parse(request.param).at()  # type: ignore[return-value]

    def test_logits_of_80_are_finite_and_right(self, loss: LogitLoss) -> None:
        """Value and gradient of float32, relative to their size, equal those of float64."""
        for student, teacher, labels in confident():
            wide, wider = 1.6 * student, 1.6 * teacher
            value, gradient = value_and_gradient(loss, wide, wider, labels)
            exact, exact_gradient = value_and_gradient(loss, wide.double(), wider.double(), labels)
            torch.testing.assert_close(value.double(), exact, rtol=1e-4, atol=1e-4)
            assert (gradient.double() - exact_gradient).norm() <= 1e-3 * exact_gradient.norm() + 1e-4
