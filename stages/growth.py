"""Growth of a store with its dataset: `cache-teacher` and `import-logits` add the samples that a sealed store lacks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from kdpipe.dataset import Dataset
from kdpipe.encoding.base import Encoding
from kdpipe.errors import CorruptStoreError, StaleStoreError, StoreError
from kdpipe.pairing.growth import Standing, by_segment
from kdpipe.pairing.join import remarks, with_store_ids
from kdpipe.stages.console import say
from kdpipe.stages.settings.storing import Storing
from kdpipe.store import adoption, manifest
from kdpipe.store.growing import grow, grow_together
from kdpipe.store.leases import Membership
from kdpipe.store.ledger import lock, writing
from kdpipe.store.manifest import Manifest
from kdpipe.store.plan import Plan
from kdpipe.store.reader import open_store
from kdpipe.store.segments import Samples
from kdpipe.store.settings import Part, Provenance
from kdpipe.store.skeleton import differences_but_samples, settled
from kdpipe.store.tree import group_name
from kdpipe.store.writer import Builder


class Planner(Protocol):
    """Plans a store for datasets by segment; everything else is settled."""

    def __call__(
        self, datasets: Mapping[str, Dataset], *, views: int, replaces: Mapping[str, int] | None = None
    ) -> Plan:
        """Return the plan."""


@dataclass(frozen=True)
class Continued:
    """A sealed store whose ingredients are those asked for, but for its samples."""

    path: Path
    found: Manifest
    encoding: Encoding
    standings: Mapping[str, Standing]
    """By split."""

    @classmethod
    def of(cls, params: Storing, wanted: Plan, datasets: Mapping[str, Dataset]) -> Continued | None:
        """Compare the store at ``--out`` with the plan of one made from scratch.

        Returns ``None`` if there is no sealed store, another ingredient differs, or no training sample is in both;
        with ``--overwrite`` also where an error is raised otherwise.

        Raises:
            StaleStoreError: images are rendered to other pixels than they were, or views are to be added and some
                images of the store's samples are no longer there.
        """
        path = params.output.out
        try:
            found = manifest.read(path)
        except StoreError:
            return None
        if found.state != "sealed":
            return None
        encoding = _encoded(params, wanted, found)
        if encoding is None:
            return None
        try:
            standings = {split: Standing.of(open_store(path, split), dataset) for split, dataset in datasets.items()}
        except CorruptStoreError:
            # A store of one segment is compared as it is, and adding views computes damaged shards again.
            if len(found.splits) == len(found.names) or params.output.overwrite:
                return None
            raise
        if not standings["train"].served.any():
            return None
        continued = cls(path, found, encoding, standings)
        obstacle = continued._obstacle(views=wanted.splits["train"].planes - 1)
        if obstacle is None:
            return continued
        if params.output.overwrite:
            return None
        raise StaleStoreError(f"{path}: {obstacle}. Rebuild it with --overwrite, or pass --out another path.")

    @property
    def views(self) -> int:
        """Number of the store's augmented views."""
        return self.found.splits["train"].planes - 1

    def _obstacle(self, *, views: int) -> str | None:
        """Return why the store cannot be continued; ``None`` if it can."""
        if views > self.views and self.segments is None:
            return (
                f"views cannot be added to {self.views}, because images of its samples were removed or have changed; "
                "kdpipe compact leaves their rows out"
            )
        if not self.fresh:
            return None
        drifts = (standing.drift() for standing in self.standings.values())
        return next((str(drift) for drift in drifts if drift is not None), None)

    def again(self, datasets: Mapping[str, Dataset]) -> Continued:
        """Return the same store after it has grown.

        Raises:
            StaleStoreError: another process has changed it since.
        """
        found = manifest.read(self.path)
        standings = {split: Standing.of(open_store(self.path, split), dataset) for split, dataset in datasets.items()}
        if not all(standing.served.all() for standing in standings.values()):
            raise StaleStoreError(f"{self.path} was changed by another process meanwhile. Run this again.")
        return replace(self, found=found, standings=standings)

    def say_changes(self) -> None:
        """Report which samples were renamed, are new, have changed or were removed."""
        for split, standing in self.standings.items():
            served = np.flatnonzero(standing.served)
            if standing.renamed and len(served):
                for line in remarks(standing.store, standing.dataset.subset(served), standing.rows[served]):
                    say(line)
            changes = str(standing)
            if changes:
                say(f"'{split}' samples: {changes}.")

    @property
    def fresh(self) -> dict[str, Dataset]:
        """The samples that the store lacks, by their new segment."""
        found = {}
        for split, standing in self.standings.items():
            fresh = standing.fresh
            if fresh is not None:
                found[group_name(split, len(self.found.segments(split)))] = fresh
        return found

    def growth(self, planned: Planner) -> Plan:
        """Return the plan of the new segments."""
        replaces = {
            group_name(split, len(self.found.segments(split))): standing.replaces
            for split, standing in self.standings.items()
        }
        return self._encoded(planned(self.fresh, views=self.views, replaces=replaces))

    def building(self, planned: Planner, params: Storing, *, part: Part | None) -> AbstractContextManager[Builder]:
        """Return the build of the new segments, by this process alone or with its ``part`` as one of several."""
        plan = replace(self.growth(planned), provenance=params.provenance)
        if part is None:
            return grow(self.path, plan, onto=self.found)
        return grow_together(self.path, lambda: plan, part, onto=self.found)

    def whole(self, planned: Planner, segments: Mapping[str, Dataset], *, views: int) -> Plan:
        """Return the plan of all segments."""
        replaces = {group: self.found.splits[group].replaces for group in segments}
        return self._encoded(planned(segments, views=views, replaces=replaces))

    def _encoded(self, plan: Plan) -> Plan:
        return plan.encoded_by(self.encoding, self.found.choice)

    def test_logits(self, builder: Builder) -> npt.NDArray[np.float32]:
        """Return the plain logits of the whole test split, ``(n, classes)``, once its new segment is written."""
        standing = self.standings["test"]
        logits = np.empty((len(standing.dataset), len(self.found.classes)), dtype=np.float32)
        served = standing.served
        if served.any():
            logits[served] = standing.store.logits(standing.rows[served])
        logits[~served] = builder.plane(group_name("test", len(self.found.segments("test"))), 0)
        return logits

    @property
    def segments(self) -> dict[str, Dataset] | None:
        """The images of all segments, by segment; ``None`` if some were removed or have changed."""
        return _joined(by_segment(standing.store.segments, standing.dataset) for standing in self.standings.values())


