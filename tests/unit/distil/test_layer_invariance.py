"""Losses on layers: what a batch is made of, ties, large features, half precision, and batches of one.

None of them reads the labels of a batch, but for those that ``crd`` remembers: see ``test_contrast.py``.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from kdpipe.distil.losses import parse
from kdpipe.distil.losses.contract import LayerLoss
from kdpipe.distil.losses.contrast import CRD
from kdpipe.models import Signal, Watch

Pair = tuple[Tensor, Tensor]

N, TOKENS, CHANNELS, HEADS = 6, 5, 3, 2
LENGTHS = (5, 3, 1, 4, 2, 5)
"""Tokens of each sample that are no padding."""
ON_TOKENS = pytest.mark.parametrize("name", ["hidden", "heads"])


def loss_of(name: str) -> LayerLoss:
    (found,) = parse(name).layers
    return found


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def signals(name: str, *, scale: float = 1.0, lengths: tuple[int, ...] = LENGTHS) -> Pair:
    """Return signals of student and teacher, the teacher's 0 at padding."""
    present = torch.arange(TOKENS) < torch.tensor(lengths)[:, None]
    if name == "hidden":
        student, teacher = (scale * drawn(len(lengths), TOKENS, CHANNELS, seed=seed) for seed in (1, 2))
        return student, teacher * present[:, :, None]
    student, teacher = (scale * drawn(len(lengths), HEADS, TOKENS, TOKENS, seed=seed).softmax(3) for seed in (3, 4))
    return student, teacher * present[:, None, :, None] * present[:, None, None, :]


def plain_hidden(student: Tensor, teacher: Tensor) -> Tensor:
    """Equations 8 and 9 of TinyBERT, token by token."""
    terms = [
        sum((a - b) ** 2 for a, b in zip(ours, theirs, strict=True)) / len(theirs)
        for sample, taught in zip(student, teacher, strict=True)
        for ours, theirs in zip(sample, taught, strict=True)
        if any(value != 0 for value in theirs.tolist())
    ]
    return torch.stack(terms).mean()  # type: ignore[arg-type]


def plain_heads(student: Tensor, teacher: Tensor) -> Tensor:
    """Equation 7 of TinyBERT after the softmax, row by row, each the sum over the tokens attended to."""
    rows, taught = student.reshape(-1, TOKENS), teacher.reshape(-1, TOKENS)
    terms = [
        sum((a - b) ** 2 for a, b in zip(ours, theirs, strict=True))
        for ours, theirs in zip(rows, taught, strict=True)
        if any(value != 0 for value in theirs.tolist())
    ]
    return torch.stack(terms).mean()  # type: ignore[arg-type]


PLAIN: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"hidden": plain_hidden, "heads": plain_heads}


def value_and_gradient(loss: Callable[[Tensor, Tensor], Tensor], student: Tensor, teacher: Tensor) -> Pair:
    student = student.clone().requires_grad_()
    value = loss(student, teacher)
    assert value.ndim == 0
    (gradient,) = torch.autograd.grad(value, student)
    return value.detach(), gradient


def agree(found: Pair, expected: Pair) -> None:
    """Compare value and gradient, both finite float32, with those of float64, relative to their size."""
    assert [each.dtype for each in found] == [torch.float32] * 2
    assert all(each.isfinite().all() for each in found)
    torch.testing.assert_close(found[0].double(), expected[0], rtol=1e-4, atol=1e-5)
    assert (found[1].double() - expected[1]).norm() <= 1e-3 * expected[1].norm() + 1e-9


@ON_TOKENS
@pytest.mark.parametrize("scale", [1.0, 80.0])
@pytest.mark.parametrize("samples", [N, 1])
def test_value_and_gradient_are_the_paper_s(name: str, scale: float, samples: int) -> None:
    student, teacher = (each[:samples] for each in signals(name, scale=scale))
    expected = value_and_gradient(PLAIN[name], student.double(), teacher.double())
    agree(value_and_gradient(loss_of(name), student, teacher), expected)
    assert expected[1].norm() > 0


