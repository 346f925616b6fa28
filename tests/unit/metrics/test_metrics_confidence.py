"""Calibration and selective prediction against scikit-learn, torchmetrics, scipy and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss
from torchmetrics.functional.classification import multiclass_calibration_error

from kdpipe.metrics import Bin, fit_temperature, measure, reliability, risk_coverage

FAR_ROWS = 5000  # more than one block of rows


def _random(rows: int, classes: int, *, sharpness: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Logits whose softmax is right about the labels, times ``sharpness``."""
    draw = np.random.default_rng(rows + classes)
    true = 2 * draw.standard_normal((rows, classes))
    labels = (draw.random((rows, 1)) > softmax(true, axis=1).cumsum(axis=1)[:, :-1]).sum(axis=1)
    return (sharpness * true).astype(np.float32), labels.astype(np.int32)


@pytest.mark.parametrize(("rows", "classes"), [(300, 10), (FAR_ROWS, 4)])
def test_brier_and_calibration_error_are_those_of_the_libraries(rows: int, classes: int) -> None:
    logits, labels = _random(rows, classes, sharpness=1.7)
    found = measure(logits, labels)
    chances = softmax(logits.astype(np.float64), axis=1)
    by_class = [brier_score_loss(labels == index, chances[:, index]) for index in range(classes)]
    assert found["brier"] == pytest.approx(sum(by_class))
    expected = multiclass_calibration_error(torch.from_numpy(chances), torch.from_numpy(labels).long(), classes, 15)
    assert found["ece"] == pytest.approx(float(expected), abs=1e-6)


def test_the_reliability_diagram_is_scikit_learns() -> None:
    logits, labels = _random(FAR_ROWS, 4, sharpness=1.7)
    chances = softmax(logits.astype(np.float64), axis=1)
    accuracy, confidence = calibration_curve(chances.argmax(axis=1) == labels, chances.max(axis=1), n_bins=15)
    filled = [each for each in reliability(logits, labels) if each.samples]
    assert [each.accuracy for each in filled] == pytest.approx(list(accuracy))
    assert [each.confidence for each in filled] == pytest.approx(list(confidence))
    assert sum(each.samples for each in filled) == FAR_ROWS
    assert all(each.low < each.confidence <= each.high for each in filled if each.confidence is not None)


def test_an_edge_belongs_to_the_bin_below() -> None:
    bins = reliability(np.zeros((1, 2), np.float32), np.array([0], np.int32), bins=2)
    assert bins == (Bin(0.0, 0.5, 1, 0.5, 1.0), Bin(0.5, 1.0, 0, None, None))


def test_extreme_scores() -> None:
    sure = np.array([[50, 0], [50, 0]], np.float32)
    assert measure(sure, np.array([0, 0]))["brier"] == pytest.approx(0, abs=1e-20)
    assert measure(sure, np.array([1, 1]))["brier"] == pytest.approx(2)
    assert measure(sure, np.array([1, 0]))["ece"] == pytest.approx(0.5)
    assert measure(np.zeros((4, 4), np.float32), np.arange(4))["ece"] == pytest.approx(0)


@pytest.mark.parametrize("sharpness", [0.2, 1.0, 3.0, 12.0])
def test_the_temperature_undoes_a_scaling_and_minimizes_the_cross_entropy(sharpness: float) -> None:
    logits, labels = _random(FAR_ROWS, 6, sharpness=sharpness)

    def loss(temperature: float) -> float:
        return float(-log_softmax(logits / temperature, axis=1)[np.arange(len(labels)), labels].mean())

    expected = minimize_scalar(loss, bounds=(0.01, 100), method="bounded", options={"xatol": 1e-7}).x
    found = fit_temperature(logits, labels)
    assert found == pytest.approx(expected, rel=1e-4)
    assert found == pytest.approx(sharpness, rel=0.05)
    before, after = (reliability(logits, labels, temperature=each) for each in (1.0, found))
    assert sum(each.samples for each in before) == sum(each.samples for each in after)


def test_temperature_ignores_unlabeled_samples_and_excluded_classes() -> None:
    logits, labels = _random(400, 5, sharpness=2.0)
    hidden = np.where(np.arange(400) % 3, labels, -1)
    assert fit_temperature(logits, hidden) == fit_temperature(logits[hidden >= 0], labels[hidden >= 0])
    wider = np.concatenate([logits, np.full((400, 1), -np.inf, np.float32)], axis=1)
    assert fit_temperature(wider, labels) == pytest.approx(fit_temperature(logits, labels))
    assert fit_temperature(wider, np.full(400, 5)) is None
    assert fit_temperature(logits, np.full(400, -1)) is None


def test_without_a_minimum_the_temperature_is_at_its_limit() -> None:
    logits = np.array([[1, 0], [0, 1]], np.float32)
    assert fit_temperature(logits, np.array([0, 1])) == 0.01
    assert fit_temperature(logits, np.array([1, 0])) == 100
    assert fit_temperature(np.zeros((2, 2), np.float32), np.array([0, 1])) in (0.01, 100)


def test_risk_coverage_counts_the_most_confident_first() -> None:
    logits, labels = _random(500, 6)
    chances = softmax(logits.astype(np.float64), axis=1)
    order = sorted(range(500), key=lambda row: -chances[row].max())
    risks = [np.mean([chances[row].argmax() != labels[row] for row in order[:taken]]) for taken in range(1, 501)]
    curve = risk_coverage(logits, labels)
    assert curve.coverage == pytest.approx(np.arange(1, 501) / 500)
    assert curve.risk == pytest.approx(np.array(risks))
    found = measure(logits, labels)
    assert found["aurc"] == pytest.approx(np.mean(risks))
    assert curve.risk[-1] == pytest.approx(1 - found["top1"])


def test_equal_confidence_counts_as_in_random_order() -> None:
    logits = np.tile(np.array([[2, 0]], np.float32), (8, 1))
    labels = np.array([0, 1, 1, 0, 0, 0, 1, 0], np.int32)
    assert risk_coverage(logits, labels).risk == pytest.approx(np.full(8, 3 / 8))
    logits[:4] *= 2
    mixed = risk_coverage(logits, labels).risk
    assert mixed == pytest.approx(np.array([0.5] * 4 + [2.25 / 5, 2.5 / 6, 2.75 / 7, 3 / 8]))


def test_perfect_and_hopeless_orders() -> None:
    logits = np.stack([np.arange(10, 0, -1), np.zeros(10)], axis=1).astype(np.float32)
    early, late = np.array([0] * 5 + [1] * 5), np.array([1] * 5 + [0] * 5)
    best, worst = measure(logits, early)["aurc"], measure(logits, late)["aurc"]
    assert best == pytest.approx(sum((taken - 5) / taken for taken in range(6, 11)) / 10)
    assert worst == pytest.approx((5 + sum(5 / taken for taken in range(6, 11))) / 10)
