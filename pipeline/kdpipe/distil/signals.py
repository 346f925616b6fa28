"""Losses on layers in one training: the layers that learn from each other, and what is learned beside the student."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from kdpipe.distil.losses import LayerLoss
from kdpipe.errors import UnsupportedLossError
from kdpipe.models import InputSize, find_penultimate
from kdpipe.models.signals import FEATURES, PENULTIMATE, Shape, Signal, Watch, layers, signal_shape


@dataclass(frozen=True)
class SignalTerm:
    """One loss on layers, and the signals that it compares."""

    loss: LayerLoss
    pairs: tuple[tuple[Signal, Signal], ...]
    """The student's signal and the teacher's that it learns from."""


def settle(
    losses: Sequence[LayerLoss],
    kept: Sequence[str],
    student: torch.nn.Module,
    *,
    size: InputSize,
    name: str,
    source: str,
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
    for loss in losses:
        theirs = [signal.layer for signal in known if signal.kind == loss.kind]
        pairs = loss.pairs or _by_default(loss, theirs, student, size=size, name=name, source=source)
        for _, layer in pairs:
            if layer not in theirs:
                raise _not_kept(loss, layer, kept, source=source)
        terms.append(
            SignalTerm(loss, tuple((Signal(loss.kind, ours), Signal(loss.kind, layer)) for ours, layer in pairs))
        )
    return tuple(terms)


def _by_default(
    loss: LayerLoss, theirs: Sequence[str], student: torch.nn.Module, *, size: InputSize, name: str, source: str
) -> Sequence[tuple[str, str]]:
    if not theirs:
        raise _not_kept(loss, PENULTIMATE if loss.kind == FEATURES else "LAYER", (), source=source)
    ours = [layer for layer, shape in layers(student, size).items() if signal_shape(loss.kind, shape) is not None]
    if loss.kind == FEATURES and find_penultimate(student, size) is not None:
        ours.append(PENULTIMATE)
    same = [(layer, layer) for layer in theirs if layer in ours]
    if same:
        return same
    if len(theirs) > 1 or not ours:
        raise UnsupportedLossError(
            f"{name} has none of the layers {', '.join(theirs)} that {source} keeps {loss.kind} of. Name the student's "
            f"layer and the teacher's that it learns from: --loss {loss.name}:STUDENT:{theirs[-1]}; kdpipe models "
            f"{name} --layers lists the student's."
        )
    return [(ours[-1], theirs[0])]


def _not_kept(loss: LayerLoss, layer: str, kept: Sequence[str], *, source: str) -> UnsupportedLossError:
    there = f", only {', '.join(kept)}" if kept else ""
    signal = f"{loss.kind}:{layer}"
    return UnsupportedLossError(
        f"the loss {loss.name} learns from {signal}, which {source} does not keep{there}. Make a store with: kdpipe "
        f"cache-teacher --signals {signal}"
    )


class SignalTerms:
    """Hooks on the student's layers, and the terms that compare their signals with the teacher's."""

    def __init__(
        self,
        terms: Sequence[SignalTerm],
        student: torch.nn.Module,
        *,
        shapes: Mapping[str, Shape],
        size: InputSize,
        name: str,
        seed: int,
        device: torch.device,
        labels: torch.Tensor | None = None,
    ) -> None:
        """Hook onto ``student``; ``shapes`` are those of the teacher's signals, by name.

        ``labels``, int64 ``(samples,)``, are those of all training samples, for losses that remember them. The
        projections are drawn by ``seed``, whatever has been drawn before, and moved to ``device``.

        Raises:
            ModelError: the student has no such layer, or its output cannot make the signal.
        """
        self.terms = tuple(terms)
        known = torch.zeros(0, dtype=torch.int64) if labels is None else labels
        watched = sorted({ours for term in terms for ours, _ in term.pairs})
        self._watch = Watch(student, watched, size=size, name=name)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            made = {
                term.loss.name: torch.nn.ModuleList(
                    term.loss.module(self._watch.shapes[str(ours)], shapes[str(theirs)], known)
                    for ours, theirs in term.pairs
                )
                for term in terms
            }
        self.projections = torch.nn.ModuleDict(made).to(device)
        """Modules that are learned beside the student, and are not part of it."""

    @property
    def taught(self) -> tuple[str, ...]:
        """Names of the teacher's signals that are compared with."""
        return tuple(sorted({str(theirs) for term in self.terms for _, theirs in term.pairs}))

    def __call__(
        self, taught: Mapping[str, torch.Tensor], indices: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        """Return each term by the name of its loss, for the last batch of the student.

        ``taught`` are the teacher's signals of that batch by name, float32 on the student's device; ``indices``, int64
        ``(n,)``, are its samples. A term is the sum over its pairs of layers, without its weight.
        """
        found = self._watch.take()
        terms = {}
        for term in self.terms:
            projections = self.projections[term.loss.name]
            assert isinstance(projections, torch.nn.ModuleList)
            parts = [
                project(found[str(ours)], taught[str(theirs)], indices)
                if term.loss.memory is not None
                else term.loss(project(found[str(ours)]), taught[str(theirs)])
                for project, (ours, theirs) in zip(projections, term.pairs, strict=True)
            ]
            terms[term.loss.name] = torch.stack(parts).sum()
        return terms

    def weighted(self, terms: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return the sum of the terms, each times its weight."""
        return torch.stack([term.loss.weight * terms[term.loss.name] for term in self.terms]).sum()

    def close(self) -> None:
        """Remove the hooks from the student."""
        self._watch.close()
