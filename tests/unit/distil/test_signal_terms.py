"""Which layers learn from which, what is learned beside the student, and a plain loop that trains with both."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import pytest
import torch
from torch import nn

from kdpipe.distil.losses import parse
from kdpipe.distil.signals import SignalTerms, settle
from kdpipe.errors import ModelError, UnsupportedLossError
from kdpipe.models import create
from kdpipe.training.batches import Batch

SHAPES = {
    "features:penultimate": (256,),
    "features:layer3": (256,),
    "features:layer2": (128,),
    "attention:layer2": (16, 16),
    "attention:layer3": (8, 8),
}
"""Those of a resnet8x4."""


def _student() -> nn.Module:
    torch.manual_seed(0)
    return create("resnet8", 10)


def _pairs(text: str, kept: Sequence[str], student: nn.Module | None = None) -> dict[str, list[tuple[str, str]]]:
    terms = settle(parse(text).layers, kept, student or _student(), size=32, name="resnet8", source="s.zarr")
    return {term.loss.name: [(str(ours), str(theirs)) for ours, theirs in term.pairs] for term in terms}


def _terms(text: str, student: nn.Module, seed: int = 0) -> SignalTerms:
    terms = settle(parse(text).layers, list(SHAPES), student, size=32, name="resnet8", source="s.zarr")
    return SignalTerms(terms, student, shapes=SHAPES, size=32, name="resnet8", seed=seed, device=torch.device("cpu"))


def _taught(n: int, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.rand(n, *shape, generator=generator) for name, shape in SHAPES.items()}


def test_layers_that_are_left_open() -> None:
    kept = list(SHAPES)
    same = ["penultimate", "layer3", "layer2"]
    assert _pairs("features", kept)["features"] == [(f"features:{layer}", f"features:{layer}") for layer in same]
    assert _pairs("attention", kept)["attention"] == [
        ("attention:layer2", "attention:layer2"),
        ("attention:layer3", "attention:layer3"),
    ]
    foreign = _pairs("features+rkd+attention", ["features:blocks.11", "attention:stages.3"])
    assert foreign == {
        "features": [("features:penultimate", "features:blocks.11")],
        "rkd": [("features:penultimate", "features:blocks.11")],
        "attention": [("attention:layer3", "attention:stages.3")],
    }


def test_layers_that_are_named() -> None:
    pairs = _pairs("features:layer1:layer2,penultimate:layer3", list(SHAPES))
    assert pairs["features"] == [("features:layer1", "features:layer2"), ("features:penultimate", "features:layer3")]


@pytest.mark.parametrize(
    ("text", "kept", "message"),
    [
        (
            "features:layer9",
            list(SHAPES),
            "features:layer9, which s.zarr does not keep, only features:pen",
        ),
        ("features:layer3", [], "kdpipe cache-teacher --signals features:layer3$"),
        ("rkd", ["attention:layer3"], "the loss rkd .* --signals features:penultimate$"),
        ("attention", ["features:layer3"], "--signals attention:LAYER$"),
        (
            "features",
            ["features:a", "features:b"],
            "resnet8 has none of the layers a, b .*--loss features:STUDENT:b; kdpipe models resnet8 --layers",
        ),
    ],
)
def test_signals_that_are_not_kept_name_the_flag(text: str, kept: list[str], message: str) -> None:
    with pytest.raises(UnsupportedLossError, match=message):
        _pairs(text, kept)


def test_a_layer_that_the_student_lacks_is_refused() -> None:
    with pytest.raises(ModelError, match=r"resnet8 has no layer 'layer33'.*did you mean 'layer3'"):
        _terms("features:layer33:layer3", _student())


def test_terms_are_the_losses_of_what_the_student_shows() -> None:
    student = _student().eval()
    terms = _terms("features:weight=2+rkd:layer1:layer3+attention", student)
    images, taught = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(1)), _taught(5)
    student(images)
    found = terms(taught)
    with torch.no_grad():
        first = student.layer1(torch.relu(student.bn1(student.conv1(images))))
        second = student.layer2(first)
        third = student.layer3(second)
    pooled = {"penultimate": third.mean((2, 3)), "layer3": third.mean((2, 3)), "layer2": second.mean((2, 3))}
    projections = dict(zip(pooled, terms.projections["features"], strict=True))
    expected = sum(
        (projections[layer](shown) - taught[f"features:{layer}"]).square().mean() for layer, shown in pooled.items()
    )
    torch.testing.assert_close(found["features"], expected)
    maps = {"layer2": second.square().mean(1), "layer3": third.square().mean(1)}

    def unit(rows: torch.Tensor) -> torch.Tensor:
        return rows.flatten(1) / rows.flatten(1).norm(dim=1, keepdim=True)

    expected = sum(
        (unit(shown) - unit(taught[f"attention:{layer}"])).square().mean() / 2 for layer, shown in maps.items()
    )
    torch.testing.assert_close(found["attention"], expected)
    torch.testing.assert_close(terms.weighted(found), 2 * found["features"] + found["rkd"] + 1000 * found["attention"])
    assert terms.taught == tuple(sorted(SHAPES))


def test_projections_are_drawn_by_the_seed_alone_and_are_no_part_of_the_student() -> None:
    student = _student()
    names = list(student.state_dict())
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = _terms("features", student, seed=1).projections.state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    again, other = (_terms("features", student, seed=seed).projections.state_dict() for seed in (1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)
    assert list(student.state_dict()) == names


def test_closing_lets_go_of_the_student() -> None:
    student = _student()
    _terms("features+attention", student).close()
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in student.modules())


def _train(student: nn.Module, terms: SignalTerms, optimizer: torch.optim.Optimizer, steps: range) -> list[float]:
    images = torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    taught, losses = _taught(16), []
    for _ in steps:
        student(images)
        loss = terms.weighted(terms(taught))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize("text", ["features", "rkd:distance=1,angle=2", "attention:weight=100"])
def test_a_plain_loop_learns_and_resumes_with_its_projections(text: str) -> None:
    student = _student()
    terms = _terms(text, student)

    def optimizer(student: nn.Module, terms: SignalTerms) -> torch.optim.Optimizer:
        return torch.optim.SGD([*student.parameters(), *terms.projections.parameters()], lr=0.05, momentum=0.9)

    ours = optimizer(student, terms)
    first = _train(student, terms, ours, range(6))
    saved = copy.deepcopy((student.state_dict(), terms.projections.state_dict(), ours.state_dict()))
    straight = _train(student, terms, ours, range(6))
    assert min(straight) < 0.7 * first[0]
    resumed = create("resnet8", 10)
    again = _terms(text, resumed, seed=9)
    theirs = optimizer(resumed, again)
    resumed.load_state_dict(saved[0])
    again.projections.load_state_dict(saved[1])
    theirs.load_state_dict(saved[2])
    assert _train(resumed, again, theirs, range(6)) == straight


def test_the_first_samples_of_a_batch_come_with_their_signals() -> None:
    taught = _taught(4)
    images = torch.zeros(4, 3, 32, 32, dtype=torch.uint8)
    batch = Batch((images,), torch.zeros(4, dtype=torch.int64), None, torch.zeros(4, 10), taught)
    head = batch.head(3)
    assert all(torch.equal(signal, taught[name][:3]) for name, signal in head.signals.items())
    assert head.signals.keys() == taught.keys()
