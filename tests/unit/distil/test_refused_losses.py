"""Losses that need what a store, a recipe or the labels do not have."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from kdpipe.distil.losses import parse
from kdpipe.distil.targets import refuse_unlabeled, refuse_unsupported
from kdpipe.encoding.registry import get_encoding
from kdpipe.errors import UnsupportedLossError
from kdpipe.views import Recipe

LABELED: Any = SimpleNamespace(spec="digits", labels=np.array([-1, 3]))
UNLABELED: Any = SimpleNamespace(spec="folder:photos", labels=np.array([-1, -1]))


def _store(encoding: str) -> Any:
    return SimpleNamespace(path="logits.zarr", encoding=get_encoding(encoding))


@pytest.mark.parametrize("loss", ["mse", "dkd", "nkd", "kd:standardize=true", "kd+mse", "kd+dkd:weight=0", "nkd+rkd"])
def test_unlikely_logits_need_an_encoding_for_all_temperatures(loss: str) -> None:
    with pytest.raises(UnsupportedLossError) as raised:
        refuse_unsupported(_store("sqrtp8@4"), parse(loss))
    assert f"the loss {loss} depends on the logits of unlikely classes" in str(raised.value)
    assert "--encoding fp16" in str(raised.value)
    refuse_unsupported(_store("fp16"), parse(loss))


@pytest.mark.parametrize(
    ("loss", "temperature"),
    [("kd:temperature=8", None), ("kd", 8.0), ("kd+dist:temperature=1", 8.0), ("mixed:temperature=8+features", None)],
)
def test_a_temperature_above_the_encoding_s_is_refused(loss: str, temperature: float | None) -> None:
    with pytest.raises(UnsupportedLossError, match=r"up to 4; the loss .* needs 8\. Use a temperature of 4 or less"):
        refuse_unsupported(_store("sqrtp8@4"), parse(loss), temperature)
    refuse_unsupported(_store("sqrtp8@8"), parse(loss), temperature)


def test_no_lower_temperature_is_proposed_to_a_loss_that_needs_more() -> None:
    with pytest.raises(UnsupportedLossError, match=r"the loss mlkd needs 6\. Use another loss, or a store with"):
        refuse_unsupported(_store("sqrtp8@4"), parse("mlkd"))


@pytest.mark.parametrize(
    ("loss", "encoding"), [("hard", "topk3"), ("rkd", "topk3"), ("wsld:temperature=0.5", "sqrtp8@1")]
)
def test_a_decision_needs_no_temperature(loss: str, encoding: str) -> None:
    refuse_unsupported(_store(encoding), parse(loss))


@pytest.mark.parametrize("loss", ["dkd", "nkd", "wsld", "kd+wsld"])
def test_a_loss_that_reads_labels_needs_one_true_class(loss: str) -> None:
    mixed = Recipe.parse("crop+mixup:0.2")
    with pytest.raises(UnsupportedLossError, match=r"needs one true class per image; the recipe crop\+mixup:0.2 mixes"):
        refuse_unlabeled(parse(loss), LABELED, mixed)
    with pytest.raises(UnsupportedLossError, match="needs labels and folder:photos has none"):
        refuse_unlabeled(parse(loss), UNLABELED, Recipe.parse("crop"))
    refuse_unlabeled(parse(loss), LABELED, Recipe.parse("crop"))


@pytest.mark.parametrize("loss", ["kd", "dist+mse", "features"])
def test_other_losses_need_none(loss: str) -> None:
    refuse_unlabeled(parse(loss), UNLABELED, Recipe.parse("crop+mixup:0.2"))
