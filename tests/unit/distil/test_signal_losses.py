"""Losses on signals against plain float64 re-implementations, value and gradient, and closed forms."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch

from kdpipe.distil.losses import parse
from kdpipe.distil.losses.layers import attention, features, itrd, rkd

Plain = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def _random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _agree(loss: Plain, plain: Plain, student: torch.Tensor, teacher: torch.Tensor) -> None:
    """Compare value and gradient, both relative to their size, with those of float64."""
    ours, theirs = student.clone().requires_grad_(), student.double().requires_grad_()
    value, expected = loss(ours, teacher), plain(theirs, teacher.double())
    assert value.ndim == 0
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), expected, rtol=2e-5, atol=1e-9)
    (gradient,) = torch.autograd.grad(value, ours)
    (wanted,) = torch.autograd.grad(expected, theirs)
    assert float((gradient.double() - wanted).norm()) <= 1e-4 * float(wanted.norm())
    assert float(wanted.norm()) > 0


def _huber(difference: torch.Tensor) -> torch.Tensor:
    size = difference.abs()
    return 0.5 * size**2 if float(size.detach()) <= 1 else size - 0.5


def _plain_regression(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    rows = [
        sum((a - b) ** 2 for a, b in zip(s, t, strict=True)) / len(t) for s, t in zip(student, teacher, strict=True)
    ]
    return sum(rows[1:], rows[0]) / len(rows)


def _plain_rkd(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    n = len(student)

    def distances(rows: torch.Tensor) -> dict[tuple[int, int], torch.Tensor]:
        found = {(i, j): ((rows[i] - rows[j]) ** 2).sum().sqrt() for i, j in itertools.permutations(range(n), 2)}
        mean = torch.stack(list(found.values())).mean()
        return {pair: length / mean for pair, length in found.items()}

    def cosine(rows: torch.Tensor, at: int, one: int, other: int) -> torch.Tensor:
        first, second = rows[one] - rows[at], rows[other] - rows[at]
        return (first * second).sum() / (first.norm() * second.norm())

    ours, theirs = distances(student), distances(teacher)
    of_distances = sum(_huber(ours[pair] - theirs[pair]) for pair in ours) / n**2
    of_angles = sum(
        _huber(cosine(student, *triple) - cosine(teacher, *triple))
        for triple in itertools.product(range(n), repeat=3)
        if triple[0] not in triple[1:]
    )
    return 25 * of_distances + 50 * of_angles / n**3


def _plain_attention(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for ours, theirs in zip(student, teacher, strict=True):
        total = total + ((ours / (ours**2).sum().sqrt() - theirs / (theirs**2).sum().sqrt()) ** 2).sum()
    return total / student.numel() / 2


def _plain_itrd(
    student: torch.Tensor, teacher: torch.Tensor, correlation: float = 2, mutual: float = 1, alpha: float = 1.01
) -> torch.Tensor:
    """The authors' two parts, channel by channel and sample by sample."""
    n = len(student)
    lacking = []
    for ours, theirs in zip(student.T, teacher.T, strict=True):
        scores = [(rows - rows.mean()) / ((rows - rows.mean()) ** 2).sum().div(n - 1).sqrt() for rows in (ours, theirs)]
        lacking.append(((1 - (scores[0] * scores[1]).sum() / n) ** 2) ** alpha)
    cosines = [[[(a * b).sum() / a.norm() / b.norm() for b in rows] for a in rows] for rows in (student, teacher)]
    pairs = list(itertools.product(range(n), repeat=2))
    own = sum((cosines[0][i][j] / n) ** 2 for i, j in pairs)
    shared = sum((cosines[0][i][j] * cosines[1][i][j] / n) ** 2 for i, j in pairs)
    return correlation * torch.stack(lacking).sum().log2() + mutual * (own - shared)


