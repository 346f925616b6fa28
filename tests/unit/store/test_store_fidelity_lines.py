"""What a person is told of a store that was just made."""

from __future__ import annotations

from typing import Any

import pytest

from kdpipe.store.inspect import fidelity_lines


def found(*, rows: int = 5, exceeded: bool | None = None) -> dict[str, Any]:
    figures = {"rows": rows, "top1_agreement": 0.8, "kl_t1_mean": 0.02, "kl_t1_p99": 0.3}
    budget = {"max_kl": 0.01, "temperatures": [1.0], "kl": [0.02], "exceeded": exceeded}
    return {
        "encoding": "fp16",
        "splits": {"train": {"fidelity": figures}, "test": {"fidelity": None}},
        "budget": None if exceeded is None else budget,
    }


def test_losses_are_told_by_split() -> None:
    assert fidelity_lines(found()) == [
        "fp16 over 5 train rows: mean KL 2.0e-02 (p99 3.0e-01) at T=1; top-1 agreement 80.000%."
    ]


@pytest.mark.parametrize("exceeded", [True, False])
def test_a_budget_that_was_exceeded_is_a_warning(exceeded: bool) -> None:
    warnings = [line for line in fidelity_lines(found(exceeded=exceeded)) if line.startswith("warning: ")]
    assert len(warnings) == exceeded
    assert all("2.00e-02 at T=1" in line and "0.01" in line for line in warnings)
