"""Separate momenta of two gradients: against the authors' algorithm in float64, single gradients, and a whole loop."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from kdpipe.training.momenta import SeparateMomenta
from kdpipe.training.optimization import Learner
from kdpipe.training.settings import Optimization


def _gradients(seed: int) -> torch.Tensor:
    return torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _optimizer(parameters: list[torch.nn.Parameter], **settings: object) -> SeparateMomenta:
    given = {"lr": 0.1, "momentum": 0.9, "gap": 0.075, "weight_decay": 0.01, "nesterov": False, **settings}
    return SeparateMomenta(parameters, **given)  # type: ignore[arg-type]


@pytest.mark.parametrize("nesterov", [False, True])
def test_steps_are_the_authors(nesterov: bool) -> None:
    """The first parameter has both gradients, the second that of the rest alone, the third that apart alone."""
    parameters = [torch.nn.Parameter(row.clone()) for row in _gradients(0)[:, 0]]
    optimizer = _optimizer(parameters, nesterov=nesterov)
    values = [row.numpy().copy() for row in _gradients(0)[:, 0]]
    rests, aparts = [np.zeros(4)] * 3, [np.zeros(4)] * 3
    for step in range(4):
        rest, apart = _gradients(1 + step)[:, 0], _gradients(1 + step)[:, 1]
        parameters[0].grad, parameters[1].grad, parameters[2].grad = rest[0].clone(), rest[1].clone(), None
        optimizer.apart = {parameters[0]: apart[0].clone(), parameters[2]: apart[2].clone()}
        optimizer.step()
        for place, (of_rest, of_apart) in enumerate(((0.825, 0.975), (0.9, None), (None, 0.9))):
            decay, move = 0.01 * values[place], np.zeros(4)
            if of_rest is not None:
                gradient = rest[place].numpy() + decay
                rests[place] = of_rest * rests[place] + gradient
                move += gradient + of_rest * rests[place] if nesterov else rests[place]
            if of_apart is not None:
                gradient = apart[place].numpy() + (decay if of_rest is None else 0)
                aparts[place] = of_apart * aparts[place] + gradient
                move += gradient + of_apart * aparts[place] if nesterov else aparts[place]
            values[place] = values[place] - 0.1 * move
        for found, expected in zip(parameters, values, strict=True):
            np.testing.assert_allclose(found.detach().numpy(), expected, rtol=1e-12)
    assert not optimizer.apart


def test_equal_momenta_are_those_of_the_sum() -> None:
    """Without a gap both buffers add up to the buffer of torch's SGD."""
    ours, theirs = (torch.nn.Parameter(_gradients(0)[0].clone()) for _ in range(2))
    optimizer, plain = _optimizer([ours], gap=0.0), torch.optim.SGD([theirs], lr=0.1, momentum=0.9, weight_decay=0.01)
    for step in range(4):
        rest, apart = _gradients(1 + step)[:2]
        ours.grad, theirs.grad = rest.clone(), rest + apart
        optimizer.apart = {ours: apart.clone()}
        optimizer.step()
        plain.step()
    torch.testing.assert_close(ours, theirs)


def test_both_buffers_are_part_of_the_state() -> None:
    def run(parameter: torch.nn.Parameter, optimizer: SeparateMomenta, steps: range) -> None:
        for step in steps:
            rest, apart = _gradients(1 + step)[:2]
            parameter.grad, optimizer.apart = rest.clone(), {parameter: apart.clone()}
            optimizer.step()

    straight, first = (torch.nn.Parameter(_gradients(0)[0].clone()) for _ in range(2))
    run(straight, _optimizer([straight]), range(4))
    optimizer = _optimizer([first])
    run(first, optimizer, range(2))
    saved = copy.deepcopy(optimizer.state_dict())
    second = torch.nn.Parameter(first.detach().clone())
    resumed = _optimizer([second])
    resumed.load_state_dict(saved)
    run(second, resumed, range(2, 4))
    assert torch.equal(second, straight)


def test_a_learner_takes_both_gradients_of_one_forward_pass() -> None:
    module, beside = torch.nn.Linear(3, 4), torch.nn.Linear(4, 2)
    weights = [each.detach().clone() for each in (*module.parameters(), *beside.parameters())]
    settings = Optimization(dot=0.05, weight_decay=0.01, nesterov=False)
    learner = Learner(module, settings, device=torch.device("cpu"), beside=beside)
    images, buffers = torch.randn(5, 3, generator=torch.Generator().manual_seed(1)), [[0.0, 0.0] for _ in weights]
    for _ in range(3):
        logits = learner.forward(images)
        learner.step(logits.square().mean(), rate=0.1, apart=beside(logits).abs().mean())
        plain = [each.clone().requires_grad_() for each in weights]
        shown = images @ plain[0].T + plain[1]
        rest = torch.autograd.grad(shown.square().mean(), plain, retain_graph=True, allow_unused=True)
        apart = torch.autograd.grad((shown @ plain[2].T + plain[3]).abs().mean(), plain)
        for place, (one, other) in enumerate(zip(rest, apart, strict=True)):
            decay = 0.01 * weights[place]
            if one is None:  # the module beside has no part in the rest
                buffers[place][1] = 0.9 * buffers[place][1] + other + decay
            else:
                buffers[place][0] = 0.85 * buffers[place][0] + one + decay
                buffers[place][1] = 0.95 * buffers[place][1] + other
            weights[place] = weights[place] - 0.1 * (buffers[place][0] + buffers[place][1])
    for found, expected in zip((*module.parameters(), *beside.parameters()), weights, strict=True):
        torch.testing.assert_close(found.detach(), expected)


@pytest.mark.parametrize(
    ("others", "what"),
    [
        ({"optimizer": "adamw"}, "optimizer adamw"),
        ({"clip_grad_norm": 1.0}, "clip-grad-norm"),
        ({"amp": "fp16"}, "amp fp16"),
        ({"compile": True}, "compile"),
    ],
)
def test_what_does_not_fit_two_gradients_is_refused(others: dict[str, object], what: str) -> None:
    with pytest.raises(ValidationError, match=f"dot takes two gradients of each step by sgd, which {what} does not"):
        Optimization(dot=0.075, **others)  # type: ignore[arg-type]
    with pytest.raises(ValidationError, match=r"less than 0\.1"):
        Optimization(dot=0.1)
