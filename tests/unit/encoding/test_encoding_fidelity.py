"""KL per row and the figures of many rows: closed forms, exact addition, damage."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch

from kdpipe.encoding.fidelity import Fidelity, kl
from kdpipe.errors import CorruptStoreError


def two_classes(p: float, q: float, *, temperature: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits whose tempered probabilities of the first class are ``p`` and ``q``."""
    reference, decoded = (
        torch.tensor([[temperature * math.log(x / (1 - x)), 0.0]], dtype=torch.float64) for x in (p, q)
    )
    return reference, decoded


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
@pytest.mark.parametrize(("p", "q"), [(0.5, 0.5), (0.9, 0.8), (0.2, 0.7), (0.99, 0.01)])
def test_two_classes_by_hand(p: float, q: float, temperature: float) -> None:
    found = kl(*two_classes(p, q, temperature=temperature), temperature)
    assert found.dtype == torch.float64
    assert found.shape == (1,)
    assert float(found) == pytest.approx(
        p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q)), rel=1e-12, abs=1e-15
    )


def test_kl_ignores_an_added_constant_and_is_never_negative() -> None:
    logits = 10 * torch.randn(100, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert (kl(logits, logits + 8, 2) >= 0).all()
    assert kl(logits, logits + 8, 2).max() < 1e-12


def blocks() -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(5)
    made = []
    for rows, scale in ((100, 1e-3), (1, 3.0), (57, 0.1), (42, 0.0)):
        logits = 4 * torch.randn(rows, 10, generator=generator)
        made.append((logits, logits + scale * torch.randn(rows, 10, generator=generator)))
    return made


def test_figures() -> None:
    reference, decoded = (torch.cat(side) for side in zip(*blocks(), strict=True))
    figures = Fidelity.of(reference, decoded).summary()
    assert figures["rows"] == 200
    assert figures["top1_agreement"] == float((reference.argmax(1) == decoded.argmax(1)).double().mean())
    for temperature in (1, 2, 4):
        values = np.sort(kl(reference, decoded, temperature).numpy())
        assert figures[f"kl_t{temperature}_mean"] == pytest.approx(values.mean(), rel=1e-12)
        assert values[197] <= figures[f"kl_t{temperature}_p99"] <= 1.048 * values[197]


def test_blocks_in_any_order_add_up_to_the_same_bytes() -> None:
    parts = [Fidelity.of(*block) for block in blocks()]
    whole = Fidelity.of(*(torch.cat(side) for side in zip(*blocks(), strict=True)))
    forward, backward = Fidelity.none(), Fidelity.none()
    for part in parts:
        forward, backward = forward + part, part + backward
    assert forward == backward == whole
    nested = (parts[3] + parts[1]) + (parts[2] + parts[0])
    assert json.dumps(nested.to_json()) == json.dumps(whole.to_json())
    assert Fidelity.from_json(json.loads(json.dumps(whole.to_json()))) == whole


def test_other_temperatures() -> None:
    reference, decoded = blocks()[0]
    figures = Fidelity.of(reference, decoded, (1.5, 8.0))
    assert set(figures.summary()) >= {"kl_t1.5_mean", "kl_t8_p99"}
    assert figures.mean(8.0) == pytest.approx(float(kl(reference, decoded, 8).mean()), rel=1e-12)
    with pytest.raises(ValueError, match="temperatures"):
        figures + Fidelity.of(reference, decoded)


def test_more_rows_than_a_block() -> None:
    """Blocks are a matter of memory; the figures are those of all rows at once."""
    reference = torch.randn(5000, 3, generator=torch.Generator().manual_seed(1))
    decoded = reference + 0.1 * torch.randn(5000, 3, generator=torch.Generator().manual_seed(2))
    figures = Fidelity.of(reference, decoded)
    assert figures.rows == 5000
    assert figures.mean(2.0) == pytest.approx(float(kl(reference, decoded, 2).mean()), rel=1e-9)


@pytest.mark.parametrize("classes", [7, 1_000, 21_841, 40_000])
@pytest.mark.parametrize("threads", [1, 3])
def test_figures_are_those_of_all_rows_at_once(classes: int, threads: int) -> None:
    generator = torch.Generator().manual_seed(classes)
    logits = 3 * torch.randn(9, classes, generator=generator)
    decoded = logits + 0.1 * torch.randn(9, classes, generator=generator)
    sums = []
    for temperature in (1.0, 3.0):
        p, q = ((each.double() / temperature).log_softmax(dim=1) for each in (logits, decoded))
        rows = (p.exp() * (p - q)).sum(dim=1).clamp(min=0)
        sums.append(sum(round(float(value) * 2.0**60) for value in rows))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = Fidelity.of(logits, decoded, (1.0, 3.0))
    finally:
        torch.set_num_threads(before)
    assert found.sums == tuple(sums)
    assert found.agreeing == int((logits.argmax(1) == decoded.argmax(1)).sum())
    assert found.rows == 9


def test_equal_and_hopeless_logits() -> None:
    logits = torch.tensor([[1.0, 2.0, 3.0]])
    same = Fidelity.of(logits, logits).summary()
    assert same["kl_t1_mean"] == 0
    assert same["kl_t1_p99"] == 1e-16
    worst = Fidelity.of(torch.tensor([[1e6, 0.0]]), torch.tensor([[0.0, 1e6]])).summary()
    assert worst["kl_t1_mean"] == pytest.approx(1e6)
    assert worst["kl_t1_p99"] == pytest.approx(1e4)
    assert worst["top1_agreement"] == 0


def test_no_rows_have_no_figures() -> None:
    assert Fidelity.from_json(Fidelity.none().to_json()) == Fidelity.none()
    with pytest.raises(ValueError, match="no rows"):
        Fidelity.none().summary()


@pytest.mark.parametrize(
    "change",
    [
        {"rows": 3},
        {"rows": 2.0},
        {"rows": True},
        {"rows": -1},
        {"agreeing": 3},
        {"sums": ["0", "0"]},
        {"sums": ["-1", "0", "0"]},
        {"sums": ["x", "0", "0"]},
        {"sums": [0, 0, 0]},
        {"sums": None},
        {"sums": ["0", "0", "0", "0"]},
        {"histograms": ["0:2", "0:2", "0:1"]},
        {"histograms": ["0:2", "0:2", "1000000:2"]},
        {"histograms": ["0:2", "0:2", "-1:2"]},
        {"histograms": ["0:2", "0:2", "3:1 2:1"]},
        {"histograms": ["0:2", "0:2", "2:1 2:1"]},
        {"histograms": ["0:2", "0:2"]},
        {"histograms": ["0:2", "0:2", "0:2:1"]},
        {"histograms": ["0:2", "0:2", "0:2 "]},
        {"histograms": ["0:2", "0:2", [0, 2]]},
        {"temperatures": [1.0, 2.0]},
        {"temperatures": [1.0, 2.0, 0.0]},
        {"temperatures": [1.0, 2.0, "4"]},
        {"temperatures": 3},
        {"extra": 1},
    ],
)
def test_damaged_figures_are_refused(change: dict[str, Any]) -> None:
    logits = torch.tensor([[1.0, 2.0, 3.0], [3.0, 1.0, 2.0]])
    good = Fidelity.of(logits, logits).to_json()
    assert good["histograms"] == ["0:2"] * 3
    with pytest.raises(CorruptStoreError, match="fidelity"):
        Fidelity.from_json({**good, **change})
    with pytest.raises(CorruptStoreError):
        Fidelity.from_json({})