@ON_TOKENS
def test_a_batch_is_the_mean_of_its_samples_by_their_tokens(name: str) -> None:
    student, teacher = signals(name)
    loss = loss_of(name)
    alone = torch.stack([loss(student[i : i + 1], teacher[i : i + 1]) for i in range(N)])
    tokens = torch.tensor(LENGTHS, dtype=torch.float32)
    value = loss(student, teacher)
    torch.testing.assert_close(value, (alone * tokens).sum() / tokens.sum())
    order = [3, 1, 5, 0, 2, 4]
    torch.testing.assert_close(loss(student[order], teacher[order]), value)
    torch.testing.assert_close(loss(torch.cat([student, student]), torch.cat([teacher, teacher])), value)
    student, teacher = signals(name, lengths=(4,) * N)
    alone = torch.stack([loss(student[i : i + 1], teacher[i : i + 1]) for i in range(N)])
    torch.testing.assert_close(loss(student, teacher), alone.mean())


@ON_TOKENS
def test_equal_signals_cost_nothing_and_pull_nowhere(name: str) -> None:
    _, teacher = signals(name, lengths=(TOKENS,) * N)
    value, gradient = value_and_gradient(loss_of(name), teacher, teacher)
    assert value == 0
    assert not gradient.any()
    student, teacher = (each[:1].expand(N, *each.shape[1:]).contiguous() for each in signals(name))
    alone = loss_of(name)(student[:1], teacher[:1])
    torch.testing.assert_close(loss_of(name)(student, teacher), alone)


def test_the_kernels_of_itrd_do_not_depend_on_a_batch_given_twice_and_its_correlations_tend_to_theirs() -> None:
    """It is no mean over samples: correlations and kernels are those of a batch, with ``1 - 1/n`` for the former."""
    student, teacher = drawn(8, 5, seed=5), drawn(8, 5, seed=6)
    kernels, channels = parse("itrd:correlation=0").layers[0], parse("itrd:mutual=0").layers[0]
    twice = (student.repeat(2, 1), teacher.repeat(2, 1))
    torch.testing.assert_close(kernels(*twice), kernels(student, teacher))
    halves = torch.stack([kernels(student[part], teacher[part]) for part in (slice(4), slice(4, 8))]).mean()
    assert (kernels(student, teacher) - halves).abs() > 1e-3
    centred = [(each - each.mean(0)).double() for each in (student, teacher)]
    cosines = (centred[0] * centred[1]).sum(0) / centred[0].norm(dim=0) / centred[1].norm(dim=0)
    for count, batch in ((8, (student, teacher)), (16, twice)):
        expected = 2 * ((1 - cosines * (count - 1) / count) ** 2.02).sum().log2()
        assert channels(*batch).item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("scale", [80.0, 1e-3])
def test_itrd_of_features_of_any_size_is_that_of_float64(scale: float) -> None:
    student, teacher = scale * drawn(8, 5, seed=7).sign() * (1 + drawn(8, 5, seed=8) / 9), scale * drawn(8, 5, seed=9)
    loss = loss_of("itrd")
    expected = value_and_gradient(loss, student.double(), teacher.double())
    agree(value_and_gradient(loss, student, teacher), expected)


@pytest.mark.parametrize("rows", ["student", "teacher", "both", "one"])
def test_itrd_of_equal_samples_or_a_single_one_is_finite(rows: str) -> None:
    student, teacher = drawn(6, 5, seed=10), drawn(6, 5, seed=11)
    if rows in ("student", "both"):
        student = student[:1].repeat(6, 1)
    if rows in ("teacher", "both"):
        teacher = teacher[:1].repeat(6, 1)
    if rows == "one":
        student, teacher = student[:1], teacher[:1]
    value, gradient = value_and_gradient(loss_of("itrd"), student, teacher)
    assert value.isfinite()
    assert gradient.isfinite().all()
    if rows in ("teacher", "one"):  # no channel of the teacher varies, so there is the part of kernels alone
        kernels = parse("itrd:correlation=0").layers[0]
        torch.testing.assert_close(value, kernels(student, teacher))
    if rows == "one":
        assert value.abs() < 1e-6
        assert gradient.norm() < 1e-6


SAMPLES = 40
INDICES = torch.tensor([3, 17, 0, 39, 21, 8])
LABELS = torch.where(torch.arange(SAMPLES) % 3 == 0, -1, torch.arange(SAMPLES) % 4)


def crd(*, settled: bool = True) -> CRD:
    """Return the loss, and ``settled`` with the scale that the first batch sets."""
    torch.manual_seed(1)
    found = CRD((5,), (9,), LABELS, negatives=50, width=7)
    if settled:
        found(drawn(N, 5, seed=12), drawn(N, 9, seed=13), INDICES)
    return found