@pytest.mark.parametrize("settings", [{}, {"mutual": 0.05, "alpha": 1.5}, {"correlation": 0.0, "mutual": 3.0}], ids=str)
def test_itrd(settings: dict[str, float]) -> None:
    student, teacher = _random(8, 5, seed=11), 10 * _random(8, 5, seed=12) + 3
    _agree(lambda s, t: itrd(s, t, **settings), lambda s, t: _plain_itrd(s, t, **settings), student, teacher)


def test_itrd_leaves_channels_out_in_which_the_teacher_does_not_vary() -> None:
    student, teacher = _random(8, 5, seed=13).requires_grad_(), _random(8, 5, seed=14)
    teacher[:, 2] = 0.0
    kept = [0, 1, 3, 4]
    value = itrd(student, teacher, mutual=0)
    torch.testing.assert_close(value, itrd(student[:, kept], teacher[:, kept], mutual=0))
    (gradient,) = torch.autograd.grad(value, student)
    assert not gradient[:, 2].any()
    for alone in (itrd(student[:1], teacher[:1], mutual=0), itrd(student, torch.zeros(8, 5), mutual=0)):
        assert alone == 0
    dead = torch.zeros(8, 5, requires_grad=True)
    (gradient,) = torch.autograd.grad(itrd(dead, teacher), dead)
    assert gradient.isfinite().all()


def test_itrd_does_not_see_the_order_of_samples_and_channels_or_their_size() -> None:
    student, teacher = _random(8, 5, seed=15), _random(8, 5, seed=16)
    value, samples, channels = itrd(student, teacher), torch.randperm(8), torch.randperm(5)
    torch.testing.assert_close(itrd(student[samples], teacher[samples]), value)
    torch.testing.assert_close(itrd(student[:, channels], teacher[:, channels]), value)
    torch.testing.assert_close(itrd(3 * student, teacher / 7), value)
    torch.testing.assert_close(itrd(student + 2, teacher - 5, mutual=0), itrd(student, teacher, mutual=0))


def test_regression() -> None:
    _agree(features, _plain_regression, _random(9, 5, seed=0), _random(9, 5, seed=1))


@pytest.mark.parametrize(("ours", "theirs", "scale"), [(4, 4, 1.0), (3, 7, 1e-3), (6, 2, 300.0)])
def test_rkd(ours: int, theirs: int, scale: float) -> None:
    _agree(rkd, _plain_rkd, scale * _random(7, ours, seed=2), _random(7, theirs, seed=3))


def test_rkd_s_huber_is_linear_where_distances_differ_by_more_than_1() -> None:
    student = torch.cat([torch.zeros(6, 2), torch.full((1, 2), 50.0)]) + 0.1 * _random(7, 2, seed=4)
    _agree(rkd, _plain_rkd, student, _random(7, 3, seed=5))


def test_rkd_is_the_weighted_sum_of_its_two_parts() -> None:
    student, teacher = _random(6, 4, seed=6), _random(6, 5, seed=7)
    parts = rkd(student, teacher, distance=1, angle=0), rkd(student, teacher, distance=0, angle=1)
    torch.testing.assert_close(rkd(student, teacher), 25 * parts[0] + 50 * parts[1])
    torch.testing.assert_close(rkd(student, teacher, distance=2, angle=3), 2 * parts[0] + 3 * parts[1])


def test_rkd_does_not_see_rotation_translation_and_scale() -> None:
    teacher = _random(8, 4, seed=8)
    rotation = torch.linalg.qr(_random(4, 4, seed=9))[0]
    assert float(rkd(3 * teacher @ rotation + 5, teacher)) < 1e-6
    assert float(rkd(_random(8, 4, seed=10), teacher)) > 0.1


