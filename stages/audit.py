"""Command `audit`: the samples of a dataset whose labels the teacher of a store finds unlikely."""

from __future__ import annotations

import shlex
from pathlib import Path

from kdpipe import dataset, directories
from kdpipe.pairing.audit import audit
from kdpipe.pairing.join import with_store_ids
from kdpipe.report.audit import KIND, PAGE, page, table, write
from kdpipe.sharing.streaming import open_store
from kdpipe.stages.console import progress, say, show
from kdpipe.stages.sources import in_store_classes


def audit_store(place: str, data: str, *, split: str, class_map: Path | None, count: int, out: Path) -> None:
    """Write the ``count`` samples of a split with the least likely labels into the directory ``out``.

    Raises:
        KdpipeError: store or dataset cannot be read, or have nothing in common; ``out`` holds something else.
    """
    with directories.held(out, KIND):
        samples = dataset.load(data, split, progress=progress)
        store = open_store(place, split, say=say)
        known = with_store_ids(store, samples, progress=progress)
        _, samples = in_store_classes(store, known, class_map=class_map)
        found = audit(store, samples, progress=progress)
        drawn = page(found, samples, store=place, count=count, progress=progress)
        write(out, page=drawn, table=table(found, samples, count=count))
    if found.missing:
        say(f"{found.missing:,} of {len(samples):,} '{split}' samples of {data} are not in {place}, or have changed.")
    if found.unlabeled:
        say(f"{found.unlabeled:,} samples have no label.")
    accuracies = " ".join(f"{each:.2%}" for each in found.accuracies)
    say(f"The teacher predicts the labels of {accuracies} of the samples in views 0 to {found.views - 1}.")
    show(
        f"{found.suspects:,} of {len(found.indices):,} labels are less likely than another class; the first "
        f"{min(count, len(found.indices)):,} are in {shlex.quote(str(out / PAGE))}."
    )
