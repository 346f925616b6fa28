"""Networks with fewer channels or factored layers, by name: ``compressed:MODEL,widths=...,ranks=...``.

The name holds everything that the network is built from, so that neither the program that made it smaller nor its
weights are needed. It is read from the headers of files, and therefore checked against the model that it begins with:
layers can only shrink.

    compressed:resnet8,widths=-12.12.12-8.8.8-12.12....,ranks=..8
    compressed:torchvision:resnet18,ranks=.24.24

``ranks`` has an entry for each convolution and linear layer of the model, in the order of ``named_modules``: the rank
of a layer that is replaced by two in sequence, empty for one that stays. ``widths`` has an entry for each convolution,
linear layer and batch norm after that: ``IN-OUT`` channels, or one number for a batch norm; numbers are left out where
they are those of the model, and so are the entries at the end that are empty.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kdpipe import spec
from kdpipe.errors import ModelError
from kdpipe.models import registry
from kdpipe.models.preset import Known
from kdpipe.models.registry import Kind, register

if TYPE_CHECKING:
    import torch
    from torch import nn

COMPRESSED = "compressed"
LONGEST = 4096
"""Characters of a name, as many as the records of a run hold."""

_NUMBER = re.compile(r"[1-9][0-9]{0,6}")
Pair = tuple[int | None, int | None]


@dataclass(frozen=True)
class Shape:
    """The model that a compressed one is made from, and the layers that differ."""

    base: str
    """Name of the model."""
    widths: tuple[Pair, ...] = ()
    """Input and output channels of each layer; ``None`` where they are those of the model."""
    ranks: tuple[int | None, ...] = ()
    """Ranks of the factored layers; ``None`` for a layer that is not."""

    def __str__(self) -> str:
        """Return the name of the compressed model; that of ``base`` where nothing differs."""
        widths = _written([_pair_written(pair) for pair in self.widths])
        ranks = _written(["" if rank is None else str(rank) for rank in self.ranks])
        settings = {key: value for key, value in (("widths", widths), ("ranks", ranks)) if value}
        return str(spec.Term(COMPRESSED, (self.base,), settings)) if settings else self.base


def parse(name: str) -> Shape:
    """Return the model and the layers that a name stands for; every other name is that of an uncompressed model.

    Raises:
        ModelError: it begins with ``compressed:`` and is no such name.
    """
    if not name.startswith(f"{COMPRESSED}:"):
        return Shape(name)
    if len(name) > LONGEST:
        raise ModelError(f"the name of a compressed model has {len(name):,} characters, expected at most {LONGEST:,}")
    terms = spec.parse(name, error=ModelError)
    term = terms[0]
    if len(terms) != 1 or len(term.values) != 1 or not {*term.settings} <= {"widths", "ranks"}:
        raise _odd(name, "expected compressed:MODEL,widths=...,ranks=...")
    (base,) = term.values
    if base.startswith(f"{COMPRESSED}:"):
        raise _odd(name, "its model is a compressed one")
    return Shape(
        base,
        tuple(_pair(each, name) for each in _entries(term.settings.get("widths", ""))),
        tuple(_number(each, name) for each in _entries(term.settings.get("ranks", ""))),
    )


def base_of(name: str) -> str:
    """Return the name of the model that a compressed one is made from; any other name as it is."""
    return parse(name).base


def short_name(name: str) -> str:
    """Return a name for messages: that of a compressed model with a digest in place of its widths and ranks."""
    if not name.startswith(f"{COMPRESSED}:"):
        return name
    from blake3 import blake3

    return f"{base_of(name)} compressed {blake3(name.encode()).hexdigest()[:6]}"


def build(shape: Shape, num_classes: int) -> nn.Module:
    """Build the network on the CPU: that of ``base``, of which each layer keeps its first channels.

    Raises:
        ModelError: there is no such model, or the shapes are not those of smaller layers of it.
    """
    module = registry.create(shape.base, num_classes)
    layers = factorable(module)
    _refuse_surplus("ranks", len(shape.ranks), of=len(layers), base=shape.base)
    for (name, whole), rank in zip(layers, shape.ranks, strict=False):
        if rank is not None:
            if rank > full_rank(whole):
                raise _misfit(shape.base, f"{name} has rank {rank}, expected at most {full_rank(whole)}")
            replace(module, name, factors(whole, rank))
    sized = sized_layers(module)
    _refuse_surplus("widths", len(shape.widths), of=len(sized), base=shape.base)
    for (name, layer), pair in zip(sized, shape.widths, strict=False):
        _shrink(layer, pair, name=name, base=shape.base)
    return module


def shape_of(module: nn.Module, *, base: str, num_classes: int) -> Shape:
    """Return the shape of a network that was made from ``base`` by removing channels and factoring layers.

    Raises:
        ModelError: a network of this shape cannot be built from the name of ``base``.
    """
    whole = registry.create(base, num_classes)
    present = dict(module.named_modules())
    ranks: list[int | None] = []
    for name, each in factorable(whole):
        made = present.get(name)
        rank = None if type(made) is type(each) else _rank(made)
        if rank is not None:
            replace(whole, name, factors(each, min(rank, full_rank(each))))
        ranks.append(rank)
    widths = []
    for name, layer in sized_layers(whole):
        made = present.get(name)
        if type(made) is not type(layer):
            raise _misfit(base, f"{name} is a {type(made).__name__}, expected a {type(layer).__name__}")
        before, now = _size(layer), _size(made)
        widths.append((None if now[0] == before[0] else now[0], None if now[1] == before[1] else now[1]))
    shape = Shape(base, tuple(widths), tuple(ranks))
    if len(str(shape)) > LONGEST:
        raise ModelError(f"{base} has too many layers to name the widths of: {len(widths)}")
    _refuse_other(module, build(shape, num_classes), base=base)
    return shape


def factorable(module: nn.Module) -> list[tuple[str, nn.Conv2d | nn.Linear]]:
    """Return the convolutions and linear layers of a network by name, in order.

    Subclasses are none: they compute something else, or are read by what they are in.
    """
    from torch import nn

    return [(name, part) for name, part in module.named_modules() if type(part) in (nn.Conv2d, nn.Linear)]


def sized_layers(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the layers that have channels, by name, in order: convolutions, linear layers and batch norms."""
    from torch import nn

    kinds = (nn.Conv2d, nn.Linear, nn.BatchNorm1d, nn.BatchNorm2d)
    return [(name, part) for name, part in module.named_modules() if isinstance(part, kinds)]


