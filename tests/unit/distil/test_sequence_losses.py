"""Losses on hidden states and attention heads: closed forms, padding, and layers that do not fit."""

from __future__ import annotations

import pytest
import torch

from kdpipe.dataset import Form
from kdpipe.distil.losses import parse
from kdpipe.distil.losses.contract import LayerLoss
from kdpipe.errors import ModelError, UnsupportedLossError
from kdpipe.models import Signal, TensorPreset, Watch
from tests import tensor_data


def loss(name: str) -> LayerLoss:
    (found,) = parse(name).layers
    return found


def test_hidden_is_the_mean_square_over_tokens_that_are_no_padding() -> None:
    student, teacher = torch.tensor([[[1.0, 3.0], [0.0, 2.0], [9.0, 9.0]]]), torch.tensor([[[1.0, 1], [2, 2], [0, 0]]])
    assert loss("hidden")(student, teacher).item() == pytest.approx((4 / 2 + 4 / 2) / 2)
    assert loss("hidden")(teacher, teacher).item() == 0
    assert loss("hidden")(student, torch.zeros_like(teacher)).item() == 0


def test_hidden_maps_the_student_s_channels_at_each_token() -> None:
    project = loss("hidden").projection((7, 3), (7, 5))
    assert project(torch.zeros(2, 7, 3)).shape == (2, 7, 5)
    with pytest.raises(UnsupportedLossError, match="has 6, the teacher's 7"):
        loss("hidden").projection((6, 3), (7, 5))


def test_heads_is_the_sum_of_squares_of_each_row() -> None:
    student = torch.tensor([[[[0.5, 0.5], [1.0, 0.0]], [[0.25, 0.75], [0.5, 0.5]]]])
    teacher = torch.tensor([[[[1.0, 0.0], [0.0, 0.0]], [[0.25, 0.75], [0.0, 0.0]]]])  # the second token is padding
    assert loss("heads")(student, teacher).item() == pytest.approx((0.25 + 0.25 + 0) / 2)
    with pytest.raises(UnsupportedLossError, match="has 4 of 9 tokens, the teacher's 2 of 9"):
        loss("heads").projection((4, 9, 9), (2, 9, 9))


def test_signals_of_sequences_are_zero_at_padding() -> None:
    form = Form.of(tensor_data.tokens("train").items[0])
    assert form is not None
    torch.manual_seed(0)
    net = tensor_data.teacher(2).eval()
    from kdpipe.models.inputs import adapt

    adapt(net)
    names = ("hidden:attention", "heads:attention", "features:attention")
    watch = Watch(net, [Signal.parse(name) for name in names], size=form, name="net")
    assert watch.shapes == {"hidden:attention": (10, 32), "heads:attention": (2, 10, 10), "features:attention": (32,)}
    batch = [form.pack(item) for item in tensor_data.tokens("train").items[:6]]
    items = TensorPreset(form).normalize(torch.stack([torch.from_numpy(each) for each in batch]))
    with torch.no_grad():
        net(items)
        states, weights = net.attention(net.embedding(items["input_ids"]), items["attention_mask"])
    found, mask = watch.take(), items["attention_mask"].float()
    assert torch.equal(found["hidden:attention"], states * mask[:, :, None])
    assert torch.equal(found["heads:attention"], weights * mask[:, None, :, None])
    for name, message in {
        "heads:head": r"\(2,\) per image, expected \(heads",
        "hidden:head": r"expected \(tok",
    }.items():
        with pytest.raises(ModelError, match=message):
            Watch(net, [Signal.parse(name)], size=form, name="net")
