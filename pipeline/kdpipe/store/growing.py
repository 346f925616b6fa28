"""Growth of a sealed store by further segments, by one process or several."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from kdpipe.errors import StaleStoreError
from kdpipe.store import adoption, manifest, partial
from kdpipe.store.leases import PATIENCE, Membership
from kdpipe.store.ledger import lock, writing
from kdpipe.store.manifest import Manifest
from kdpipe.store.plan import Plan
from kdpipe.store.settings import Part
from kdpipe.store.writer import Builder, build, build_together


@contextmanager
def grow(path: Path, plan: Plan, *, onto: Manifest) -> Iterator[Builder]:
    """Start or resume further segments of the sealed store at ``path``; yields their ``Builder`` under the writer lock.

    Once they are sealed, they become part of the store. Until then readers see the store as it was, and nothing of it
    changes; segments that were begun for another plan are removed.

    Args:
        path: the store's directory.
        plan: the new segments alone, such as ``train.1``.
        onto: the store's manifest, which the plan was made for.

    Raises:
        StaleStoreError: the store has another manifest now.
        StoreLockedError: another process is writing it.
        UnwritableStoreError: the disk is full or read-only; also raised by the builder's methods.
    """
    with ExitStack() as held:
        with writing(path):
            held.enter_context(lock(path))
            adoption.recover(path)
        _refuse_changed(path, onto)
        with build(adoption.part_path(path), plan, overwrite=True) as builder:
            yield builder
        if builder.sealed:
            with writing(path):
                adoption.recover(path)


@contextmanager
def grow_together(
    path: Path, plan: Callable[[], Plan], part: Part, *, onto: Manifest, patience: float = PATIENCE
) -> Iterator[Builder]:
    """Compute further segments as one of several processes that run this; see ``grow`` and ``build_together``.

    The first process that comes after all have ended their part puts the segments in their place.
    """
    with ExitStack() as held:
        with writing(path):
            membership = held.enter_context(Membership(path, patience=patience))
            if membership.alone:
                adoption.recover(path)
                membership.share()
        _refuse_changed(path, onto)
        with build_together(adoption.part_path(path), plan, part, overwrite=True, patience=patience) as builder:
            yield builder
        if builder.sealed:
            with writing(path):
                membership.separate()
                adoption.recover(path)


def _refuse_changed(path: Path, onto: Manifest) -> None:
    partial.refuse(path, onto.checksum, what="adding to it")
    if manifest.read(path) != onto:
        raise StaleStoreError(f"{path} was changed by another process meanwhile. Run this again.")
