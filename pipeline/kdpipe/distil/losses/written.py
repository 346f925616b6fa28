"""Losses as ``--loss`` takes them: one or several, with weights, in the grammar of ``kdpipe.spec``.

    kd                                  one loss with its published weight
    dkd:alpha=1,beta=8,temperature=4    with settings
    kd:standardize=true                 of z-scores
    kd:weight=0.5,temperature=2+dist    several, added up
    kd+features:layer2,layer3,weight=5  with losses on layers
    attention:block2:layer2             the student's layer block2 learns from the teacher's layer2

A weight that is left out is the published one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from kdpipe.distil.losses.contract import LOSSES, STANDARDIZE, DistillationLoss, LayerLoss, make
from kdpipe.errors import UnsupportedLossError
from kdpipe.registry import Parameter, Range
from kdpipe.spec import Term, shortest
from kdpipe.spec import parse as parse_terms

WEIGHT = Parameter("weight", float, None, Range("0 or more", lambda value: value >= 0))
"""The setting that every loss takes besides its own: its weight in the distillation term."""
TEMPERATURE = "temperature"


@dataclass(frozen=True)
class LogitTerm:
    """A loss on logits as written: it keeps only the settings that are given."""

    name: str
    settings: tuple[tuple[str, Any], ...] = ()
    weight: float | None = None
    """Its weight in a sum of losses; ``None`` for the published one."""
    standardize: bool = False
    relations: Tensor | None = field(default=None, compare=False, repr=False)
    """Relations between the classes, of a loss that reads them."""

    @property
    def related_by(self) -> str | None:
        """Source of the class relations, ``logits`` or ``features``; ``None`` for a loss that reads none."""
        loss = make(self.name, standardize=self.standardize, **dict(self.settings))
        if not loss.definition.needs_relations:
            return None
        return "features" if dict(loss.settings).get("features") else "logits"

    @property
    def takes_temperature(self) -> bool:
        """Whether it has a temperature and none is given."""
        return TEMPERATURE not in dict(self.settings) and any(
            each.name == TEMPERATURE for each in LOSSES[self.name].parameters
        )

    def at(self, temperature: float | Tensor | None) -> DistillationLoss:
        """Return the loss; ``temperature`` is for one that takes it."""
        settings = dict(self.settings)
        if isinstance(temperature, float | int) and self.takes_temperature:
            settings[TEMPERATURE] = temperature
        loss = make(self.name, standardize=self.standardize, **settings).among(self.relations)
        return loss.at(temperature) if isinstance(temperature, Tensor) and self.takes_temperature else loss

    def __str__(self) -> str:
        """Return the term as ``parse`` reads it."""
        besides = [] if self.weight is None else [(WEIGHT.name, self.weight)]
        besides += [(STANDARDIZE.name, True)] if self.standardize else []
        return str(_written(self.name, (), (*self.settings, *besides)))


@dataclass(frozen=True)
class LayerTerm:
    """A loss on layers as written."""

    loss: LayerLoss
    settings: tuple[tuple[str, Any], ...] = ()
    """Those that are given, with the weight."""

    def __str__(self) -> str:
        """Return the term as ``parse`` reads it."""
        return str(_written(self.loss.name, tuple(map(str, self.loss.pairs)), self.settings))


@dataclass(frozen=True)
class Loss:
    """The whole distillation term of a training: losses on logits, losses on layers, or both."""

    terms: tuple[LogitTerm | LayerTerm, ...]

    @classmethod
    def parse(cls, text: str) -> Loss:
        """Parse losses as in the module's description.

        Raises:
            UnsupportedLossError: there is no such loss or parameter; a value is out of range; or a loss on layers
                stands twice.
        """
        loss = cls(tuple(_term(each) for each in parse_terms(text, error=UnsupportedLossError)))
        names = [each.name for each in loss.layers]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise UnsupportedLossError(
                f"the loss {twice} stands twice in '{text}': write all of its layers in one, {twice}:LAYER,LAYER."
            )
        return loss

    @property
    def layers(self) -> tuple[LayerLoss, ...]:
        """The losses on layers."""
        return tuple(each.loss for each in self.terms if isinstance(each, LayerTerm))

    @property
    def on_logits(self) -> tuple[LogitTerm, ...]:
        """The losses on logits."""
        return tuple(each for each in self.terms if isinstance(each, LogitTerm))

    @property
    def needs_label(self) -> bool:
        """Whether a loss reads labels."""
        return self.at().needs_label

    @property
    def related_by(self) -> frozenset[str]:
        """Sources of the class relations that the losses read: ``logits``, ``features``, both or neither."""
        return frozenset(each.related_by for each in self.on_logits if each.related_by is not None)

    def among(self, relations: Mapping[str, Tensor]) -> Loss:
        """Return the same losses among classes of these relations, by what relates them."""
        return Loss(
            tuple(
                replace(each, relations=relations[each.related_by])
                if isinstance(each, LogitTerm) and each.related_by is not None
                else each
                for each in self.terms
            )
        )

    @property
    def takes_temperature(self) -> bool:
        """Whether a loss has a temperature and does not give its own."""
        return any(each.takes_temperature for each in self.on_logits)

    def at(self, temperature: float | Tensor | None = None) -> DistillationLoss:
        """Return the loss on logits; those that do not give their own temperature are at ``temperature``.

        A temperature that is a tensor gets a gradient.

        A lone loss without a weight is itself; several are added up, and so is one beside losses on layers.

        Raises:
            UnsupportedLossError: no loss takes the temperature, or it is not above 0.
        """
        terms = self.on_logits
        if temperature is not None and not self.takes_temperature:
            self.refuse_temperature(shortest(float(temperature)))
        if not terms:
            return NoLogits()
        losses = [each.at(temperature) for each in terms]
        if len(self.terms) == 1 and terms[0].weight is None:
            return losses[0]
        weights = [
            one.kd_weight if each.weight is None else each.weight for each, one in zip(terms, losses, strict=True)
        ]
        return Combined(tuple(zip(weights, losses, strict=True)))

    def refuse_temperature(self, written: str) -> None:
        """Refuse a temperature, such as ``4`` or ``learned:1,21``, if no loss takes it.

        Raises:
            UnsupportedLossError: no loss has a temperature, or all give their own.
        """
        if self.takes_temperature:
            return
        own = [str(each) for each in self.on_logits if TEMPERATURE in dict(each.settings)]
        if own:
            reason = f"{' and '.join(own)} give{'s' if len(own) == 1 else ''} another. Leave one of them out."
        else:
            reason = f"the loss {self} has no parameter '{TEMPERATURE}'. Leave --temperature out."
        raise UnsupportedLossError(f"--temperature {written} has no effect: {reason}")

    def __str__(self) -> str:
        """Return the losses as ``parse`` reads them."""
        return "+".join(map(str, self.terms))


parse = Loss.parse


@dataclass(frozen=True)
class Combined:
    """The weighted sum of several losses on logits; it needs what any of them needs."""

    terms: tuple[tuple[float, DistillationLoss], ...]
    """Each loss after its weight."""

    kd_weight = 1.0
    warmup_epochs = 0

    @property
    def ce_weight(self) -> float:
        """That of the first loss."""
        return self.terms[0][1].ce_weight

    @property
    def needs_label(self) -> bool:
        """Whether any loss does."""
        return any(loss.needs_label for _, loss in self.terms)

    @property
    def teacher_temperature(self) -> float | None:
        """The highest of the losses; ``None`` where one is."""
        temperatures = [loss.teacher_temperature for _, loss in self.terms]
        known = [temperature for temperature in temperatures if temperature is not None]
        return max(known) if len(known) == len(temperatures) else None

    def __call__(self, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, /) -> Tensor:
        """Return the scalar sum for logits ``(n, classes)`` and labels ``(n,)``."""
        return torch.stack([weight * loss(student_logits, teacher_logits, labels) for weight, loss in self.terms]).sum()


@dataclass(frozen=True)
class NoLogits:
    """The loss on logits of a student that learns from layers alone: 0, beside cross-entropy of weight 1."""

    needs_label = False
    kd_weight = 1.0
    ce_weight = 1.0
    warmup_epochs = 0
    teacher_temperature = 0.0

    def __call__(self, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, /) -> Tensor:  # noqa: ARG002
        """Return 0."""
        return student_logits.new_zeros(())


def _term(term: Term) -> LogitTerm | LayerTerm:
    entry = LOSSES[term.name]
    on_layers = isinstance(entry.make(), LayerLoss)
    besides = (WEIGHT,) if on_layers else (WEIGHT, STANDARDIZE)
    _, given, written = LOSSES.bind(term, besides=[each.name for each in besides])
    extra = {each.name: LOSSES.value(entry, each, written[each.name]) for each in besides if each.name in written}
    weight = extra.get(WEIGHT.name)
    if not on_layers:
        standardize = extra.get(STANDARDIZE.name, False)
        make(term.name, standardize=standardize, **given)
        return LogitTerm(term.name, _ordered(given, entry.parameters), weight, standardize)
    layers = given.pop("layers")
    loss = entry.make(*layers, **given)
    assert isinstance(loss, LayerLoss)
    settings = _ordered(given | extra, (*entry.parameters, WEIGHT))
    return LayerTerm(loss if weight is None else replace(loss, weight=weight), settings)


def _ordered(given: dict[str, Any], parameters: Sequence[Parameter]) -> tuple[tuple[str, Any], ...]:
    return tuple((each.name, given[each.name]) for each in parameters if each.name in given)


def _written(name: str, values: tuple[str, ...], settings: tuple[tuple[str, Any], ...]) -> Term:
    texts = {key: str(value).lower() if isinstance(value, bool) else shortest(value) for key, value in settings}
    return Term(name, values, texts)
