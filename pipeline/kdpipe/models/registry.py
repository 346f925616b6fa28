"""Names of models: the architectures of the zoo, and kinds of names such as ``torchvision:NAME``.

Importing this does not import torch, so that names are listed quickly; building a network does. A name such as
``package.module:function`` runs code. It is allowed on the command line; where a file names it, it is refused unless
the user trusts the file.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from kdpipe.dataset.forms import Form
from kdpipe.errors import ModelError, UntrustedCodeError, did_you_mean
from kdpipe.models.interface import Interface
from kdpipe.models.preset import Known, for_imagenet, of_imagenet

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Loaded:
    """A network with its weights, and what is recorded with them."""

    module: nn.Module
    presets: tuple[Known, ...] = ()
    """Presets, of which the first has precedence."""
    classes: tuple[str, ...] | None = None
    """Class names in the order of the logits."""
    form: Form | None = None
    """The form of the tensors that the network takes, where that is recorded."""
    interface: Interface = field(default_factory=Interface)
    """The layout of its images and its output, where its file has them."""
    remarks: tuple[str, ...] = ()
    """Lines that the user is to read."""


def _no_weights(_name: str, _weights: str | Path | None, _num_classes: int, **_given: object) -> Loaded | None:
    return None


class LoadWeights(Protocol):
    """Loads a network whose kind of names brings or publishes weights."""

    def __call__(
        self, name: str, weights: str | Path | None, num_classes: int, /, *, trust_code: bool, interface: Interface
    ) -> Loaded | None:
        """Return the network of ``name``, without the prefix; code in a file is run only with ``trust_code``.

        ``interface`` is that which the user gives.
        """


def _no_preset(_name: str, _module: nn.Module) -> Known | None:
    return None


@dataclass(frozen=True)
class Kind:
    """A kind of names, ``prefix:NAME``, and what ``kdpipe list models`` prints about it."""

    usage: str
    """The form of its names."""
    help: str
    """One line."""
    create: Callable[[str, int], nn.Module] | None = None
    """Takes what follows the prefix, and the number of classes; draws weights from torch's global generator. ``None``
    where the models carry their own weights."""
    source: str = ""
    """Address of the publication, empty if there is none."""
    load: LoadWeights = _no_weights
    """Returns ``None`` if the weights are a file, or if they must be drawn."""
    preset: Callable[[str, nn.Module], Known | None] = _no_preset
    """Returns the preset that a created network is meant for."""
    published: Callable[[str, nn.Module], Known | None] = _no_preset
    """Returns the preset of the published weights of a network, for weights in a file that records none."""
    names: Callable[[], Sequence[str]] = tuple
    """Returns the known names, for suggestions."""
    prefixed: bool = True
    """Whether its names begin with the prefix of ``usage``; a kind without one takes all other names with a colon."""
    foreign: bool = False
    """Whether its networks are the user's, so that ``load`` checks their output."""
    inner: Callable[[str], str] | None = None
    """Returns the name of the model that a name of this kind is made from; ``None`` where there is none."""

    @property
    def name(self) -> str:
        """Its prefix, or its form where it has none."""
        return self.usage.partition(":")[0] if self.prefixed else self.usage


@dataclass(frozen=True)
class Architecture:
    """A network of the zoo, and what ``kdpipe list models`` prints about it."""

    name: str
    help: str
    """One line."""
    source: str
    """The paper."""
    build: Callable[[int], nn.Module]
    """Takes the number of classes."""
    imagenet: bool
    """Whether it is meant for ImageNet's geometry; others take the dataset's."""


_KINDS: dict[str, Kind] = {}
_ARCHITECTURES: dict[str, Architecture] = {}


def register(kind: Kind) -> None:
    """Register a kind of names.

    Raises:
        ValueError: there is a kind of this name.
    """
    if kind.name in _KINDS:
        raise ValueError(f"there is a model kind '{kind.name}' already")
    _KINDS[kind.name] = kind


