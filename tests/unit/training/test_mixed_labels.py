"""Cross-entropy to two labels, against torch's cross-entropy to class probabilities."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from kdpipe.testing.doubles import small_network
from kdpipe.training.loop import train
from kdpipe.training.objective import cross_entropy, mixed_cross_entropy
from kdpipe.training.schedule import Order
from kdpipe.views import SecondLabels
from tests.students import PRESET, SETTINGS, digits, renderer, student

GENERATOR = torch.Generator().manual_seed(0)
LOGITS = torch.randn(64, 7, generator=GENERATOR)
LABELS = torch.randint(0, 7, (64,), generator=GENERATOR)
OTHERS = torch.randint(0, 7, (64,), generator=GENERATOR)
SHARES = torch.rand(64, generator=GENERATOR)


def second(labels: torch.Tensor, shares: torch.Tensor) -> SecondLabels:
    return SecondLabels(labels.numpy().astype(np.int32), shares.numpy())


def test_equals_cross_entropy_to_probabilities() -> None:
    probabilities = torch.zeros(64, 7)
    probabilities[torch.arange(64), LABELS] += SHARES
    probabilities[torch.arange(64), OTHERS] += 1 - SHARES
    expected = F.cross_entropy(LOGITS, probabilities)
    assert torch.allclose(mixed_cross_entropy(LOGITS, LABELS, second(OTHERS, SHARES)), expected, atol=1e-6)


def test_a_share_of_one_is_the_plain_loss() -> None:
    found = mixed_cross_entropy(LOGITS, LABELS, second(OTHERS, torch.ones(64)))
    assert torch.allclose(found, cross_entropy(LOGITS, LABELS), atol=1e-6)


def test_missing_labels_count_for_nothing() -> None:
    labels, others = LABELS.clone(), OTHERS.clone()
    labels[:20], others[10:40] = -1, -1
    losses = F.log_softmax(LOGITS, dim=1).neg()
    total, weight = 0.0, 0.0
    for row in range(64):
        for label, share in ((int(labels[row]), float(SHARES[row])), (int(others[row]), 1 - float(SHARES[row]))):
            if label >= 0:
                total, weight = total + share * float(losses[row, label]), weight + share
    found = mixed_cross_entropy(LOGITS, labels, second(others, SHARES))
    assert abs(float(found) - total / weight) < 1e-5


def test_without_any_label_it_is_zero_and_has_a_gradient() -> None:
    logits = LOGITS.clone().requires_grad_()
    none = torch.full((64,), -1)
    loss = mixed_cross_entropy(logits, none, second(none, SHARES))
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_training_on_mixed_images_takes_mixed_labels(tmp_path: Path) -> None:
    """One step over all samples: its loss is that of the initial weights."""
    images = renderer(digits(100), "crop-flip+mixup:1")
    mixed = images.second_labels(np.arange(100), 1)
    assert mixed is not None
    shares = torch.zeros(100, 10)
    for row in range(100):
        shares[row, digits(100).labels[row]] += float(mixed.own_share[row])
        shares[row, mixed.labels[row]] += 1 - float(mixed.own_share[row])
    with torch.no_grad():
        logits = small_network().train()(PRESET.normalize(images(np.arange(100), 1)))
    expected = F.cross_entropy(logits, shares).item()
    own_label_only = F.cross_entropy(logits, torch.from_numpy(digits(100).labels).long()).item()
    assert abs(expected - own_label_only) > 1e-3

    rows: list[dict[str, float]] = []
    once = SETTINGS.but(epochs=1, batch_size=100, warmup_epochs=0)
    train(student(tmp_path, images=images, settings=once, on_epoch=rows.append), order=Order(0, views=1))
    assert abs(rows[0]["ce"] - expected) < 1e-4
