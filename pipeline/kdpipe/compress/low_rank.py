"""Low-rank factors: a layer is replaced by two smaller ones, whose product is nearest to its weight."""

from __future__ import annotations

import copy
from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import nn

from kdpipe.compress.pruning import Cost, cost
from kdpipe.errors import ModelError
from kdpipe.models.compressed import factorable, factors, full_rank, replace
from kdpipe.models.inspection import device_of, evaluating, find_penultimate

_STEPS = 30
"""Halvings of the interval of the energy."""
_LEAST = 1e-20
"""Smallest squared singular value that counts as one, as a share of the largest."""


def factored(layer: nn.Conv2d | nn.Linear, rank: int) -> nn.Sequential:
    """Return two layers in sequence that compute the best approximation of ``rank`` to a layer, its bias included.

    The weight as a matrix ``(outputs, inputs of one output)`` is ``U S V``, of which the largest ``rank`` singular
    values are kept: Eckart & Young, "The approximation of one matrix by another of lower rank" (1936). The first layer
    has ``sqrt(S) V``, the second ``U sqrt(S)``, computed from the eigenvectors of the weight's Gram matrix. For
    convolutions this is the decomposition over channels of Zhang et al., "Accelerating very deep convolutional
    networks" (2016), section 3.1, without its data.
    """
    pair = factors(layer, rank)
    weight = layer.weight.detach()
    matrix = weight.double().flatten(1)
    squares, vectors = torch.linalg.eigh(_gram(matrix))
    vectors = vectors.flip(1)[:, :rank]
    root = squares.flip(0)[:rank].clamp(min=_LEAST * float(squares[-1].clamp(min=1e-300))).pow(0.25)
    if matrix.shape[0] <= matrix.shape[1]:
        parts = {"0.weight": (vectors.T @ matrix) / root[:, None], "1.weight": vectors * root}
    else:
        parts = {"0.weight": vectors.T * root[:, None], "1.weight": (matrix @ vectors) / root}
    if layer.bias is not None:
        parts["1.bias"] = layer.bias.detach()
    shapes = {key: value.shape for key, value in pair.state_dict().items()}
    pair.load_state_dict({key: part.reshape(shapes[key]) for key, part in parts.items()})
    return pair.to(weight.device, weight.dtype).train(layer.training)


def decompose(
    module: nn.Module,
    *,
    size: int,
    fraction: float,
    by: Cost = "macs",
    name: str = "the network",
    among: Collection[str] | None = None,
) -> nn.Module:
    """Return a copy of a network with factored layers, of which ``fraction`` of the cost is gone, or slightly more.

    All layers keep the same share of the energy of their weights, the sum of squared singular values, and so have the
    same relative error; the share is the largest that removes ``fraction``. Layers that would not become cheaper stay,
    and so do convolutions with groups, the layer of the logits, whose rank bounds the classes that can be told apart,
    and those that are not ``among`` some.

    Raises:
        ModelError: so much cannot be removed.
    """
    whole = cost(module, size, by)
    positions = _positions(module, size)
    last = find_penultimate(module, size)
    kept = "" if last is None else last.layer
    layers = [
        _Layer.of(key, layer, positions[key], by)
        for key, layer in factorable(module)
        if full_rank(layer) > 1 and key in positions and key != kept and (among is None or key in among)
    ]
    target = (1 - fraction) * whole

    def ranks(energy: float) -> dict[str, int]:
        return {layer.name: rank for layer in layers if (rank := layer.rank(energy)) is not None}

    def left(energy: float) -> int:
        return whole - sum(layer.saved(energy) for layer in layers)

    if left(0.0) > target:
        raise ModelError(
            f"{100 * fraction:g}% of the {by} of {name} cannot be removed by low rank: {left(0.0) / whole:.1%} of them "
            "are left at rank 1 of all layers that can be factored. Ask for less."
        )
    low, high = 0.0, 1.0
    for _ in range(_STEPS):
        energy = (low + high) / 2
        low, high = (energy, high) if left(energy) <= target else (low, energy)
    smaller = copy.deepcopy(module)
    for key, rank in ranks(low).items():
        replace(smaller, key, factored(smaller.get_submodule(key), rank))  # type: ignore[arg-type]
    return smaller


@dataclass(frozen=True)
class _Layer:
    """A layer that may be factored."""

    name: str
    energy: torch.Tensor
    """Share of the energy in the largest singular values, for each rank from 1."""
    cost: int
    of_each_rank: int

    @classmethod
    def of(cls, name: str, layer: nn.Conv2d | nn.Linear, positions: int, by: Cost) -> _Layer:
        """Return a layer that is computed at ``positions`` of an image."""
        matrix = layer.weight.detach().double().flatten(1)
        squares = torch.linalg.eigvalsh(_gram(matrix)).flip(0).clamp(min=0)
        outputs, inputs = layer.weight.shape[0], layer.weight[0].numel()
        times = positions if by == "macs" else 1
        total = squares.sum()
        energy = squares.cumsum(0) / total if total > 0 else torch.ones_like(squares)
        return cls(name, energy, outputs * inputs * times, (outputs + inputs) * times)

    def rank(self, energy: float) -> int | None:
        """Return the lowest rank that keeps a share of the energy; ``None`` where the layer is cheaper as it is."""
        enough = self.energy >= energy - 1e-12
        rank = int(enough.int().argmax()) + 1 if bool(enough.any()) else len(self.energy)
        return rank if rank * self.of_each_rank < self.cost else None

    def saved(self, energy: float) -> int:
        """Return the cost that is gone at a share of the energy."""
        rank = self.rank(energy)
        return 0 if rank is None else self.cost - rank * self.of_each_rank


def _gram(matrix: torch.Tensor) -> torch.Tensor:
    """Return the product of a matrix and its transpose, the smaller one: its eigenvalues are squared singular values.

    In float64 that is precise enough for float32 weights, and far faster than a singular value decomposition.
    """
    return matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix


def _positions(module: nn.Module, size: int) -> dict[str, int]:
    """Return how often each layer is computed for one image, the pixels of a convolution's output; those that are."""
    found: dict[str, int] = {}

    def count(name: str, layer: nn.Module, output: torch.Tensor) -> None:
        outputs = layer.out_channels if isinstance(layer, nn.Conv2d) else output.shape[-1]
        found[name] = found.get(name, 0) + output.numel() // int(outputs)

    hooks = [
        layer.register_forward_hook(lambda part, _inputs, output, key=key: count(key, part, output))
        for key, layer in factorable(module)
    ]
    try:
        with evaluating(module), torch.no_grad():
            module(torch.zeros(1, 3, size, size, device=device_of(module)))
    finally:
        for hook in hooks:
            hook.remove()
    return found