@dataclass(frozen=True)
class Unfinished:
    """A store of several segments to which views are being added."""

    images: Mapping[str, Dataset]
    """By segment."""
    replaces: Mapping[str, int]


def begun(params: Storing, wanted: Plan, datasets: Mapping[str, Dataset]) -> Unfinished | None:
    """Return the store at ``--out`` if views are being added to several segments of it, and their images are here.

    ``None`` also if an ingredient differs from the plan of a store made from scratch.
    """
    path = params.output.out
    with suppress(StoreError):
        found = manifest.read(path)
        if found.state == "building" and len(found.splits) > len(found.names) and _encoded(params, wanted, found):
            samples = {split: Samples.of(path, found, split) for split in datasets}
            images = _joined(
                by_segment(samples[split].segments, with_store_ids(samples[split], dataset))
                for split, dataset in datasets.items()
            )
            if images is not None:
                return Unfinished(images, {group: cut.replaces for group, cut in found.splits.items()})
    return None


def _encoded(params: Storing, wanted: Plan, found: Manifest) -> Encoding | None:
    """Return the encoding of a store whose ingredients are those of ``wanted``, but for its samples; else ``None``."""
    settings = params.encoding
    known = settled(
        params.output.out,
        wanted,
        max_kl=settings.max_kl,
        temperatures=settings.at_temperature,
        any_samples=True,
    )
    return None if known is None or differences_but_samples(found, known.manifest()) else known.calibrated


def finish_growth(path: Path, *, part: Part | None) -> None:
    """Put segments in their place that were sealed just before a kill; ``part`` is this process's, of several.

    Raises:
        StoreLockedError: another process is writing the store.
    """
    if adoption.part_path(path).is_dir():
        with writing(path), _alone(path, part) as alone:
            if alone:
                adoption.recover(path)


def describe(path: Path, provenance: Provenance, *, part: Part | None) -> None:
    """Add statements of its makers to a sealed store; ``part`` is this process's, of several that run this."""
    if provenance != Provenance():
        with writing(path), _alone(path, part) as alone:
            if alone:
                adoption.describe(path, provenance)


@contextmanager
def _alone(path: Path, part: Part | None) -> Iterator[bool]:
    """Take the lock of a store; of several processes, one gets it alone, and the others wait for that one."""
    if part is None:
        with lock(path):
            yield True
    else:
        with Membership(path) as membership:
            yield membership.alone


def _joined(parts: Iterable[Mapping[str, Dataset] | None]) -> dict[str, Dataset] | None:
    found: dict[str, Dataset] = {}
    for part in parts:
        if part is None:
            return None
        found |= part
    return found
