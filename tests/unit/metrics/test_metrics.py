"""Metrics against closed forms and scikit-learn, and the registry that holds them."""

import math
from collections.abc import Iterator

import numpy as np
import pytest
import scipy.special
from sklearn.metrics import log_loss, top_k_accuracy_score

from kdpipe.errors import DatasetError, DivergedError
from kdpipe.metrics import METRICS, Accuracy, Labels, Logits, Metric, accuracy, agreement, kl, measure, metric

FAR_ROWS = 5000  # more than one block of rows


def _random(rows: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(rows + classes)
    logits = (3 * draw.standard_normal((rows, classes))).astype(np.float32)
    return logits, draw.integers(0, classes, rows).astype(np.int32)


@pytest.mark.parametrize(("rows", "classes"), [(300, 10), (FAR_ROWS, 7), (50, 200)])
def test_agrees_with_scikit_learn(rows: int, classes: int) -> None:
    logits, labels = _random(rows, classes)
    exact = logits.astype(np.float64)
    probabilities = np.exp(exact) / np.exp(exact).sum(axis=1, keepdims=True)
    every = np.arange(classes)
    measured = accuracy(logits, labels)
    assert measured.top1 == pytest.approx(top_k_accuracy_score(labels, exact, k=1, labels=every))
    assert measured.top5 == pytest.approx(top_k_accuracy_score(labels, exact, k=5, labels=every))
    assert measured.loss == pytest.approx(log_loss(labels, probabilities, labels=every), rel=1e-9)


def test_equal_logits_favour_the_lower_class() -> None:
    draw = np.random.default_rng(0)
    logits = draw.integers(0, 3, (500, 12)).astype(np.float32)
    labels = draw.integers(0, 12, 500).astype(np.int32)
    order = np.argsort(-logits, axis=1, kind="stable")
    measured = accuracy(logits, labels)
    assert measured.top1 == np.mean(logits.argmax(axis=1) == labels)
    assert measured.top5 == np.mean((order[:, :5] == labels[:, None]).any(axis=1))


def test_uniform_logits_lose_the_log_of_the_class_count() -> None:
    measured = accuracy(np.zeros((4, 8), np.float32), np.array([0, 1, 4, 5], np.int32))
    assert measured == Accuracy(top1=0.25, top5=0.75, loss=pytest.approx(math.log(8)))


def test_top5_of_three_classes_is_everything() -> None:
    logits, labels = _random(20, 3)
    assert accuracy(logits, labels).top5 == 1.0


def test_unlabeled_samples_do_not_count() -> None:
    logits, labels = _random(FAR_ROWS, 10)
    hidden = labels.copy()
    hidden[::3] = -1
    kept = hidden >= 0
    assert accuracy(logits, hidden) == accuracy(logits[kept], labels[kept])


@pytest.mark.parametrize("rows", [0, 3])
def test_without_any_label_nothing_is_known(rows: int) -> None:
    measured = accuracy(np.zeros((rows, 5), np.float32), np.full(rows, -1, np.int32))
    assert measured == Accuracy(top1=None, top5=None, loss=None)


def test_huge_logits_do_not_overflow() -> None:
    measured = accuracy(np.array([[3e38, -3e38]], np.float32), np.array([0], np.int32))
    assert measured.loss == 0.0


def test_an_impossible_label_has_infinite_loss() -> None:
    logits = np.array([[0.0, -np.inf]], np.float32)
    assert accuracy(logits, np.array([1], np.int32)).loss == math.inf


def test_loss_of_many_samples_keeps_its_digits() -> None:
    logits = np.tile(np.array([[0.1, 0.0]], np.float32), (200_000, 1))
    each = math.log1p(math.exp(-float(np.float32(0.1))))
    assert accuracy(logits, np.zeros(200_000, np.int32)).loss == pytest.approx(each, rel=1e-11)


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_broken_logits_are_refused_by_sample(broken: float) -> None:
    logits, labels = _random(FAR_ROWS, 4)
    logits[4500, 2] = broken
    with pytest.raises(DivergedError, match="sample 4500"):
        accuracy(logits, labels)
    with pytest.raises(DivergedError, match="teacher's logits of sample 4500"):
        agreement(np.zeros_like(logits), logits)


def test_a_row_of_nothing_but_minus_infinity_is_refused() -> None:
    with pytest.raises(DivergedError):
        accuracy(np.full((1, 3), -np.inf, np.float32), np.array([0], np.int32))


@pytest.mark.parametrize("label", [-2, 4])
def test_labels_outside_the_classes_are_refused(label: int) -> None:
    with pytest.raises(DatasetError, match=f"sample 1 has label {label}"):
        accuracy(np.zeros((2, 4), np.float32), np.array([0, label], np.int32))


def test_shapes_must_match() -> None:
    with pytest.raises(ValueError, match="expected logits"):
        accuracy(np.zeros((2, 4), np.float32), np.zeros(3, np.int32))
    with pytest.raises(ValueError, match="same n > 0 samples"):
        agreement(np.zeros((2, 4), np.float32), np.zeros((2, 5), np.float32))
    with pytest.raises(ValueError, match="same n > 0 samples"):
        agreement(np.zeros((0, 4), np.float32), np.zeros((0, 4), np.float32))


def test_agreement_is_the_share_of_equal_argmax() -> None:
    student, teacher = _random(FAR_ROWS, 4)[0], _random(FAR_ROWS + 1, 4)[0][:-1]
    expected = np.mean([s.argmax() == t.argmax() for s, t in zip(student, teacher, strict=True)])
    assert agreement(student, teacher) == expected
    assert agreement(student, 2 * student + 1) == 1.0


def test_the_divergence_from_the_teacher_is_scipys() -> None:
    student, teacher = _random(FAR_ROWS, 7)[0], _random(FAR_ROWS + 1, 7)[0][:-1]
    chances = [scipy.special.softmax(each.astype(np.float64), axis=1) for each in (teacher, student)]
    assert kl(student, teacher) == pytest.approx(scipy.special.rel_entr(*chances).sum(axis=1).mean(), rel=1e-9)
    assert kl(teacher, teacher) == 0
    assert kl(teacher, teacher + 3) == pytest.approx(0, abs=1e-9)


def test_a_class_that_the_student_excludes_diverges_unless_the_teacher_excludes_it_too() -> None:
    open_minded, narrow = np.zeros((2, 3), np.float32), np.array([[0, 0, -np.inf]] * 2, np.float32)
    assert kl(narrow, open_minded) == math.inf
    assert kl(open_minded, narrow) == pytest.approx(math.log(3 / 2))
    assert kl(narrow, narrow) == 0


def test_all_metrics_are_measured_at_once() -> None:
    logits, labels = _random(300, 10)
    teacher = _random(301, 10)[0][:-1]
    expected = accuracy(logits, labels)
    found = measure(logits, labels, teacher)
    assert list(found) == list(METRICS)
    assert list(found)[:3] == ["top1", "top5", "cross_entropy"]
    assert (found["top1"], found["top5"], found["cross_entropy"]) == (expected.top1, expected.top5, expected.loss)
    assert (found["agreement"], found["kl"]) == (agreement(logits, teacher), kl(logits, teacher))
    assert set(found) - set(measure(logits, labels)) == {"agreement", "kl"}


def test_metrics_of_labels_leave_out_unlabeled_samples_and_agreement_does_not() -> None:
    logits, labels = _random(300, 10)
    teacher = _random(301, 10)[0][:-1]
    hidden = np.where(np.arange(300) % 3, labels, -1).astype(np.int32)
    kept = hidden >= 0
    found = measure(logits, hidden, teacher)
    of_teacher = {"agreement": agreement(logits, teacher), "kl": kl(logits, teacher)}
    assert found == measure(logits[kept], labels[kept]) | of_teacher
    nothing = measure(logits, np.full(300, -1, np.int32), teacher)
    assert nothing == dict.fromkeys(found, None) | of_teacher


def test_measuring_refuses_what_accuracy_refuses() -> None:
    logits, labels = _random(300, 10)
    with pytest.raises(DatasetError, match="sample 7 has label 10"):
        measure(logits, np.where(np.arange(300) == 7, 10, labels))
    with pytest.raises(ValueError, match="same n > 0 samples"):
        measure(logits, labels, logits[:, :4])
    with pytest.raises(DivergedError, match="logits of sample 0"):
        measure(np.full_like(logits, math.nan), labels)


@pytest.fixture
def registry() -> Iterator[dict[str, Metric]]:
    """The registered metrics, which are the same again after the test."""
    before = dict(METRICS)
    yield METRICS
    METRICS.clear()
    METRICS.update(before)


def test_a_registered_metric_is_measured_with_what_it_names(registry: dict[str, Metric]) -> None:
    @metric(title="Errors shared", unit="%")
    def errors_shared(logits: Logits, teacher_logits: Logits, labels: Labels) -> float:
        """Fraction of the samples on which
        both are wrong.

        More.
        """
        assert len(logits) == len(teacher_logits) == len(labels) == 2
        return float(((logits.argmax(axis=1) != labels) & (teacher_logits.argmax(axis=1) != labels)).mean())

    logits, teacher = np.eye(3, dtype=np.float32), np.eye(3, dtype=np.float32)[[1, 1, 2]]
    labels = np.array([2, 1, -1], np.int32)
    assert measure(logits, labels, teacher)["errors_shared"] == 0.5
    assert "errors_shared" not in measure(logits, labels)
    figure = registry["errors_shared"].figure
    assert (figure.name, figure.heading) == ("errors_shared", "Errors shared %")
    assert figure.help == "Fraction of the samples on which both are wrong."


def test_a_name_is_registered_once_and_parameters_are_known(registry: dict[str, Metric]) -> None:
    def top1(logits: Logits) -> float:
        return 0.0

    def margin(logits: Logits, sample_ids: Logits) -> float:
        return 0.0

    with pytest.raises(ValueError, match="a metric 'top1' already"):
        metric(title="Top-1")(top1)
    with pytest.raises(ValueError, match="'margin' takes logits, sample_ids"):
        metric(title="Margin")(margin)
    assert "margin" not in registry
