"""Every distillation loss against its paper's formula in plain Python, closed forms and the properties it must have."""

from __future__ import annotations

import inspect
import math
import re
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from kdpipe.distil.losses import LOSSES, LogitLoss, make, parse
from kdpipe.encoding.registry import get_encoding
from kdpipe.errors import UnsupportedLossError
from kdpipe.testing.losses import LossSuite, value_and_gradient
from tests.conftest import ROOT

Row = Sequence[float]
Rows = Sequence[Row]

SHAPES = [(1, 2), (1, 5), (2, 2), (2, 9), (3, 4), (7, 3), (6, 10)]
SETTINGS = [
    ("kd", {}),
    ("kd", {"temperature": 1.5}),
    ("soft-ce", {}),
    ("soft-ce", {"temperature": 0.7}),
    ("hard", {}),
    ("mixed", {}),
    ("mixed", {"temperature": 2.0, "soft_weight": 0.3}),
    ("mse", {}),
    ("dkd", {}),
    ("dkd", {"temperature": 1.0, "alpha": 0.5, "beta": 2.0}),
    ("dkd", {"alpha": 0.0, "beta": 1.0}),
    ("dist", {}),
    ("dist", {"temperature": 1.0, "beta": 0.5, "gamma": 3.0}),
    ("nkd", {}),
    ("nkd", {"temperature": 3.0, "gamma": 3.5}),
    ("wsld", {}),
    ("wsld", {"temperature": 2.0}),
    ("wttm", {}),
    ("wttm", {"temperature": 1.0}),
    ("wkd", {"gamma": 20.0}),
    ("wkd", {"temperature": 1.0, "gamma": 3.0, "sharpness": 2.0, "blur": 0.2, "steps": 3}),
    ("mlkd", {}),
    ("mlkd", {"temperature": 2.0, "instance": 0.5, "batch": 0.0, "classes": 2.0}),
    ("kd", {"standardize": True}),
    ("kd", {"standardize": True, "temperature": 3.0}),
    ("soft-ce", {"standardize": True}),
    ("mixed", {"standardize": True}),
    ("mse", {"standardize": True}),
    ("dkd", {"standardize": True}),
    ("dist", {"standardize": True, "gamma": 0.5}),
    ("nkd", {"standardize": True}),
    ("wsld", {"standardize": True}),
    ("wttm", {"standardize": True, "temperature": 2.0}),
    ("wkd", {"standardize": True, "temperature": 2.0}),
    ("mlkd", {"standardize": True, "temperature": 2.0}),
]
ON_LOGITS = [entry.name for entry in LOSSES if isinstance(entry.make(), LogitLoss)]
STANDARDIZED = [f"standardized {name}" for name in ON_LOGITS if name != "hard"]
CASES = pytest.mark.parametrize(("name", "settings"), SETTINGS, ids=lambda value: str(value))
EVERY = pytest.mark.parametrize("name", ON_LOGITS)
EITHER_WAY = pytest.mark.parametrize("name", [*ON_LOGITS, *STANDARDIZED])
NEED_LABELS = ["dkd", "nkd", "wsld", "wkd", *(f"standardized {name}" for name in ("dkd", "nkd", "wsld", "wkd"))]
OF_SINGLE_SAMPLES = sorted(
    {*ON_LOGITS, *STANDARDIZED} - {f"{form}{name}" for form in ("", "standardized ") for name in ("dist", "mlkd")}
)
ZERO_WHERE_EQUAL = [f"{form}{name}" for form in ("", "standardized ") for name in ("kd", "mse", "dkd", "dist", "mlkd")]


def _make(name: str, **settings: Any) -> LogitLoss:
    """Return the loss called ``name``, or that of z-scores: ``standardized kd``."""
    standardized, _, plain = name.rpartition(" ")
    return make(plain, **{"standardize": True} if standardized else {}, **settings)


def _takes_temperature(name: str) -> bool:
    return "temperature" in {each.name for each in LOSSES[name.rpartition(" ")[2]].parameters}


def _softmax(row: Row, temperature: float = 1.0) -> list[float]:
    powers = [math.exp(value / temperature) for value in row]
    return [power / sum(powers) for power in powers]