def family(
    settings: Mapping[str, Mapping[str, Any]], *, source: str, imagenet: bool = False
) -> Callable[[Callable[..., nn.Module]], Callable[..., nn.Module]]:
    """Register the networks of a function, by name with the settings that it is called with.

    The function takes the number of classes first; the first line of its docstring is their help.

    Raises:
        ValueError: a name is taken.
    """

    def add(build: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
        help_line = (inspect.getdoc(build) or "").partition("\n")[0]
        for name, given in settings.items():
            if name in _ARCHITECTURES:
                raise ValueError(f"there is an architecture '{name}' already")
            _ARCHITECTURES[name] = Architecture(name, help_line, source, partial(build, **given), imagenet)
        return build

    return add


def architectures() -> tuple[Architecture, ...]:
    """Return the networks of the zoo, by family."""
    return tuple(_ARCHITECTURES.values())


def names() -> list[str]:
    """Return the names of the zoo, by family."""
    return list(_ARCHITECTURES)


def all_kinds() -> tuple[Kind, ...]:
    """Return the kinds of names besides the zoo's: those made from others, then the one without a prefix last."""
    return tuple(sorted(_KINDS.values(), key=lambda kind: (not kind.prefixed, kind.inner is not None)))


def create(name: str, num_classes: int) -> nn.Module:
    """Build the network called ``name``, in training mode on the CPU, drawing from torch's global generator.

    Raises:
        ModelError: there is no such model, or it is a program or a run, which cannot be made anew.
    """
    kind, rest = resolve(name)
    if kind.create is None:
        raise ModelError(f"'{name}' carries its own weights and cannot be trained from scratch; name an architecture")
    return kind.create(rest, num_classes)


def resolve(name: str) -> tuple[Kind, str]:
    """Return the kind of a name, and what its functions take.

    Raises:
        ModelError: there is no such name.
    """
    if name in _ARCHITECTURES:
        return _ZOO, name
    prefix, _, rest = name.partition(":")
    if not rest:
        raise unknown(name)
    for kind in all_kinds():
        if not kind.prefixed:
            return kind, name
        if kind.name == prefix:
            return kind, rest
    raise unknown(name)


def is_foreign(name: str) -> bool:
    """Return whether a name stands for a network of the user's; False where it is unknown."""
    try:
        return _kind_of_base(name).foreign
    except ModelError:
        return False


def unknown(name: str) -> ModelError:
    """Return the error for an unknown name, with the nearest known ones."""
    known = [*_ARCHITECTURES, *(f"{kind.name}:{other}" for kind in all_kinds() for other in kind.names())]
    # The likeliest slips are the wrong case and a forgotten prefix.
    same = [f"'{other}'" for other in known if other.rpartition(":")[2].lower() == name.lower()]
    hint = f"; did you mean {' or '.join(same)}?" if same else did_you_mean(name, known)
    return ModelError(f"unknown model '{name}'{hint} (or use {', '.join(kind.usage for kind in all_kinds())})")


def refuse_weights(name: str, weights: str | Path | None) -> None:
    """Check that no weights are given for a model that has its own.

    Raises:
        ModelError: there are some.
    """
    if weights is not None:
        raise ModelError(f"'{name}' carries its own weights; leave out {weights}")


def _kind_of_base(name: str) -> Kind:
    """Return the kind of the model that a name's model is made from, or of the name itself."""
    kind, rest = resolve(name)
    while kind.inner is not None:
        kind, rest = resolve(kind.inner(rest))
    return kind


def _build(name: str, num_classes: int) -> nn.Module:
    return _ARCHITECTURES[name].build(num_classes)


def _zoo_preset(name: str, _module: nn.Module) -> Known | None:
    return for_imagenet("zoo") if _ARCHITECTURES[name].imagenet else None


def _zoo_published(name: str, _module: nn.Module) -> Known | None:
    return of_imagenet("ImageNet") if _ARCHITECTURES[name].imagenet else None


_ZOO = Kind("NAME", "A network of the zoo.", _build, preset=_zoo_preset, published=_zoo_published, prefixed=False)


def runs_code(name: str) -> bool:
    """Return whether building the model ``name`` imports a module that the name gives."""
    try:
        kind = _kind_of_base(name)
    except ModelError:
        return False
    return kind.foreign and not kind.prefixed


def refuse_code(name: str, *, origin: object, trust_code: bool) -> None:
    """Refuse a model that the file ``origin`` names and that runs code, unless the user trusts it.

    Raises:
        UntrustedCodeError: it runs code, and is not trusted.
    """
    if runs_code(name) and not trust_code:
        raise UntrustedCodeError(
            f"{origin} says its network is made by {name}: pass --trust-code to run that code if you trust it."
        )
