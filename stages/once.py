"""A first pass that reads each image once, and learns its content with the shards of the plain view.

The build is bound to the names of the samples. If it is interrupted, the shards of images that have changed since are
computed again. An image that was removed keeps its row, which is not used; images that were added follow as growth.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kdpipe.dataset import Dataset, find_ids
from kdpipe.dataset.ids import fingerprint
from kdpipe.dataset.learning import Learned, arranged, surveyed
from kdpipe.dataset.loading import notes_on
from kdpipe.dataset.registry import Looking
from kdpipe.errors import DatasetError, StoreError, UnreadError
from kdpipe.pairing.probes import probe_rows
from kdpipe.stages.console import progress, say
from kdpipe.stages.settings.storing import CacheTeacher
from kdpipe.stages.sources import warn_of_shared
from kdpipe.store import manifest
from kdpipe.store.manifest import Manifest
from kdpipe.store.segments import Samples
from kdpipe.store.settings import Part
from kdpipe.store.writer import Builder
from kdpipe.views.rendering import Looked

Learn = Callable[[npt.NDArray[np.int64], Looked], None]


def begun(params: CacheTeacher) -> Manifest | None:
    """Return the manifest of the store at ``--out`` if its images are learned of in the pass, and it is unfinished."""
    with suppress(StoreError):
        found = manifest.read(params.output.out)
        return found if found.unread else None
    return None


def may_read_once(params: CacheTeacher, part: Part | None) -> bool:
    """Return whether the images may be left unread before the pass: that of a new store, by this process alone.

    Mixing partners must be images that can be decoded, and growth finds images by their content.
    """
    if part is not None or params.view.recipe.mixes:
        return False
    return begun(params) is not None or not params.output.out.exists()


@dataclass(frozen=True)
class Once:
    """The datasets of such a pass, in the order of the store's rows, and what is learned of them."""

    datasets: Mapping[str, Dataset]
    learned: Mapping[str, Learned]
    further: int
    """Images that the store under construction does not have."""

    @classmethod
    def of(cls, params: CacheTeacher, datasets: Mapping[str, Dataset]) -> Once:
        """Prepare the pass, or the rest of one that was interrupted; the images of the probes are read.

        Raises:
            DatasetError: an image of a probe cannot be used.
        """
        further, found = 0, begun(params)
        if found is not None and set(found.names) == set(datasets):
            ids = {split: Samples.of(params.output.out, found, split).sample_ids for split in datasets}
            rows = {split: arranged(dataset, ids[split]) for split, dataset in datasets.items()}
            kept = {split: dataset for split, dataset in rows.items() if dataset is not None}
            if len(kept) == len(datasets):
                further = sum(
                    int((find_ids(each.sample_ids, ids[split]) < 0).sum()) for split, each in datasets.items()
                )
                datasets = kept
        known = {split: surveyed(each, probe_rows(each), progress=progress) for split, each in datasets.items()}
        return cls(known, {split: Learned(each) for split, each in known.items()}, further)

    def check_finished(self, builder: Builder) -> None:
        """Compare the images of finished shards with those that were read for them, and forget those that differ.

        Only images that have changed by their state, or are not remembered, are read for it.
        """
        for split, learned in self.learned.items():
            done = np.zeros(builder.manifest.splits[split].samples, dtype=bool)
            for shard in builder.shards(split, 0):
                done[shard.start : shard.stop] = builder.is_done(shard)
            rows = np.flatnonzero(done)
            if not len(rows):
                continue
            known = surveyed(learned.dataset(), rows, progress=progress)
            learned.digests[rows], learned.sizes[rows] = known.content_digests[rows], known.sizes[rows]
            stale = rows[(builder.contents(split)[rows] != known.content_digests[rows]).any(axis=1)]
            if len(stale):
                shards = builder.forget(split, stale)
                say(
                    f"{len(stale):,} '{split}' images have changed since they were read: {shards:,} shards begin again."
                )

    @contextmanager
    def learning(self, split: str) -> Iterator[Learn]:
        """Yield the function that the pass over a split calls with what it learns, which is remembered at once."""
        learned, source = self.learned[split], self.datasets[split].source
        with ExitStack() as held:
            remember = held.enter_context(source.remembering()) if isinstance(source, Looking) else lambda *_: None
            yield lambda rows, looked: learned.add(rows, looked, remember)

    def settle(self, builder: Builder) -> None:
        """Give the store the content of its images, and say what could not be said before."""
        settle(builder)
        known = {split: learned.dataset() for split, learned in self.learned.items()}
        for split, learned in self.learned.items():
            for note in notes_on(learned.remarks, split):
                say(note)
        if "test" in known:
            warn_of_shared(known["train"], known["test"])


def settle(builder: Builder) -> None:
    """Give an unread store, whose plain views are complete, the content of its images and its fingerprint."""
    found = builder.manifest
    builder.settle(
        {
            split: fingerprint(
                Samples.of(builder.path, found, split).sample_ids, builder.contents(split), classes=found.classes
            )
            for split in found.names
        }
    )


@contextmanager
def kept(params: CacheTeacher) -> Iterator[None]:
    """Say, of an image that cannot be used, what remains of a pass that it ends."""
    try:
        yield
    except UnreadError:
        raise
    except DatasetError as error:
        raise DatasetError(
            f"{error}, or pass --skip-broken. Finished shards of {params.output.out} are kept: then run this again."
        ) from error
