"""The suite for people who write a loss: a sound loss in its own file passes, and each fault fails the test for it."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kdpipe.distil.losses import DistillationLoss, layer_loss, loss
from kdpipe.testing.losses import LossSuite
from tests.conftest import ROOT

GUIDE = ROOT / "docs" / "guides" / "losses.md"
LISTED = """
from kdpipe.distil.losses import LOSSES, parse


class TestSettings(LossSuite):
    @pytest.fixture(params=["brier:temperature=4", "brier:standardize=true", "kd+brier"])
    def loss(self, request: pytest.FixtureRequest) -> DistillationLoss:
        return parse(request.param).at()


def test_it_is_listed() -> None:
    entry = LOSSES["brier"]
    assert entry.usage == "brier:temperature=2"
    assert entry.help == "Squared difference of probabilities at temperature ``T``."
    assert (entry.source, entry.facts) == ("Brier 1950", {"reads": "logits", "weights": "1, 0.1"})
    own = make("brier")
    assert (own.kd_weight, own.ce_weight, own.warmup_epochs, own.teacher_temperature) == (1.0, 0.1, 0, 2.0)
"""


def test_the_guide_s_own_loss_is_one_function_that_passes_the_suite(tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", GUIDE.read_text().split("\n## Write a loss\n")[1], flags=re.DOTALL)
    path = tmp_path / "test_brier.py"
    path.write_text("\n".join([*blocks, LISTED]))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(path)]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert ran.returncode == 0, ran.stdout
    assert "49 passed" in ran.stdout


@dataclass(frozen=True)
class Faulty:
    """A loss with a fault."""

    formula: Callable[[Tensor, Tensor, Tensor], Tensor]
    needs_label: bool = False
    teacher_temperature: float | None = None
    kd_weight: float = 1.0
    ce_weight: float = 1.0
    warmup_epochs: int = 0

    def __call__(self, student: Tensor, teacher: Tensor, labels: Tensor, /) -> Tensor:
        return self.formula(student, teacher, labels)


def _squares(student: Tensor, teacher: Tensor) -> Tensor:
    """Return squared differences that ignore a constant added to a row."""
    return ((student - student.mean(1, keepdim=True)) - (teacher - teacher.mean(1, keepdim=True))) ** 2


def _confused_by_confidence(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    q, p = student.softmax(1), teacher.softmax(1)
    return (p * (p.log() - q.log())).sum(1).mean()


def _with_unlabeled(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    return (F.cross_entropy(student, labels.clamp(min=0), reduction="none") * teacher.softmax(1).amax(1)).mean()


@pytest.mark.parametrize(
    ("faulty", "test"),
    [
        (Faulty(lambda s, t, y: _squares(s, t)), LossSuite.test_half_precision_is_computed_in_float32),
        (Faulty(lambda s, t, y: _squares(s, t).sum()), LossSuite.test_a_batch_given_twice_has_the_same_loss),
        (Faulty(lambda s, t, y: _squares(s, t)[0].mean()), LossSuite.test_the_order_of_samples_does_not_matter),
        (Faulty(lambda s, t, y: _squares(s, t)[:, 0].mean()), LossSuite.test_the_order_of_classes_does_not_matter),
        (Faulty(lambda s, t, y: F.mse_loss(s, t)), LossSuite.test_a_constant_added_to_a_row_does_not_matter),
        (
            Faulty(lambda s, t, y: _squares(s.detach(), t).mean() + 0 * s.sum()),
            LossSuite.test_the_gradient_is_the_derivative,
        ),
        (Faulty(_confused_by_confidence), LossSuite.test_confident_logits_are_finite_and_right),
        (Faulty(_with_unlabeled), LossSuite.test_the_need_for_labels_is_declared),
        (
            Faulty(lambda s, t, y: _squares(s, t).mean(), needs_label=True),
            LossSuite.test_the_need_for_labels_is_declared,
        ),
        (
            Faulty(_with_unlabeled, needs_label=True),
            LossSuite.test_unlabeled_samples_are_left_out_if_labels_are_needed,
        ),
        (
            Faulty(
                lambda s, t, y: F.kl_div(t.log_softmax(1), s.log_softmax(1), reduction="sum", log_target=True),
                teacher_temperature=1.0,
            ),
            LossSuite.test_the_declared_temperature_of_the_teacher_suffices,
        ),
        (Faulty(lambda s, t, y: F.dropout(_squares(s, t)).mean()), LossSuite.test_the_random_state_is_left_alone),
        (Faulty(lambda s, t, y: _squares(s, t).mean(), kd_weight=-1.0), LossSuite.test_weights_are_declared),
    ],
)
def test_a_fault_is_found(faulty: Faulty, test: Callable[[LossSuite, DistillationLoss], None]) -> None:
    with pytest.raises((AssertionError, RuntimeError)):
        test(LossSuite(), faulty)


def test_a_parameter_without_a_default_is_refused() -> None:
    with pytest.raises(ValueError, match="needs a default"):

        @loss("bad", kd_weight=1.0, ce_weight=1.0, source="")
        def bad(student: Tensor, teacher: Tensor, sharpness: float) -> Tensor:
            return torch.zeros(())

    with pytest.raises(ValueError, match="needs a default"):

        @layer_loss("bad", kind="features", weight=1.0, source="")
        def worse(student: Tensor, teacher: Tensor, sharpness: float) -> Tensor:
            return torch.zeros(())


def test_a_name_is_registered_once() -> None:
    with pytest.raises(ValueError, match="there is a loss 'kd' already"):

        @loss("kd", kd_weight=1.0, ce_weight=1.0, source="")
        def again(student: Tensor, teacher: Tensor) -> Tensor:
            return torch.zeros(())
