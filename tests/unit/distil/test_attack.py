"""Projected gradient descent: where it stays, what it finds, and what it leaves as it was."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from kdpipe import dataset, models
from kdpipe.distil.adversary import ATTACKS, PGD, predict_attacked
from kdpipe.errors import ParamsError
from kdpipe.models import Preset, evaluating
from kdpipe.training.evaluation import predict
from kdpipe.views import Geometry, Renderer

SHAPE = (6, 3, 8, 8)


def _images(seed: int = 0) -> torch.Tensor:
    """Images with pixels at both ends of the range."""
    drawn = torch.rand(SHAPE, generator=torch.Generator().manual_seed(seed))
    return (1.4 * drawn - 0.2).clamp(0, 1)


def _labels(seed: int = 1) -> torch.Tensor:
    return torch.randint(0, 5, (6,), generator=torch.Generator().manual_seed(seed))


def _network() -> torch.nn.Module:
    torch.manual_seed(2)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3),
        torch.nn.BatchNorm2d(8),
        torch.nn.ReLU(),
        torch.nn.Flatten(),
        torch.nn.Dropout(0.5),
        torch.nn.Linear(288, 5),
    )


def _harm(labels: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda logits: F.cross_entropy(logits, labels, reduction="sum")


@pytest.mark.parametrize(
    ("written", "epsilon", "steps"),
    [("pgd:8/255,10", 8 / 255, 10), ("pgd:0.031,1", 0.031, 1), (" pgd: 1 / 4 , 7 ", 0.25, 7), ("pgd:1,20", 1.0, 20)],
)
def test_written_attacks(written: str, epsilon: float, steps: int) -> None:
    assert ATTACKS.make(written) == PGD(epsilon, steps)


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("fgsm:8/255,1", "unknown attack 'fgsm'. Known: pgd."),
        ("", "'' has a name missing"),
        ("pgd", "the attack pgd lacks epsilon: write pgd:EPSILON,STEPS."),
        ("pgd:8,10", "cannot take epsilon=8, expected a number, above 0 and at most 1."),
        ("pgd:0,10", "epsilon=0, expected a number, above 0 and at most 1."),
        ("pgd:-0.1,10", "epsilon=-0.1, expected a number, above 0 and at most 1."),
        ("pgd:nan,10", "epsilon=nan, expected a finite number."),
        ("pgd:inf,10", "epsilon=inf, expected a finite number."),
        ("pgd:8/0,10", "epsilon=8/0, expected a number."),
        ("pgd:8/255/2,10", "epsilon=8/255/2, expected a number."),
        ("pgd:a/b,10", "epsilon=a/b, expected a number."),
        ("pgd:8/255", "the attack pgd lacks steps: write pgd:EPSILON,STEPS."),
        ("pgd:8/255,0", "steps=0, expected a whole number, 1 or more."),
        ("pgd:8/255,-3", "steps=-3, expected a whole number, 1 or more."),
        ("pgd:8/255,2.5", "steps=2.5, expected a whole number."),
        ("pgd:8/255,10,2", "takes 2 values without a key at most, found 3"),
        ("pgd:8/255,10+pgd:1,2", "is 2 terms, expected one attack"),
    ],
)
def test_attacks_that_do_not_exist(written: str, message: str) -> None:
    with pytest.raises(ParamsError) as refused:
        ATTACKS.make(written)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_the_published_step() -> None:
    assert PGD(8 / 255, 10).step_size == pytest.approx(2 / 255)


@pytest.mark.parametrize("attack", [PGD(8 / 255, 10), PGD(0.3, 1), PGD(1.0, 3)])
def test_attacked_images_stay_near_and_are_images(attack: PGD) -> None:
    network, images, labels = _network().eval(), _images(), _labels()
    given = images.clone()
    attacked = attack(network, images, _harm(labels))
    assert torch.equal(images, given)
    assert not attacked.requires_grad
    assert (attacked - images).abs().max() <= attack.epsilon + 1e-7
    assert attacked.min() >= 0
    assert attacked.max() <= 1


@pytest.mark.parametrize("steps", [1, 10])
def test_each_image_is_worse_off(steps: int) -> None:
    network, images, labels = _network().eval(), _images(), _labels()
    attacked = PGD(8 / 255, steps)(network, images, _harm(labels))
    with torch.no_grad():
        before, after = (F.cross_entropy(network(each), labels, reduction="none") for each in (images, attacked))
    assert (after > before).all()


@pytest.mark.parametrize("steps", [1, 5])
def test_two_classes_of_a_linear_model_have_a_closed_form(steps: int) -> None:
    """The gradient's sign is that of the difference of the classes' weights, wherever the image is."""
    torch.manual_seed(4)
    linear = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 2))
    images, labels = _images(), torch.tensor([0, 1, 1, 0, 0, 1])
    weights = linear[1].weight.detach()
    towards = torch.stack([weights[1 - label] - weights[label] for label in labels]).view(SHAPE)
    best = (images + 0.03 * towards.sign()).clamp(0, 1)
    torch.testing.assert_close(PGD(0.03, steps)(linear, images, _harm(labels)), best)


def test_it_is_the_plain_algorithm() -> None:
    """Start and steps as the paper writes them, in another order of operations and with gradients by backward."""
    network, images, labels = _network().eval(), _images(), _labels()
    epsilon, steps = 0.05, 4
    attacked = PGD(epsilon, steps)(network, images, _harm(labels), generator=torch.Generator().manual_seed(7))

    change = torch.rand(SHAPE, generator=torch.Generator().manual_seed(7)) * 2 * epsilon - epsilon
    change = (images + change).clamp(0, 1) - images
    for _ in range(steps):
        change = change.clone().requires_grad_()
        F.cross_entropy(network(images + change), labels).backward()
        change = (change + 2.5 * epsilon / steps * change.grad.sign()).clamp(-epsilon, epsilon).detach()
        change = (images + change).clamp(0, 1) - images
    torch.testing.assert_close(attacked, images + change)


def test_starts_are_drawn_anew_unless_they_are_seeded() -> None:
    network, images = _network().eval(), _images()

    def attacked(seed: int | None = None) -> torch.Tensor:
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        return PGD(0.05, 1)(network, images, lambda logits: 0 * logits.sum(), generator=generator)

    assert torch.equal(attacked(3), attacked(3))
    assert not torch.equal(attacked(3), attacked(4))
    torch.manual_seed(5)
    first, second = attacked(), attacked()
    torch.manual_seed(5)
    assert torch.equal(attacked(), first)
    assert not torch.equal(second, first)
    moved = (first - images)[(images > 0.05) & (images < 0.95)] / 0.05
    assert moved.abs().mean() == pytest.approx(0.5, abs=0.03)
    assert moved.mean() == pytest.approx(0.0, abs=0.06)


def test_the_model_is_left_as_it_was() -> None:
    network, images, labels = _network().train(), _images(), _labels()
    network[1].eval()
    network[0].weight.grad = torch.ones_like(network[0].weight)
    before = copy.deepcopy(network)
    with evaluating(network):
        assert not any(part.training for part in network.modules())
        PGD(0.05, 3)(network, images, _harm(labels))
    assert [part.training for part in network.modules()] == [part.training for part in before.modules()]
    for (name, mine), other in zip(network.state_dict().items(), before.state_dict().values(), strict=True):
        assert torch.equal(mine, other), name
    grads = {name: each.grad for name, each in network.named_parameters() if each.grad is not None}
    assert list(grads) == ["0.weight"]
    assert torch.equal(grads["0.weight"], torch.ones_like(network[0].weight))


def test_modes_come_back_after_an_error() -> None:
    network = _network().train()
    with pytest.raises(ZeroDivisionError), evaluating(network):
        raise ZeroDivisionError
    assert all(part.training for part in network.modules())


def test_it_works_where_gradients_are_off() -> None:
    network, images, labels = _network().eval(), _images(), _labels()

    def attacked() -> torch.Tensor:
        return PGD(0.05, 2)(network, images, _harm(labels), generator=torch.Generator().manual_seed(0))

    with torch.no_grad():
        first = attacked()
    assert torch.equal(first, attacked())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_sure_model_is_attacked_in_16_bits_too(dtype: torch.dtype) -> None:
    """Its gradient by the logits, about 1e-9, is less than float16 can hold."""
    network, images = _network().eval(), _images()
    with torch.no_grad():
        network[5].weight.mul_(0.01)
        network[5].bias.copy_(torch.tensor([21.0, 0, 0, 0, 0]))
    labels = torch.zeros(6, dtype=torch.int64)
    assert F.softmax(network(images), 1)[:, 1:].max() < 2e-9

    def judge(shown: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", dtype=dtype):
            return network(shown).float()

    def moved(by: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        start = torch.Generator().manual_seed(0)
        return PGD(0.05, 2)(by, images, _harm(labels), generator=start) - images

    exact, rounded = moved(network), moved(judge)
    assert (exact.sign() == rounded.sign()).float().mean() > 0.95


def test_scaled_images_are_normalised_as_pixels_are() -> None:
    preset = Preset(8, 8, "bilinear", (0.1, 0.5, 0.9), (0.2, 0.3, 0.4))
    pixels = torch.arange(256, dtype=torch.uint8).repeat(3).view(1, 3, 16, 16)
    assert torch.equal(preset.standardize(preset.scaled(pixels)), preset.normalize(pixels))
    mean, std = (torch.tensor(each).view(1, 3, 1, 1) for each in (preset.mean, preset.std))
    assert torch.equal(preset.normalize(pixels), (pixels.float() / 255 - mean) / std)


def test_predictions_under_attack() -> None:
    """Those of samples with a label are worse, all are reproducible, and images without a label only start."""
    digits = dataset.load("digits", "test", 30)
    labels = digits.labels.copy()
    digits.labels[::3] = -1
    torch.manual_seed(0)
    model = models.load("resnet8", num_classes=10, fallback_statistics=digits.statistics)
    model.module.train()
    renderer = Renderer(digits, "none", seed=0, geometry=Geometry.of(model.preset))

    def attacked(epsilon: float) -> torch.Tensor:
        return torch.from_numpy(predict_attacked(model.module, renderer, preset=model.preset, attack=PGD(epsilon, 3)))

    clean = torch.from_numpy(predict(model.module, renderer, preset=model.preset))
    found, again = attacked(0.1), attacked(0.1)
    assert torch.equal(found, again)
    assert model.module.training
    torch.testing.assert_close(attacked(1e-9), clean)
    wanted = torch.from_numpy(labels).long()
    worse = F.cross_entropy(found, wanted, reduction="none") - F.cross_entropy(clean, wanted, reduction="none")
    has_label = torch.from_numpy(digits.labels >= 0)
    assert (worse[has_label] > 0).all()
    assert worse[~has_label].abs().mean() < 0.3 * worse[has_label].mean()
