"""The largest logits and the mean of the rest: closed forms, traps of other caches, damage."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from kdpipe.encoding.fidelity import kl
from kdpipe.encoding.kinds.topk import TopK
from kdpipe.encoding.registry import get_encoding
from kdpipe.errors import ParamsError
from kdpipe.testing.encodings import EncodingSuite, decoded


class TestTopK(EncodingSuite):
    @pytest.fixture(params=[1, 3, 11])
    def encoding(self, request: pytest.FixtureRequest) -> TopK:
        return TopK(request.param)

    def error_bound(self, encoding: TopK, shifted: torch.Tensor) -> torch.Tensor:
        smallest = shifted.topk(encoding.k, dim=1).values[:, -1:]
        return torch.where(shifted >= smallest, shifted.abs() * 2.0**-11 + 2.0**-25, math.inf)


def test_by_hand() -> None:
    logits = torch.tensor([[1.0, 7.0, 5.0, 1.0, 1.0]])
    encoded = TopK(2).encode(logits)
    assert encoded.codes.dtype == np.uint16
    assert encoded.codes[0, :2].tolist() == [1, 2]
    assert encoded.codes[:, 2:].view(np.float16).tolist() == [[0.0, -2.0, -6.0]]
    assert decoded(TopK(2), logits).tolist() == logits.tolist()


def test_the_rest_keeps_its_mass() -> None:
    logits = 2 * torch.randn(64, 1000, generator=torch.Generator().manual_seed(0))
    before, after = logits.double().softmax(dim=1), decoded(TopK(10), logits).double().softmax(dim=1)
    kept = logits.topk(10).indices
    tail = 1 - before.gather(1, kept).sum(dim=1)
    assert torch.allclose(1 - after.gather(1, kept).sum(dim=1), tail, rtol=5e-3)
    assert torch.allclose(after.gather(1, kept), before.gather(1, kept), rtol=1e-2)


def test_a_certain_teacher_leaves_no_negative_tail() -> None:
    logits = torch.full((1, 100), -80.0)
    logits[0, :3] = torch.tensor([30.0, 29.999, 29.998])
    after = decoded(TopK(3), logits).double().softmax(dim=1)
    assert (after > 0).all()
    assert float(after.sum()) == pytest.approx(1)


@pytest.mark.parametrize("classes", [65_536, 65_537, 200_000])
def test_large_indices_are_exact(classes: int) -> None:
    places = torch.tensor([classes - 1, 2049, 32_769])
    logits = torch.zeros(1, classes)
    logits[0, places] = torch.tensor([9.0, 8.0, 7.0])
    encoded = TopK(3).encode(logits)
    assert encoded.codes.shape == (1, 10 if classes > 65_536 else 7)
    assert torch.equal(decoded(TopK(3), logits), logits)
    assert not TopK(3).invalid(torch.from_numpy(encoded.codes), classes).any()


def test_equal_logits_stay_equal() -> None:
    logits = torch.full((3, 7), 2.5)
    assert torch.equal(decoded(TopK(4), logits), logits)


def test_only_the_mass_is_lost_at_its_temperature() -> None:
    logits = torch.zeros(1, 10)
    logits[0, :4] = torch.tensor([5.0, 4.0, 3.0, 1.0])
    # The rest: one logit of 1 and six of 0, taken as seven equal ones.
    z = np.exp([5, 4, 3]).sum() + math.e + 6
    mean = math.log((math.e + 6) / 7)
    by_hand = math.e / z * (1 - mean) + 6 / z * (0 - mean)
    assert float(kl(logits, decoded(TopK(3), logits), 1)) == pytest.approx(by_hand, rel=1e-2)


@pytest.mark.parametrize("classes", [1, 4, 5])
def test_too_few_classes(classes: int) -> None:
    with pytest.raises(ParamsError, match=f"needs more than 5 classes, found {classes}"):
        get_encoding("topk5").width(classes)
    with pytest.raises(ParamsError, match="topk5"):
        get_encoding("topk5").encode(torch.zeros(2, classes))


def words(index: list[int], values: list[float]) -> list[int]:
    return [*index, *np.array(values, np.float16).view(np.uint16).tolist()]


def test_rows_that_no_encoder_writes_are_found() -> None:
    good = words([4, 0], [0, -1, -2])
    bad = [
        words([5, 0], [0, -1, -2]),
        words([65_535, 0], [0, -1, -2]),
        words([4, 4], [0, -1, -2]),
        words([4, 0], [-1, -1, -2]),
        words([4, 0], [0, -2, -1]),
        words([4, 0], [0, math.nan, -1]),
        words([4, 0], [0, -1, -math.inf]),
        words([4, 0], [0, -1, math.nan]),
        words([0, 0], [0, 0, 0]),
    ]
    codes = torch.from_numpy(np.array([good, *bad], np.uint16))
    assert TopK(2).invalid(codes, 5).tolist() == [False, *[True] * len(bad)]


def test_no_row_looks_like_a_hole() -> None:
    for classes in (2, 3):
        encoded = TopK(1).encode(torch.full((4, classes), 2.5))
        assert (encoded.codes != 0).any(axis=1).all()
        codes, row_max = torch.from_numpy(encoded.codes), torch.from_numpy(encoded.row_max)
        assert not TopK(1).invalid(codes, classes).any()
        assert (TopK(1).decode(codes, row_max, classes) == 2.5).all()