def _kl(p: Row, q: Row) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def _cross_entropy(p: Row, q: Row) -> float:
    return -sum(a * math.log(b) for a, b in zip(p, q, strict=True))


def _z_scores(row: Row) -> list[float]:
    mean = _mean(row)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in row) / (len(row) - 1))
    return [(value - mean) / deviation for value in row]


def _without(row: Row, label: int) -> list[float]:
    return [value for i, value in enumerate(row) if i != label]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _labeled(term: Callable[[Row, Row, int], float], student: Rows, teacher: Rows, labels: Sequence[int]) -> float:
    return _mean([term(s, t, y) for s, t, y in zip(student, teacher, labels, strict=True) if y >= 0])


def _pearson_distances(student: Rows, teacher: Rows) -> list[float]:
    found = []
    for s, t in zip(student, teacher, strict=True):
        if len(set(t)) > 1:
            found.append(1 - statistics.correlation(s, t))
    return found


def _reference(
    name: str,
    student: Rows,
    teacher: Rows,
    labels: Sequence[int],
    *,
    constant: Rows,
    settings: dict[str, Any],
) -> float:
    """Return the loss by its formula; ``constant`` is the student where no gradient is taken."""
    if settings.get("standardize"):
        student, teacher, constant = ([_z_scores(row) for row in rows] for rows in (student, teacher, constant))
        settings = {"temperature": 2.0} | settings if name == "kd" else settings
    setting = {each.name: each.default for each in LOSSES[name].parameters} | settings
    heat = setting.get("temperature", 1.0)
    pairs = list(zip(student, teacher, strict=True))

    if name == "kd":
        return heat**2 * _mean([_kl(_softmax(t, heat), _softmax(s, heat)) for s, t in pairs])
    if name == "soft-ce":
        return heat**2 * _mean([_cross_entropy(_softmax(t, heat), _softmax(s, heat)) for s, t in pairs])
    if name == "hard":
        return _mean([-math.log(_softmax(s)[max(range(len(t)), key=t.__getitem__)]) for s, t in pairs])
    if name == "mixed":
        soft = heat**2 * _mean([_kl(_softmax(t, heat), _softmax(s, heat)) for s, t in pairs])
        hard = _mean([-math.log(_softmax(s)[max(range(len(t)), key=t.__getitem__)]) for s, t in pairs])
        return setting["soft_weight"] * soft + (1 - setting["soft_weight"]) * hard
    if name == "mse":
        return _mean(
            [(s[i] - _mean(s) - t[i] + _mean(t)) ** 2 for s, t in pairs for i in range(len(s))],
        )
    if name == "dkd":

        def decoupled(s: Row, t: Row, y: int) -> float:
            q, p = _softmax(s, heat), _softmax(t, heat)
            target = _kl([p[y], 1 - p[y]], [q[y], 1 - q[y]])
            q_hat = [value / (1 - q[y]) for value in _without(q, y)]
            p_hat = [value / (1 - p[y]) for value in _without(p, y)]
            return heat**2 * (setting["alpha"] * target + setting["beta"] * _kl(p_hat, q_hat))

        return _labeled(decoupled, student, teacher, labels)
    if name == "dist":
        q, p = ([_softmax(row, heat) for row in rows] for rows in (student, teacher))
        inter = _mean(_pearson_distances(q, p))
        intra = _mean(_pearson_distances(list(zip(*q, strict=True)), list(zip(*p, strict=True)))) if len(q) > 1 else 0
        return heat**2 * (setting["beta"] * inter + setting["gamma"] * intra)
    if name == "nkd":

        def normalized(s: Row, t: Row, y: int) -> float:
            target = -_softmax(t)[y] * math.log(_softmax(s)[y])
            others = _cross_entropy(_softmax(_without(t, y), heat), _softmax(_without(s, y), heat))
            return target + setting["gamma"] * heat**2 * others

        return _labeled(normalized, student, teacher, labels)
    if name == "wttm":

        def transformed(s: Row, t: Row) -> float:
            powers = [value ** (1 / heat) for value in _softmax(t)]
            return sum(powers) * _kl([power / sum(powers) for power in powers], _softmax(s))

        return _mean([transformed(s, t) for s, t in pairs])
    if name == "mlkd":
        n, c = len(student), len(student[0])

        def apart(rows: Rows, others: Rows) -> float:
            """Return the squared differences of the products of any two rows, as the authors add them up."""
            products = [
                [sum(a * b for a, b in zip(s, t, strict=True)) for s in each for t in each] for each in (rows, others)
            ]
            return sum((a - b) ** 2 for a, b in zip(*products, strict=True))

        total = 0.0
        for each in (heat, 2.0, 3.0, 5.0, 6.0):
            q, p = ([_softmax(row, each) for row in rows] for rows in (student, teacher))
            single = each**2 * _mean([_kl(b, a) for a, b in zip(q, p, strict=True)])
            columns = [list(zip(*rows, strict=True)) for rows in (q, p)]
            of_samples, of_classes = apart(q, p) / n, apart(*columns) / c
            total += setting["instance"] * single
            total += setting["batch"] * of_samples * 64 / n + setting["classes"] * of_classes * (64 / n) ** 2
        return total
    if name == "wkd":

        def moved(s: Row, t: Row, y: int) -> float:
            """Sinkhorn's steps as the authors take them, where all classes are unrelated."""
            q, p = _softmax(_without(s, y), heat), _softmax(_without(t, y), heat)
            far = 1 - math.exp(-setting["sharpness"])
            places = range(len(q))
            u = [1.0 for _ in places]
            weight = [[1.0 if i == j else math.exp(-far / setting["blur"]) for j in places] for i in places]
            for _ in range(setting["steps"]):
                v = [p[j] / sum(weight[i][j] * u[i] for i in places) for j in places]
                u = [q[i] / sum(weight[i][j] * v[j] for j in places) for i in places]
            cost = sum(u[i] * weight[i][j] * v[j] * far for i in places for j in places if i != j)
            return -_softmax(t)[y] * math.log(_softmax(s)[y]) + setting["gamma"] * cost

        return _labeled(moved, student, teacher, labels)
    assert name == "wsld"
    values = []
    for s, t, fixed, y in zip(student, teacher, constant, labels, strict=True):
        if y >= 0:
            weight = 1 - math.exp(-math.log(_softmax(fixed)[y]) / math.log(_softmax(t)[y]))
            values.append(heat**2 * weight * _cross_entropy(_softmax(t, heat), _softmax(s, heat)))
    return _mean(values)