def full_rank(layer: nn.Conv2d | nn.Linear) -> int:
    """Return the largest rank of a layer's weight as a matrix of ``(outputs, inputs of one output)``.

    It is 0 for a convolution with groups, which cannot be factored.
    """
    if getattr(layer, "groups", 1) != 1:
        return 0
    return int(min(layer.weight.shape[0], layer.weight[0].numel()))


def factors(layer: nn.Conv2d | nn.Linear, rank: int) -> nn.Sequential:
    """Return two layers in sequence with ``rank`` channels between them, which take the place of one.

    A convolution becomes one of the same kernel with ``rank`` outputs and a 1x1 convolution; the bias goes to the
    second.
    """
    from torch import nn

    bias = layer.bias is not None
    if isinstance(layer, nn.Linear):
        return nn.Sequential(
            nn.Linear(layer.in_features, rank, bias=False), nn.Linear(rank, layer.out_features, bias=bias)
        )
    first = nn.Conv2d(
        layer.in_channels,
        rank,
        layer.kernel_size,  # type: ignore[arg-type]
        layer.stride,  # type: ignore[arg-type]
        layer.padding,  # type: ignore[arg-type]
        layer.dilation,  # type: ignore[arg-type]
        bias=False,
        padding_mode=layer.padding_mode,
    )
    return nn.Sequential(first, nn.Conv2d(rank, layer.out_channels, 1, bias=bias))


def replace(module: nn.Module, name: str, layer: nn.Module) -> None:
    """Put ``layer`` in the place of the layer ``name`` of a network."""
    parent, _, own = name.rpartition(".")
    module.get_submodule(parent)._modules[own] = layer


def _rank(made: nn.Module | None) -> int | None:
    """Return the number of channels between the two layers of a factored one; ``None`` for anything else."""
    from torch import nn

    if not isinstance(made, nn.Sequential) or len(made) != 2 or not isinstance(made[0], nn.Conv2d | nn.Linear):
        return None
    return _size(made[0])[1]


def _size(layer: nn.Module | None) -> tuple[int, int]:
    """Return the input and output channels of a layer."""
    from torch import nn

    if isinstance(layer, nn.Conv2d):
        return layer.in_channels, layer.out_channels
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    width = int(getattr(layer, "num_features", 0))
    return width, width


