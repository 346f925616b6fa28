"""What `train-student` does for a loss on what layers show: find the signals and the layers that learn from them."""

from __future__ import annotations

from collections.abc import Sequence

from kdpipe import models
from kdpipe.distil.losses import DistillationLoss, parse
from kdpipe.distil.signals import NoLogits, SignalTerm, SignalTerms, settle, split
from kdpipe.errors import UnsupportedLossError
from kdpipe.models import Model
from kdpipe.store import LogitStore, open_store
from stages.params import TrainStudent


def logits_loss(params: TrainStudent, temperature: float | None) -> DistillationLoss:
    """Return the loss on logits, at ``temperature`` or the loss's own.

    Raises:
        UnsupportedLossError: there is no such loss, or there is none, and it is given settings.
    """
    settings = params.loss_settings if temperature is None else {**params.loss_settings, "temperature": temperature}
    text, wanted = split(params.loss)
    if text is not None:
        return parse(text, standardize=params.standardize, **settings)
    given = [*(["standardize"] if params.standardize else []), *settings]
    if given:
        names = " and ".join(one.name for one in wanted)
        raise UnsupportedLossError(
            f"{', '.join(given)}: the loss {names} sees no logits. Leave it out, or add a loss that does: --loss "
            f"'{{kd: {{}}, {wanted[0].name}: {{}}}}'"
        )
    return NoLogits()


def signal_terms(params: TrainStudent, stores: Sequence[LogitStore], student: Model) -> tuple[SignalTerm, ...]:
    """Settle what the student learns from the signals of the store; nothing where the loss sees logits alone.

    Raises:
        UnsupportedLossError: there is not one store, it does not keep what is needed, or layers have to be named.
    """
    wanted = split(params.loss)[1]
    if not wanted or params.mode == "none":
        return ()
    if params.mode == "live" or len(stores) != 1:
        raise UnsupportedLossError(
            f"the loss {wanted[0].name} learns from what one store keeps of the teacher's layers, found "
            f"{'a live teacher' if params.mode == 'live' else f'{len(stores)} stores'}. Give one --store, made with "
            "kdpipe cache-teacher --signals."
        )
    (store,) = stores
    return settle(
        wanted,
        store.signals,
        student.module,
        size=student.preset.size,
        name=student.name,
        source=str(store.path),
    )


def beside(store: LogitStore, terms: Sequence[SignalTerm]) -> LogitStore:
    """Return the store with planes that hold the signals of ``terms`` beside the logits."""
    names = sorted({str(theirs) for term in terms for _, theirs in term.pairs})
    return open_store(store.path, store.split, memory_limit=store.memory_limit, beside=names) if names else store


def watch(
    params: TrainStudent, terms: Sequence[SignalTerm], stores: Sequence[LogitStore], student: Model
) -> SignalTerms | None:
    """Hook the terms onto the student; its projections are drawn by the run's seed."""
    if not terms:
        return None
    return SignalTerms(
        terms,
        student.module,
        shapes=stores[0].manifest.kept,
        size=student.preset.size,
        name=student.name,
        seed=params.seed,
        device=models.resolve_device(params.device),
    )
