"""Contract of the distillation losses, and the decorators that register them.

A loss on logits is a function of the student's and the teacher's logits, and of the labels where it reads them; its
further parameters are its settings:

    @loss("kd", kd_weight=0.9, ce_weight=0.1, source="Hinton et al. 2015")
    def kd(student: Tensor, teacher: Tensor, temperature: Positive = 4.0) -> Tensor: ...

A loss on layers is a function of one signal of each: ``layer_loss``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import wraps
from math import sqrt
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn

from kdpipe.distil.losses.arithmetic import at_least_float32, directions
from kdpipe.errors import ParamsError, UnsupportedLossError
from kdpipe.models.signals import Shape
from kdpipe.registry import Parameter, Registry
from kdpipe.spec import shortest

Settings = Mapping[str, Any]
"""Values of a loss's parameters, by name."""


class DistillationLoss(Protocol):
    """A distillation term, without cross-entropy to the labels and without warm-up.

    It is called with raw logits of the student and of the teacher, float ``(n, classes)``, at least two classes, and
    with labels, int64 ``(n,)``, -1 where there is none. It returns a scalar: the mean over the batch. A term that reads
    labels is the mean over the labeled samples, and 0 where there are none. Half precision is computed in float32.
    """

    @property
    def needs_label(self) -> bool:
        """Whether it reads the labels, one class each: it has no meaning for mixed images."""

    @property
    def kd_weight(self) -> float:
        """The published weight of this term."""

    @property
    def ce_weight(self) -> float:
        """The published weight of cross-entropy to the labels beside it."""

    @property
    def warmup_epochs(self) -> int:
        """Epochs over which the authors raise this term's weight to its full value."""

    @property
    def teacher_temperature(self) -> float | None:
        """The highest temperature at which it reads the teacher's probabilities.

        0 if it reads only the class with the highest logit; ``None`` if it depends on logits of unlikely classes as
        much as on those of likely ones, which no encoding made for a temperature keeps.
        """

    def __call__(self, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, /) -> Tensor:
        """Return the scalar loss."""


@dataclass(frozen=True)
class Definition:
    """A registered loss on logits: its formula, and the settings that its authors publish."""

    name: str
    formula: Callable[..., Tensor]
    defaults: tuple[tuple[str, Any], ...]
    """Names and default values of its parameters."""
    needs_label: bool
    needs_relations: bool
    kd_weight: float
    ce_weight: float
    warmup_epochs: int
    teacher_temperature: float | Callable[[Settings], float | None] | None
    standardized: tuple[tuple[str, float], ...]
    """Published values for z-scores that differ from those for logits."""

    def loss(self, settings: Settings, *, standardize: bool = False) -> LogitLoss:
        """Return the loss with ``settings``; the others have their defaults.

        Raises:
            UnsupportedLossError: ``standardize`` is given to a loss that reads only the teacher's decision.
        """
        if standardize and self.teacher_temperature == 0:
            raise UnsupportedLossError(
                f"the loss {self.name} reads only which class the teacher finds likeliest, which z-scores do not "
                "change: leave standardize out."
            )
        values = dict(self.defaults)
        if standardize:
            values |= {name: value for name, value in self.standardized if name in values}
        return LogitLoss(self, tuple({**values, **settings}.items()), standardize)


@dataclass(frozen=True)
class LogitLoss:
    """A registered loss with its settings, a ``DistillationLoss``.

    If ``standardized``, it is computed on z-scores: both rows of logits minus their mean, divided by their standard
    deviation. Sun et al., "Logit Standardization in Knowledge Distillation" (2024), algorithm 1: the student need not
    match the size of the teacher's logits. As in the authors' code (sunshangquan/logit-standardization-KD) the standard
    deviation is the unbiased one. A row whose logits are all equal has z-scores of 0 and no gradient.
    """

    definition: Definition
    settings: tuple[tuple[str, Any], ...]
    standardized: bool = False
    relations: Tensor | None = field(default=None, compare=False, repr=False)
    """Relations between the classes, ``(classes, classes)``, for a loss that reads them."""

    @property
    def needs_label(self) -> bool:
        """Whether the formula reads labels."""
        return self.definition.needs_label

    @property
    def kd_weight(self) -> float:
        """The published weight, of z-scores where they have another."""
        published = self.definition.kd_weight
        return dict(self.definition.standardized).get("kd_weight", published) if self.standardized else published

    @property
    def ce_weight(self) -> float:
        """The published weight of cross-entropy."""
        return self.definition.ce_weight

    @property
    def warmup_epochs(self) -> int:
        """The published epochs of warm-up."""
        return self.definition.warmup_epochs

    @property
    def teacher_temperature(self) -> float | None:
        """As declared; ``None`` for z-scores, because the standard deviation depends on all logits alike."""
        declared = self.definition.teacher_temperature
        if self.standardized:
            return None
        return declared(dict(self.settings)) if callable(declared) else declared

    def at(self, temperature: Tensor) -> LogitLoss:
        """Return the same loss at a temperature that is a scalar tensor, to which gradients flow."""
        return replace(self, settings=tuple({**dict(self.settings), "temperature": temperature}.items()))

    def among(self, relations: Tensor | None) -> LogitLoss:
        """Return the same loss among classes of these relations, ``(classes, classes)``; see ``distil.relations``."""
        return replace(self, relations=relations)

    def __call__(self, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, /) -> Tensor:
        """Return the scalar loss for logits ``(n, classes)`` and labels ``(n,)``."""
        if self.standardized:
            student_logits, teacher_logits = _z_scores(student_logits), _z_scores(teacher_logits)
        read = (labels,) if self.needs_label else ()
        if self.definition.needs_relations:
            read = (*read, self.relations if self.relations is None else self.relations.to(student_logits.device))
        return self.definition.formula(student_logits, teacher_logits, *read, **dict(self.settings))


