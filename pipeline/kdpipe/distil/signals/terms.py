"""The losses on signals of one training: which layers learn from which, and what is learned beside the student."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from kdpipe.distil.signals.base import SignalLoss
from kdpipe.distil.signals.written import Wanted
from kdpipe.errors import UnsupportedLossError
from kdpipe.models import find_penultimate
from kdpipe.models.signals import FEATURES, PENULTIMATE, Shape, Signal, Watch, layers, signal_shape


@dataclass(frozen=True)
class SignalTerm:
    """One loss, its weight, and the signals that it compares."""

    name: str
    loss: SignalLoss
    weight: float
    pairs: tuple[tuple[Signal, Signal], ...]
    """The student's signal and the teacher's that it learns from."""


def settle(
    wanted: Sequence[Wanted], kept: Sequence[str], student: torch.nn.Module, *, size: int, name: str, source: str
) -> tuple[SignalTerm, ...]:
    """Settle which layers of ``student`` learn from which of the signals ``kept``.

    Where the layers were left open, those of one name learn from each other; where there are none, and the teacher has
    one signal of the kind, the student's last layer learns from it. ``size`` is the side of the student's images;
    ``name`` and ``source`` are what errors call the student and the store.

    Raises:
        UnsupportedLossError: a signal is not kept, with the flag that keeps it, or layers have to be named.
    """
    known = [Signal.parse(each) for each in kept]
    terms = []
    for one in wanted:
        kind = one.loss.kind
        theirs = [signal.layer for signal in known if signal.kind == kind]
        pairs = dict(one.layers) or _by_default(one, theirs, student, size=size, name=name, source=source)
        for layer in pairs.values():
            if layer not in theirs:
                raise _not_kept(one.name, f"{kind}:{layer}", kept, source=source)
        signals = tuple((Signal(kind, ours), Signal(kind, layer)) for ours, layer in pairs.items())
        terms.append(SignalTerm(one.name, one.loss, one.weight, signals))
    return tuple(terms)


def _by_default(
    wanted: Wanted, theirs: Sequence[str], student: torch.nn.Module, *, size: int, name: str, source: str
) -> dict[str, str]:
    kind = wanted.loss.kind
    if not theirs:
        layer = PENULTIMATE if kind == FEATURES else "LAYER"
        raise _not_kept(wanted.name, f"{kind}:{layer}", (), source=source)
    ours = [layer for layer, said in layers(student, size).items() if signal_shape(kind, said) is not None]
    if kind == FEATURES and find_penultimate(student, size) is not None:
        ours.append(PENULTIMATE)
    same = {layer: layer for layer in theirs if layer in ours}
    if same:
        return same
    if len(theirs) > 1 or not ours:
        raise UnsupportedLossError(
            f"{name} has none of the layers {', '.join(theirs)} that {source} keeps {kind} of. Say which learns from "
            f"which: --loss '{{{wanted.name}: {{layers: {{STUDENT: {theirs[-1]}}}}}}}'; kdpipe models {name} --layers "
            "lists the student's."
        )
    return {ours[-1]: theirs[0]}


def _not_kept(loss: str, signal: str, kept: Sequence[str], *, source: str) -> UnsupportedLossError:
    there = f", only {', '.join(kept)}" if kept else ""
    return UnsupportedLossError(
        f"the loss {loss} learns from {signal}, which {source} does not keep{there}. Make a store with: kdpipe "
        f"cache-teacher --signals logits,{signal}"
    )


class SignalTerms:
    """Watches the student's layers and compares what they show with what the teacher's did."""

    def __init__(
        self,
        terms: Sequence[SignalTerm],
        student: torch.nn.Module,
        *,
        shapes: Mapping[str, Shape],
        size: int,
        name: str,
        seed: int,
        device: torch.device,
    ) -> None:
        """Hook onto ``student``; ``shapes`` are those of the teacher's signals, by name.

        The projections are drawn by ``seed``, whatever has been drawn before, and moved to ``device``.

        Raises:
            ModelError: the student has no such layer, or it cannot give the signal.
        """
        self.terms = tuple(terms)
        watched = sorted({ours for term in terms for ours, _ in term.pairs})
        self._watch = Watch(student, watched, size=size, name=name)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            made = {
                term.name: torch.nn.ModuleList(
                    term.loss.projection(self._watch.shapes[str(ours)], shapes[str(theirs)])
                    for ours, theirs in term.pairs
                )
                for term in terms
            }
        self.projections = torch.nn.ModuleDict(made).to(device)
        """What is learned beside the student, and not part of it."""

    @property
    def taught(self) -> tuple[str, ...]:
        """Names of the teacher's signals that are compared with."""
        return tuple(sorted({str(theirs) for term in self.terms for _, theirs in term.pairs}))

    def __call__(self, taught: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return each term by the name of its loss, for the batch that the student has just been shown.

        ``taught`` are the teacher's signals of that batch by name, float32 on the student's device. A term is the sum
        over its pairs of layers, without its weight.
        """
        shown = self._watch.take()
        found = {}
        for term in self.terms:
            projections = self.projections[term.name]
            assert isinstance(projections, torch.nn.ModuleList)
            parts = [
                term.loss(project(shown[str(ours)]), taught[str(theirs)])
                for project, (ours, theirs) in zip(projections, term.pairs, strict=True)
            ]
            found[term.name] = torch.stack(parts).sum()
        return found

    def weighted(self, found: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return the sum of the terms, each times its weight."""
        return torch.stack([term.weight * found[term.name] for term in self.terms]).sum()

    def close(self) -> None:
        """Let go of the student."""
        self._watch.close()