def _batch(shape: tuple[int, int], *, spread: float = 2.0, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (spread * torch.randn(shape, dtype=torch.float64, generator=generator) for _ in range(2))
    return student, teacher


def _labels(shape: tuple[int, int], *, unlabeled: bool = False, seed: int = 1) -> torch.Tensor:
    labels = torch.randint(shape[1], shape[:1], generator=torch.Generator().manual_seed(seed))
    if unlabeled:
        labels[::3] = -1
    return labels


def _value_and_gradient(
    name: str, student: torch.Tensor, teacher: torch.Tensor, labels: torch.Tensor, **settings: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    return value_and_gradient(_make(name, **settings), student, teacher, labels)


class TestDefinition:
    @CASES
    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    @pytest.mark.parametrize("unlabeled", [False, True])
    def test_value_and_gradient_are_the_paper_s(
        self, name: str, settings: dict[str, float], shape: tuple[int, int], unlabeled: bool
    ) -> None:
        student, teacher = _batch(shape)
        self._check(name, settings, student, teacher, _labels(shape, unlabeled=unlabeled))

    @pytest.mark.parametrize("name", ["wttm", "wkd", "mlkd"])
    @pytest.mark.parametrize("unlabeled", [False, True])
    def test_ties_are_the_paper_s(self, name: str, unlabeled: bool) -> None:
        """Classes that are equally likely, rows without preference, and rows that are equal."""
        student, teacher = (each.round() for each in _batch((6, 4), spread=1.0, seed=3))
        student[1], teacher[2] = 2.0, -1.0
        student[4], teacher[4] = student[3], teacher[3]
        student[5], teacher[5] = 0.0, 0.0
        assert all(len(set(row)) < 4 for row in teacher.tolist())
        self._check(name, {}, student, teacher, _labels((6, 4), unlabeled=unlabeled))

    def _check(
        self,
        name: str,
        settings: dict[str, float],
        student: torch.Tensor,
        teacher: torch.Tensor,
        labels: torch.Tensor,
    ) -> None:
        shape = tuple(student.shape)
        value, gradient = _value_and_gradient(name, student, teacher, labels, **settings)

        def reference(rows: np.ndarray) -> float:
            return _reference(
                name, rows.tolist(), teacher.tolist(), labels.tolist(), constant=student.tolist(), settings=settings
            )

        base, step = student.numpy(), 1e-5
        assert value.item() == pytest.approx(reference(base), rel=1e-6 if name == "wsld" else 1e-10, abs=1e-12)
        expected = np.zeros(shape)
        for place in np.ndindex(shape):
            change = np.zeros(shape)
            change[place] = step
            expected[place] = (reference(base + change) - reference(base - change)) / (2 * step)
        np.testing.assert_allclose(gradient.numpy(), expected, rtol=1e-5, atol=1e-7)

    def test_cases_leave_out_no_loss(self) -> None:
        assert {name for name, _ in SETTINGS} == set(ON_LOGITS)


OF_CONSTANT_WEIGHTS = [case for case in SETTINGS if case[0] == "wsld"]


class TestEveryLoss(LossSuite):
    @pytest.fixture(params=[case for case in SETTINGS if case not in OF_CONSTANT_WEIGHTS], ids=str)
    def loss(self, request: pytest.FixtureRequest) -> LogitLoss:
        name, settings = request.param
        return make(name, **settings)


class TestLossesOfConstantWeights(LossSuite):
    has_constant_parts = True

    @pytest.fixture(params=OF_CONSTANT_WEIGHTS, ids=str)
    def loss(self, request: pytest.FixtureRequest) -> LogitLoss:
        name, settings = request.param
        return make(name, **settings)


class TestClosedForms:
    STUDENT, TEACHER = _batch((6, 5))
    LABELS = _labels((6, 5))

    def loss(self, name: str, **settings: float) -> torch.Tensor:
        return make(name, **settings)(self.STUDENT, self.TEACHER, self.LABELS)

    def test_soft_cross_entropy_is_kd_and_the_teacher_s_entropy(self) -> None:
        p = torch.softmax(self.TEACHER / 3, dim=1)
        entropy = -(p * p.log()).sum(dim=1).mean()
        torch.testing.assert_close(
            self.loss("soft-ce", temperature=3.0), self.loss("kd", temperature=3.0) + 9 * entropy
        )

    def test_soft_cross_entropy_has_the_gradient_of_kd(self) -> None:
        for temperature in (0.5, 1.0, 4.0):
            _, one = _value_and_gradient("soft-ce", self.STUDENT, self.TEACHER, self.LABELS, temperature=temperature)
            _, other = _value_and_gradient("kd", self.STUDENT, self.TEACHER, self.LABELS, temperature=temperature)
            torch.testing.assert_close(one, other)

    def test_squared_error_by_hand(self) -> None:
        student, teacher = torch.tensor([[1.0, 2.0, 6.0]]), torch.tensor([[0.0, 0.0, 0.0]])
        assert make("mse")(student, teacher, torch.tensor([0])).item() == pytest.approx((4 + 1 + 9) / 3)

    def test_half_the_squared_error_is_kd_at_high_temperature(self) -> None:
        torch.testing.assert_close(self.loss("kd", temperature=1e4), self.loss("mse") / 2, rtol=1e-3, atol=0)

    def test_hard_is_cross_entropy_to_the_teacher_s_decision(self) -> None:
        torch.testing.assert_close(self.loss("hard"), F.cross_entropy(self.STUDENT, self.TEACHER.argmax(dim=1)))

    def test_mixed_is_kd_and_hard(self) -> None:
        soft, hard = self.loss("kd", temperature=2.0), self.loss("hard")
        for share in (0.0, 0.25, 1.0):
            mixed = self.loss("mixed", temperature=2.0, soft_weight=share)
            torch.testing.assert_close(mixed, share * soft + (1 - share) * hard)

    def test_decoupled_parts_add_up_to_kd(self) -> None:
        for row in range(6):
            pick = slice(row, row + 1)
            student, teacher, labels = self.STUDENT[pick], self.TEACHER[pick], self.LABELS[pick]
            rest = 1 - torch.softmax(teacher / 4, dim=1)[0, labels[0]].item()
            torch.testing.assert_close(
                make("dkd", beta=rest)(student, teacher, labels), make("kd")(student, teacher, labels)
            )

    def test_of_two_classes_only_the_target_part_is_left(self) -> None:
        student, teacher = _batch((4, 2))
        labels = _labels((4, 2))
        torch.testing.assert_close(
            make("dkd", alpha=3.0, beta=100.0)(student, teacher, labels), 3 * make("kd")(student, teacher, labels)
        )

    def test_opposite_relations_have_a_distance_of_two(self) -> None:
        teacher = torch.tensor([[1.0, -1.0], [-2.0, 2.0]])
        loss = make("dist", temperature=2.0, beta=0.75, gamma=0.5)
        assert loss(-teacher, teacher, torch.tensor([0, 1])).item() == pytest.approx(4 * (0.75 * 2 + 0.5 * 2))

    def test_relations_of_rows_ignore_how_sure_one_is(self) -> None:
        q = torch.softmax(self.TEACHER, dim=1)
        student = (0.3 * q + 0.7 / 5).log()
        loss = make("dist", temperature=1.0, gamma=0.0)(student, self.TEACHER, self.LABELS)
        assert loss.item() == pytest.approx(0, abs=1e-12)

    def test_what_the_teacher_does_not_tell_apart_has_no_relations(self) -> None:
        student, teacher, labels = self.STUDENT, self.TEACHER.clone(), self.LABELS
        teacher[:2] = 1.0
        rows = make("dist", gamma=0.0)
        torch.testing.assert_close(rows(student, teacher, labels), rows(student[2:], teacher[2:], labels[2:]))
        columns = make("dist", beta=0.0)
        assert columns(student, teacher[:1].repeat(6, 1), labels) == 0

    def test_normalized_kd_of_a_sure_teacher_is_cross_entropy(self) -> None:
        teacher = 1e3 * F.one_hot(self.LABELS, 5).double()
        found = make("nkd", gamma=0.0)(self.STUDENT, teacher, self.LABELS)
        torch.testing.assert_close(found, F.cross_entropy(self.STUDENT, self.LABELS))

    def test_transformed_teachers_of_one_smoothness_are_weighed_alike(self) -> None:
        """At temperature 1 the weight is 1; of a teacher without preference it is ``classes^(1 - 1 / T)``."""
        torch.testing.assert_close(self.loss("wttm", temperature=1.0), self.loss("kd", temperature=1.0))
        flat = torch.zeros_like(self.TEACHER)
        found = make("wttm", temperature=4.0)(self.STUDENT, flat, self.LABELS)
        torch.testing.assert_close(found, 5**0.75 * make("kd", temperature=1.0)(self.STUDENT, flat, self.LABELS))

    def test_a_sample_as_easy_for_both_weighs_one_less_one_over_e(self) -> None:
        wsld = make("wsld")(self.TEACHER, self.TEACHER, self.LABELS)
        soft = make("soft-ce")(self.TEACHER, self.TEACHER, self.LABELS)
        torch.testing.assert_close(wsld, soft * (1 - math.exp(-1)), rtol=1e-5, atol=0)

    @pytest.mark.parametrize("name", STANDARDIZED)
    def test_standardized_losses_ignore_the_size_of_logits(self, name: str) -> None:
        loss = _make(name)
        found = loss(5 * self.STUDENT + 3, self.TEACHER / 7, self.LABELS)
        torch.testing.assert_close(found, loss(self.STUDENT, self.TEACHER, self.LABELS))

    def test_squared_error_of_z_scores_is_a_correlation(self) -> None:
        rows = zip(self.STUDENT.tolist(), self.TEACHER.tolist(), strict=True)
        distances = [2 * (1 - statistics.correlation(s, t)) * 4 / 5 for s, t in rows]
        assert make("mse", standardize=True)(self.STUDENT, self.TEACHER, self.LABELS).item() == pytest.approx(
            statistics.fmean(distances)
        )

    def test_z_scores_of_z_scores_are_the_same(self) -> None:
        scores = [
            (rows - rows.mean(1, keepdim=True)) / rows.std(1, keepdim=True) for rows in (self.STUDENT, self.TEACHER)
        ]
        torch.testing.assert_close(
            make("dkd", standardize=True)(self.STUDENT, self.TEACHER, self.LABELS), make("dkd")(*scores, self.LABELS)
        )


class TestInvariance:
    SHAPE = (6, 5)
    STUDENT, TEACHER = _batch(SHAPE)
    LABELS = _labels(SHAPE)

    @pytest.mark.parametrize("name", OF_SINGLE_SAMPLES)
    def test_a_batch_s_loss_is_the_mean_of_its_samples(self, name: str) -> None:
        loss = _make(name)
        singles = [
            loss(self.STUDENT[i : i + 1], self.TEACHER[i : i + 1], self.LABELS[i : i + 1]) for i in range(self.SHAPE[0])
        ]
        torch.testing.assert_close(loss(self.STUDENT, self.TEACHER, self.LABELS), torch.stack(singles).mean())

    def test_only_the_relations_within_rows_are_those_of_single_samples(self) -> None:
        rows = _make("dist", gamma=0.0)
        singles = [
            _make("dist")(self.STUDENT[i : i + 1], self.TEACHER[i : i + 1], self.LABELS[i : i + 1])
            for i in range(self.SHAPE[0])
        ]
        torch.testing.assert_close(rows(self.STUDENT, self.TEACHER, self.LABELS), torch.stack(singles).mean())

    def test_only_the_single_samples_of_mlkd_are_a_mean_of_them(self) -> None:
        """Products between samples and sums of products between classes are those of a batch."""
        for settings, is_mean in (({"batch": 0.0, "classes": 0.0}, True), ({"classes": 0.0}, False), ({}, False)):
            loss = _make("mlkd", **settings)
            singles = [
                loss(self.STUDENT[i : i + 1], self.TEACHER[i : i + 1], self.LABELS[i : i + 1])
                for i in range(self.SHAPE[0])
            ]
            mean, value = torch.stack(singles).mean().item(), loss(self.STUDENT, self.TEACHER, self.LABELS).item()
            assert (value == pytest.approx(mean, rel=1e-9)) == is_mean

    @pytest.mark.parametrize("name", ZERO_WHERE_EQUAL)
    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    def test_equal_logits_cost_nothing(self, name: str, shape: tuple[int, int]) -> None:
        _, teacher = _batch(shape)
        value, gradient = _value_and_gradient(name, teacher + 1.5, teacher, _labels(shape))
        assert value.item() == pytest.approx(0, abs=1e-12)
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-12, rtol=0)

    @pytest.mark.parametrize("name", ZERO_WHERE_EQUAL)
    def test_other_logits_cost_something(self, name: str) -> None:
        assert _make(name)(self.STUDENT, self.TEACHER, self.LABELS).item() > 0.1


class TestNumbers:
    @pytest.mark.parametrize("name", ["dist", *STANDARDIZED])
    def test_a_student_that_tells_nothing_apart_gets_no_wild_gradient(self, name: str) -> None:
        _, teacher = _batch((128, 10))
        for value in (0.0, 0.1, 123.4):
            student = torch.full((128, 10), value)
            _, gradient = _value_and_gradient(name, student, teacher.float(), _labels((128, 10)))
            assert not gradient.any()

    def test_relations_of_rare_classes_count(self) -> None:
        _, teacher = _batch((16, 8))
        teacher[:, 3] -= 60
        student = teacher.clone()
        student[:, 3] = teacher[:, 3].flip(0)
        loss = _make("dist", temperature=1.0, beta=0.0, gamma=8.0)
        rare, expected = (torch.softmax(logits, 1)[:, 3].tolist() for logits in (student, teacher))
        distance = 1 - statistics.correlation(rare, expected)
        assert loss(student.float(), teacher.float(), _labels((16, 8))).item() == pytest.approx(distance, rel=1e-4)

    def test_a_sample_that_neither_finds_hard_weighs_nothing(self) -> None:
        logits, labels = torch.tensor([[1e3, 0.0, 0.0], [1.0, 2.0, 3.0]]), torch.tensor([0, 2])
        value, gradient = _value_and_gradient("wsld", logits, logits, labels)
        alone = _make("wsld")(logits[1:], logits[1:], labels[1:])
        torch.testing.assert_close(value, alone / 2)
        assert gradient.isfinite().all()


class TestDeclarations:
    def test_the_losses_that_need_labels(self) -> None:
        assert [name for name in (*ON_LOGITS, *STANDARDIZED) if _make(name).needs_label] == NEED_LABELS

    @EITHER_WAY
    def test_the_temperature_at_which_the_teacher_is_read(self, name: str) -> None:
        settings = {"temperature": 3.0} if _takes_temperature(name) else {}
        reads = {
            "hard": 0.0,
            "mse": None,
            "dkd": None,
            "nkd": None,
            "wkd": None,
            "mlkd": 6.0,
            **dict.fromkeys(STANDARDIZED),
        }
        assert _make(name, **settings).teacher_temperature == reads.get(name, 3.0)

    @pytest.mark.parametrize("name", ["wsld", "wttm"])
    def test_losses_that_read_the_teacher_at_temperature_one_as_well(self, name: str) -> None:
        assert _make(name, temperature=0.5).teacher_temperature == 1.0

    # Half of the loss mixed is hard, which needs no more than a decision, and wttm has the student at temperature 1: of
    # z-scores they are refused though they might do. mlkd reads the teacher at several temperatures.
    @pytest.mark.parametrize(
        "name",
        sorted({*ON_LOGITS, *STANDARDIZED} - {"standardized mixed", "standardized wttm", "mlkd", "standardized mlkd"}),
    )
    @pytest.mark.parametrize("temperature", [1.0, 4.0])
    def test_an_encoding_for_that_temperature_serves_the_loss_and_no_other(self, name: str, temperature: float) -> None:
        student, teacher = (logits.float() for logits in _batch((256, 10)))
        labels = _labels((256, 10))
        teacher[torch.arange(256), labels] += 12
        settings = {"temperature": temperature} if _takes_temperature(name) else {}
        loss = _make(name, **settings)
        encoding = get_encoding(f"sqrtp8@{temperature:g}").calibrate(teacher)
        encoded = encoding.encode(teacher)
        decoded = encoding.decode(torch.from_numpy(encoded.codes), torch.from_numpy(encoded.row_max), 10)
        _, exact = _value_and_gradient(name, student, teacher, labels, **settings)
        _, found = _value_and_gradient(name, student, decoded, labels, **settings)
        served = loss.teacher_temperature is not None and loss.teacher_temperature <= temperature
        assert ((found - exact).norm() / exact.norm() < 0.005).item() == served

    @EITHER_WAY
    def test_losses_are_values(self, name: str) -> None:
        assert _make(name) == _make(name)
        assert hash(_make(name)) == hash(_make(name))
        with pytest.raises(AttributeError):
            _make(name).needs_label = True  # type: ignore[misc]


class TestRefusals:
    @pytest.mark.parametrize(("wrong", "right"), [("dkdd", "dkd"), ("soft_ce", "soft-ce")])
    def test_an_unknown_name_is_answered_with_the_nearest(self, wrong: str, right: str) -> None:
        with pytest.raises(
            UnsupportedLossError, match=rf"^unknown loss '{wrong}'; did you mean '{right}'\? Known: kd, .*\.$"
        ):
            make(wrong)

    def test_an_unknown_parameter_is_answered_with_the_nearest_and_all(self) -> None:
        with pytest.raises(UnsupportedLossError) as raised:
            make("dkd", bet=2.0)
        assert str(raised.value) == (
            "the loss dkd has no parameter 'bet'; did you mean 'beta'? "
            "Its parameters: temperature (above 0), alpha (0 or more), beta (0 or more), standardize."
        )

    def test_a_slip_in_standardize_is_answered_with_it(self) -> None:
        with pytest.raises(UnsupportedLossError, match="did you mean 'standardize'"):
            make("mse", standardise=True)

    @pytest.mark.parametrize("value", ["yes", 1, 0, 1.0, None])
    def test_standardize_is_true_or_false(self, value: Any) -> None:
        with pytest.raises(UnsupportedLossError, match=r"kd cannot take standardize=.*, expected true or false\.$"):
            make("kd", standardize=value)

    def test_a_decision_has_no_z_scores(self) -> None:
        with pytest.raises(UnsupportedLossError, match="the loss hard reads only which class"):
            make("hard", standardize=True)
        assert make("hard", standardize=False) == make("hard")

    @pytest.mark.parametrize("name", ["hard", "mse"])
    def test_a_loss_without_parameters_says_so(self, name: str) -> None:
        with pytest.raises(UnsupportedLossError, match=r"no parameter 'temperature'\. Its parameters: standardize\.$"):
            make(name, temperature=4.0)

    @pytest.mark.parametrize(
        ("name", "settings"),
        [
            *[("kd", {"temperature": value}) for value in (0.0, -1.0, math.inf, math.nan, True, "four", None)],
            *[("mixed", {"soft_weight": value}) for value in (-0.1, 1.1, math.nan)],
            ("dkd", {"alpha": -1.0}),
            ("dkd", {"beta": math.inf}),
            ("dist", {"beta": -1.0}),
            ("dist", {"gamma": -1.0}),
            ("nkd", {"gamma": -1.0}),
            *[(name, {"temperature": 0.0}) for name in ON_LOGITS if name not in ("hard", "mse")],
        ],
        ids=str,
    )
    def test_a_value_out_of_range_is_refused(self, name: str, settings: dict[str, float]) -> None:
        ((parameter, value),) = settings.items()
        with pytest.raises(UnsupportedLossError) as raised:
            make(name, **settings)
        message = str(raised.value)
        assert message.startswith(f"the loss {name} cannot take {parameter}={value}, expected a number")
        assert "\n" not in message

    def test_values_at_the_bounds_are_taken(self) -> None:
        for settings in ({"soft_weight": 0}, {"soft_weight": 1.0}):
            make("mixed", **settings)
        make("dkd", alpha=0.0, beta=0.0)


class TestDocumentation:
    PAGE = (ROOT / "docs" / "guides" / "losses.md").read_text()

    def rows(self) -> list[list[str]]:
        table = self.PAGE.split("<!-- table: logit-losses -->")[1].split("<!-- end -->")[0]
        return [[cell.strip() for cell in row.split("|")[1:-1]] for row in table.strip().splitlines()[2:]]

    def test_the_table_has_every_loss_with_its_defaults_and_no_other(self) -> None:
        assert [row[0].strip("`") for row in self.rows()] == [LOSSES[name].usage for name in ON_LOGITS]

    def test_a_usage_in_the_table_is_the_default(self) -> None:
        for (usage, *_), name in zip(self.rows(), ON_LOGITS, strict=True):
            assert parse(usage.strip("`")).at() == make(name)

    @EVERY
    def test_a_row_has_the_published_weights_and_the_need_for_labels(self, name: str) -> None:
        loss, row = make(name), self.rows()[ON_LOGITS.index(name)]
        reads = "logits and labels" if loss.needs_label else "logits"
        assert row[2:4] == [reads, f"{loss.kd_weight:g}, {loss.ce_weight:g}"]

    @pytest.mark.parametrize("name", STANDARDIZED)
    def test_z_scores_have_the_loss_s_weights_but_for_kd(self, name: str) -> None:
        loss, plain = _make(name), _make(name.rpartition(" ")[2])
        published = (9, 0.1) if name == "standardized kd" else (plain.kd_weight, plain.ce_weight)
        assert (loss.kd_weight, loss.ce_weight) == published
        assert loss.warmup_epochs == plain.warmup_epochs

    @EVERY
    def test_the_paper_is_in_the_row_and_in_the_docstring(self, name: str) -> None:
        text, paper = inspect.getdoc(LOSSES[name].make) or "", self.rows()[ON_LOGITS.index(name)][4]
        for author, year in re.findall(r"(\w+) (?:et al\.|and \w+) (20\d\d)", paper):
            assert author in text
            assert year in text
        assert re.search(r"20\d\d", paper)

    def test_the_page_s_python_runs(self) -> None:
        student, teacher = _batch((6, 5))
        given = {"student_logits": student, "teacher_logits": teacher, "labels": _labels((6, 5)), "cross_entropy": 0.0}
        code = re.findall(r"```python\n(.*?)```", self.PAGE, flags=re.DOTALL)[0]
        exec(code, given)
        assert given["total"] == given["term"]