def _shrink(layer: nn.Module, pair: Pair, *, name: str, base: str) -> None:
    """Keep the first channels of a layer.

    Raises:
        ModelError: it has fewer, or groups that these cannot be divided into.
    """
    from torch import nn

    before = _size(layer)
    inputs, outputs = (have if want is None else want for have, want in zip(before, pair, strict=True))
    if inputs > before[0] or outputs > before[1]:
        raise _misfit(base, f"{name} has {inputs}-{outputs} channels, expected at most {before[0]}-{before[1]}")
    if (inputs, outputs) == before:
        return
    if isinstance(layer, nn.Conv2d):
        groups = inputs if layer.groups == layer.in_channels > 1 else layer.groups
        if inputs % groups or outputs % groups:
            raise _misfit(base, f"{name} has {inputs}-{outputs} channels, which {groups} groups do not divide")
        layer.in_channels, layer.out_channels, layer.groups = inputs, outputs, groups
        _cut(layer, outputs, inputs // groups)
    elif isinstance(layer, nn.Linear):
        layer.in_features, layer.out_features = inputs, outputs
        _cut(layer, outputs, inputs)
    elif isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
        if inputs != outputs:
            raise _misfit(base, f"{name} has {inputs}-{outputs} channels, expected one number")
        layer.num_features = outputs
        _cut(layer, outputs)


def _cut(layer: nn.Module, outputs: int, inputs: int | None = None) -> None:
    """Cut the tensors of a layer, of which those of one dimension have a value for each output."""
    from torch import nn

    def cut(tensor: torch.Tensor) -> torch.Tensor:
        kept = tensor.detach()[:outputs] if tensor.ndim == 1 or inputs is None else tensor.detach()[:outputs, :inputs]
        return kept.clone()

    for name, parameter in list(layer.named_parameters(recurse=False)):
        setattr(layer, name, nn.Parameter(cut(parameter), requires_grad=parameter.requires_grad))
    for name, buffer in list(layer.named_buffers(recurse=False)):
        if buffer.ndim:
            setattr(layer, name, cut(buffer))


def _refuse_other(module: nn.Module, built: nn.Module, *, base: str) -> None:
    """Refuse a network that has other tensors than the one that its name stands for."""
    expected = {key: tuple(value.shape) for key, value in built.state_dict().items()}
    for key, value in module.state_dict().items():
        if expected.pop(key, None) != tuple(value.shape):
            raise _misfit(base, f"{key} has the shape {tuple(value.shape)}, which no width describes")
    if expected:
        raise _misfit(base, f"{next(iter(expected))} is missing")


def _refuse_surplus(what: str, found: int, *, of: int, base: str) -> None:
    if found > of:
        raise _misfit(base, f"{found} {what} are given for {of} layers")


def _misfit(base: str, why: str) -> ModelError:
    return ModelError(f"no network compressed from {base} has these layers: {why}")


def _odd(name: str, why: str) -> ModelError:
    shown = name if len(name) <= 80 else f"{name[:80]}…"
    return ModelError(f"'{shown}' is no name of a compressed model: {why}")


def _written(entries: list[str]) -> str:
    return ".".join(entries).rstrip(".")


def _entries(text: str) -> list[str]:
    return text.split(".") if text else []


def _pair_written(pair: Pair) -> str:
    inputs, outputs = ("" if number is None else str(number) for number in pair)
    return inputs if inputs == outputs else f"{inputs}-{outputs}"


def _pair(text: str, name: str) -> Pair:
    inputs, dash, outputs = text.partition("-")
    return (_number(inputs, name), _number(outputs if dash else inputs, name))


def _number(text: str, name: str) -> int | None:
    if text and not _NUMBER.fullmatch(text):
        raise _odd(name, f"expected a number of channels, found '{text[:20]}'")
    return int(text) if text else None


def _create(rest: str, num_classes: int) -> nn.Module:
    return build(parse(f"{COMPRESSED}:{rest}"), num_classes)


def _base(rest: str) -> str:
    return base_of(f"{COMPRESSED}:{rest}")


def _preset(rest: str, module: nn.Module) -> Known | None:
    kind, name = registry.resolve(_base(rest))
    return kind.preset(name, module)


def _published(rest: str, module: nn.Module) -> Known | None:
    kind, name = registry.resolve(_base(rest))
    return kind.published(name, module)


register(
    Kind(
        "compressed:MODEL,widths=...,ranks=...",
        "A model with fewer channels or factored layers, as kdpipe compress makes it.",
        _create,
        preset=_preset,
        published=_published,
        foreign=True,
        inner=_base,
    )
)