def _z_scores(logits: Tensor) -> Tensor:
    units, _ = directions(at_least_float32(logits), dim=1)
    return units * sqrt(logits.shape[1] - 1)


class LayerPair(NamedTuple):
    """A layer of the student and the teacher's layer that it learns from."""

    student: str
    teacher: str

    @classmethod
    def parse(cls, text: str) -> LayerPair:
        """Parse ``STUDENT:TEACHER``, or one name for both.

        Raises:
            ParamsError: a name is missing, or there are more than two.
        """
        student, colon, teacher = (part.strip() for part in text.partition(":"))
        if not student or ":" in teacher or bool(colon) != bool(teacher):
            raise ParamsError("a layer, or STUDENT:TEACHER, the student's layer and the teacher's that it learns from")
        return cls(student, teacher or student)

    def __str__(self) -> str:
        """Return the pair as ``parse`` reads it."""
        return self.student if self.student == self.teacher else f"{self.student}:{self.teacher}"


def identity(student: Shape, teacher: Shape) -> nn.Module:  # noqa: ARG001
    """Return a projection without parameters."""
    return nn.Identity()


@dataclass(frozen=True)
class LayerLoss:
    """A registered loss between layers of the student and of the teacher, the sum over pairs of layers.

    It is called with the signals of a batch, float32: features ``(n, channels)``, the student's after its projection,
    attention maps ``(n, H, W)``, hidden states ``(n, tokens, channels)`` or heads ``(n, heads, tokens, tokens)``.
    It returns a scalar, without its weight.
    """

    name: str
    formula: Callable[..., Tensor]
    kind: str
    """The signals that it reads; see ``kdpipe.models.signals``."""
    weight: float
    """Its weight in the distillation term."""
    projection: Callable[[Shape, Shape], nn.Module] = identity
    """Makes the module, learned beside the student, that brings its signal to the teacher's; shapes are per image."""
    settings: tuple[tuple[str, Any], ...] = ()
    pairs: tuple[LayerPair, ...] = ()
    """The layers that learn from each other; empty where they are left open."""

    memory: Callable[..., nn.Module] | None = None
    """Makes the module that computes the loss where it remembers samples; see ``memory_loss``."""

    def module(self, student: Shape, teacher: Shape, labels: Tensor) -> nn.Module:
        """Return what is learned beside the student: the projection, or all of a loss that remembers samples.

        ``labels`` are those of all training samples, int64 ``(samples,)``.
        """
        if self.memory is None:
            return self.projection(student, teacher)
        return self.memory(student, teacher, labels, **dict(self.settings))

    def __call__(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the scalar loss."""
        return self.formula(student, teacher, **dict(self.settings))


LOSSES: Registry[LogitLoss | LayerLoss] = Registry("loss", error=UnsupportedLossError)
"""Every distillation loss, on logits or on layers, by the name that ``--loss`` takes."""

STANDARDIZE = Parameter("standardize", bool, False)
"""The setting that every loss on logits takes besides its own."""


def _own_temperature(settings: Settings) -> float | None:
    return settings.get("temperature")


def loss(
    name: str,
    *,
    kd_weight: float,
    ce_weight: float,
    source: str,
    warmup_epochs: int = 0,
    teacher_temperature: float | Callable[[Settings], float | None] | None = _own_temperature,
    standardized: Mapping[str, float] | None = None,
) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """Register a function of the student's and the teacher's logits as the loss called ``name``.

    If its third parameter is called ``labels``, the loss needs labels and gets them; if the next is called
    ``relations``, it gets relations between the classes, or ``None``. The others are settings, with the
    types of ``kdpipe.registry``, each with a default. ``kd_weight``, ``ce_weight`` and ``warmup_epochs`` are the
    published ones, ``standardized`` those values that are published for z-scores. ``teacher_temperature`` is explained
    in ``DistillationLoss``; the default is the setting ``temperature``, or ``None`` if there is none.
    """

    def register(formula: Callable[..., Tensor]) -> Callable[..., Tensor]:
        names = list(inspect.signature(formula).parameters)
        needs_label, needs_relations = "labels" in names[2:3], "relations" in names[2:4]
        tensors = 2 + needs_label + needs_relations
        definition = Definition(
            name,
            formula,
            tuple(_defaults(formula, tensors).items()),
            needs_label,
            needs_relations,
            kd_weight,
            ce_weight,
            warmup_epochs,
            teacher_temperature,
            tuple((standardized or {}).items()),
        )

        @wraps(formula)
        def make(**settings: Any) -> LogitLoss:
            return definition.loss(settings)

        weights = f"{shortest(kd_weight)}, {shortest(ce_weight)}"
        facts = {"reads": "logits and labels" if needs_label else "logits", "weights": weights}
        LOSSES.add(name, make, skip=tensors, source=source, facts=facts)
        return formula

    return register


def layer_loss(
    name: str,
    *,
    kind: str,
    weight: float,
    source: str,
    projection: Callable[[Shape, Shape], nn.Module] = identity,
) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """Register a function of a signal of the student and one of the teacher as the loss called ``name``.

    Its further parameters are settings, each with a default. ``kind``, ``weight`` and ``projection`` are explained in
    ``LayerLoss``.
    """

    def register(formula: Callable[..., Tensor]) -> Callable[..., Tensor]:
        defaults = _defaults(formula, 2)

        @wraps(formula)
        def make(*layers: LayerPair, **settings: Any) -> LayerLoss:
            values = tuple({**defaults, **settings}.items())
            return LayerLoss(name, formula, kind, weight, projection, values, layers)

        LOSSES.add(name, make, skip=2, before=(_layers(),), source=source, facts=_layer_facts(kind, weight))
        return formula

    return register


def memory_loss(name: str, *, kind: str, weight: float, source: str) -> Callable[[type[nn.Module]], type[nn.Module]]:
    """Register a module that remembers samples as the loss called ``name`` between a signal of student and teacher.

    It is made with the shapes of the student's and the teacher's signal and the labels of all training samples; the
    further parameters are settings, each with a default. It is called with the signals of a batch and the indices of
    its samples, and returns a scalar. Its parameters are learned beside the student, its buffers are part of each
    checkpoint.
    """

    def register(memory: type[nn.Module]) -> type[nn.Module]:
        defaults = _defaults(memory.__init__, 4)

        @wraps(memory.__init__)
        def make(*layers: LayerPair, **settings: Any) -> LayerLoss:
            values = tuple({**defaults, **settings}.items())
            return LayerLoss(name, _no_formula, kind, weight, settings=values, pairs=layers, memory=memory)

        make.__doc__ = memory.__doc__
        LOSSES.add(name, make, skip=4, before=(_layers(),), source=source, facts=_layer_facts(kind, weight))
        return memory

    return register


def _no_formula(student: Tensor, teacher: Tensor) -> Tensor:
    raise NotImplementedError("this loss is computed by the module that LayerLoss.module makes")


def _layers() -> Parameter:
    return Parameter("layers", LayerPair, inspect.Parameter.empty, many=True)


def _layer_facts(kind: str, weight: float) -> dict[str, str]:
    return {"reads": kind, "weights": shortest(weight)}


def _defaults(formula: Callable[..., Any], tensors: int) -> Settings:
    """Return the default of each parameter after the tensors.

    Raises:
        ValueError: a parameter has none.
    """
    found = {each.name: each.default for each in list(inspect.signature(formula).parameters.values())[tensors:]}
    if inspect.Parameter.empty in found.values():
        raise ValueError(f"{formula.__name__} is a loss, so each parameter after its {tensors} tensors needs a default")
    return found


def make(name: str, *, standardize: bool = False, **settings: float) -> LogitLoss:
    """Return the loss on logits called ``name`` with its settings, such as ``temperature``; the rest have defaults.

    With ``standardize`` it is that of z-scores, see ``LogitLoss``.

    Raises:
        UnsupportedLossError: there is no such loss or parameter, or a value is out of range; the message names the
            nearest, and the loss's parameters. Or the loss is one on layers, or has no z-scores.
    """
    entry = LOSSES[name]
    given = LOSSES.check(entry, settings, besides=(STANDARDIZE.name,))
    made = entry.make(**given)
    if isinstance(made, LayerLoss):
        raise UnsupportedLossError(f"the loss {name} reads {made.kind} of layers, not logits: write --loss kd+{name}.")
    return made.definition.loss(given, standardize=LOSSES.value(entry, STANDARDIZE, standardize))