def contrasted(loss: CRD, student: Tensor, teacher: Tensor, indices: Tensor) -> Pair:
    """Return value and gradient of a batch with the same negatives each time; the memory is left as it was."""
    loss = copy.deepcopy(loss)
    torch.manual_seed(2)
    return value_and_gradient(lambda ours, theirs: loss(ours, theirs, indices), student, teacher)


def test_a_batch_of_crd_is_the_mean_of_its_samples_against_the_same_negatives() -> None:
    """Each of them is a batch of one. The scale is set by the first batch, and so depends on it."""
    loss, student, teacher = crd(), drawn(N, 5, seed=14), drawn(N, 9, seed=15)
    value, gradient = contrasted(loss, student, teacher, INDICES)
    alone = [contrasted(loss, student[i : i + 1], teacher[i : i + 1], INDICES[i : i + 1]) for i in range(N)]
    torch.testing.assert_close(value, torch.stack([each for each, _ in alone]).mean())
    torch.testing.assert_close(gradient, torch.cat([each for _, each in alone]) / N)
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    torch.testing.assert_close(contrasted(loss, student[order], teacher[order], INDICES[order])[0], value)


@pytest.mark.parametrize("settled", [True, False])
def test_crd_of_features_of_80_is_that_of_float64(settled: bool) -> None:
    loss = crd(settled=settled)
    student, teacher = 80 * drawn(N, 5, seed=16).sign(), 80 * drawn(N, 9, seed=17).sign()
    expected = contrasted(copy.deepcopy(loss).double(), student.double(), teacher.double(), INDICES)
    agree(contrasted(loss, student, teacher, INDICES), expected)


@pytest.mark.parametrize("indices", [INDICES, torch.full((N,), 17), INDICES[:1]], ids=["others", "one", "alone"])
def test_crd_of_equal_features_or_a_sample_drawn_several_times_is_finite(indices: Tensor) -> None:
    loss, count = crd(), len(indices)
    student, teacher = drawn(1, 5, seed=18).repeat(count, 1), drawn(1, 9, seed=19).repeat(count, 1)
    for _ in range(3):
        value, gradient = value_and_gradient(lambda ours, theirs: loss(ours, theirs, indices), student, teacher)
        assert value.isfinite()
        assert gradient.isfinite().all()
    for memory in (loss.memory_student, loss.memory_teacher):
        torch.testing.assert_close(memory[indices].norm(dim=1), torch.ones(count))


class _Half(nn.Module):
    """A network of float16 whose layers return its input cut into signals."""

    def __init__(self) -> None:
        super().__init__()
        self.vector, self.states, self.weights, self.head = (nn.Identity() for _ in range(4))

    def forward(self, images: Tensor) -> Tensor:
        rows = images.flatten(1).half()
        self.states(rows[:, : TOKENS * CHANNELS].unflatten(1, (TOKENS, CHANNELS)))
        self.weights(rows[:, : HEADS * TOKENS * TOKENS].unflatten(1, (HEADS, TOKENS, TOKENS)))
        logits: Tensor = self.head(self.vector(rows[:, :5]))
        return logits


@pytest.mark.parametrize(
    ("name", "signal", "shape"),
    [
        ("itrd", "features:vector", (5,)),
        ("crd", "features:vector", (5,)),
        ("hidden", "hidden:states", (TOKENS, CHANNELS)),
        ("heads", "heads:weights", (HEADS, TOKENS, TOKENS)),
    ],
)
def test_signals_of_float16_are_compared_in_float32(name: str, signal: str, shape: tuple[int, ...]) -> None:
    net = _Half()
    watch = Watch(net, [Signal.parse(signal)], size=8, name="net")
    images = 80 * drawn(N, 3, 8, 8, seed=20)
    net(images)
    found = watch.take()[signal]
    assert found.dtype == torch.float32
    assert found.shape == (N, *shape)
    rounded = images.half().float().flatten(1)[:, : found[0].numel()].reshape(found.shape)
    assert torch.equal(found, rounded)
    teacher = drawn(N, *shape, seed=21)
    if name == "crd":
        torch.manual_seed(1)
        loss = CRD((5,), (5,), LABELS, negatives=50, width=7)
        agree(
            contrasted(loss, found, teacher, INDICES),
            contrasted(copy.deepcopy(loss).double(), found.double(), teacher.double(), INDICES),
        )
        return
    expected = value_and_gradient(loss_of(name), found.double(), teacher.double())
    agree(value_and_gradient(loss_of(name), found, teacher), expected)