def test_rkd_of_three_points_on_a_line() -> None:
    """Distances 1, 1 and 2 over their mean of 4 / 3, against an equilateral triangle's, which are all 1."""
    student = torch.tensor([[0.0], [1.0], [2.0]])
    teacher = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.5, math.sqrt(3) / 2]])
    distance = 2 * (2 * 0.5 * 0.25**2 + 0.5 * 0.5**2) / 9
    cosine = (2 * (2 * 0.5 * 0.5**2) + 2 * (1.5 - 0.5)) / 27  # two angles of 0 and one of 180 degrees, twice each
    assert float(rkd(student, teacher, distance=1, angle=0)) == pytest.approx(distance, rel=1e-5)
    assert float(rkd(student, teacher, distance=0, angle=1)) == pytest.approx(cosine, rel=1e-5)


def test_rkd_of_equal_samples_has_finite_gradients() -> None:
    student = _random(6, 4, seed=11)
    student[3] = student[1]
    teacher = _random(6, 4, seed=12)
    teacher[2] = teacher[0]
    for batch in (student, torch.ones(6, 4), student[:1]):
        rows = batch.clone().requires_grad_()
        value = rkd(rows, teacher[: len(rows)])
        value.backward()
        assert math.isfinite(float(value.detach()))
        assert rows.grad is not None
        assert float(rows.grad.abs().max()) < 1e3


def test_attention() -> None:
    _agree(attention, _plain_attention, _random(5, 4, 3, seed=13).square(), _random(5, 4, 3, seed=14).square())


def test_attention_maps_of_other_sizes_are_averaged_down() -> None:
    large, small = _random(4, 8, 6, seed=15).square(), _random(4, 4, 2, seed=16).square()

    def shrunk(maps: torch.Tensor) -> torch.Tensor:
        return maps.reshape(len(maps), 4, 2, 2, 3).mean((2, 4))

    _agree(attention, lambda ours, theirs: _plain_attention(shrunk(ours), theirs), large, small)
    _agree(attention, lambda ours, theirs: _plain_attention(ours, shrunk(theirs)), small, large)
    _agree(
        attention,
        lambda ours, theirs: _plain_attention(ours.reshape(4, 4, 2, 2).mean(2), theirs.reshape(4, 4, 2, 3).mean(3)),
        _random(4, 8, 2, seed=17).square(),
        _random(4, 4, 6, seed=18).square(),
    )


@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1e6])
def test_attention_does_not_see_scale(scale: float) -> None:
    student, teacher = _random(3, 4, 4, seed=19).square(), _random(3, 4, 4, seed=20).square()
    value = attention(student, teacher)
    torch.testing.assert_close(attention(scale * student, teacher), value)
    torch.testing.assert_close(attention(student, scale * teacher), value)
    assert float(attention(scale * teacher, teacher)) < 1e-12


def test_attention_to_opposite_corners_is_one_over_the_places() -> None:
    student, teacher = torch.zeros(2, 4, 4), torch.zeros(2, 4, 4)
    student[:, 0, 0], teacher[:, 3, 3] = 2, 5
    assert float(attention(student, teacher)) == pytest.approx(2 / 16 / 2)


def test_an_attention_map_of_zeros_has_no_gradient() -> None:
    student = torch.zeros(2, 3, 3, requires_grad=True)
    value = attention(student.square(), _random(2, 3, 3, seed=21).square())
    value.backward()
    assert float(value.detach()) == pytest.approx(1 / 9 / 2)
    assert student.grad is not None
    assert float(student.grad.abs().max()) == 0


def test_only_regression_learns_a_projection() -> None:
    regression, relations, maps = parse("features+rkd+attention").layers
    projection = regression.projection((3,), (5,))
    assert [tuple(each.shape) for each in projection.parameters()] == [(5, 3), (5,)]
    assert not list(relations.projection((3,), (5,)).parameters())
    assert not list(maps.projection((4, 4), (8, 8)).parameters())


def test_settings_as_written_reach_the_formula() -> None:
    student, teacher = _random(6, 4, seed=6), _random(6, 5, seed=7)
    (loss,) = parse("rkd:distance=2,angle=3").layers
    torch.testing.assert_close(loss(student, teacher), rkd(student, teacher, distance=2, angle=3))
